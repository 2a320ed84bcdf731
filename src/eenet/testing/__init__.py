"""For authors of schedulers and policies, and for our own tests: planted tables, and what every scheduler must pass."""

from eenet.testing.checks import check_policy, check_scheduler, gain_share
from eenet.testing.planted import classwise_optimum, classwise_table, gaussian_optimum, gaussian_table
from eenet.testing.tables import posterior_optimum, posterior_table, synthetic_table, typed_optimum, typed_table

__all__ = [
    "check_policy",
    "check_scheduler",
    "classwise_optimum",
    "classwise_table",
    "gain_share",
    "gaussian_optimum",
    "gaussian_table",
    "posterior_optimum",
    "posterior_table",
    "synthetic_table",
    "typed_optimum",
    "typed_table",
]
