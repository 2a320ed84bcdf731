"""Transforms fitted on a table: learnt combinations of all exits seen so far, and calibrated single exits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int

from eenet.policies.dial import Dial
from eenet.policies.mixture import TransformedPolicy
from eenet.policies.transforms import Ensemble, Transform
from eenet.schedulers.base import Scheduler, folds_of, sampled
from eenet.tables.checks import instance
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

_PRIOR_WEIGHT = 2.0  # pulls the weights towards the newest exit alone, in units of one sample's likelihood
PRIOR_BIAS = 5.0  # pulls the class biases towards 0
_PER_CLASS = 20  # samples of a class on average below which there are no biases
_ENTRIES = 2_000_000  # samples times classes that are fitted on at most; more would cost time and change little
_STEPS = 100  # of Newton's method at most; 3 to 8 are usual
_ENOUGH = 1e-7  # loss per sample that a step promises below which none is made: chance in the labels is far more
_SHORTEST = 1e-6  # part of a step below which the search ends
_LOWEST, _HIGHEST = 0.05, 20.0  # where every sample is right (or wrong) the best temperature is 0 (or infinity)
_CERTAIN = 1e6  # differences of logits beyond this are cut: the less likely class is impossible at any temperature


def fit_ensemble(table: ExitTable, seed: int = 0) -> Ensemble:
    """Return the combination of exits under which the labels are most likely.

    Exit ``k`` has ``k + 1`` weights and one bias per class (none where classes have fewer than 20 samples on average),
    fitted by penalised maximum likelihood, a convex problem.

    Args:
        table: With labels; data that took no part in training.
        seed: Of the random subset that is fitted on where there are very many samples.

    Raises:
        TableError: The table has no labels.

    Source:
        Wolczyk et al., Zero Time Waste, NeurIPS 2021, section on ensembling; here with signed weights and a penalty.
    """
    return _fit(_subset(table, seed), positive=False)


def fit_geometric_ensemble(table: ExitTable, seed: int = 0) -> Ensemble:
    """Return Zero-Time-Waste's ensemble: a weighted geometric mean of the exits seen, weights not negative.

    Arguments and errors are those of `fit_ensemble`.

    Source:
        Wolczyk et al., Zero Time Waste, NeurIPS 2021, section on ensembling. The paper trains weights and biases by
        gradient steps; the problem is convex in them and is solved here, with a slight penalty.
    """
    return _fit(_subset(table, seed), positive=True)


def fit_calibration(table: ExitTable, seed: int = 0) -> Ensemble:
    """Return each exit alone at the temperature that suits it; see `fit_temperatures`. The seed is not used."""
    temperatures = fit_temperatures(table)
    return Ensemble(weight=np.diag(1 / temperatures), bias=np.zeros((table.num_exits, table.num_columns)))


def held_out_ensemble(table: ExitTable, folds: int, seed: int = 0) -> tuple[ExitTable, ExitTable]:
    """Return samples as they are, and combined by ensembles that were fitted without them, fold by fold.

    The seed is that of the folds too; arguments and errors are those of `fit_ensemble`.
    """
    subset = _subset(table, seed)
    fold = folds_of(subset.group_index, folds, seed)
    return subset, held_out_by(fold_ensembles(subset, fold), fold, subset)


def held_out_by(ensembles: Sequence[Ensemble], fold: Int[np.ndarray, " sample"], table: ExitTable) -> ExitTable:
    """Return the table's samples combined, each by the ensemble that was fitted without its fold."""
    together = table.seen()
    for f, ensemble in enumerate(ensembles):
        together[fold == f] = ensemble.history(together[fold == f])
    return replace(table, logits=together, utility=None, transform=None)


def likelihood(table: ExitTable) -> float:
    """Return the mean log-probability of the labels over all exits."""
    right = [np.take_along_axis(table.seen(rows), table.labels[rows, None, None], axis=2) for rows in table.chunks()]
    return float(np.maximum(np.concatenate(right), -100.0).mean(dtype=np.float64))


def fold_ensembles(table: ExitTable, fold: Int[np.ndarray, " sample"]) -> list[Ensemble]:
    """Return the combination fitted without each fold, in their order; ``fold`` says which one a sample is in."""
    return [_fit(table.select(fold != f), positive=False) for f in range(int(fold.max()) + 1)]


def _subset(table: ExitTable, seed: int) -> ExitTable:
    """Return so many samples that fitting takes seconds."""
    instance(table, ExitTable, "table").require_labels("combining exits", "'utility' values single exits only")
    return sampled(table, max(1000, _ENTRIES // table.num_columns), seed)


def _fit(table: ExitTable, *, positive: bool) -> Ensemble:
    seen = np.moveaxis(table.seen(), 1, 0).astype(np.float64)
    exits, classes = len(seen), seen.shape[2]
    weight, bias = np.eye(exits), np.zeros((exits, classes))
    for k in range(exits):
        best = _fit_exit(_Likelihood(seen[: k + 1], table.labels), positive=positive)
        weight[k, : k + 1] = best[: k + 1]
        if len(best) > k + 1:
            bias[k] = best[k + 1 :]
    return Ensemble(weight=weight, bias=bias)


def _fit_exit(likelihood: _Likelihood, *, positive: bool) -> Float64[np.ndarray, " value"]:
    """Return the weights and biases of one exit's combination."""
    if not positive:
        return _newton(likelihood)
    from scipy.optimize import minimize  # heavy, and needed here only

    start, exits = likelihood.prior, len(likelihood.seen)
    bounds = [(0.0, None)] * exits + [(None, None)] * (len(start) - exits)
    return np.asarray(minimize(likelihood.value, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


def _newton(likelihood: _Likelihood) -> Float64[np.ndarray, " value"]:
    """Return where the loss is least, by Newton's method with steps halved until they lower the loss enough.

    The loss is strictly convex and as smooth as can be: a few steps do, where a library's trust region takes more time
    for its own bookkeeping than for the loss.
    """
    at = likelihood.prior
    loss, slope = likelihood.value(at)
    for _ in range(_STEPS):
        step = -np.linalg.solve(likelihood.curvature(at), slope)
        promised = -float(step @ slope)  # twice what the step gains where the loss is a parabola
        if promised <= _ENOUGH:
            break
        length = 1.0
        while (found := likelihood.value(at + length * step))[0] > loss - 1e-4 * length * promised:
            if (length := length / 2) < _SHORTEST:
                return at  # rounding: no less is to be had
        at, (loss, slope) = at + length * step, found
    return at


class _Likelihood:
    """Penalised negative log-likelihood per sample of weights and biases, with its derivatives.

    Where classes have few samples there are no biases: they would be guesses, and as many as there are classes.
    """

    def __init__(self, seen: Float64[np.ndarray, "seen sample class"], labels: Int[np.ndarray, " sample"]) -> None:
        exits, samples, classes = seen.shape
        self.shape = (samples, classes)
        self.seen = seen.reshape(exits, -1)  # flat, so that all sums are matrix products
        self.right = np.arange(samples) * classes + labels
        self.biased = samples >= _PER_CLASS * classes
        biases = classes if self.biased else 0
        self.prior = np.concatenate([np.eye(exits)[-1], np.zeros(biases)])
        self.penalty = np.repeat([_PRIOR_WEIGHT, PRIOR_BIAS], [exits, biases])

    def value(self, values: Float64[np.ndarray, " value"]) -> tuple[float, Float64[np.ndarray, " value"]]:
        """Return the loss and its gradient."""
        error, loss = self._probs(values)
        error.reshape(-1)[self.right] -= 1.0
        away = values - self.prior
        slope = self.seen @ error.reshape(-1)
        if self.biased:
            slope = np.concatenate([slope, error.sum(axis=0)])
        slope += 2 * self.penalty * away
        return (loss + float(self.penalty @ (away * away))) / len(error), slope / len(error)

    def curvature(self, values: Float64[np.ndarray, " value"]) -> Float64[np.ndarray, "value value"]:
        """Return the matrix of second derivatives: the covariance, under the model, of what the values multiply."""
        probs, _ = self._probs(values)
        weighted = self.seen * probs.reshape(-1)
        by_class = weighted.reshape(-1, *self.shape)
        mean = by_class.sum(axis=2)
        hessian: np.ndarray = weighted @ self.seen.T - mean @ mean.T
        if self.biased:
            cross = by_class.sum(axis=1) - mean @ probs
            hessian = np.block([[hessian, cross], [cross.T, np.diag(probs.sum(axis=0)) - probs.T @ probs]])
        hessian += np.diag(2 * self.penalty)
        return hessian / len(probs)

    def _probs(self, values: np.ndarray) -> tuple[Float64[np.ndarray, "sample class"], float]:
        """Return the probabilities of the classes, and minus the summed log-likelihood of the labels."""
        exits = len(self.seen)
        together = (values[:exits] @ self.seen).reshape(self.shape)
        if self.biased:
            together += values[exits:]
        together -= together.max(axis=1, keepdims=True)
        right = float(together.reshape(-1)[self.right].sum())
        probs = np.exp(together, out=together)
        total = probs.sum(axis=1, keepdims=True)
        probs /= total
        return probs, float(np.log(total).sum()) - right


def fit_temperatures(table: ExitTable) -> Float64[np.ndarray, " exit"]:
    """Return the temperature ``T_k`` of each exit that makes the labels most likely under ``softmax(logits / T_k)``.

    The mean negative log-likelihood is convex in ``1 / T``, so its minimum is where the slope, taken in double over the
    table's chunks, crosses 0. Temperatures keep every sample's choice of class.

    Guarantee: on the table it is fitted on, no exit's likelihood is lower than with ``T = 1``.

    Returns:
        Temperatures in [0.05, 20]: above 1 where an exit is too sure. Exactly 1 where the likelihood does not depend on
        the temperature.

    Raises:
        TableError: The table has no labels.

    Warns:
        UserWarning: The best temperature of an exit lies outside the range, whose end is returned.

    Example:
        >>> logits = np.tile([[2.0, 0.0], [0.0, 0.0]], (4, 1, 1))
        >>> fit_temperatures(ExitTable(logits=logits, labels=[0, 0, 0, 1])).round(4)  # 2 / log 3
        array([1.8205, 1.    ])

    Source:
        *On Calibration of Modern Neural Networks* (Guo et al., ICML 2017), temperature scaling.
    """
    from scipy.optimize import brentq  # heavy, and needed here only

    instance(table, ExitTable, "table").require_labels(
        "fitting temperatures", "'utility' does not say which class is right"
    )
    temperatures, beyond = np.ones(table.num_exits), []
    for k in range(table.num_exits):
        at_highest, at_lowest = (_slope(1 / temperature, table, k) for temperature in (_HIGHEST, _LOWEST))
        # the slope grows with the inverse temperature: where it has one sign the end is best, where it is 0 all are
        if at_highest < 0 < at_lowest:
            temperatures[k] = 1 / brentq(_slope, 1 / _HIGHEST, 1 / _LOWEST, (table, k), xtol=1e-12, rtol=1e-10)
        elif at_highest or at_lowest:
            temperatures[k] = _LOWEST if at_lowest <= 0 else _HIGHEST
            if at_highest and at_lowest:
                beyond.append(f"{temperatures[k]:g} at exit {k}")
    if beyond:
        warnings.warn(
            f"temperatures end at a limit of their range, {_LOWEST:g} to {_HIGHEST:g}: {', '.join(beyond)}. The best "
            "ones lie beyond: scale the logits to an ordinary size, or, where every sample is right, record more.",
            stacklevel=2,
        )
    return temperatures


def _slope(inverse: float, table: ExitTable, k: int) -> float:
    """Return the derivative of an exit's summed negative log-likelihood by the inverse temperature."""
    slope = 0.0
    for rows in table.chunks():
        excess = table.logits[rows, k].astype(np.float64)
        excess -= excess.max(axis=1, keepdims=True)
        np.maximum(excess, -_CERTAIN, out=excess)
        # of each class over the right one: the likelihood knows only these
        excess -= np.take_along_axis(excess, table.labels[rows, None], axis=1)
        probs = excess * inverse
        probs -= probs.max(axis=1, keepdims=True)
        np.exp(probs, out=probs)
        slope += float((np.einsum("nc,nc->n", probs, excess) / probs.sum(axis=1)).sum())
    return slope


@dataclass(frozen=True, kw_only=True)
class TransformedScheduler(Scheduler):
    """Fits a transform, then a scheduler on what the transform makes of the table.

    Attributes:
        scheduler: Sees transformed outputs only; its seed counts for policies, the one here for the transform.
        fit_transform: A function of table and seed: `fit_ensemble`, `fit_geometric_ensemble` (Zero Time Waste),
            `fit_calibration`, or one of yours.

    Raises:
        TableError: On fitting: the table has no labels, or its utility is not simply whether the answer is right.
        InputError: On fitting: the table is transformed already.

    Example:
        >>> from eenet.schedulers import GeometricScheduler, fit_geometric_ensemble
        >>> from eenet.testing import synthetic_table
        >>> ztw = TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_geometric_ensemble)
        >>> ztw.fit(synthetic_table(500), budget="50%").num_exits
        4
    """

    scheduler: Scheduler
    fit_transform: Callable[[ExitTable, int], Transform]

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        transform = self.fit_transform(table, self.seed)
        transformed = table.transformed(transform)
        transformed.require_utility("fitting on combined exits")
        return transformed_dial(transform, self.scheduler.dial(transformed, budgets))

    def open_exits(self, costs: CostTable) -> int:
        return self.scheduler.open_exits(costs)

    def unsuited(self, table: ExitTable) -> str:
        if not table.combinable:
            return "combining exits needs labels, and a utility that says whether answers are right"
        return self.scheduler.unsuited(table)


def transformed_dial(transform: Transform, dial: Dial) -> Dial:
    """Return a dial that was fitted on a transformed table as one for what the model says."""
    return dial.map(lambda policy: TransformedPolicy(transform, policy))
