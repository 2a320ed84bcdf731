"""The rule that says where each sample stops, written once, in numpy. Knows no torch."""

from eenet.policies.dial import Dial
from eenet.policies.learned import EENetScorer, StoppingScorer
from eenet.policies.mixture import MixedPolicy, TransformedPolicy
from eenet.policies.policy import Policy, ScorePolicy, static_policy
from eenet.policies.replay import ExitTrace, Replayer, exit_distribution, replay
from eenet.policies.scorers import ColumnScorer, ConfidenceScorer, PceeScorer, Scorer, VoteScorer
from eenet.policies.store import SavedPolicy, load_policy, save_policy
from eenet.policies.transforms import Ensemble, MatrixCombination, Transform

__all__ = [
    "ColumnScorer",
    "ConfidenceScorer",
    "Dial",
    "EENetScorer",
    "Ensemble",
    "ExitTrace",
    "MatrixCombination",
    "MixedPolicy",
    "PceeScorer",
    "Policy",
    "Replayer",
    "SavedPolicy",
    "ScorePolicy",
    "Scorer",
    "StoppingScorer",
    "Transform",
    "TransformedPolicy",
    "VoteScorer",
    "exit_distribution",
    "load_policy",
    "replay",
    "save_policy",
    "static_policy",
]
