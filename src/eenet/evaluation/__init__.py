"""Judging on tables: one policy (`evaluate`), many at equal cost (`compare`), or exits at all (`advise`).

`evaluate_dense`, `compare_dense` and `dense_curve` do the same for tables of maps, on a data set's mean IoU.
"""

from eenet.evaluation.advise import Advice, advise
from eenet.evaluation.compare import compare
from eenet.evaluation.evaluate import Report, evaluate
from eenet.evaluation.groups import Group
from eenet.evaluation.parts import CostParts, StaticModel
from eenet.evaluation.results import Comparison
from eenet.evaluation.segmentation import (
    DenseReport,
    compare_dense,
    dense_curve,
    evaluate_dense,
    load_confusion,
    miou,
)

__all__ = [
    "Advice",
    "Comparison",
    "CostParts",
    "DenseReport",
    "Group",
    "Report",
    "StaticModel",
    "advise",
    "compare",
    "compare_dense",
    "dense_curve",
    "evaluate",
    "evaluate_dense",
    "load_confusion",
    "miou",
]
