"""Matrix combinations of exits: fitted fold by fold, each as strong as held-out samples allow."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from eenet.errors import InputError, TableError
from eenet.policies.transforms import IMPOSSIBLE, Ensemble, MatrixCombination
from eenet.schedulers.base import blocks, folds_of, sampled_rows
from eenet.schedulers.ensemble import PRIOR_BIAS, fit_ensemble, fold_ensembles
from eenet.tables.checks import instance, number
from eenet.tables.table import ExitTable

MOST_PRODUCTS = 20_000
"""Multiply-adds per decision, exits times squared classes, above which exits are not combined by matrices."""

_PENALTIES = (3000.0, 300.0, 30.0, 10.0)  # on the matrices' squares, in units of one sample's likelihood
_WORK = 40_000_000  # multiply-adds of all exits on all samples above which a part of the samples is fitted on
_LEAST = 2000  # samples that are fitted on whatever the work
_BLOCK = (128, 1024)  # samples worked on at a time, at least and at most: what is made of them stays in the cache
_PRODUCT = 250_000  # multiply-adds of one product up to which BLAS starts no threads, which cost more than they bring
_ENOUGH = 1e-7  # relative gain of the loss below which a fit is done; held-out losses differ by far more
_ITERATIONS = 200
_REMEMBERED = 10  # steps from which second derivatives are learnt
_SHORTEST = 1e-3  # part of a step below which the search ends


class MatrixFit(NamedTuple):
    """A combination that was fitted on a table, and what schedulers behind it should be fitted on.

    Attributes:
        transform: The combination.
        held_out: The table, every sample's answers by a fit that has not seen it, with its labels and costs: on these
            samples the combination itself looks surer and better than it is on others.
        penalties: Chosen for each exit; infinite where the ensemble alone was best.
    """

    transform: MatrixCombination
    held_out: ExitTable
    penalties: tuple[float, ...]


def suits_matrix(table: ExitTable) -> bool:
    """Return whether exits may be combined by matrices: labels are known, and classes are few enough."""
    return table.combinable and table.num_samples > 1 and _products(table) <= MOST_PRODUCTS


def fit_matrix(table: ExitTable, seed: int = 0, folds: int = 5) -> MatrixFit:
    """Return the combination of exits by matrices under which labels of held-out samples are most likely.

    To the answers of `fit_ensemble` each exit adds a linear map of what all exits so far say, fitted by maximum
    likelihood with a penalty on its squares, a convex problem. The penalty is chosen for each exit by the likelihood of
    samples held out in cross-validation; where that gains less than a standard error over no matrix, as where exits
    were trained well, none is used. The deployed matrices are the mean of the folds'.

    Args:
        table: With labels; data that took no part in training.
        seed: Of the folds, and of the random part that is fitted on where there are very many samples.
        folds: Of the cross-validation, at least 2.

    Raises:
        TableError: The table has no labels, 1 sample only, or so many classes that decisions would be slow; see
            `suits_matrix`.
        InputError: The table is transformed already, or there are fewer than 2 folds.
    """
    _check(table)
    number(folds, "folds", 2, whole=True)
    rows = _fitted_on(table, seed)
    fold = folds_of(table.group_index[rows], folds, seed)
    return _fit(table, rows, fold, fold_ensembles(table.select(rows), fold), seed)


def fit_matrix_knowing(
    ensembles: Sequence[Ensemble], fold: Int[np.ndarray, " sample"], table: ExitTable, seed: int
) -> MatrixFit:
    """Return the same as `fit_matrix`, where the ensembles fitted without each fold are known."""
    _check(table)
    rows = _fitted_on(table, seed)
    if len(rows) < table.num_samples:
        return fit_matrix(table, seed, len(ensembles))
    return _fit(table, rows, fold, ensembles, seed)


def _fitted_on(table: ExitTable, seed: int) -> Int[np.ndarray, " row"]:
    """Return the rows that are fitted on: all, or so many that fitting takes seconds."""
    exits, classes = table.num_exits, table.num_columns
    work = exits * (exits + 1) // 2 * classes * classes
    return sampled_rows(table.group_index, max(_LEAST, _WORK // work), seed)


def _fit(
    table: ExitTable,
    rows: Int[np.ndarray, " row"],
    fold: Int[np.ndarray, " row"],
    ensembles: Sequence[Ensemble],
    seed: int,
) -> MatrixFit:
    alone, part, exits = fit_ensemble(table, seed), table.select(rows), table.num_exits
    seen = part.seen()
    found = [
        _fit_exit(seen[:, : k + 1], [one(seen[:, : k + 1]) for one in ensembles], part.labels, fold)
        for k in range(exits)
    ]
    by_fold = [_combination(one, [(m[f], b[f]) for _, m, b in found]) for f, one in enumerate(ensembles)]
    transform = _combination(alone, [(m.mean(axis=0), b.mean(axis=0)) for _, m, b in found])
    logits = np.concatenate([transform.history(table.seen(chunk)) for chunk in table.chunks()])
    for f, one in enumerate(by_fold):
        logits[rows[fold == f]] = one.history(seen[fold == f])
    held_out = replace(table.transformed(transform), logits=logits, utility=None, transform=None)
    return MatrixFit(transform, held_out, tuple(penalty for penalty, _, _ in found))


def _products(table: ExitTable) -> int:
    return table.num_exits * table.num_columns**2


def _check(table: ExitTable) -> None:
    """Refuse a table whose exits cannot be combined by matrices."""
    instance(table, ExitTable, "table").require_labels("combining exits", "'utility' values single exits only")
    if table.transform is not None:
        raise InputError(
            f"{table.name} is transformed already: matrices combine what the model says. Pass the table it was made "
            "from."
        )
    if table.num_samples < 2:
        raise TableError(
            f"{table.name} of 1 sample is too small: matrices are chosen on samples held out in turn. Give at least 2."
        )
    if _products(table) > MOST_PRODUCTS:
        raise TableError(
            f"{table.name} of {table.num_exits} exits and {table.num_columns} classes has too many: a matrix per pair "
            f"of exits takes {_products(table):,} multiply-adds per decision, and at most {MOST_PRODUCTS:,} are "
            "allowed. Use fit_ensemble."
        )


def _combination(alone: Ensemble, found: list[tuple[np.ndarray, np.ndarray]]) -> MatrixCombination:
    """Return an ensemble with a matrix ``[seen * class, class]`` and a bias added at each exit."""
    exits, classes = alone.bias.shape
    matrix = np.zeros((exits, exits, classes, classes))
    for k, (own, _) in enumerate(found):
        matrix[k, : k + 1] = own.reshape(k + 1, classes, classes)
    return MatrixCombination(weight=alone.weight, bias=alone.bias + [bias for _, bias in found], matrix=matrix)


def _fit_exit(
    seen: Float32[np.ndarray, "sample seen class"],
    alone: list[Float32[np.ndarray, "sample class"]],
    labels: Int[np.ndarray, " sample"],
    fold: Int[np.ndarray, " sample"],
) -> tuple[float, Float64[np.ndarray, "fold column class"], Float64[np.ndarray, "fold class"]]:
    """Return the best penalty for an exit, with each fold's matrix and bias.

    ``alone`` is what the ensembles fitted without each fold answer. Each fit starts where the one of the next larger
    penalty ended.
    """
    fit = _Folds(seen, alone, labels, fold)
    solutions = [(math.inf, np.zeros(fit.shape))]
    for penalty in _PENALTIES:
        solutions.append((penalty, fit.solve(penalty, solutions[-1][1])))
    losses = [fit.held_out(values) for _, values in solutions]
    best = int(np.argmin([one.mean() for one in losses]))
    gain = losses[0] - losses[best]
    if gain.mean() <= gain.std() / math.sqrt(len(gain)):
        best = 0
    penalty, values = solutions[best]
    return penalty, *fit.matrices(values)


def _descend(
    value: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: Float64[np.ndarray, "input answer"],
    bends: Float64[np.ndarray, "input 1"],
) -> Float64[np.ndarray, "input answer"]:
    """Return about the minimum of a convex function, by L-BFGS from a guess of its second derivatives.

    scipy's takes no such guess, and starts threads for vectors this short: on a busy machine they wait for each other.
    """
    at, (loss, slope) = start, value(start)
    known: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=_REMEMBERED)
    for _ in range(_ITERATIONS):
        step, shares = -slope, []
        for moved, turned, bend in reversed(known):
            shares.append(float((moved * step).sum()) / bend)
            step = step - shares[-1] * turned
        step = step / bends
        for (moved, turned, bend), share in zip(known, reversed(shares), strict=True):
            step += (share - float((turned * step).sum()) / bend) * moved
        promised, length = float((step * slope).sum()), 1.0
        while (found := value(at + length * step))[0] > loss + 1e-4 * length * promised:
            if (length := length / 2) < _SHORTEST:
                return at  # of single precision, no less is to be had
        moved, turned, gain = length * step, found[1] - slope, loss - found[0]
        at, (loss, slope) = at + moved, found
        if gain <= _ENOUGH * max(1.0, loss):
            break
        if (bend := float((moved * turned).sum())) > 0:
            known.append((moved, turned, bend))
    return at


class _Folds:
    """Penalised likelihoods without each fold in turn, all at once: their sum is least where each of them is.

    Inputs are turned to their principal axes: there one scale per input makes the problem round, so that few steps
    solve it. What is solved for has one row per axis and a last one for the bias, and columns fold by fold.
    """

    def __init__(
        self,
        seen: Float32[np.ndarray, "sample seen class"],
        alone: list[Float32[np.ndarray, "sample class"]],
        labels: Int[np.ndarray, " sample"],
        fold: Int[np.ndarray, " sample"],
    ) -> None:
        samples = len(seen)
        x = np.maximum(seen, IMPOSSIBLE).reshape(samples, -1)
        self.centre = x.mean(axis=0, dtype=np.float64)
        x -= self.centre.astype(np.float32)
        spread, self.axes = np.linalg.eigh((x.T @ x).astype(np.float64))
        self.inputs = np.ones((x.shape[1] + 1, samples), dtype=np.float32)
        self.inputs[:-1] = self.axes.T.astype(np.float32) @ x.T
        self.alone = np.stack([one.T for one in alone])  # samples last: sums over classes are sums of long rows
        self.labels, self.fold = labels, fold
        self.others: Bool[np.ndarray, "fold sample"] = np.arange(len(alone))[:, None] != fold
        self.spread = np.append(np.maximum(spread, 0.0), samples)
        probs = np.exp(self.alone[0])
        self.doubt = float((probs * (1 - probs)).mean())  # about how much the likelihood bends along an input
        folds, classes = self.alone.shape[:2]
        self.shape = (len(self.inputs), folds * classes)
        self.block = int(np.clip(_PRODUCT // (len(self.inputs) * classes), *_BLOCK))

    def solve(self, penalty: float, start: Float64[np.ndarray, "input answer"]) -> Float64[np.ndarray, "input answer"]:
        """Return where the penalised loss is least."""
        penalties = np.append(np.full(len(self.inputs) - 1, penalty), PRIOR_BIAS)[:, None]
        bends = (self.doubt * self.spread[:, None] + 2 * penalties) / len(self.labels)
        return _descend(lambda values: self.value(values, penalties), start, bends)

    def value(
        self, values: Float64[np.ndarray, "input answer"], penalties: Float64[np.ndarray, "input 1"]
    ) -> tuple[float, Float64[np.ndarray, "input answer"]]:
        """Return the summed loss per sample and its gradient."""
        samples, narrow = len(self.labels), self._narrow(values)
        loss, by_fold = 0.0, np.zeros(narrow.shape)
        for rows in blocks(0, samples, self.block):
            logits, place = self._logits(narrow, rows), np.arange(rows.stop - rows.start)
            right, counts = logits[:, self.labels[rows], place], self.others[:, rows]
            largest = logits.max(axis=1)
            logits -= largest[:, None]
            probs = np.exp(logits, out=logits)
            total = probs.sum(axis=1)
            loss += float((np.log(total) + largest - right)[counts].sum(dtype=np.float64))
            probs *= (counts / total)[:, None]
            probs[:, self.labels[rows], place] -= counts
            by_fold += probs @ self.inputs[:, rows].T
        loss += float((penalties * values * values).sum())
        slope = by_fold.reshape(-1, len(values)).T + 2 * penalties * values
        return loss / samples, slope / samples

    def _narrow(self, values: Float64[np.ndarray, "input answer"]) -> Float32[np.ndarray, "fold class input"]:
        return values.T.astype(np.float32, order="C").reshape(*self.alone.shape[:2], -1)

    def _logits(
        self, narrow: Float32[np.ndarray, "fold class input"], rows: slice
    ) -> Float32[np.ndarray, "fold class row"]:
        return np.asarray(narrow @ self.inputs[:, rows] + self.alone[:, :, rows])

    def held_out(self, values: Float64[np.ndarray, "input answer"]) -> Float64[np.ndarray, " sample"]:
        """Return the loss of each sample under the fit without it."""
        loss, narrow = np.empty(len(self.labels)), self._narrow(values)
        for rows in blocks(0, len(self.labels), self.block):
            place = np.arange(rows.stop - rows.start)
            own = self._logits(narrow, rows)[self.fold[rows], :, place].astype(np.float64)
            own -= own.max(axis=1, keepdims=True)
            loss[rows] = np.log(np.exp(own).sum(axis=1)) - own[place, self.labels[rows]]
        return loss

    def matrices(
        self, values: Float64[np.ndarray, "input answer"]
    ) -> tuple[Float64[np.ndarray, "fold column class"], Float64[np.ndarray, "fold class"]]:
        """Return each fold's matrix on inputs as they are, and its bias."""
        by_fold = np.moveaxis(values.reshape(len(values), *self.alone.shape[:2]), 1, 0)
        matrix = self.axes @ by_fold[:, :-1]
        return matrix, by_fold[:, -1] - self.centre @ matrix
