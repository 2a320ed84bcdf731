"""Optimal stopping: leave where going on gains less than it costs, learnt backwards from the last exit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int

from eenet.errors import TableError
from eenet.policies.dial import Dial
from eenet.policies.learned import StoppingScorer, StoppingState
from eenet.policies.policy import ScorePolicy
from eenet.policies.replay import Replayer
from eenet.policies.transforms import Ensemble
from eenet.schedulers.base import Scheduler, blocks, folds_of, multipliers
from eenet.schedulers.ensemble import fit_ensemble, held_out_ensemble, likelihood, transformed_dial
from eenet.schedulers.search import PerExit, around_zero, frontier
from eenet.tables.arrays import log_softmax
from eenet.tables.costs import standard_budgets
from eenet.tables.table import ExitTable

PerTarget: TypeAlias = Float64[np.ndarray, "sample target"]
Solved: TypeAlias = tuple[Float64[np.ndarray, "input target"], PerTarget]

_WHAT = "fitting StoppingScheduler"
_MOST_CURVES = 64  # classes up to which each has a curve of its own
_BLOCK = 4096  # samples worked on at a time
_LARGE = 10_000_000  # numbers in the columns of a regression above which they are kept in float32
_SHARED = 0.1  # penalty on what all classes share, as a part of the ridge: it is better known than each class's own
_FEATURES = 100.0  # penalty on features of variance 1, in ridges: probabilities vary less, and say more of the utility
_NEAR = 0.35  # distance from the boundary at which a sample counts half, in root mean squares of the prediction
_FAR = 0.03  # mean error of chances from which they are no basis
_ERRORS = 5.0  # standard errors that are added to it
_NARROWINGS = 2  # times a regression is repeated near the boundary it found
_MOST_NARROWED = 42  # columns up to which regressions are repeated near the boundary: those of 20 classes
_NARROW_BLOCK = 1024  # samples whose products of two columns are in memory at a time


@dataclass(frozen=True, kw_only=True)
class StoppingScheduler(Scheduler):
    """Leaves where the expected gain of going on does not pay for its cost: a stopping problem, solved backwards.

    For each Lagrange multiplier ``lambda`` of cost, a linear function of what the newest exit says (its class
    probabilities or features) predicts the value of going on minus that of leaving, as it was realised by the rule
    already fitted for the later exits. One fit serves all multipliers, from 0 (most utility) to infinity (cheapest),
    hence all budgets; a budget between two rules is met by a mixture. Only the sign matters, so the regression weighs
    samples near the boundary more (with up to 20 classes; with more it would take too long). Where the labels are
    known, the utility of an answer is estimated by what all exits together make of the sample, which is less noisy than
    one label. Where costs differ from sample to sample, those of the sample are what going on costs.

    Only rules are kept that pay for their cost on samples held out in cross-validation, with every fixed exit among
    them: nothing is spent on later exits that add nothing there. On the fitting data a larger budget never lowers
    utility. The policy may stay below a budget where spending more bought nothing.

    Attributes:
        ensemble: Whether leaving samples are answered by a learnt combination of the exits seen so far (and judged by
            it), where that pays on held-out samples; needs labels.
        folds: Of the cross-fitting.
        ridge: Penalty on the weights of what is made of probabilities, in samples; on those of features 100 times that,
            as if each had variance 1.
        multipliers: Lagrange multipliers of cost that rules are fitted for, evenly spaced in their logarithm; with
            half as many, some rules are missed.

    Raises:
        TableError: On fitting: the table has 1 sample only.

    Source:
        Longstaff and Schwartz, Valuing American Options by Simulation, Review of Financial Studies 14, 2001; Bolukbasi
        et al., Adaptive Neural Networks for Efficient Inference, ICML 2017, arXiv 1702.07811.
    """

    ensemble: bool = True
    folds: int = 5
    ridge: float = 1.0
    multipliers: int = 80
    at_least: ClassVar[dict[str, float]] = {"folds": 2, "multipliers": 2}
    positive = ("ridge",)

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        if table.num_samples < 2:
            raise TableError("table of 1 sample is too small: stopping holds samples out in turn. Give at least 2.")
        if isinstance(table.transform, Ensemble):
            return self.dial_knowing(table.transform, table)
        together = fit_ensemble(table, self.seed) if table.combinable else None
        if together is None or not (self.ensemble and self._ensemble_pays(table)):
            return self.dial_knowing(together, table)
        combined = table.transformed(together)
        return transformed_dial(together, self.dial_knowing(together, combined))

    def _ensemble_pays(self, table: ExitTable) -> bool:
        """Return whether held-out ensembles raise both the likelihood of the labels and what the rule reaches.

        Likelihood has little noise: without it, an ensemble with nothing to combine is often kept by chance.
        """
        alone, together = held_out_ensemble(table, self.folds, self.seed)
        if likelihood(together) <= likelihood(alone):
            return False
        reached = []
        for part in (alone, together):
            induced = self._induce(part, part.require_utility(_WHAT))
            kept = frontier(induced.cost, induced.utility)
            points = np.interp(standard_budgets(part.require_costs()), induced.cost[kept], induced.utility[kept])
            reached.append(points.mean())
        return bool(reached[1] > reached[0])

    def _induce(self, table: ExitTable, expected: PerExit) -> Induced:
        state, lambdas = suited_state(table), _lambdas(table, expected, self.multipliers)
        return induce(table, expected, lambdas, state=state, folds=self.folds, ridge=self.ridge, seed=self.seed)

    def dial_knowing(self, together: Ensemble | None, table: ExitTable) -> Dial:
        """Return the rules that pay for their cost on held-out samples, at the cost they really have.

        ``together`` is what `fit_ensemble` makes of the table, None where exits cannot be combined; it says what
        answers are worth, and gives none.
        """
        induced, replayer = self._induce(table, _expected_utility(table, together)), Replayer(table)
        kind, columns = suited_state(table).kind, table.num_columns
        zero = np.where(np.arange(table.num_exits) < table.num_exits - 1, 0.0, -math.inf)
        rules = [
            ScorePolicy(
                StoppingScorer(weight=induced.weight[i], bias=induced.bias[i], num_columns=columns, kind=kind), zero
            )
            for i in frontier(induced.cost, induced.expected)
        ]
        replayer.prepare(rules)
        policies = [ScorePolicy(rule.scorer, around_zero(replayer.scores(rule.scorer))) for rule in rules]
        outcome = [(*replayer.expected(policy), policy) for policy in policies]
        outcome.sort(key=lambda one: (one[0], -one[1]))
        best = [-math.inf, *accumulate((utility for _, utility, _ in outcome), max)]
        rising = [one for one, before in zip(outcome, best, strict=False) if one[1] > before]
        return Dial.of_candidates(rising, table.require_costs(), self.seed)


def suited_state(table: ExitTable) -> StoppingState:
    """Return the state for a table; squares of probabilities stand one by one where there are at most 64 classes."""
    if not table.has_classes:
        return StoppingState("features")
    return StoppingState("curved" if table.num_columns <= _MOST_CURVES else "summed")


def _expected_utility(table: ExitTable, together: Ensemble | None) -> Float64[np.ndarray, "sample exit"]:
    """Return the utility of answering at each exit: the chance to be right given all exits, or what was recorded.

    Probabilities of 0, which forests give often, keep an ensemble from fitting: chances that are far from how often
    exits are right tell nothing of what going on is worth.
    """
    if together is None:
        return table.require_utility(_WHAT)
    expected = []
    for rows in table.chunks():
        chances = np.exp(together(log_softmax(table.logits[rows])).astype(np.float64))
        expected.append(np.take_along_axis(chances, table.seen(rows).argmax(axis=2), axis=1))
    found, recorded = np.concatenate(expected), table.require_utility(_WHAT)
    off = found - recorded
    too_far = np.abs(off.mean(axis=0)) > _FAR + _ERRORS * off.std(axis=0) / math.sqrt(len(off))
    return recorded if too_far.any() else found


class Induced(NamedTuple):
    """Stopping rules, one per candidate (every fixed exit, then every multiplier), and their means on held-out samples.

    A rule leaves where ``weight . state + bias >= 0``; ``expected`` is the utility as the regression saw it.
    """

    weight: Float64[np.ndarray, "candidate early column"]
    bias: Float64[np.ndarray, "candidate early"]
    cost: Float64[np.ndarray, " candidate"]
    utility: Float64[np.ndarray, " candidate"]
    expected: Float64[np.ndarray, " candidate"]


def induce(
    table: ExitTable,
    expected: PerExit,
    lambdas: Float64[np.ndarray, " multiplier"],
    *,
    state: StoppingState,
    folds: int,
    ridge: float,
    seed: int,
) -> Induced:
    """Return stopping rules for many multipliers of cost, ``lambdas``.

    At exit ``k`` the value of going on minus that of leaving is regressed on the state, by ridge regression, for all
    multipliers at once. The value of going on is what the rule fitted for the later exits realised on samples it had
    not seen: every fold is predicted by the others, so that taking the better of two noisy numbers does not feed on its
    own noise. Only the sign of the difference decides, so where columns are few the regression is repeated with more
    weight on samples near the boundary. The deployed rule is the mean of the folds' linear functions.

    ``expected`` is the utility of answering at each exit; the settings are those of `StoppingScheduler`.
    """
    samples, exits = expected.shape
    fold = folds_of(table.group_index, folds, seed)
    order = np.argsort(fold, kind="stable")  # so that the samples of a fold are neighbours
    expected, costs, utility = expected[order], table.leaving_costs[order], table.require_utility(_WHAT)[order]
    ends = np.bincount(fold).cumsum().tolist()
    penalty = _penalty(state, table.num_columns, ridge)
    width = len(penalty) - 1
    weight, bias = np.zeros((len(lambdas), exits - 1, width)), np.zeros((len(lambdas), exits - 1))
    leaves_at = np.full((samples, len(lambdas)), exits - 1)  # where each rule, from exit k on, leaves
    value = expected[:, -1:] - costs[:, -1:] * lambdas  # of leaving there, its cost deducted
    for k in reversed(range(exits - 1)):
        here = expected[:, k, None] - costs[:, k, None] * lambdas
        columns, center, spread = _columns(table, state, k, np.argsort(order))
        regression = _Regression(columns, [slice(*pair) for pair in pairwise((0, *ends))], penalty)
        found, held_out = regression.solve(value - here)
        for _ in range(_NARROWINGS if width <= _MOST_NARROWED else 0):
            found, held_out = regression.narrowed(value - here, held_out)
        stays = held_out > 0
        leaves_at, value = np.where(stays, leaves_at, k), np.where(stays, value, here)
        weight[:, k] = -found[:-1].T / spread  # a rule leaves where its score is not negative
        bias[:, k] = -found[-1] - weight[:, k] @ center
        del columns, regression, here, held_out  # of large tables these are large, and the next exit needs as much
    fixed = np.arange(exits)
    # fixed exits first: where a rule is as good on held-out samples, its deployed mean may still spend more
    leaves_at = np.hstack([np.broadcast_to(fixed, (samples, exits)), leaves_at])
    always = np.where(fixed[:, None] <= fixed[:-1], 1.0, -1.0)  # a fixed exit's score: below 0 before it
    means = [np.take_along_axis(values, leaves_at, axis=1).mean(axis=0) for values in (costs, utility, expected)]
    return Induced(
        np.concatenate([np.zeros((exits, exits - 1, width)), weight]), np.concatenate([always, bias]), *means
    )


def _lambdas(table: ExitTable, expected: PerExit, count: int) -> Float64[np.ndarray, " multiplier"]:
    gain = max(float(np.ptp(expected.mean(axis=0))), 1e-3)
    return multipliers(gain, np.array(table.require_costs().cumulative), 30.0, count)


def _columns(
    table: ExitTable, state: StoppingState, k: int, places: Int[np.ndarray, " sample"]
) -> tuple[Float[np.ndarray, "sample input"], Float64[np.ndarray, " column"], Float64[np.ndarray, " column"]]:
    """Return the centred state at an exit with a constant beside it, the centre, and what features are divided by.

    ``places`` says into which row each sample goes.
    """
    width = state.width(table.num_columns)
    kind = np.float64 if table.num_samples * width < _LARGE else np.float32
    x = np.ones((table.num_samples, width + 1), dtype=kind)
    for rows in table.chunks():
        x[places[rows], :-1] = state(table.seen_at(rows, k))
    columns = x[:, :-1]
    center, spread = columns.mean(axis=0, dtype=np.float64), np.ones(width)
    columns -= center
    if state.kind == "features":
        spread = np.sqrt(np.einsum("nd,nd->d", columns, columns, dtype=np.float64) / len(x))
        spread[spread <= 1e-9 * np.abs(center)] = np.inf  # a constant column has no weight
        columns /= spread
    return x, center, spread


def _penalty(state: StoppingState, num_columns: int, ridge: float) -> Float64[np.ndarray, "input input"]:
    """Return the penalty on the weights, none on the constant: the inverse of their prior covariance, in samples.

    Each class has a weight of its own, and squares, where they stand one by one, share a weight as well.
    """
    precision = np.full(state.width(num_columns), ridge if state.kind != "features" else _FEATURES * ridge)
    if state.kind != "features":
        precision[2 * num_columns if state.kind == "curved" else num_columns :] = _SHARED * ridge
    covariance = np.diag(1 / precision)
    if state.kind == "curved":
        covariance[num_columns : 2 * num_columns, num_columns : 2 * num_columns] += 1 / (_SHARED * ridge)
    return np.pad(np.linalg.inv(covariance), (0, 1))


class _Regression:
    """Ridge regressions of many targets on the same columns, without each fold in turn.

    Both methods return the mean of the folds' solutions, and predictions of every sample by those without its fold.
    The last column is constant; folds are slices of rows.
    """

    def __init__(
        self, x: Float[np.ndarray, "sample input"], folds: list[slice], penalty: Float64[np.ndarray, "input input"]
    ) -> None:
        self.x, self.folds, self.penalty = x, folds, penalty

    def solve(self, y: PerTarget) -> Solved:
        """Return the least squares solutions."""
        folds, width, targets = len(self.folds), len(self.penalty), y.shape[1]
        gram, cross = np.zeros((folds, width, width)), np.zeros((folds, width, targets))
        for f, fold in enumerate(self.folds):
            for rows in blocks(fold.start, fold.stop, _BLOCK):
                z = self.x[rows]
                gram[f] += z.T @ z
                cross[f] += z.T @ y[rows].astype(z.dtype, copy=False)
        gram, cross = gram.sum(axis=0) - gram + self.penalty, cross.sum(axis=0) - cross
        return self._predicted(np.linalg.solve(gram, cross))

    def narrowed(self, y: PerTarget, held_out: PerTarget) -> Solved:
        """Return solutions with samples weighted by how near to 0 they were predicted, by each target on its own.

        Longstaff and Schwartz regress over paths in the money only, for the same reason; weights keep it smooth.
        """
        folds, width, targets = len(self.folds), len(self.penalty), y.shape[1]
        near = held_out / (_NEAR * np.sqrt(np.square(held_out).mean(axis=0)) + 1e-12)
        near = 1 / (1 + np.square(near, out=near))
        near /= near.mean(axis=0)
        upper = np.triu_indices(width)  # of the matrix of products
        gram, cross = np.zeros((folds, len(upper[0]), targets)), np.zeros((folds, width, targets))
        for f, fold in enumerate(self.folds):
            for rows in blocks(fold.start, fold.stop, _NARROW_BLOCK):
                z = np.ascontiguousarray(self.x[rows].T, dtype=np.float64)
                products = np.concatenate([z[i:] * z[i] for i in range(width)])
                gram[f] += products @ near[rows]
                cross[f] += z @ (near[rows] * y[rows])
        cross, solutions, matrix = cross.sum(axis=0) - cross, [], np.empty((targets, width, width))
        for f, others in enumerate(gram.sum(axis=0) - gram):
            matrix[:, upper[0], upper[1]] = matrix[:, upper[1], upper[0]] = others.T
            solutions.append(np.linalg.solve(matrix + self.penalty, cross[f].T[:, :, None])[:, :, 0].T)
        return self._predicted(np.stack(solutions))

    def _predicted(self, solutions: Float64[np.ndarray, "fold input target"]) -> Solved:
        """Return the mean solution, and every sample's prediction by the one without its fold."""
        predicted = np.empty((len(self.x), solutions.shape[2]))
        for fold, solution in zip(self.folds, solutions, strict=True):
            for rows in blocks(fold.start, fold.stop, _BLOCK):
                np.matmul(self.x[rows].astype(np.float64, copy=False), solution, out=predicted[rows])
        return solutions.mean(axis=0), predicted
