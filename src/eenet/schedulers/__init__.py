"""Where to leave: schedulers learn a policy from a table and a budget."""

from eenet.schedulers.auto import AutoScheduler, Choice, Contender
from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.bounds import BoundPoint, oracle, static_mix
from eenet.schedulers.certificate import Certificate, Certified
from eenet.schedulers.certify import certify
from eenet.schedulers.control import BudgetController, ControlTrace
from eenet.schedulers.deadline import DeadlineScheduler
from eenet.schedulers.eenet import EENetScheduler, EENetScorer
from eenet.schedulers.ensemble import Ensemble, fit_calibration, fit_ensemble, fit_geometric_ensemble
from eenet.schedulers.heuristics import GeometricScheduler, PatienceScheduler, VoteScheduler
from eenet.schedulers.joint import JointScheduler
from eenet.schedulers.rivals import EeroScheduler, PceeScheduler
from eenet.schedulers.saved import SavedPolicy, load_policy, save_policy
from eenet.schedulers.stopping import StoppingScheduler
from eenet.schedulers.temperature import fit_temperatures
from eenet.schedulers.transformed import TransformedScheduler

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
