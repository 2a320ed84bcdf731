"""Judging policies on tables: one policy (`evaluate`) or many at equal cost (`compare`)."""

from eenet.evaluation.compare import Comparison, compare
from eenet.evaluation.evaluate import Report, evaluate
from eenet.evaluation.groups import Group

__all__ = ["Comparison", "Group", "Report", "compare", "evaluate"]
