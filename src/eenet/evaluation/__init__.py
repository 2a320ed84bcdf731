"""Judging on tables: one policy (`evaluate`), many at equal cost (`compare`), or exits at all (`advise`)."""

from eenet.evaluation.advice import Advice, CostParts, StaticModel, advise
from eenet.evaluation.compare import Comparison, compare
from eenet.evaluation.evaluate import Report, evaluate
from eenet.evaluation.groups import Group

__all__ = [
    "Advice",
    "Comparison",
    "CostParts",
    "Group",
    "Report",
    "StaticModel",
    "advise",
    "compare",
    "evaluate",
]
