"""Where to leave: schedulers learn a policy from a table and a budget."""

from eenet.policies.dial import Dial
from eenet.policies.learned import EENetScorer
from eenet.policies.store import SavedPolicy, load_policy, save_policy
from eenet.policies.transforms import Ensemble
from eenet.schedulers.auto import AutoScheduler, Choice, Contender
from eenet.schedulers.base import Scheduler
from eenet.schedulers.bounds import BoundPoint, oracle, static_mix
from eenet.schedulers.certify import Certificate, Certified, certify
from eenet.schedulers.control import BudgetController, ControlTrace
from eenet.schedulers.deadline import DeadlineScheduler
from eenet.schedulers.eenet import EENetScheduler
from eenet.schedulers.ensemble import (
    TransformedScheduler,
    fit_calibration,
    fit_ensemble,
    fit_geometric_ensemble,
    fit_temperatures,
)
from eenet.schedulers.heuristics import GeometricScheduler, JointScheduler, PatienceScheduler, VoteScheduler
from eenet.schedulers.rivals import EeroScheduler, PceeScheduler
from eenet.schedulers.stopping import StoppingScheduler

__all__ = [
    "AutoScheduler",
    "BoundPoint",
    "BudgetController",
    "Certificate",
    "Certified",
    "Choice",
    "Contender",
    "ControlTrace",
    "DeadlineScheduler",
    "Dial",
    "EENetScheduler",
    "EENetScorer",
    "EeroScheduler",
    "Ensemble",
    "GeometricScheduler",
    "JointScheduler",
    "PatienceScheduler",
    "PceeScheduler",
    "SavedPolicy",
    "Scheduler",
    "StoppingScheduler",
    "TransformedScheduler",
    "VoteScheduler",
    "certify",
    "fit_calibration",
    "fit_ensemble",
    "fit_geometric_ensemble",
    "fit_temperatures",
    "load_policy",
    "oracle",
    "save_policy",
    "static_mix",
]
