"""Answers from several exits together: learnt combinations of all exits seen so far, and calibrated single exits."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.core.alone import Row, normalised
from eenet.core.table import ExitTable
from eenet.core.transform import Transform
from eenet.core.views import FEW
from eenet.errors import TableError
from eenet.schedulers.temperature import fit_temperatures

__all__ = ["Ensemble", "fit_calibration", "fit_ensemble", "fit_geometric_ensemble", "folds_of", "held_out_ensemble"]

_PRIOR_WEIGHT = 2.0  # pulls the weights towards the newest exit alone, in units of one sample's likelihood
_PRIOR_BIAS = 5.0  # pulls the class biases towards 0
_PER_CLASS = 20  # samples of a class on average below which there are no biases
_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)  # quicker to convert to than the names of the types
_ENTRIES = 2_000_000  # samples times classes that are fitted on at most; more would cost time and change little


class Ensemble(Transform):
    """Log-probabilities of the exits seen so far, weighted per exit, plus a bias per class, normalised.

    Args:
        num_exits: Number of exits.
        num_classes: Number of classes.
        weight: ``[exit, exit]``: row ``k`` weighs exits ``0..k``; default: each exit alone.
        bias: ``[exit, class]``; default: none.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        num_exits: int,
        num_classes: int,
        weight: Float[Tensor, "exit exit"] | None = None,
        bias: Float[Tensor, "exit class"] | None = None,
    ) -> None:
        super().__init__()
        self.single = True
        # double: a sum rounded once to float32 does not depend on the batch it was computed in
        alone = torch.eye(num_exits, dtype=torch.float64)
        self.register_buffer("weight", alone if weight is None else weight.detach().double().tril())
        none = torch.zeros(num_exits, num_classes, dtype=torch.float64)
        self.register_buffer("bias", none if bias is None else bias.detach().double())

    def forward(self, seen: Float[Tensor, "sample seen class"]) -> Float[Tensor, "sample class"]:
        """Return the log-probabilities of the exits seen so far together."""
        k = seen.shape[1] - 1
        if len(seen) <= FEW and seen.is_cpu:
            return torch.from_numpy(self.few(seen.numpy()))
        together = (self.weight[k, : k + 1] @ seen.double()) + self.bias[k]
        return torch.log_softmax(together, dim=-1).float()

    def one(self, seen: list[Row]) -> Row:
        """Return the same for a single sample."""
        k = len(seen) - 1
        together: Row = self.listed("bias")[k]
        for weight, row in zip(self.listed("weight")[k], seen, strict=False):
            together = [value + weight * own for value, own in zip(together, row, strict=False)]
        return normalised(together)

    def few(self, seen: Float[np.ndarray, "sample seen class"]) -> Float[np.ndarray, "sample class"]:
        """Return the same for a small batch."""
        k = seen.shape[1] - 1
        together = np.matmul(self.view("weight")[k, : k + 1], seen.astype(_DOUBLE))
        together += self.view("bias")[k]
        together -= np.maximum.reduce(together, axis=1, keepdims=True)
        together -= np.log(np.add.reduce(np.exp(together), axis=1, keepdims=True))
        log_probs: np.ndarray = together.astype(_SINGLE)
        return log_probs

    def widened(self, num_exits: int) -> Ensemble:
        """Return an ensemble in which further exits speak for themselves."""
        known, classes = self.bias.shape
        weight = torch.eye(num_exits, dtype=torch.float64)
        weight[:known, :known] = self.weight
        return Ensemble(num_exits, classes, weight, torch.nn.functional.pad(self.bias, (0, 0, 0, num_exits - known)))

    def settings(self) -> dict[str, object]:
        """Return the sizes that rebuild this transform."""
        return {"num_exits": self.bias.shape[0], "num_classes": self.bias.shape[1]}


def fit_ensemble(table: ExitTable, seed: int = 0) -> Ensemble:
    """Return the combination of exits under which the labels are most likely.

    Exit ``k`` has ``k + 1`` weights and one bias per class (none where classes have fewer than 20 samples on average),
    fitted by penalised maximum likelihood, a convex problem.

    Args:
        table: With labels; data that took no part in training.
        seed: Of the samples used where there are very many.

    Raises:
        TableError: The table has no labels.

    Source:
        Wolczyk et al., Zero Time Waste, NeurIPS 2021, section on ensembling; here with signed weights and a penalty.
    """
    return _fit(*_sample(table, seed), positive=False)


def fit_geometric_ensemble(table: ExitTable, seed: int = 0) -> Ensemble:
    """Return Zero-Time-Waste's ensemble: a weighted geometric mean of the exits seen, weights not negative.

    Args:
        table: With labels; data that took no part in training.
        seed: Of the samples used where there are very many.

    Raises:
        TableError: The table has no labels.

    Source:
        Wolczyk et al., Zero Time Waste, NeurIPS 2021, section on ensembling. The paper trains weights and biases by
        gradient steps; the problem is convex in them and is solved here, with a slight penalty.
    """
    return _fit(*_sample(table, seed), positive=True)


def fit_calibration(table: ExitTable, seed: int = 0) -> Ensemble:
    """Return each exit alone at the temperature that suits it; see `fit_temperatures`.

    Args:
        table: With labels; data that took no part in training.
        seed: Not used; makes all transforms be fitted alike.

    Raises:
        TableError: The table has no labels.
    """
    return Ensemble(table.num_exits, table.num_classes, torch.diag(1 / fit_temperatures(table)))


def held_out_ensemble(table: ExitTable, folds: int, seed: int = 0) -> tuple[ExitTable, ExitTable]:
    """Return samples as they are, and as ensembles that were fitted without them see them.

    Args:
        table: With labels.
        folds: Each is seen through the ensemble of the others.
        seed: Of the folds, and of the samples used where there are very many.

    Raises:
        TableError: The table has no labels.
    """
    log_probs, labels = _sample(table, seed)
    fold = folds_of(len(labels), folds, seed)
    together = torch.empty_like(log_probs)
    for f in range(folds):
        rest = fold != f
        together[~rest] = _fit(log_probs[rest], labels[rest], positive=False).history(log_probs[~rest])
    return ExitTable(logits=log_probs, labels=labels), ExitTable(logits=together, labels=labels)


def folds_of(num_samples: int, folds: int, seed: int) -> Int[Tensor, " sample"]:
    """Return the number of the fold that each sample is held out in; folds are of equal size, within one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_samples, generator=generator) % folds


def _sample(table: ExitTable, seed: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and labels of so many samples that fitting takes seconds."""
    if table.labels is None:
        raise TableError(
            f"table {table.split or '(unnamed)'!r} lacks labels: combining exits needs 'labels', for 'utility' values "
            f"single exits only. Add them."
        )
    most = max(1000, _ENTRIES // table.num_classes)
    rows = torch.randperm(table.num_samples, generator=torch.Generator().manual_seed(seed))[:most].sort().values
    return torch.cat([table.log_probs(part) for part in torch.split(rows, 2048)]), table.labels[rows]


def _fit(log_probs: Tensor, labels: Tensor, *, positive: bool) -> Ensemble:
    exits, classes = log_probs.shape[1:]
    weight, bias = torch.eye(exits, dtype=torch.float64), torch.zeros(exits, classes, dtype=torch.float64)
    for k in range(exits):
        weight[k, : k + 1], bias[k] = _fit_exit(log_probs[:, : k + 1].double(), labels, positive=positive)
    return Ensemble(exits, classes, weight, bias)


def _fit_exit(seen: Tensor, labels: Tensor, *, positive: bool) -> tuple[Tensor, Tensor]:
    """Return the weights and biases of one exit's combination."""
    from scipy.optimize import minimize  # heavy, and needed here only

    exits, classes = seen.shape[1:]
    likelihood = _Likelihood(seen, labels)
    start = likelihood.prior.numpy()
    if positive:
        bounds = [(0.0, None)] * exits + [(None, None)] * (len(start) - exits)
        found = minimize(likelihood.value, start, jac=True, method="L-BFGS-B", bounds=bounds)
    else:
        found = minimize(likelihood.value, start, jac=True, hess=likelihood.curvature, method="trust-exact")
    best = torch.from_numpy(found.x)
    return best[:exits], best[exits:] if len(best) > exits else torch.zeros(classes, dtype=torch.float64)


class _Likelihood:
    """Penalised negative log-likelihood per sample of weights and biases, with its derivatives.

    Where classes have few samples there are no biases: they would be guesses, and as many as there are classes.
    """

    def __init__(self, seen: Float[Tensor, "sample seen class"], labels: Int[Tensor, " sample"]) -> None:
        samples, exits, classes = seen.shape
        self.shape = (samples, classes)
        self.seen = seen.transpose(0, 1).reshape(exits, -1)  # flat, so that all sums are matrix products
        self.target = torch.nn.functional.one_hot(labels, classes).double()
        self.biased = samples >= _PER_CLASS * classes
        biases = classes if self.biased else 0
        self.prior = torch.cat([torch.zeros(exits - 1), torch.ones(1), torch.zeros(biases)]).double()
        self.penalty = torch.tensor([_PRIOR_WEIGHT] * exits + [_PRIOR_BIAS] * biases).double()

    def value(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient."""
        log_p = self._log_probs(values)
        error, away = log_p.exp() - self.target, torch.from_numpy(values) - self.prior
        loss = -(log_p * self.target).sum() + (self.penalty * away * away).sum()
        slope = self.seen @ error.flatten()
        if self.biased:
            slope = torch.cat([slope, error.sum(dim=0)])
        slope = slope + 2 * self.penalty * away
        return float(loss) / len(error), (slope / len(error)).numpy()

    def curvature(self, values: np.ndarray) -> np.ndarray:
        """Return the matrix of second derivatives: the covariance, under the model, of what the values multiply."""
        probs = self._log_probs(values).exp()
        weighted = (self.seen * probs.flatten()).view(-1, *self.shape)
        mean = weighted.sum(dim=2)
        within = weighted.flatten(1) @ self.seen.T - mean @ mean.T
        hessian = within
        if self.biased:
            cross = weighted.sum(dim=1) - mean @ probs
            biases = torch.diag(probs.sum(dim=0)) - probs.T @ probs
            hessian = torch.cat([torch.cat([within, cross], 1), torch.cat([cross.T, biases], 1)])
        return ((hessian + torch.diag(2 * self.penalty)) / len(probs)).numpy()

    def _log_probs(self, values: np.ndarray) -> Tensor:
        exits = len(self.seen)
        together = (torch.from_numpy(values[:exits]) @ self.seen).view(self.shape)
        return torch.log_softmax(together + torch.from_numpy(values[exits:]) if self.biased else together, dim=1)
