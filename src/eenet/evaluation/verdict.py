"""The verdict of an advice: what follows from its numbers, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from eenet.core.costs import CostTable

__all__ = ["LEAST_SAVING", "LOSS", "Findings"]

LOSS = 0.01  # of utility that may be lost where savings are compared
LEAST_SAVING = 0.05  # of the cost, below which leaving early is not worth the trouble
_LATE = 0.7  # share of the original model's cost from which on the first exit is late
_HEAVY = 0.05  # share of the original model's cost from which on heads and decisions are heavy
_FEW = 500  # samples below which the interval is wide anyway


@dataclass(frozen=True)
class Findings:
    """What was found out.

    Attributes:
        difference: Leaving early minus the best static mix at equal cost, and the ends of its interval.
        asked: The user's budgets in words, if any.
        early: Utility of leaving early, mean over the wanted budgets.
        static: Of the best static mix.
        given: Names of the models handed in that are part of it.
        saving: Share of the original model's cost saved at `LOSS` below it; None if that is not reached.
        static_saving: The same of the best static mix.
        costs: With the kept exits.
        alone: Cost of each exit alone, the original model last.
        utilities: Of each exit alone.
        guess: Utility of always naming the commonest class.
        num_samples: That this rests on.
    """

    difference: tuple[float, float, float]
    asked: tuple[str, ...]
    early: float
    static: float
    given: tuple[str, ...]
    saving: float | None
    static_saving: float | None
    costs: CostTable
    alone: tuple[float, ...]
    utilities: tuple[float, ...]
    guess: float
    num_samples: int

    @property
    def pays(self) -> bool:
        """Whether leaving early is better at equal cost, and saves something where no budget was asked for."""
        return self.difference[1] > 0 and (bool(self.asked) or self._saves)

    @property
    def _saves(self) -> bool:
        return self.saving is not None and self.saving >= LEAST_SAVING

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """What speaks for or against it, each from a number."""
        return tuple(self._for() if self.pays else self._against())

    @property
    def sentence(self) -> str:
        """The verdict."""
        told = "; ".join(self.reasons)
        return f"Early exit pays here: {told}." if self.pays else f"Early exit does not pay here, because {told}."

    def _where(self) -> str:
        if not self.asked:
            return "over the standard budgets"
        return f"at {self.asked[0]}" if len(self.asked) == 1 else "over the budgets asked for"

    def _points(self) -> str:
        difference, low, high = (100 * value for value in self.difference)
        return f"{difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"

    def _for(self) -> Iterator[str]:
        yield (
            f"{self._where()} it is worth {_percent(self.early)} where the best static mix is worth "
            f"{_percent(self.static)} at equal cost ({self._points()})"
        )
        if self._saves:
            yield (
                f"one point below the original model it saves {_percent(self.saving)} of the cost, the best static mix "
                f"{_percent(self.static_saving)}"
            )

    def _against(self) -> Iterator[str]:
        _, low, high = self.difference
        if low <= 0:
            worse = (
                "the best static mix is better" if high < 0 else "the best static mix is as good within the interval"
            )
            yield f"{self._where()} {worse} at equal cost (leaving early: {self._points()})"
        if low <= 0 and self.given:
            yield f"the mix has models that were handed in ({', '.join(self.given)})"
        if not self._saves:
            yield (
                f"one point below the original model it saves {_percent(self.saving)} of the cost, less than "
                f"{100 * LEAST_SAVING:g} %"
            )
        yield from self._about_exits()
        if low <= 0 < high and self.num_samples < _FEW:
            yield f"{self.num_samples} samples cannot tell small gains from none"

    def _about_exits(self) -> Iterator[str]:
        full, last = self.costs.full, len(self.utilities) - 1
        if self.alone[0] >= _LATE * full:
            yield f"the cheapest exit already costs {_percent(self.alone[0] / full)} of {self.costs.full_name}"
        if self.costs.reference is not None and self.costs.high >= (1 + _HEAVY) * full:
            yield f"heads and decisions add {_percent(self.costs.high / full - 1)} to the original model"
        best = max(range(last), key=lambda k: self.utilities[k])
        noise = 2 * (self.utilities[best] * (1 - self.utilities[best]) / self.num_samples) ** 0.5
        if self.guess > 0 and self.utilities[best] <= self.guess + noise:
            yield (
                f"early exits know hardly anything: the best of them is right on {_percent(self.utilities[best])}, "
                f"always naming the commonest class is on {_percent(self.guess)}"
            )
        good = next((k for k in range(last) if self.utilities[k] >= self.utilities[last] - LOSS), None)
        if good is not None and self.alone[good] < full:
            yield (
                f"exit {good} alone is within one point of the original model ({_percent(self.utilities[good])} "
                f"against {_percent(self.utilities[last])}) at {_percent(self.alone[good] / full)} of its cost, so a "
                "model cut there needs no policy"
            )


def _percent(value: float | None) -> str:
    return "nothing" if value is None else f"{100 * value:.1f} %"
