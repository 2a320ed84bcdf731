"""Methods from the literature to compare with: votes, patience, PCEE's level of accuracy, EERO's shares from risks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from eenet.policies.dial import Dial
from eenet.policies.replay import Replayer
from eenet.policies.scorers import ConfidenceScorer, PceeScorer, VoteScorer
from eenet.schedulers.base import Scheduler
from eenet.schedulers.search import between
from eenet.schedulers.thresholds import ConfidenceScheduler, geometric_dial, threshold_dial
from eenet.tables.table import ExitTable

_PER_BIN = 10  # samples per bin at least, so that its mean utility is more than chance
_LEVELS = 1000  # most levels in a dial; between them policies are mixed


class _ComparesClasses(Scheduler):
    """Compares the classes that exits chose."""

    def unsuited(self, table: ExitTable) -> str:
        return "" if table.has_classes else "the table holds features, which name no classes"


@dataclass(frozen=True, kw_only=True)
class VoteScheduler(_ComparesClasses):
    """Leaves when enough of the exits seen voted for the same class; geometric exit shares.

    Source:
        EENet (arXiv 2301.07099), its form of PABEE for networks with a small number of exits.
    """

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        return geometric_dial(VoteScorer(), table, self.seed)


@dataclass(frozen=True, kw_only=True)
class PatienceScheduler(_ComparesClasses):
    """Leaves when a number of consecutive exits agree; one patience for all exits.

    The budget is met by mixing two neighbouring numbers.

    Source:
        PABEE (Zhou et al., NeurIPS 2020).
    """

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        # agreement of 1, 2, ... exits in a row; K agree only at the last exit, where all leave anyway
        thresholds = _same_everywhere(np.arange(1, table.num_exits + 1) - 0.5, table.num_exits)
        thresholds[-1, :-1] = math.inf
        return threshold_dial(ConfidenceScorer("streak"), Replayer(table), thresholds, self.seed)


@dataclass(frozen=True, kw_only=True)
class PceeScheduler(ConfidenceScheduler):
    """Leaves at the first exit where samples of similar confidence were right often enough; one level for all exits.

    "Right often enough" is read off each exit's reliability diagram on the calibration data: the mean utility (with
    labels: the accuracy) of the bin that a sample's confidence falls into. The budget chooses the level. The paper
    asks for a level of accuracy and takes the cost it gets; the sweep over levels, the mixing of two neighbours and
    ties broken by the confidence inside a bin (without which a level moves whole bins) are ours, as is the number of
    bins. The paper's smoothed diagram is left out.

    Attributes:
        confidence: As of `GeometricScheduler`; `streak` and `vote_share` too.
        bins: Bins of each diagram, of equal mass; fewer on small tables, so that each has at least 10 samples.

    Source:
        PCEE, *Performance Control in Early Exiting to Deploy Large Models at the Same Cost of Smaller Ones*
        (Mofakhami et al., arXiv 2412.19325), the method without smoothing.
    """

    bins: int = 50
    at_least: ClassVar[dict[str, float]] = {"bins": 1}

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        scorer, replayer = self._pcee_scorer(table), Replayer(table)
        distinct = np.unique(replayer.scores(scorer)[:, :-1])
        cuts = np.arange(1, len(distinct))
        if len(cuts) > _LEVELS:  # at equal numbers of scores apart
            cuts = cuts[np.linspace(0, len(cuts) - 1, _LEVELS).round().astype(np.int64)]
        inner = between(distinct[cuts], distinct[cuts - 1])
        levels = np.concatenate([[-math.inf], inner, [math.inf]], dtype=np.float32)
        return threshold_dial(scorer, replayer, _same_everywhere(levels, table.num_exits), self.seed)

    def _pcee_scorer(self, table: ExitTable) -> PceeScorer:
        """Return the scorer with every early exit's diagram."""
        inner, utility = self.scorer(table), table.require_utility("fitting pcee")
        confidence = Replayer(table).scores(inner)
        bins = max(1, min(self.bins, table.num_samples // _PER_BIN))
        edges = np.full((table.num_exits - 1, bins), math.inf)
        means = np.empty_like(edges)
        for k in range(len(edges)):
            lower, mean = reliability(confidence[:, k], utility[:, k], bins)
            edges[k, : len(lower)] = lower
            means[k] = mean[-1]  # also where no bin is left, so that no level is added
            means[k, : len(mean)] = mean
        return PceeScorer(edges=edges, means=means, inner=inner)


def reliability(
    confidence: Float[np.ndarray, " sample"], utility: Float[np.ndarray, " sample"], bins: int
) -> tuple[Float[np.ndarray, " bin"], Float64[np.ndarray, " bin"]]:
    """Return a reliability diagram of bins of equal mass: each bin's lower edge, and the mean utility in it.

    Equal confidences share a bin, so there may be fewer bins than asked for; none is empty. The first edge is ``-inf``,
    the others lie midway between neighbouring samples.
    """
    order = np.argsort(confidence, kind="stable")
    ordered, n = confidence[order], len(confidence)
    last = ordered[np.maximum(np.arange(1, bins) * n // bins - 1, 0)]  # of each earlier bin
    first = np.unique(np.searchsorted(ordered, last, side="right"))  # of each later bin, after equal confidences
    first = first[first < n]
    edges = np.append(-math.inf, between(ordered[first], ordered[first - 1]))
    starts = np.append(0, first)
    return edges, np.add.reduceat(utility[order], starts, dtype=np.float64) / np.diff(starts, append=n)


def _same_everywhere(levels: Float[np.ndarray, " level"], exits: int) -> Float[np.ndarray, "level exit"]:
    """Return threshold vectors that are the same at all early exits."""
    thresholds = np.repeat(levels[:, None], exits, axis=1)
    thresholds[:, -1] = -math.inf
    return thresholds


@dataclass(frozen=True, kw_only=True)
class EeroScheduler(ConfidenceScheduler):
    """Leaves by a confidence, with exit shares from exponential weights on the exits' risks that spend the budget.

    The shares minimise risk plus divergence from equal shares, ``sum_k P_k R_k + KL(P, 1/K) / beta``, among those of
    mean cost ``B``. With the multiplier ``mu`` of that constraint they are ``P_k ~ exp(-beta R_k - mu c_k)``: tilted by
    what exits cost, where a geometric progression tilts by their numbers. ``R_k`` is one minus exit ``k``'s mean
    utility on the calibration data, over all samples. Each exit then keeps its share of most confident samples and
    rejects the others, which go on. ``beta = 0`` ignores the risks; a large one approaches the cheapest mix of two
    exits, and beyond about 100 exits of a negligible share (1e-12 before the tilt) are rounded up to it. The value of
    ``beta``, equal prior shares and taking each risk over all samples, not only over those that get there, are our
    choices.

    Attributes:
        beta: Inverse temperature of the weights.

    Source:
        EERO, *Early Exit with Reject Option for Efficient Classification with limited budget* (Valade, Hebiri & Gay,
        UAI 2025, arXiv 2402.03779), aggregation with exponential weights.
    """

    beta: float = 10.0
    at_least: ClassVar[dict[str, float]] = {"beta": 0}

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        weights = exponential_weights(1 - table.require_utility("fitting eero").mean(axis=0), self.beta)
        costs = table.require_costs()
        steps = np.array(costs.cumulative) / costs.high
        return geometric_dial(self.scorer(table), table, self.seed, base=weights, steps=steps)


def exponential_weights(risk: Float[np.ndarray, " exit"], beta: float) -> Float64[np.ndarray, " exit"]:
    """Return EERO's exit shares before the budget tilts them."""
    logits: np.ndarray = -beta * risk
    weights: np.ndarray = np.exp(logits - logits.max())
    return weights / float(weights.sum())
