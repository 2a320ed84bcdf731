"""What advice says: which exits to keep, and whether early exit pays, with the reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eenet.evaluation.exits import StaticModel, best_models
from eenet.tables.costs import CostTable
from eenet.tables.display import few, frame, notebook, samples

if TYPE_CHECKING:
    import pandas

LOSS = 0.01  # loss of utility at which savings are compared
_LEAST_SAVING = 0.05  # share of the cost that early exit must save
_LATE = 0.7  # share of the original model's cost from which on the first exit is late
_HEAVY = 0.05  # share of the original model's cost from which on heads and decisions are expensive
_WIDE = 500  # samples below which the interval is wide in any case


@dataclass(frozen=True, kw_only=True)
class AdviceRow:
    """Early exit and its alternatives at one budget, at equal cost; each sample judged by fits without it.

    Attributes:
        budget: Mean cost per sample.
        budget_input: As the user wrote it.
        utility: Of early exit.
        static: Utility of the best mix of models without early exits.
        difference: Between the two.
        low: Lower end of its 95 % interval.
        high: Upper end.
        best_static: Name of the best single static model that the budget pays for; None if there is none.
    """

    budget: float
    budget_input: str
    utility: float
    static: float
    difference: float
    low: float
    high: float
    best_static: str | None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which exits a model should keep, and whether early exit with them pays.

    Attributes:
        kept: Exits worth their cost, the last one among them.
        dropped: The others, for ``MultiExitModel.without``.
        costs: With the kept exits only.
        frontier: Cost and cross-validated utility of early exit with the kept exits, from cheap to expensive.
        statics: Each exit alone, the original model (of models asked one after the other, the last one alone), and the
            models the user named.
        asked: The user's budgets in words; empty if none were named.
        rows: One per wanted budget.
        difference: Early exit minus the best static mix, mean over the wanted budgets, with its 95 % interval.
        saving: Share of the original model's cost that early exit saves at one point of utility below it; None if that
            utility is not reached.
        static_saving: The same of the best static mix.
        majority: Utility of always answering with the most frequent class; 0 where classes are not known.
        num_samples: In the table.
        notes: The assumptions made.
    """

    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    costs: CostTable
    frontier: tuple[tuple[float, float], ...]
    statics: tuple[StaticModel, ...]
    asked: tuple[str, ...]
    rows: tuple[AdviceRow, ...]
    difference: tuple[float, float, float]
    saving: float | None
    static_saving: float | None
    majority: float
    num_samples: int
    notes: tuple[str, ...]

    @property
    def pays(self) -> bool:
        """Whether early exit is better at equal cost, and saves something where no budget was asked for."""
        return self.difference[1] > 0 and (bool(self.asked) or self._saves)

    @property
    def _last(self) -> StaticModel:
        """The original model, or the last of several."""
        return self.statics[len(self.kept) + len(self.dropped) - 1]

    @property
    def _saves(self) -> bool:
        return self.saving is not None and self.saving >= _LEAST_SAVING

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for the verdict, each from a number."""
        return tuple(self._for() if self.pays else self._against())

    @property
    def verdict(self) -> str:
        """Whether early exit pays, in a sentence, with the reasons."""
        listed = "; ".join(self.reasons)
        return f"Early exit pays here: {listed}." if self.pays else f"Early exit does not pay here, because {listed}."

    def _words(self) -> tuple[str, str]:
        """Say at which budgets, and how large the difference is there."""
        one, asked = len(self.asked) == 1, bool(self.asked)
        where = f"at {self.asked[0]}" if one else f"over the {'budgets asked for' if asked else 'standard budgets'}"
        difference, low, high = (100 * value for value in self.difference)
        return where, f"{difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"

    def _for(self) -> Iterator[str]:
        early, static = np.mean([(row.utility, row.static) for row in self.rows], axis=0).tolist()
        where, points = self._words()
        yield (
            f"{where} its utility is {percent(early)} where that of the best static mix is {percent(static)} at "
            f"equal cost ({points})"
        )
        if self._saves:
            yield (
                f"one point below {self._last.name} it saves {percent(self.saving)} of the cost, the best static mix "
                f"{percent(self.static_saving)}"
            )

    def _against(self) -> Iterator[str]:
        (_, low, high), (where, points) = self.difference, self._words()
        exits = len(self.kept) + len(self.dropped)
        named = [self.statics[i].name for i in best_models(self.statics) if i >= exits]
        if low <= 0:
            better = "better" if high < 0 else "as good within the interval"
            yield f"{where} the best static mix is {better} at equal cost (early exit: {points})"
        if low <= 0 and named:
            yield f"the mix has models that you named ({', '.join(named)})"
        if not self._saves:
            yield (
                f"one point below {self._last.name} it saves {percent(self.saving)} of the cost, less than "
                f"{100 * _LEAST_SAVING:g} %"
            )
        yield from self._about_exits()
        if low <= 0 < high and self.num_samples < _WIDE:
            yield f"{samples(self.num_samples)} cannot tell small gains from none"

    def _about_exits(self) -> Iterator[str]:
        *early, last = self.statics[: len(self.kept) + len(self.dropped)]
        full = last.cost
        if early[0].cost >= _LATE * full:
            yield f"the cheapest exit already costs {percent(early[0].cost / full)} of {last.name}"
        if self.costs.high >= (1 + _HEAVY) * full:
            yield f"the kept exits together cost {percent(self.costs.high / full - 1)} more than {last.name}"
        if said := knowing_hardly(max(model.utility for model in early), self.majority, self.num_samples):
            yield said
        good = next((k for k, model in enumerate(early) if model.utility >= last.utility - LOSS), None)
        if good is not None and early[good].cost < full:
            yield (
                f"{early[good].name} is within one point of {last.name} ({percent(early[good].utility)} against "
                f"{percent(last.utility)}) at {percent(early[good].cost / full)} of its cost, and needs no policy"
            )

    def __repr__(self) -> str:
        """Say whether early exit pays, and which exits to keep if it does."""
        kept = f" Keep exits {few(self.kept)} of {len(self.kept) + len(self.dropped)}." if self.pays else ""
        return f"Advice: {self.verdict}{kept}"

    def to_frame(self) -> pandas.DataFrame:
        """Return the rows: early exit and its alternatives, one per wanted budget.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return frame([vars(row) for row in self.rows])

    def _repr_html_(self) -> str:
        """Return the verdict and the rows for a notebook."""
        return notebook(repr(self), [vars(row) for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        names = ("pays", "verdict", "reasons", "kept", "dropped", "saving", "static_saving", "num_samples", "notes")
        return (
            {name: getattr(self, name) for name in names}
            | self.costs.to_dict()
            | {"rows": [dict(vars(row)) for row in self.rows], "statics": [one.to_dict() for one in self.statics]}
            | {"frontier": [{"cost": cost, "utility": utility} for cost, utility in self.frontier]}
            | dict(zip(("difference", "low", "high"), self.difference, strict=True))
        )


def knowing_hardly(best: float, majority: float, num_samples: int) -> str:
    """Say that no early exit is surely better than the most frequent class; empty where one is."""
    if majority <= 0 or best > majority + 2 * (best * (1 - best) / num_samples) ** 0.5:
        return ""
    return (
        f"early exits know hardly anything: the best of them has a utility of {percent(best)}, always answering the "
        f"most frequent class {percent(majority)}"
    )


def percent(value: float | None) -> str:
    """Return a share in percent; None is nothing."""
    return "nothing" if value is None else f"{100 * value:.1f} %"
