"""Where to leave: schedulers learn a policy from a table and a budget."""

from eenet.schedulers.auto import AutoScheduler, Choice, Contender
from eenet.schedulers.base import Scheduler
from eenet.schedulers.baselines import EeroScheduler, PatienceScheduler, PceeScheduler, VoteScheduler
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
from eenet.schedulers.matrix import MatrixFit, fit_matrix
from eenet.schedulers.stopping import StoppingScheduler
from eenet.schedulers.thresholds import GeometricScheduler, JointScheduler

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
    "EENetScheduler",
    "EeroScheduler",
    "GeometricScheduler",
    "JointScheduler",
    "MatrixFit",
    "PatienceScheduler",
    "PceeScheduler",
    "Scheduler",
    "StoppingScheduler",
    "TransformedScheduler",
    "VoteScheduler",
    "certify",
    "fit_calibration",
    "fit_ensemble",
    "fit_geometric_ensemble",
    "fit_matrix",
    "fit_temperatures",
    "oracle",
    "static_mix",
]
