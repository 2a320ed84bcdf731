"""eenet: early-exit inference under a compute budget.

The public names, in the order of the pipeline: a model with exits, its training, what its exits say and cost, where to
leave, running it for real, judging it, shipping it.
"""

# 1 a model with exits, 2 its training
from eenet.models.attach import attach
from eenet.models.heads import conv_head, pooled_linear, token_head
from eenet.models.model import MultiExitModel
from eenet.models.zoo import cifar_resnet, load_cifar_resnet_weights, tiny_cnn
from eenet.training.fit import fit_exits
from eenet.training.settings import TrainSettings

# 3 what every exit says about every sample, and what leaving there costs
from eenet.core.costs import CostTable, standard_budgets
from eenet.core.table import ExitTable
from eenet.inference.measure import Profile, load_costs, measure
from eenet.inference.record import record

# 4 where to leave
from eenet.core.combined import MixedPolicy, TransformedPolicy
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import ConfidenceScorer, Scorer
from eenet.core.trace import ExitTrace, replay
from eenet.core.transform import Transform
from eenet.schedulers import (
    AutoScheduler,
    BudgetController,
    Certificate,
    Certified,
    DeadlineScheduler,
    Dial,
    EENetScheduler,
    EeroScheduler,
    GeometricScheduler,
    JointScheduler,
    PatienceScheduler,
    PceeScheduler,
    Scheduler,
    StoppingScheduler,
    TransformedScheduler,
    VoteScheduler,
    certify,
    fit_calibration,
    fit_ensemble,
    fit_geometric_ensemble,
    load_policy,
    oracle,
    save_policy,
    static_mix,
)

# 5 really stops early
from eenet.inference.adaptive import AdaptiveModel, Prediction
from eenet.inference.bench import bench
from eenet.inference.engines import CompiledEngine, EagerEngine, Engine, OnnxEngine, OpenVinoEngine

# 6 judging
from eenet.evaluation import Advice, Comparison, Report, advise, compare, evaluate

# 7 shipping
from eenet.inference.bundle import Bundle
from eenet.inference.export import export

from eenet.errors import EenetError

__version__ = "0.1.0"

__all__ = [
    "attach",
    "MultiExitModel",
    "cifar_resnet",
    "conv_head",
    "load_cifar_resnet_weights",
    "pooled_linear",
    "tiny_cnn",
    "token_head",
    "TrainSettings",
    "fit_exits",
    "CostTable",
    "ExitTable",
    "Profile",
    "load_costs",
    "measure",
    "record",
    "standard_budgets",
    "AutoScheduler",
    "BudgetController",
    "Certificate",
    "Certified",
    "ConfidenceScorer",
    "DeadlineScheduler",
    "Dial",
    "EENetScheduler",
    "EeroScheduler",
    "ExitTrace",
    "GeometricScheduler",
    "JointScheduler",
    "MixedPolicy",
    "PatienceScheduler",
    "PceeScheduler",
    "Policy",
    "Scheduler",
    "ScorePolicy",
    "Scorer",
    "StoppingScheduler",
    "Transform",
    "TransformedPolicy",
    "TransformedScheduler",
    "VoteScheduler",
    "certify",
    "fit_calibration",
    "fit_ensemble",
    "fit_geometric_ensemble",
    "load_policy",
    "oracle",
    "replay",
    "save_policy",
    "static_mix",
    "AdaptiveModel",
    "CompiledEngine",
    "EagerEngine",
    "Engine",
    "OnnxEngine",
    "OpenVinoEngine",
    "Prediction",
    "bench",
    "Advice",
    "Comparison",
    "Report",
    "advise",
    "compare",
    "evaluate",
    "Bundle",
    "export",
    "EenetError",
    "__version__",
]
