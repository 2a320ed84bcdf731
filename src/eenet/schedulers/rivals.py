"""Rivals from the literature: PCEE, which controls the accuracy at leaving, and EERO's exit shares from risks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from eenet.errors import InputError
from eenet.policies.dial import Dial
from eenet.policies.replay import Replayer
from eenet.policies.scorers import Confidence, PceeScorer
from eenet.schedulers.base import Scheduler
from eenet.schedulers.heuristics import geometric_dial, scorer_for, threshold_dial
from eenet.schedulers.search import between
from eenet.tables.table import ExitTable

_LEAST = 10  # samples per bin, so that its mean utility is more than chance
_LEVELS = 1000  # most levels in a dial; between them policies are mixed


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


@dataclass(frozen=True, kw_only=True)
class PceeScheduler(Scheduler):
    """Leaves at the first exit where samples of similar confidence were right often enough; one level for all exits.

    "Right often enough" is read off each exit's reliability diagram on the calibration data: the mean utility (with
    labels: the accuracy) of the bin that a sample's confidence falls into. The budget chooses the level. The paper
    asks for a level of accuracy and takes the cost it gets; the sweep over levels, the mixing of two neighbours and
    ties broken by the confidence inside a bin (without which a level moves whole bins) are ours, as is the number of
    bins. The paper's smoothed diagram is left out.

    Attributes:
        confidence: As of `GeometricScheduler`; `streak` and `vote_share` too.
        bins: Bins of each diagram, of equal mass; fewer on small tables, so that each holds at least 10 samples.


    Source:
        PCEE, *Performance Control in Early Exiting to Deploy Large Models at the Same Cost of Smaller Ones*
        (Mofakhami et al., arXiv 2412.19325), the method without smoothing.
    """

    confidence: Confidence = "max_prob"
    bins: int = 50
    at_least: ClassVar[dict[str, float]] = {"bins": 1}

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Evaluate every level; see `Scheduler.dial`."""
        scorer = self._scorer(table)
        scores = Replayer(table).scores(scorer)
        levels = _levels(scores[:, :-1])
        thresholds = np.repeat(levels[:, None], table.num_exits, axis=1)
        thresholds[:, -1] = -math.inf
        return threshold_dial(scorer, scores, table, thresholds, self.seed)

    def _scorer(self, table: ExitTable) -> PceeScorer:
        """Return the scorer with every early exit's diagram."""
        inner, utility = scorer_for(self.confidence, table), table.require_utility("fitting pcee")
        confidence = Replayer(table).scores(inner)
        bins = max(1, min(self.bins, table.num_samples // _LEAST))
        edges = np.full((table.num_exits - 1, bins), math.inf)
        means = np.empty_like(edges)
        for k in range(len(edges)):
            lower, mean = reliability(confidence[:, k], utility[:, k], bins)
            edges[k, : len(lower)] = lower
            means[k] = mean[-1]  # also where no bin is left, so that no level is added
            means[k, : len(mean)] = mean
        return PceeScorer(edges=edges, means=means, inner=inner)


def _levels(scores: Float[np.ndarray, "sample early"]) -> Float[np.ndarray, " level"]:
    """Return levels between neighbouring scores, from the one all reach to the one nobody does."""
    distinct = np.unique(scores)
    cuts = np.arange(1, len(distinct))
    if len(cuts) > _LEVELS:  # at equal numbers of scores apart
        cuts = cuts[np.linspace(0, len(cuts) - 1, _LEVELS).round().astype(np.int64)]
    return np.concatenate([[-math.inf], between(distinct[cuts], distinct[cuts - 1]), [math.inf]], dtype=scores.dtype)


@dataclass(frozen=True, kw_only=True)
class EeroScheduler(Scheduler):
    """Leaves by a confidence, with exit shares from exponential weights on the exits' risks that spend the budget.

    The shares minimise risk plus divergence from prior shares, ``sum_k P_k R_k + KL(P, prior) / beta``, among those of
    mean cost ``B``. With the multiplier ``mu`` of that constraint they are ``P_k ~ prior_k exp(-beta R_k - mu c_k)``:
    tilted by what exits cost, where a geometric progression tilts by their numbers. ``R_k`` is one minus exit ``k``'s
    mean utility on the calibration data, over all samples. Each exit then keeps its share of most confident samples
    and rejects the others, which go on. ``beta = 0`` ignores the risks; a large one approaches the cheapest mix of
    two exits, and beyond about 100 exits of a negligible share (1e-12 before the tilt) are rounded up to it. The value
    of ``beta``, equal prior shares and taking each risk over all samples, not only over those that get there, are our
    choices.

    Attributes:
        confidence: As of `GeometricScheduler`.
        beta: Inverse temperature of the weights.
        prior: Shares before any risk is known, one per exit; default: equal ones.

    Raises:
        InputError: ``beta`` is negative or not finite, or a share of ``prior`` is not positive.

    Source:
        EERO, *Early Exit with Reject Option for Efficient Classification with limited budget* (Valade, Hebiri & Gay,
        UAI 2025, arXiv 2402.03779), aggregation with exponential weights.
    """

    confidence: Confidence = "max_prob"
    beta: float = 10.0
    prior: tuple[float, ...] | None = None
    at_least: ClassVar[dict[str, float]] = {"beta": 0}

    def __post_init__(self) -> None:
        """Refuse settings that give no shares."""
        super().__post_init__()
        if self.prior is not None and not all(math.isfinite(share) and share > 0 for share in self.prior):
            raise InputError(f"prior {self.prior} cannot be used: every exit needs a positive share. Raise the others.")

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Fit thresholds for all budgets; see `Scheduler.dial`.

        Raises:
            InputError: ``prior`` has another number of exits than the table.
        """
        base, costs = self._weights(1 - table.require_utility("fitting eero").mean(axis=0)), table.require_costs()
        steps = np.array(costs.cumulative) / costs.high
        return geometric_dial(scorer_for(self.confidence, table), table, self.seed, base=base, steps=steps)

    def _weights(self, risk: Float[np.ndarray, " exit"]) -> Float64[np.ndarray, " exit"]:
        """Return the exponential weights of the risks, before the budget tilts them."""
        prior = self.prior or (1.0,) * len(risk)
        if len(prior) != len(risk):
            raise InputError(
                f"prior of {len(prior)} exits does not fit: the table has {len(risk)}. Give one share per exit."
            )
        logits = np.log(prior) - self.beta * risk
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()
