"""Outputs of every exit for every sample, what leaving costs, and both as files. Knows no torch."""

from eenet.tables.arrays import log_softmax
from eenet.tables.costs import Budget, BudgetLike, CostTable, standard_budgets
from eenet.tables.outcomes import outcome_groups, read_outcomes
from eenet.tables.regression import regression_utility
from eenet.tables.table import ExitTable

__all__ = [
    "Budget",
    "BudgetLike",
    "CostTable",
    "ExitTable",
    "log_softmax",
    "outcome_groups",
    "read_outcomes",
    "regression_utility",
    "standard_budgets",
]
