"""For authors of schedulers and policies, and for our own tests: planted tables, and what every scheduler must pass."""

from eenet.testing.checks import Gain, check_policy, check_scheduler, measure_gain
from eenet.testing.planted import (
    classwise_accuracies,
    classwise_optimum,
    classwise_table,
    gaussian_accuracies,
    gaussian_optimum,
    gaussian_table,
    planted_outcomes,
    posterior_optimum,
    posterior_table,
    synthetic_table,
    typed_optimum,
    typed_table,
)

__all__ = [
    "Gain",
    "check_policy",
    "check_scheduler",
    "classwise_accuracies",
    "classwise_optimum",
    "classwise_table",
    "gaussian_accuracies",
    "gaussian_optimum",
    "gaussian_table",
    "planted_outcomes",
    "measure_gain",
    "posterior_optimum",
    "posterior_table",
    "synthetic_table",
    "typed_optimum",
    "typed_table",
]
