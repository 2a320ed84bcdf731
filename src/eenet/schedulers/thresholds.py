"""Leaving by a confidence: exit shares in geometric progression, or thresholds searched jointly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from eenet.policies.dial import Dial
from eenet.policies.replay import Replayer
from eenet.policies.scorers import ColumnScorer, Confidence, ConfidenceScorer, Scorer, confidence_scorer
from eenet.schedulers.base import Scheduler
from eenet.schedulers.search import (
    MULTIPLIERS,
    frontier,
    geometric_shares,
    outcomes,
    search,
    thresholds_for_shares,
)
from eenet.tables.table import ExitTable

TARGETS = 201
"""Mean costs at which geometric proportions are solved; between them policies are mixed."""


def any_scorer(table: ExitTable) -> Scorer:
    """Return a cheap scorer that can read a table, for policies that do not depend on scores."""
    return ConfidenceScorer("max_prob") if table.has_classes else ColumnScorer(0, table.num_columns)


def realised_costs(table: ExitTable) -> Float[np.ndarray, "*sample exit"]:
    """Return what leaving costs: ``[exit]``, or ``[sample, exit]`` where it differs from sample to sample."""
    return np.array(table.require_costs().cumulative) if table.cost is None else table.leaving_costs


def threshold_dial(
    scorer: Scorer, replayer: Replayer, thresholds: Float[np.ndarray, "candidate exit"], seed: int
) -> Dial:
    """Return the dial of some threshold vectors on one scorer, each judged on a table with utility and costs.

    The seed is that of the coin that mixes.
    """
    table = replayer.table
    utility, costs = table.require_utility("fitting thresholds"), table.require_costs()
    outcome = outcomes(replayer.scores(scorer), utility, realised_costs(table), thresholds)
    return Dial.of_thresholds(scorer, thresholds, outcome, costs, seed)


def geometric_dial(
    scorer: Scorer,
    table: ExitTable,
    seed: int,
    *,
    base: Float[np.ndarray, " exit"] | None = None,
    steps: Float[np.ndarray, " exit"] | None = None,
    targets: int = TARGETS,
) -> Dial:
    """Return a dial of a scorer whose exit shares form a geometric progression.

    ``base`` are the shares that the progression tilts (default: equal ones), ``steps`` its exponents (default: the
    numbers of the exits), ``targets`` the number of mean costs at which it is solved.
    """
    replayer, costs = Replayer(table), np.array(table.require_costs().cumulative)
    shares = geometric_shares(np.linspace(costs[0], costs[-1], targets), costs, base, steps)
    thresholds = thresholds_for_shares(replayer.scores(scorer), shares)
    thresholds[0, :-1] = -math.inf  # the ends exactly: everybody leaves first, everybody stays to the last
    thresholds[-1, :-1] = math.inf
    return threshold_dial(scorer, replayer, thresholds, seed)


def joint_dial(scorer: Scorer, table: ExitTable, seed: int, multipliers: int = MULTIPLIERS) -> Dial:
    """Return a dial of a scorer whose thresholds are searched jointly, for so many Lagrange multipliers of cost.

    Only the concave frontier is kept, so the dial ends where spending more bought nothing on the fitting data.
    """
    replayer, costs = Replayer(table), realised_costs(table)
    scores, utility = replayer.scores(scorer), table.require_utility("fitting thresholds")
    thresholds = search(scores, utility, costs, seed, multipliers)
    kept = frontier(*outcomes(scores, utility, costs, thresholds))
    return threshold_dial(scorer, replayer, thresholds[kept], seed)


@dataclass(frozen=True, kw_only=True)
class ConfidenceScheduler(Scheduler):
    """Leaves by a confidence: the base of the schedulers that differ in nothing but their thresholds.

    Attributes:
        confidence: ``"max_prob"`` (MSDNet), ``"certainty"`` (BranchyNet), ``"margin"``, or a function of
            log-probabilities ``[sample, class] -> [sample]``; of a table of features: the name of a column.
    """

    confidence: Confidence = "max_prob"

    def unsuited(self, table: ExitTable) -> str:
        if table.has_classes or self.confidence in table.feature_names:
            return ""
        return f"the table has no feature {self.confidence!r}"

    def scorer(self, table: ExitTable) -> Scorer:
        """Return what scores a table's samples by the confidence, or refuse as `confidence_scorer` does."""
        return confidence_scorer(self.confidence, None if table.has_classes else table.feature_names)


@dataclass(frozen=True, kw_only=True)
class GeometricScheduler(ConfidenceScheduler):
    """Leaves by a confidence, with exit shares in geometric progression ``P_k ~ rho^k`` that spend the whole budget.

    Attributes:
        targets: Mean costs at which the progression is solved, at equal distances; between them policies are mixed.

    Source:
        MSDNet (Huang et al., ICLR 2018); BranchyNet (Teerapittayanon et al., ICPR 2016) for the entropy.
    """

    targets: int = TARGETS
    at_least: ClassVar[dict[str, float]] = {"targets": 2}

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        return geometric_dial(self.scorer(table), table, self.seed, targets=self.targets)


@dataclass(frozen=True, kw_only=True)
class JointScheduler(ConfidenceScheduler):
    """Leaves by a confidence, with all thresholds searched jointly for the most utility within the budget.

    On the fitting data a larger budget never lowers utility. The policy may stay below a budget where spending more
    bought nothing.

    Attributes:
        multipliers: Lagrange multipliers of cost that thresholds are searched for.
    """

    multipliers: int = MULTIPLIERS
    at_least: ClassVar[dict[str, float]] = {"multipliers": 2}

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        return joint_dial(self.scorer(table), table, self.seed, self.multipliers)
