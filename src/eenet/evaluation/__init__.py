"""Judging on tables: one policy (`evaluate`), many at equal cost (`compare`), or exits at all (`advise`)."""

from eenet.evaluation.advise import Advice, advise
from eenet.evaluation.compare import compare
from eenet.evaluation.evaluate import Report, evaluate
from eenet.evaluation.exits import CostParts, StaticModel
from eenet.evaluation.groups import Group
from eenet.evaluation.results import Comparison
from eenet.evaluation.segmentation import MapReport, load_confusion

__all__ = [
    "Advice",
    "Comparison",
    "CostParts",
    "Group",
    "MapReport",
    "Report",
    "StaticModel",
    "advise",
    "compare",
    "evaluate",
    "load_confusion",
]
