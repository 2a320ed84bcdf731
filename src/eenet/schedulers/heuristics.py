"""Leaving by a confidence: exit shares in geometric progression, or thresholds searched jointly; votes; patience."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from eenet.policies.dial import Dial
from eenet.policies.replay import Replayer
from eenet.policies.scorers import ColumnScorer, Confidence, ConfidenceScorer, Scorer, VoteScorer, confidence_scorer
from eenet.schedulers.base import Scheduler
from eenet.schedulers.search import frontier, geometric_shares, outcomes, search, thresholds_for_shares
from eenet.tables.table import ExitTable

_TARGETS = 201  # mean costs at which geometric proportions are solved; between them policies are mixed


def scorer_for(confidence: Confidence, table: ExitTable) -> Scorer:
    """Return what scores a table's samples by a confidence; see `confidence_scorer`."""
    return confidence_scorer(confidence, None if table.has_classes else table.feature_names)


def any_scorer(table: ExitTable) -> Scorer:
    """Return a cheap scorer that can read a table, for policies that do not depend on scores."""
    return ConfidenceScorer("max_prob") if table.has_classes else ColumnScorer(0, table.num_columns)


def realised_costs(table: ExitTable) -> Float[np.ndarray, "*sample exit"]:
    """Return what leaving costs: ``[exit]``, or ``[sample, exit]`` where it differs from sample to sample."""
    return np.array(table.require_costs().cumulative) if table.cost is None else table.leaving_costs


def threshold_dial(
    scorer: Scorer,
    scores: Float[np.ndarray, "sample exit"],
    table: ExitTable,
    thresholds: Float[np.ndarray, "candidate exit"],
    seed: int,
) -> Dial:
    """Return the dial of some threshold vectors on one scorer, each judged on a table with utility and costs.

    ``scores`` are those of the table; the seed is that of the coin that mixes.
    """
    utility = table.require_utility("fitting thresholds")
    outcome = outcomes(scores, utility, realised_costs(table), thresholds)
    return Dial.of_thresholds(scorer, thresholds, outcome, table.require_costs(), seed)


def geometric_dial(
    scorer: Scorer,
    table: ExitTable,
    seed: int,
    *,
    base: Float[np.ndarray, " exit"] | None = None,
    steps: Float[np.ndarray, " exit"] | None = None,
) -> Dial:
    """Return a dial of a scorer whose exit shares form a geometric progression.

    ``base`` are the shares that the progression tilts (default: equal ones), ``steps`` its exponents (default: the
    numbers of the exits).
    """
    scores = Replayer(table).scores(scorer)
    costs = np.array(table.require_costs().cumulative)
    shares = geometric_shares(np.linspace(costs[0], costs[-1], _TARGETS), costs, base, steps)
    thresholds = thresholds_for_shares(scores, shares)
    thresholds[0, :-1] = -math.inf  # the ends exactly: everybody leaves first, everybody stays to the last
    thresholds[-1, :-1] = math.inf
    return threshold_dial(scorer, scores, table, thresholds, seed)


def joint_dial(scorer: Scorer, table: ExitTable, seed: int) -> Dial:
    """Return a dial of a scorer whose thresholds are searched jointly.

    Only the concave frontier is kept, so the dial ends where spending more bought nothing on the fitting data.
    """
    scores, costs = Replayer(table).scores(scorer), realised_costs(table)
    utility = table.require_utility("fitting thresholds")
    thresholds = search(scores, utility, costs, seed)
    kept = frontier(*outcomes(scores, utility, costs, thresholds))
    return threshold_dial(scorer, scores, table, thresholds[kept], seed)


@dataclass(frozen=True, kw_only=True)
class GeometricScheduler(Scheduler):
    """Leaves by a confidence, with exit shares in geometric progression ``P_k ~ rho^k`` that spend the whole budget.

    Attributes:
        confidence: ``"max_prob"`` (MSDNet), ``"certainty"`` (BranchyNet), ``"margin"``, or a function of
            log-probabilities ``[sample, class] -> [sample]``; of a table of features: the name of a column.

    Source:
        MSDNet (Huang et al., ICLR 2018); BranchyNet (Teerapittayanon et al., ICPR 2016) for the entropy.
    """

    confidence: Confidence = "max_prob"

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Fit thresholds for all budgets; see `Scheduler.dial`."""
        return geometric_dial(scorer_for(self.confidence, table), table, self.seed)


@dataclass(frozen=True, kw_only=True)
class JointScheduler(Scheduler):
    """Leaves by a confidence, with all thresholds searched jointly for the most utility within the budget.

    On the fitting data a larger budget never lowers utility. The policy may stay below a budget where spending more
    bought nothing.

    Attributes:
        confidence: As of `GeometricScheduler`.
    """

    confidence: Confidence = "max_prob"

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Search thresholds for all budgets; see `Scheduler.dial`."""
        return joint_dial(scorer_for(self.confidence, table), table, self.seed)


@dataclass(frozen=True, kw_only=True)
class VoteScheduler(Scheduler):
    """Leaves when enough of the exits seen voted for the same class; geometric exit shares.

    Source:
        EENet (arXiv 2301.07099), its form of PABEE for networks with a small number of exits.
    """

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Fit thresholds for all budgets; see `Scheduler.dial`."""
        return geometric_dial(VoteScorer(), table, self.seed)


@dataclass(frozen=True, kw_only=True)
class PatienceScheduler(Scheduler):
    """Leaves when a number of consecutive exits agree; one patience for all exits.

    The budget is met by mixing two neighbouring numbers.

    Source:
        PABEE (Zhou et al., NeurIPS 2020).
    """

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Evaluate every patience; see `Scheduler.dial`."""
        scorer, exits = ConfidenceScorer("streak"), table.num_exits
        # agreement of 1, 2, ... exits in a row; K agree only at the last exit, where all leave anyway
        thresholds = np.repeat(np.arange(1, exits + 1)[:, None] - 0.5, exits, axis=1)
        thresholds[:, -1] = -math.inf
        thresholds[-1, :-1] = math.inf
        return threshold_dial(scorer, Replayer(table).scores(scorer), table, thresholds, self.seed)
