"""Judging on tables: one policy (`evaluate`), many at equal cost (`compare`), or exits at all (`advise`).

What is behind the figures of `eenet.plot`: two policies sample by sample (`paired`), and their scores (`separation`).
"""

from eenet.evaluation.advice import Advice
from eenet.evaluation.advise import advise
from eenet.evaluation.compare import compare
from eenet.evaluation.evaluate import Report, evaluate
from eenet.evaluation.exits import CostParts, StaticModel
from eenet.evaluation.groups import Group
from eenet.evaluation.paired import Paired, at_equal_cost, group_counts, paired, shares_by_budget
from eenet.evaluation.results import Comparison
from eenet.evaluation.saving import Saving, saving
from eenet.evaluation.scores import Calibration, ScoreWeights, Separation, calibration, score_weights, separation
from eenet.evaluation.segmentation import MapReport, load_confusion
from eenet.evaluation.statics import BesideStatic
from eenet.evaluation.tiers import TierFit, fitting_exits

__all__ = [
    "Advice",
    "BesideStatic",
    "Calibration",
    "Comparison",
    "CostParts",
    "Group",
    "MapReport",
    "Paired",
    "Report",
    "Saving",
    "ScoreWeights",
    "Separation",
    "StaticModel",
    "TierFit",
    "advise",
    "at_equal_cost",
    "calibration",
    "compare",
    "evaluate",
    "fitting_exits",
    "group_counts",
    "load_confusion",
    "paired",
    "saving",
    "score_weights",
    "separation",
    "shares_by_budget",
]
