"""Optimal stopping: leave where going on is worth less than it costs, learnt backwards from the last exit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from eenet.core.alone import Row
from eenet.core.costs import BudgetLike, CostTable, standard_budgets
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import Scorer, StateScorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.core.views import FEW
from eenet.errors import InputError, TableError
from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.ensemble import Ensemble, fit_ensemble, held_out_ensemble
from eenet.schedulers.stopping_fit import Induced, induce
from eenet.schedulers.thresholds import frontier
from eenet.schedulers.transformed import behind

_MOST_CURVES = 64  # classes up to which each has a curve of its own

__all__ = ["StoppingScheduler", "StoppingScorer", "StoppingState"]

_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)  # quicker to convert to than the names of the types


class StoppingState(nn.Module):
    """What the stopping rule knows of a sample: the newest exit's probabilities and what sums them up.

    The columns are the probabilities, their squares (one by one, so that every class has a curve of its own, or only
    their sum), the largest probability, and the sum of ``p log p``; with features also the newest exit's features.

    Args:
        curved: Whether the squares stand one by one.
        with_features: Whether the table's features belong to the state.
    """

    def __init__(self, *, curved: bool = True, with_features: bool = False) -> None:
        super().__init__()
        self.curved, self.with_features = curved, with_features

    @classmethod
    def suiting(cls, table: ExitTable, *, with_features: bool) -> StoppingState:
        """Return the state for a table; squares stand one by one where classes are few."""
        return cls(curved=table.num_classes <= _MOST_CURVES, with_features=with_features and table.features is not None)

    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, "sample column"]:
        """Return the state at the newest exit seen, in double."""
        return self.of(seen[:, -1], None if features is None else features[:, -1])

    def own_columns(self, num_classes: int) -> int:
        """Return the number of columns without features."""
        return 2 * num_classes + 2 if self.curved else num_classes + 3

    def of(
        self, log_probs: Float[Tensor, "sample class"], features: Float[Tensor, "sample feature"] | None
    ) -> Float[Tensor, "sample column"]:
        """Return the state that belongs to one exit's log-probabilities and features."""
        log_p = log_probs.double()
        p = log_p.exp()
        squares = p * p if self.curved else _products(p, p)
        columns = [p, squares, p.amax(dim=1, keepdim=True), _products(p, log_p)]
        if self.with_features:
            if features is None:
                raise InputError(
                    "features None are missing: the policy was fitted on a table with features. Pass those of the "
                    "samples too."
                )
            columns.append(features.double())
        return torch.cat(columns, dim=1)


def _products(a: Tensor, b: Tensor) -> Float[Tensor, "sample 1"]:
    """Return the sum over classes of the products."""
    products: Tensor = torch.linalg.vecdot(a, b)
    return products.unsqueeze(1)


class StoppingScorer(StateScorer):
    """What leaving is expected to be worth, minus what going on is: a linear function of the `StoppingState`.

    Args:
        num_exits: Number of exits.
        num_columns: Of the state.
        curved: As of the state.
        with_features: As of the state.
        state: Shared by scorers of one fit; default: a new one.
        weight: ``[early exit, column]``; default zero, for loading.
        bias: ``[early exit]``; default zero, for loading.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        num_exits: int,
        num_columns: int,
        *,
        curved: bool = True,
        with_features: bool = False,
        state: StoppingState | None = None,
        weight: Float[Tensor, "early column"] | None = None,
        bias: Float[Tensor, " early"] | None = None,
    ) -> None:
        super().__init__(StoppingState(curved=curved, with_features=with_features) if state is None else state)
        self.curved, self.with_features = curved, with_features
        self.newest_only, self.single = True, not with_features
        # double: a sum rounded once to float32 does not depend on the batch it was computed in
        self.register_buffer("weight", torch.zeros(num_exits - 1, num_columns).double() if weight is None else weight)
        self.register_buffer("bias", torch.zeros(num_exits - 1).double() if bias is None else bias)

    def read(self, state: Float[Tensor, "sample column"], k: int) -> Float[Tensor, " sample"]:
        """Return the score that belongs to a state at exit ``k``."""
        return torch.addmv(self.bias[k : k + 1], state, self.weight[k]).float()

    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the score at the newest exit seen."""
        if len(seen) <= FEW and seen.is_cpu and self.single:
            return torch.from_numpy(self.few(self.read_few(seen.numpy()[:, -1]), seen.shape[1] - 1))
        return super().forward(seen, features)

    def read_few(self, newest: Float[np.ndarray, "sample class"]) -> Float[np.ndarray, "sample column"]:
        """Return the state of a small batch."""
        log_p, classes = newest.astype(_DOUBLE), newest.shape[1]
        state = np.empty((len(newest), self.weight.shape[1]))
        p = np.exp(log_p, out=state[:, :classes])
        if self.curved:
            np.multiply(p, p, out=state[:, classes:-2])
        else:
            state[:, classes] = np.einsum("ij,ij->i", p, p)
        np.maximum.reduce(p, axis=1, out=state[:, -2])
        np.einsum("ij,ij->i", p, log_p, out=state[:, -1])
        return state

    def reads_alike(self, other: Scorer) -> bool:
        """Return whether another scorer works out the same state."""
        return isinstance(other, StoppingScorer) and other.curved == self.curved

    def few(self, read: Float[np.ndarray, "sample column"], k: int) -> Float[np.ndarray, " sample"]:
        """Return the scores of a small batch at exit ``k``."""
        scores: np.ndarray = (read.dot(self.view("weight")[k]) + self.view("bias")[k]).astype(_SINGLE)
        return scores

    def one(self, newest: Row, k: int) -> float:
        """Return the score of a single sample at exit ``k``."""
        weight, classes = self.listed("weight")[k], len(newest)
        squares = weight[classes:-2] if self.curved else [weight[classes]] * classes
        p, entropy = list(map(math.exp, newest)), weight[-1]
        terms = zip(p, weight, squares, newest, strict=False)  # the weights begin with those of the probabilities
        worth = sum([chance * (a + b * chance + entropy * log_p) for chance, a, b, log_p in terms])
        score: float = worth + weight[-2] * max(p) + self.listed("bias")[k]
        return score

    def widened(self, num_exits: int) -> StoppingScorer:
        """Return a scorer with weights 0 for more exits."""
        known, columns = self.weight.shape
        weight, bias = torch.zeros(num_exits - 1, columns).double(), torch.zeros(num_exits - 1).double()
        weight[:known], bias[:known] = self.weight, self.bias
        return StoppingScorer(
            num_exits, columns, curved=self.curved, with_features=self.with_features, weight=weight, bias=bias
        )

    def settings(self) -> dict[str, object]:
        """Return the sizes that rebuild this scorer."""
        early, columns = self.weight.shape
        kind = {"curved": self.curved, "with_features": self.with_features}
        return {"num_exits": early + 1, "num_columns": columns, **kind}


@dataclass(frozen=True, kw_only=True)
class StoppingScheduler(Scheduler):
    """Leaves where the expected gain of going on does not pay for its price: a stopping problem, solved backwards.

    For each price ``lambda`` of cost, a linear function of what the newest exit says (its class probabilities
    included) predicts the value of going on minus that of leaving, as it was realised by the rule already fitted
    for the later exits. One fit serves all prices, from 0 (most utility) to infinity (cheapest), hence all budgets;
    a budget between two prices is met by mixing. Only its sign matters, so the regression weighs samples near the
    boundary more (with up to 20 classes; with more it would take too long). Where the labels are known, what an
    answer was worth is read off what all exits together make of the sample, which is less noisy than one label.

    Only rules are kept that are worth their cost on samples held out in cross-validation, with every fixed exit among
    them: nothing is spent on later exits that add nothing there.

    Attributes:
        ensemble: Whether leaving samples are answered by a learnt combination of the exits seen so far (and judged by
            it), where that pays on held-out samples; needs labels.
        use_features: Whether to use the table's features, where it has some. Running models must be given them too.
        folds: Of the cross-fitting.
        ridge: Penalty on the weights of what is made of probabilities, in samples.
        feature_ridge: Penalty on the weights of features, in samples, as if each had variance 1.

    Source:
        Longstaff and Schwartz, Valuing American Options by Simulation, Review of Financial Studies 14, 2001; Bolukbasi
        et al., Adaptive Neural Networks for Efficient Inference, ICML 2017, arXiv 1702.07811.
    """

    ensemble: bool = True
    use_features: bool = False
    folds: int = 5
    ridge: float = 1.0
    feature_ridge: float = 1000.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.folds < 2:
            raise InputError(f"folds {self.folds} are too few: samples are held out in turn. Pass at least 2.")
        for name in ("ridge", "feature_ridge"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} {value:g} cannot be used: it must be finite and positive. Raise it.")

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Fit for all budgets; see `Scheduler.sweep`.

        On the fitting data a larger budget never lowers utility. The policy may stay below a budget where spending more
        bought nothing.

        Raises:
            TableError: The table has neither labels nor utility, no costs are known, or it holds 1 sample only.
        """
        costs = costs or table.require_costs()
        table.require_utility("fitting stopping")
        if table.num_samples < 2:
            raise TableError("table of 1 sample is too small: stopping holds samples out in turn. Give at least 2.")
        if isinstance(table.transform, Ensemble):
            return self._dial(table, costs, _worth(table, table.transform))
        together = fit_ensemble(table, self.seed) if table.combinable else None
        if together is None or not (self.ensemble and self._ensemble_pays(table, costs)):
            return self._dial(table, costs, _worth(table, together))
        combined = table.transformed(together)
        return behind(together, self._dial(combined, costs, _worth(combined, together)))

    def _ensemble_pays(self, table: ExitTable, costs: CostTable) -> bool:
        """Tell whether held-out ensembles make the labels likelier and let the rule reach more over standard budgets.

        Likelihood has little noise: without it, an ensemble with nothing to combine is often kept by chance.
        """
        alone, together = held_out_ensemble(table, self.folds, self.seed)
        if _likelihood(together) <= _likelihood(alone):
            return False
        reached = []
        for part in (alone, together):
            induced = self._induce(part, costs, part.require_utility("fitting stopping"), self._state(part))
            kept = frontier(induced.cost, induced.utility)
            points = np.interp(standard_budgets(costs), induced.cost[kept].numpy(), induced.utility[kept].numpy())
            reached.append(points.mean())
        return bool(reached[1] > reached[0])

    def _state(self, table: ExitTable) -> StoppingState:
        return StoppingState.suiting(table, with_features=self.use_features)

    def _induce(self, table: ExitTable, costs: CostTable, worth: Tensor, state: StoppingState) -> Induced:
        return induce(
            table,
            costs,
            worth,
            state=state,
            folds=self.folds,
            ridge=self.ridge,
            feature_ridge=self.feature_ridge,
            seed=self.seed,
        )

    def _dial(self, table: ExitTable, costs: CostTable, worth: Tensor) -> Dial:
        """Return the rules that are worth their cost on held-out samples, at the cost they really have."""
        state = self._state(table)
        induced = self._induce(table, costs, worth, state)
        thresholds = torch.zeros(table.num_exits)
        thresholds[-1] = -math.inf
        scorers = (
            StoppingScorer(
                table.num_exits,
                induced.weight.shape[2],
                curved=state.curved,
                with_features=state.with_features,
                state=state,
                weight=induced.weight[i],
                bias=induced.bias[i],
            )
            for i in frontier(induced.cost, induced.worth)
        )
        policies = [ScorePolicy(scorer, thresholds) for scorer in scorers]
        replayer = Replayer(table)
        replayer.prepare(policies)
        outcome = [(*replayer.expected(policy, costs), policy) for policy in policies]
        rising: list[tuple[float, float, Policy]] = []
        for one in sorted(outcome, key=lambda one: (one[0], -one[1])):
            if not rising or one[1] > rising[-1][1]:
                rising.append(one)
        fit_costs, fit_utilities, kept = zip(*rising, strict=True)
        return Dial(policies=kept, fit_costs=fit_costs, fit_utilities=fit_utilities, costs=costs, seed=self.seed)


def _likelihood(table: ExitTable) -> float:
    """Return the mean log-probability of the labels over all exits."""
    assert table.labels is not None
    total = 0.0
    for rows in table.chunks():
        labels = table.labels[rows][:, None, None].expand(-1, table.num_exits, 1)
        total += float(table.log_probs(rows).gather(2, labels).double().clamp_min(-100).sum())
    return total / (table.num_samples * table.num_exits)


def _worth(table: ExitTable, together: Ensemble | None) -> Float[Tensor, "sample exit"]:
    """Return what answering at each exit was worth: the chance that it is right given all exits, or the utility."""
    if together is None:
        return table.require_utility("fitting stopping")
    worth = torch.empty(table.num_samples, table.num_exits, dtype=torch.float64)
    for rows in table.chunks():
        given = torch.log_softmax(table.logits[rows].float(), dim=-1)
        answers = given if table.transform is None else table.transform.history(given)
        worth[rows] = together(given).double().exp().gather(1, answers.argmax(dim=2))
    return worth
