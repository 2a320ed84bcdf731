"""Choosing a scheduler by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
from jaxtyping import Float64, Int

from eenet.log import logger
from eenet.policies.dial import Dial
from eenet.policies.replay import Replayer
from eenet.policies.transforms import Ensemble
from eenet.schedulers.base import LEAST_SAMPLES, Scheduler, folds_of, sampled, standard_error
from eenet.schedulers.choosing import HeldOut, held_out
from eenet.schedulers.ensemble import fit_ensemble, fold_ensembles, held_out_by, likelihood, transformed_dial
from eenet.schedulers.matrix import MatrixFit, fit_matrix, fit_matrix_knowing, suits_matrix
from eenet.schedulers.stopping import StoppingScheduler
from eenet.schedulers.thresholds import GeometricScheduler, JointScheduler
from eenet.tables.costs import CostTable, standard_budgets
from eenet.tables.display import samples
from eenet.tables.table import ExitTable

_Trial: TypeAlias = tuple[str, Int[np.ndarray, " row"], Replayer, Dial]

_MANY = 1000  # samples from which on optimal stopping does what joint thresholds do, and matrices can be fitted
_ROWS = 10_000  # samples the choice is made on at most
_ENTRIES = 10_000_000  # numbers in their outputs at most
_COARSE: dict[type[Scheduler], dict[str, int]] = {
    GeometricScheduler: {"targets": 41},
    JointScheduler: {"multipliers": 20},
    StoppingScheduler: {"multipliers": 40},
}


@dataclass(frozen=True)
class Contender:
    """A scheduler that was tried.

    Attributes:
        name: Of the scheduler, with ``+ensemble`` where it works on the exits' combination.
        area: Mean utility at the standard budgets on held-out samples.
        deficit: How much lower that is than the best contender's.
        noise: Standard error of ``deficit``.
    """

    name: str
    area: float
    deficit: float
    noise: float


@dataclass(frozen=True)
class Choice:
    """What was chosen and why.

    Attributes:
        name: Of the contender chosen.
        contenders: All that were tried, the simplest first.
        reason: In a sentence.
        pays: The smallest standard budget with the largest utility on held-out samples, above which nothing is spent;
            infinite where utility still rises at the largest one, and below 1,000 samples, where that is chance.
    """

    name: str
    contenders: tuple[Contender, ...]
    reason: str
    pays: float = math.inf


@dataclass(frozen=True, kw_only=True)
class AutoScheduler(Scheduler):
    """Chooses between confidence, margin, joint thresholds and optimal stopping, with or without an ensemble.

    Exits are combined by `fit_ensemble` where that makes the labels of held-out samples likelier, over all exits, and
    changes answers. Then each scheduler is fitted on part of the table and judged on the rest, in turn
    (cross-validation), at the ten standard budgets and at equal realised cost. Of those within ``tolerance`` standard
    errors of the best the simplest is taken: the order is confidence, margin, joint thresholds, optimal stopping.

    From 1,000 samples on there are no joint thresholds, which optimal stopping replaces, but, where exits are combined
    and classes are few, optimal stopping on the matrices of `fit_matrix`; and no more is spent than pays: the dial
    stops at the budget with the largest held-out utility. With fewer than 50 there is nothing to choose by, and the
    simplest is taken.

    The one chosen is fitted on the whole table, and the dial's ``reason`` says why. Where labels are unknown, or a
    transform is there already, there is no ensemble. On tables of features, confidences are tried that are the names of
    columns, and optimal stopping.

    Attributes:
        folds: Of the cross-validation.
        tolerance: Standard errors of the difference within which a simpler scheduler is preferred.
        progress: Called with what was just tried, how many trials are done and how many there are.
    """

    folds: int = 5
    tolerance: float = 0.5
    progress: Callable[[str, int, int], None] | None = field(default=None, repr=False, compare=False)
    at_least: ClassVar[dict[str, float]] = {"folds": 2, "tolerance": 0}

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        fits = _Fits(table, self.folds, self.seed)
        choice = self._choose(fits)
        name, _, combined = choice.name.partition("+")
        scheduler = self._schedulers(table)[name]
        if combined == "matrix":
            fitted = fits.matrix if fits.part is table else fit_matrix(table, self.seed)
            dial = _matrix_dial(scheduler, fitted, table, budgets)
        elif combined:
            together = fit_ensemble(table, self.seed)
            dial = transformed_dial(together, scheduler.dial(table.transformed(together), budgets))
        else:
            dial = scheduler.dial(table, budgets)
        return replace(dial if choice.pays == math.inf else dial.capped(choice.pays), reason=choice.reason)

    def choose(self, table: ExitTable, costs: CostTable | None = None) -> Choice:
        """Return which scheduler suits the table, and why; arguments and errors are those of `Scheduler.sweep`."""
        table = table.with_costs(costs)
        table.require_utility("fitting AutoScheduler")
        return self._choose(_Fits(table, self.folds, self.seed))

    def _choose(self, fits: _Fits) -> Choice:
        table = fits.table
        if table.num_samples < max(LEAST_SAMPLES, self.folds):
            name = next(iter(self._schedulers(table)))
            return Choice(name, (), f"{name}: {samples(table.num_samples)} are not enough to choose by.")
        found = self._held_out(fits)
        scores = {name: one.parts for name, one in found.items()}
        best = max(scores, key=lambda name: float(scores[name].mean()))
        groups = fits.part.group_index
        contenders = [
            Contender(name, float(one.mean()), *_behind(scores[best], one, groups)) for name, one in scores.items()
        ]
        name = next(one.name for one in contenders if one.deficit <= self.tolerance * one.noise)
        peak, budgets = int(found[name].earned.argmax()), standard_budgets(table.require_costs())
        pays = budgets[peak] if table.num_samples >= _MANY and peak < len(budgets) - 1 else math.inf
        reason = _reason(name, contenders, best)
        if pays < math.inf:
            reason += f" More than {pays:.4g} {table.require_costs().unit} brought nothing, and is not spent."
        logger.info("%s", reason)
        return Choice(name, tuple(contenders), reason, pays)

    def _schedulers(self, table: ExitTable) -> dict[str, Scheduler]:
        """Return what can be fitted on a table, the simplest first."""
        schedulers: dict[str, Scheduler] = {
            "max_prob": GeometricScheduler(seed=self.seed),
            "margin": GeometricScheduler(confidence="margin", seed=self.seed),
            "joint": JointScheduler(seed=self.seed),
            "stopping": StoppingScheduler(ensemble=False, seed=self.seed),
        }
        return {name: one for name, one in schedulers.items() if not one.unsuited(table)}

    def _coarse(self, table: ExitTable) -> dict[str, Scheduler]:
        """Return those that are tried, with fewer candidates to find policies among: enough to choose by."""
        tried = self._schedulers(table)
        if table.num_samples >= _MANY:
            tried.pop("joint", None)
        return {name: replace(one, **_COARSE[type(one)]) for name, one in tried.items()}

    def _held_out(self, fits: _Fits) -> dict[str, HeldOut]:
        """Return what each contender earns on held-out samples, the simplest contender first."""
        budgets = standard_budgets(fits.table.require_costs())
        return held_out(fits.part, self._reported(self._trials(fits, budgets), fits), budgets)

    def _reported(self, trials: Iterable[_Trial], fits: _Fits) -> Iterator[_Trial]:
        tries = fits.folds * (len(self._coarse(fits.part)) + self._tries_matrix(fits))
        for i, trial in enumerate(trials):
            yield trial
            if self.progress is not None:
                self.progress(trial[0], i + 1, tries)

    def _trials(self, fits: _Fits, budgets: tuple[float, ...]) -> Iterator[_Trial]:
        """Yield every fold's contenders: name, held-out rows, their replayer, and the dial fitted on the other rows."""
        table, fold, schedulers = fits.part, fits.fold, self._coarse(fits.part)
        for f in range(fits.folds):
            rows, rest, suffix = np.flatnonzero(fold == f), table.select(fold != f), ""
            judge, together = Replayer(table.select(rows)), fits.ensembles[f] if fits.ensembles else None
            if fits.combined and together is not None:
                rest, judge, suffix = rest.transformed(together), judge.transformed(together), "+ensemble"
            for name, scheduler in schedulers.items():
                if isinstance(scheduler, StoppingScheduler):
                    yield name + suffix, rows, judge, scheduler.dial_knowing(together, rest)
                else:
                    yield name + suffix, rows, judge, scheduler.dial(rest, budgets)
        if not self._tries_matrix(fits):
            return
        known = fits.matrix.held_out
        for f in range(fits.folds):
            rows = np.flatnonzero(fold == f)
            dial = schedulers["stopping"].dial(known.select(fold != f), budgets)
            yield "stopping+matrix", rows, Replayer(known.select(rows)), dial

    def _tries_matrix(self, fits: _Fits) -> bool:
        suits = fits.part.num_samples >= _MANY and fits.combined and suits_matrix(fits.part)
        return suits and min(fits.matrix.penalties) < math.inf


class _Fits:
    """The transforms of a table, each fitted once, and the part of the table that the choice is made on."""

    def __init__(self, table: ExitTable, folds: int, seed: int) -> None:
        most = min(_ROWS, max(1000, _ENTRIES // (table.num_exits * table.num_columns)))
        self.table, self.part, self.seed = table, sampled(table, most, seed), seed
        self.fold = folds_of(self.part.group_index, folds, seed)
        self.folds = int(self.fold.max()) + 1

    @cached_property
    def ensembles(self) -> list[Ensemble]:
        """Fitted on the part without each fold; none where exits cannot be combined."""
        return fold_ensembles(self.part, self.fold) if self.part.combinable else []

    @cached_property
    def combined(self) -> bool:
        """Whether the ensembles make the labels of samples they have not seen likelier, and change answers.

        Likelihood has far less noise than utility: a few hundred samples tell.
        """
        if not self.ensembles:
            return False
        together = held_out_by(self.ensembles, self.fold, self.part)
        alone, changed = (table.require_utility("combining exits") for table in (self.part, together))
        return likelihood(together) > likelihood(self.part) and not np.array_equal(alone, changed)

    @cached_property
    def matrix(self) -> MatrixFit:
        """Fitted on the part."""
        return fit_matrix_knowing(self.ensembles, self.fold, self.part, self.seed)


def _matrix_dial(scheduler: Scheduler, fitted: MatrixFit, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
    """Return a dial on the exits' combination by matrices, fitted on what these say of samples they have not seen.

    The matrices look surer on the table itself, so policies may cost something else there: the larger cost counts.
    """
    dial = scheduler.dial(fitted.held_out, budgets)
    deployed = Replayer(table.transformed(fitted.transform))
    found = [
        (max(cost, deployed.expected(policy)[0]), utility, policy)
        for cost, utility, policy in zip(dial.fit_costs, dial.fit_utilities, dial.policies, strict=True)
    ]
    return transformed_dial(fitted.transform, Dial.of_candidates(found, dial.costs, dial.seed))


def _behind(
    first: Float64[np.ndarray, " sample"], second: Float64[np.ndarray, " sample"], groups: Int[np.ndarray, " sample"]
) -> tuple[float, float]:
    """Return by how much the second is behind in the mean, and the standard error of that."""
    lost = first - second
    return float(lost.mean()), standard_error(lost, groups)


def _reason(name: str, contenders: Sequence[Contender], best: str) -> str:
    """Say in a sentence why."""
    listed = ", ".join(f"{one.name} {100 * one.area:.2f}" for one in sorted(contenders, key=lambda one: -one.area))
    why = "the best on held-out samples"
    if name != best:
        chosen = next(one for one in contenders if one.name == name)
        gap = f"{100 * chosen.deficit:.2f} ± {100 * chosen.noise:.2f} points"
        why = f"simpler than {best} and within noise of it ({gap})"
    return f"{name}: {why}. Held-out utility over the standard budgets, in percent: {listed}."
