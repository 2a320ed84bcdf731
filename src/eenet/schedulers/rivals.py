"""Rivals from the literature: PCEE, which controls the accuracy at leaving, and EERO's exit shares from risks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.confidence import squash
from eenet.core.costs import BudgetLike, CostTable
from eenet.core.scorers import ConfidenceScorer, Scorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.errors import InputError
from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.heuristics import geometric_dial
from eenet.schedulers.thresholds import between, outcomes

__all__ = ["EeroScheduler", "PceeScheduler", "PceeScorer", "reliability"]

_LEAST = 10  # samples per bin, so that its mean utility is more than the luck of a few
_LEVELS = 1000  # levels the dial holds at most; between them policies are mixed


def reliability(
    confidence: Float[Tensor, " sample"], utility: Float[Tensor, " sample"], bins: int
) -> tuple[Float[Tensor, " bin"], Float[Tensor, " bin"]]:
    """Return a reliability diagram of bins of equal mass: each bin's lower edge, and the mean utility in it.

    Equal confidences share a bin, so there may be fewer bins than asked for; none is empty. The first edge is
    ``-inf``, the others lie midway between neighbouring samples.

    Args:
        confidence: Of one exit.
        utility: What answering there was worth.
        bins: How many to make at most.
    """
    ordered, order = confidence.sort()
    n = len(ordered)
    wanted = (torch.arange(1, bins) * n) // bins  # the first sample of each later bin
    last = ordered[(wanted - 1).clamp_min(0)]
    first = _distinct(torch.searchsorted(ordered, last, right=True))
    first = first[first < n]
    edges = between(ordered[first], ordered[first - 1])
    sizes = torch.diff(first, prepend=first.new_zeros(1), append=first.new_full((1,), n))
    means = torch.stack([part.mean() for part in torch.split(utility[order].double(), sizes.tolist())])
    return torch.cat([edges.new_full((1,), -math.inf), edges]), means


def _distinct(values: Tensor) -> Tensor:
    """Return the different values, in increasing order."""
    ordered = values.flatten().sort().values
    keep = torch.ones_like(ordered, dtype=torch.bool)
    keep[1:] = ordered[1:] > ordered[:-1]
    return ordered[keep]


class PceeScorer(Scorer):
    """Scores by the utility that samples of similar confidence had at the newest exit, on the fitting data.

    Inside a bin the confidence breaks ties: it adds less than half the way to the next larger mean utility of any bin
    of any exit, so that bins keep their order. (In the most useful bins it adds less than one half.)

    Args:
        num_exits: Number of exits.
        bins: Bins of each early exit's reliability diagram.
        confidence: As of `ConfidenceScorer`.
        edges: Lower edges ``[early exit, bin]``, the first ``-inf``, missing ones ``inf``; default zero, for loading.
        means: Mean utilities ``[early exit, bin]``; default zero, for loading.

    Raises:
        InputError: There is no confidence of that name.
    """

    edges: Tensor
    means: Tensor
    widths: Tensor

    def __init__(
        self,
        num_exits: int,
        bins: int,
        confidence: str | Callable[[Tensor], Tensor] = "max_prob",
        edges: Float[Tensor, "early bin"] | None = None,
        means: Float[Tensor, "early bin"] | None = None,
    ) -> None:
        super().__init__()
        self.num_exits, self.bins = num_exits, bins
        self.confidence = ConfidenceScorer(confidence)
        self.newest_only = self.confidence.newest_only
        self.compares_classes = self.confidence.compares_classes
        blank = torch.zeros(num_exits - 1, bins, dtype=torch.float64)
        means = blank if means is None else means.detach().double()
        self.register_buffer("edges", blank.float() if edges is None else edges.detach().float())
        self.register_buffer("means", means)
        self.register_buffer("widths", _widths(means))

    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the mean utility of the sample's bin at the newest exit, plus the tie-breaker."""
        k = seen.shape[1] - 1
        confidence: Tensor = self.confidence(seen, features)
        place = (confidence.unsqueeze(1) >= self.edges[k]).sum(dim=1) - 1
        # double, one operation at a time: the same to the bit in every batch
        tie = squash(confidence.double()) * self.widths[k][place]
        return (self.means[k][place] + tie).float()

    def widened(self, num_exits: int) -> PceeScorer:
        """Return a scorer that judges more exits by the last one it knows."""
        more = num_exits - self.num_exits
        edges, means = (torch.cat([rows, rows[-1:].repeat(more, 1)]) for rows in (self.edges, self.means))
        return PceeScorer(num_exits, self.bins, self.confidence.confidence, edges, means)

    def settings(self) -> dict[str, object]:
        """Return the sizes and the name of the confidence, which rebuild this scorer."""
        return {"num_exits": self.num_exits, "bins": self.bins} | self.confidence.settings()


def _widths(means: Float[Tensor, "early bin"]) -> Float[Tensor, "early bin"]:
    """Return half the distance from each mean to the next larger one; one half for the largest."""
    levels = _distinct(means)
    levels = torch.cat([levels, levels[-1:] + 1])
    return (levels[torch.searchsorted(levels, means, right=True)] - means) / 2


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

    Raises:
        InputError: ``bins`` is below 1.

    Source:
        PCEE, *Performance Control in Early Exiting to Deploy Large Models at the Same Cost of Smaller Ones*
        (Mofakhami et al., arXiv 2412.19325), the method without smoothing.
    """

    confidence: str | Callable[[Tensor], Tensor] = "max_prob"
    bins: int = 50

    def __post_init__(self) -> None:
        """Refuse numbers of bins that mean nothing."""
        if self.bins < 1:
            raise InputError(f"bins {self.bins} cannot be used: a diagram has at least 1 bin. Pass for example 50.")

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Evaluate every level; see `Scheduler.sweep`."""
        costs = costs or table.require_costs()
        utility = table.require_utility("fitting pcee")
        scorer = self._scorer(table, utility)
        scores = Replayer(table).scores(scorer)
        levels = _levels(scores[:, :-1])
        thresholds = levels[:, None].repeat(1, table.num_exits)
        thresholds[:, -1] = -math.inf
        cumulative = torch.tensor(costs.cumulative, dtype=torch.float64)
        block = max(1, 2_000_000 // table.num_samples)  # as in `geometric_dial`
        results = [outcomes(scores, utility, cumulative, part) for part in torch.split(thresholds, block)]
        cost, gain = (torch.cat(parts) for parts in zip(*results, strict=True))
        return Dial.of_thresholds(scorer, thresholds, (cost, gain), costs, self.seed)

    def _scorer(self, table: ExitTable, utility: Float[Tensor, "sample exit"]) -> PceeScorer:
        """Return the scorer with every early exit's diagram."""
        confidence = Replayer(table).scores(ConfidenceScorer(self.confidence))
        bins = max(1, min(self.bins, table.num_samples // _LEAST))
        early = table.num_exits - 1
        edges = torch.full((early, bins), math.inf)
        means = torch.zeros(early, bins, dtype=torch.float64)
        for k in range(early):
            lower, mean = reliability(confidence[:, k], utility[:, k], bins)
            edges[k, : len(lower)] = lower
            means[k] = mean[-1]  # also where no bin is left, so that no level is added
            means[k, : len(mean)] = mean
        return PceeScorer(table.num_exits, bins, self.confidence, edges, means)


def _levels(scores: Float[Tensor, "sample early"]) -> Float[Tensor, " level"]:
    """Return levels between neighbouring scores, from the one all reach to the one nobody does."""
    distinct = _distinct(scores)
    cuts = torch.arange(1, len(distinct))
    if len(cuts) > _LEVELS:  # at equal numbers of scores apart
        cuts = cuts[torch.linspace(0, len(cuts) - 1, _LEVELS, dtype=torch.float64).round().long()]
    inner = between(distinct[cuts], distinct[cuts - 1])
    return torch.cat([inner.new_full((1,), -math.inf), inner, inner.new_full((1,), math.inf)])


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

    confidence: str | Callable[[Tensor], Tensor] = "max_prob"
    beta: float = 10.0
    prior: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse settings that give no shares."""
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise InputError(
                f"beta {self.beta:g} cannot be used: the weights need a finite number that is not negative. Pass for "
                f"example 10."
            )
        if self.prior is not None and not all(math.isfinite(share) and share > 0 for share in self.prior):
            raise InputError(f"prior {self.prior} cannot be used: every exit needs a positive share. Raise the others.")

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Fit thresholds for all budgets; see `Scheduler.sweep`.

        Raises:
            InputError: ``prior`` has another number of exits than the table.
        """
        costs = costs or table.require_costs()
        what = "fitting eero"
        base = self._weights(1 - table.require_utility(what).mean(dim=0))
        steps = torch.tensor(costs.cumulative, dtype=torch.float64) / costs.high
        return geometric_dial(ConfidenceScorer(self.confidence), table, costs, self.seed, what, base=base, steps=steps)

    def _weights(self, risk: Float[Tensor, " exit"]) -> Float[Tensor, " exit"]:
        """Return the exponential weights of the risks, before the budget tilts them."""
        prior = self.prior or (1.0,) * len(risk)
        if len(prior) != len(risk):
            raise InputError(
                f"prior of {len(prior)} exits does not fit: the table has {len(risk)}. Give one share per exit."
            )
        return torch.softmax(torch.tensor(prior, dtype=torch.float64).log() - self.beta * risk, dim=0)
