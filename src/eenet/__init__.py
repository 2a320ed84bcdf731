"""eenet: early-exit inference under a compute budget.

The public names, in the order of the pipeline: a model with exits, its training, what its exits return and cost, where
to leave, running it for real, evaluating it, shipping it. Everything else is in the packages.

Nothing is loaded before it is used; PyTorch only by what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eenet.lazy import lazy

if TYPE_CHECKING:
    from eenet.errors import EenetError as EenetError
    from eenet.estimator import CascadeClassifier as CascadeClassifier
    from eenet.evaluation import advise as advise
    from eenet.evaluation import compare as compare
    from eenet.evaluation import evaluate as evaluate
    from eenet.experiments.zoo import tiny_cnn as tiny_cnn
    from eenet.models import MultiExitModel as MultiExitModel
    from eenet.models import attach as attach
    from eenet.policies import ConfidenceScorer as ConfidenceScorer
    from eenet.policies import Dial as Dial
    from eenet.policies import Policy as Policy
    from eenet.policies import ScorePolicy as ScorePolicy
    from eenet.policies import load_policy as load_policy
    from eenet.policies import replay as replay
    from eenet.policies import save_policy as save_policy
    from eenet.running import AdaptiveModel as AdaptiveModel
    from eenet.running import AdaptivePipeline as AdaptivePipeline
    from eenet.running import Bundle as Bundle
    from eenet.running import EagerEngine as EagerEngine
    from eenet.running import bench as bench
    from eenet.running import cascade as cascade
    from eenet.running import export as export
    from eenet.running import measure as measure
    from eenet.running import record as record
    from eenet.schedulers import AutoScheduler as AutoScheduler
    from eenet.schedulers import BudgetController as BudgetController
    from eenet.schedulers import DeadlineScheduler as DeadlineScheduler
    from eenet.schedulers import EENetScheduler as EENetScheduler
    from eenet.schedulers import GeometricScheduler as GeometricScheduler
    from eenet.schedulers import JointScheduler as JointScheduler
    from eenet.schedulers import Scheduler as Scheduler
    from eenet.schedulers import StoppingScheduler as StoppingScheduler
    from eenet.schedulers import certify as certify
    from eenet.speedup import SpeedUp as SpeedUp
    from eenet.speedup import speed_up as speed_up
    from eenet.tables import CostTable as CostTable
    from eenet.tables import ExitTable as ExitTable
    from eenet.tables import read_outcomes as read_outcomes
    from eenet.tables import regression_utility as regression_utility
    from eenet.training import TrainSettings as TrainSettings
    from eenet.training import fit_exits as fit_exits

__version__ = "0.2.0.dev0"

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        # all in one call
        "eenet.speedup": ("speed_up", "SpeedUp"),
        # 1 a model with exits, 2 its training
        "eenet.models": ("attach", "MultiExitModel"),
        "eenet.experiments.zoo": ("tiny_cnn",),
        "eenet.training": ("TrainSettings", "fit_exits"),
        # 3 what every exit returns for every sample, and what leaving there costs; 4 where to leave
        "eenet.tables": ("CostTable", "ExitTable", "read_outcomes", "regression_utility"),
        "eenet.policies": ("ConfidenceScorer", "Dial", "Policy", "ScorePolicy", "load_policy", "replay", "save_policy"),
        "eenet.schedulers": (
            "AutoScheduler",
            "BudgetController",
            "DeadlineScheduler",
            "EENetScheduler",
            "GeometricScheduler",
            "JointScheduler",
            "Scheduler",
            "StoppingScheduler",
            "certify",
        ),
        # 5 really stops early, 6 evaluation, 7 shipping
        "eenet.running": (
            "AdaptiveModel",
            "EagerEngine",
            "bench",
            "cascade",
            "measure",
            "record",
            "Bundle",
            "export",
            "AdaptivePipeline",
        ),
        "eenet.estimator": ("CascadeClassifier",),
        "eenet.evaluation": ("advise", "compare", "evaluate"),
        "eenet.errors": ("EenetError",),
    },
)
