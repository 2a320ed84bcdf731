"""Judging on tables: one policy (`evaluate`), many at equal cost (`compare`), or exits at all (`advise`).

`evaluate_dense`, `compare_dense` and `dense_curve` do the same for tables of maps, on a data set's mean IoU.
"""

from eenet.evaluation.advice import Advice, CostParts, StaticModel, advise
from eenet.evaluation.compare import Comparison, compare
from eenet.evaluation.compare_dense import compare_dense
from eenet.evaluation.evaluate import Report, evaluate
from eenet.evaluation.groups import Group
from eenet.evaluation.segmentation import DenseReport, dense_curve, evaluate_dense, load_confusion, miou

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
