"""Where to leave: schedulers learn a policy from a table and a budget."""

from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.bounds import BoundPoint, oracle, static_mix
from eenet.schedulers.eenet import EENetScheduler, EENetScorer
from eenet.schedulers.heuristics import GeometricScheduler, PatienceScheduler, VoteScheduler
from eenet.schedulers.joint import JointScheduler
from eenet.schedulers.saved import SavedPolicy, load_policy, save_policy

__all__ = [
    "BoundPoint",
    "Dial",
    "EENetScheduler",
    "EENetScorer",
    "GeometricScheduler",
    "JointScheduler",
    "PatienceScheduler",
    "SavedPolicy",
    "Scheduler",
    "VoteScheduler",
    "load_policy",
    "oracle",
    "save_policy",
    "static_mix",
]
