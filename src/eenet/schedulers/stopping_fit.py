"""Backward induction for `eenet.schedulers.stopping`: regressions from the last exit to the first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable
from eenet.schedulers.ensemble import folds_of

if TYPE_CHECKING:
    from eenet.schedulers.stopping import StoppingState

__all__ = ["Induced", "induce"]

_PRICES = 80  # values of the multiplier, evenly spaced in its logarithm; with half as many, rules are missed
_BLOCK = 4096  # samples worked on at a time
_LARGE = 10_000_000  # numbers in the columns of a regression above which they are kept in float32
_SHARED = 0.1  # penalty on what all classes share, as a part of the ridge: it is better known than each class's own
_NEAR = 0.35  # distance from the boundary at which a sample counts half, in root mean squares of the prediction
_NARROWINGS = 2  # times a regression is repeated near the boundary it found
_MOST_NARROWED = 42  # columns up to which regressions are repeated near the boundary: those of 20 classes
_NARROW_BLOCK = 1024  # samples of which all products of two columns are held at a time


@dataclass(frozen=True)
class Induced:
    """Stopping rules, one per candidate: every fixed exit, then every price of cost.

    A rule leaves where ``weight . state + bias >= 0``.

    Attributes:
        weight: Of the state.
        bias: Added to it.
        cost: Mean cost on samples held out of the fit.
        utility: Mean utility on them.
        worth: Mean worth on them, as the regression saw it.
    """

    weight: Float[Tensor, "candidate early column"]
    bias: Float[Tensor, "candidate early"]
    cost: Float[Tensor, " candidate"]
    utility: Float[Tensor, " candidate"]
    worth: Float[Tensor, " candidate"]


def induce(
    table: ExitTable,
    costs: CostTable,
    worth: Float[Tensor, "sample exit"],
    *,
    state: StoppingState,
    folds: int,
    ridge: float,
    feature_ridge: float,
    seed: int,
) -> Induced:
    """Return stopping rules for many prices of cost.

    At exit ``k`` the value of going on minus that of leaving is regressed on the state, by ridge regression, for all
    prices at once. The value of going on is what the rule fitted for the later exits realised on samples it had not
    seen: every fold is predicted by the others, so that taking the better of two noisy numbers does not feed on its own
    noise. Only the sign of the difference decides, so where columns are few the regression is repeated with more weight
    on samples near the boundary. The deployed rule is the mean of the folds' linear functions.

    Args:
        table: What the exits say.
        costs: Of its exits.
        worth: What answering at each exit was worth.
        state: Columns of the regression.
        folds: Of the cross-fitting.
        ridge: Penalty on the weights of what is made of probabilities, in samples.
        feature_ridge: Penalty on the weights of features, in samples, as if each had variance 1.
        seed: Of the folds.
    """
    exits = table.num_exits
    utility = table.require_utility("fitting stopping")
    cumulative = torch.tensor(costs.cumulative, dtype=torch.float64)
    fold = folds_of(table.num_samples, min(folds, table.num_samples), seed)
    prices = _prices(worth, costs)
    own = state.own_columns(table.num_classes)
    width = own + (table.features.shape[2] if state.with_features and table.features is not None else 0)
    weight = torch.zeros(len(prices), exits - 1, width, dtype=torch.float64)
    bias = torch.zeros(len(prices), exits - 1, dtype=torch.float64)
    leaves_at = torch.full((table.num_samples, len(prices)), exits - 1)  # where each rule, from exit k on, leaves
    for k in reversed(range(exits - 1)):
        gain = worth.gather(1, leaves_at) - worth[:, k, None] - prices * (cumulative[leaves_at] - cumulative[k])
        x = _columns(table, state, k, width)
        penalty = _penalty(state, table.num_classes, ridge)
        if own < width:
            spread = x[:, own:].double().var(dim=0).clamp_min(1e-12)
            penalty = torch.block_diag(penalty, torch.diag(feature_ridge * spread))  # type: ignore[no-untyped-call]
        found, constant, held_out = _cross_fit(x, gain, fold, penalty)
        for _ in range(_NARROWINGS if width <= _MOST_NARROWED else 0):
            found, constant, held_out = _narrowed(x, gain, fold, penalty, held_out)
        leaves_at = torch.where(held_out > 0, leaves_at, k)
        weight[:, k], bias[:, k] = -found.T, -constant  # a rule leaves where its score is not negative
        del x, gain, held_out  # of large tables these are large, and the next exit needs as much
    fixed = torch.arange(exits)
    # fixed exits first: where a rule held out is as good, its deployed mean may still spend more
    leaves_at = torch.cat([fixed.expand(table.num_samples, -1), leaves_at], dim=1)
    always = torch.where(fixed[:, None] <= fixed[:-1], 1.0, -1.0)  # a fixed exit's score: below 0 before it
    return Induced(
        weight=torch.cat([torch.zeros(exits, exits - 1, width, dtype=torch.float64), weight]),
        bias=torch.cat([always.double(), bias]),
        cost=cumulative[leaves_at].mean(dim=0),
        utility=utility.gather(1, leaves_at).mean(dim=0),
        worth=worth.gather(1, leaves_at).mean(dim=0),
    )


def _prices(worth: Tensor, costs: CostTable) -> Float[Tensor, " price"]:
    """Return multipliers from 0 to one at which the cheapest exit wins."""
    means = worth.mean(dim=0)
    scale = max(float(means.max() - means.min()), 1e-3) / (costs.high - costs.low)
    grid = torch.logspace(math.log10(0.01 * scale), math.log10(30 * scale), _PRICES - 1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), grid])


def _columns(table: ExitTable, state: StoppingState, k: int, width: int) -> Float[Tensor, "sample column"]:
    """Return the state of all samples at an exit, in float32 where it is large."""
    kind = torch.float64 if table.num_samples * width < _LARGE else torch.float32
    x = torch.empty(table.num_samples, width, dtype=kind)
    for rows in table.chunks():
        features = None if table.features is None else table.features[rows, k].float()
        x[rows] = state.of(table.log_probs_at(rows, k), features).to(kind)
    return x


def _penalty(state: StoppingState, classes: int, ridge: float) -> Float[Tensor, "column column"]:
    """Return the penalty on what is made of probabilities: the inverse of the weights' prior covariance, in samples.

    Each class has a weight of its own, and squares, where they stand one by one, share a weight as well.
    """
    precision = torch.full((state.own_columns(classes),), ridge, dtype=torch.float64)
    precision[2 * classes if state.curved else classes :] = _SHARED * ridge
    covariance = torch.diag(1 / precision)
    if state.curved:
        covariance[classes : 2 * classes, classes : 2 * classes] += 1 / (_SHARED * ridge)
    penalty: Tensor = torch.linalg.inv(covariance)
    return penalty


def _cross_fit(
    x: Float[Tensor, "sample column"],
    y: Float[Tensor, "sample target"],
    fold: Int[Tensor, " sample"],
    penalty: Float[Tensor, "column column"],
) -> tuple[Float[Tensor, "column target"], Float[Tensor, " target"], Float[Tensor, "sample target"]]:
    """Return the mean over folds of ridge regressions without each fold, and every sample's held-out prediction."""
    folds, width = int(fold.max()) + 1, x.shape[1]
    center = x.mean(dim=0)
    count = torch.bincount(fold, minlength=folds).double()
    gram = torch.zeros(folds, width, width, dtype=torch.float64)
    cross = torch.zeros(folds, width, y.shape[1], dtype=torch.float64)
    sums, totals = torch.zeros(folds, width, dtype=torch.float64), torch.zeros(folds, y.shape[1], dtype=torch.float64)
    members = [(fold == f).nonzero().squeeze(1) for f in range(folds)]
    for f, rows in enumerate(members):
        for part in torch.split(rows, _BLOCK):
            z, target = x[part] - center, y[part].to(x.dtype)
            gram[f] += z.T @ z
            cross[f] += z.T @ target
            sums[f] += z.sum(dim=0)
            totals[f] += target.sum(dim=0)
    predicted = torch.empty_like(y)
    weights, biases = [], []
    for f, rows in enumerate(members):
        others = [g for g in range(folds) if g != f]
        n = count[others].sum()
        mean_x, mean_y = sums[others].sum(0) / n, totals[others].sum(0) / n
        matrix = gram[others].sum(0) - n * torch.outer(mean_x, mean_x) + penalty
        weight = torch.linalg.solve(matrix, cross[others].sum(0) - n * torch.outer(mean_x, mean_y))
        bias = mean_y - (mean_x + center) @ weight
        for part in torch.split(rows, _BLOCK):
            predicted[part] = x[part].double() @ weight + bias
        weights.append(weight)
        biases.append(bias)
    return torch.stack(weights).mean(0), torch.stack(biases).mean(0), predicted


def _narrowed(
    x: Float[Tensor, "sample column"],
    y: Float[Tensor, "sample target"],
    fold: Int[Tensor, " sample"],
    penalty: Float[Tensor, "column column"],
    held_out: Float[Tensor, "sample target"],
) -> tuple[Float[Tensor, "column target"], Float[Tensor, " target"], Float[Tensor, "sample target"]]:
    """Return what `_cross_fit` does, with samples weighted by how near to 0 they were predicted.

    Longstaff and Schwartz regress over paths in the money only, for the same reason; weights keep it smooth.
    """
    folds, width, targets = int(fold.max()) + 1, x.shape[1], y.shape[1]
    center = x.double().mean(dim=0)
    scale = _NEAR * held_out.square().mean(dim=0).sqrt() + 1e-12
    near = 1 / (1 + (held_out / scale).square())
    near /= near.mean(dim=0)
    upper = torch.triu_indices(width + 1, width + 1)  # of the matrix of products; the last column is constant
    gram = torch.zeros(folds, targets, upper.shape[1], dtype=torch.float64)
    cross = torch.zeros(folds, targets, width + 1, dtype=torch.float64)
    members = [(fold == f).nonzero().squeeze(1) for f in range(folds)]

    def columns(rows: Tensor) -> Tensor:
        return torch.nn.functional.pad(x[rows].double() - center, (0, 1), value=1.0)

    for f, rows in enumerate(members):
        for part in torch.split(rows, _NARROW_BLOCK):
            z, weight = columns(part), near[part].T
            gram[f] += weight @ (z[:, upper[0]] * z[:, upper[1]])
            cross[f] += (weight * y[part].T) @ z
    matrix = torch.zeros(targets, width + 1, width + 1, dtype=torch.float64)
    penalty = torch.nn.functional.pad(penalty, (0, 1, 0, 1))
    predicted, solutions = torch.empty_like(held_out), []
    for f, rows in enumerate(members):
        matrix[:, upper[0], upper[1]] = matrix[:, upper[1], upper[0]] = gram.sum(dim=0) - gram[f]
        solutions.append(torch.linalg.solve(matrix + penalty, (cross.sum(dim=0) - cross[f]).unsqueeze(2)).squeeze(2))
        for part in torch.split(rows, _BLOCK):
            predicted[part] = columns(part) @ solutions[-1].T
    solution = torch.stack(solutions).mean(dim=0)
    weight = solution[:, :-1].T
    return weight, solution[:, -1] - center @ weight, predicted
