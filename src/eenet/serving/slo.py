"""The budget follows the load: down quickly when queues grow, up slowly when there is room."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eenet.errors import InputError
from eenet.log import logger
from eenet.policies.dial import Dial
from eenet.tables.checks import number

_NEWEST = 0.1  # share of a new measurement in a running mean
_DOWN, _UP = 0.6, 0.05  # what is left of the distance to the floor; share of the whole distance
_FULL, _SLOW, _ROOM = 0.5, 0.9, 0.25  # of the target: expected wait, measured p99, expected wait with room to spare
_AGAIN_S, _RAISE_S = 0.02, 0.5  # between two turns down, and two up
_RECENT = 512  # answers that the 99th percentile is read from
_ENOUGH = 50  # the fewest of them
_ROUND = 0.01  # of the distance to an end, below which it is reached


class StageTimes:
    """How long stages take, by batch size, and how many samples stay after them: running means.

    Args:
        stages: How many there are.
    """

    def __init__(self, stages: int) -> None:
        self._seconds: list[dict[int, float]] = [{} for _ in range(stages)]  # by the next power of two
        self._per_sample: list[float | None] = [None] * stages
        self._latest: list[float | None] = [None] * stages
        self._stay: list[float | None] = [None] * stages

    def update(self, stage: int, size: int, stayed: int, seconds: float) -> None:
        """Take in one run of a stage."""
        key = _bucket(size)
        known = self._seconds[stage]
        known[key] = _mean(known.get(key), seconds)
        self._per_sample[stage] = _mean(self._per_sample[stage], seconds / size)
        self._latest[stage] = _mean(self._latest[stage], seconds)
        self._stay[stage] = _mean(self._stay[stage], stayed / size)

    def of(self, stage: int, size: int) -> float:
        """Return the expected seconds of a batch: of the next measured size, else in proportion; 0 if none is known."""
        known = self._seconds[stage]
        if not known:
            return 0.0
        wanted = _bucket(size)
        near = min(known, key=lambda key: abs(key.bit_length() - wanted.bit_length()))
        return known[near] * max(wanted / near, 1.0)

    def most(self, stage: int, seconds: float, limit: int) -> int:
        """Return how many samples a batch may have to take no more than so many seconds; 1 at least."""
        each = self._per_sample[stage]
        return limit if not each else min(limit, max(1, int(seconds / each)))

    def work(self, waiting: Sequence[int]) -> float:
        """Return how many seconds the samples that wait before each stage will take until they have all left."""
        rest, total = 0.0, 0.0
        for each, stay, count in reversed(list(zip(self._per_sample, self._stay, waiting, strict=True))):
            rest = (each or 0.0) + (1.0 if stay is None else stay) * rest
            total += count * rest
        return total

    def recent_ms(self) -> tuple[float | None, ...]:
        """Return the recent time per batch of each stage in milliseconds, None before its first."""
        return tuple(None if one is None else 1e3 * one for one in self._latest)


@dataclass(frozen=True)
class Turn:
    """One turn of the dial by the load.

    Attributes:
        budget: From now on.
        down: Whether it is a smaller one.
        wait_s: How long a new sample is expected to wait.
        p99_s: The 99th percentile of the latencies since the turn before; None where there are too few.
    """

    budget: float
    down: bool
    wait_s: float
    p99_s: float | None


class LoadFollower:
    """Turns the budget so that the 99th percentile of the latency stays within a target.

    Down, at most every 20 ms: when the work that waits takes more than half of the target, or the 99th percentile of
    the answers since the last turn is above 90 % of it; 60 % of the distance to the cheapest budget is kept. Up, every
    half second: when the work that waits takes less than a quarter of the target and the 99th percentile is below 70 %
    of it; by 5 % of the whole distance.

    Args:
        slo_s: The target, in seconds.
        low: The cheapest budget that the load may turn to.
        high: What is asked for, and used when there is room.
        now: In seconds of the service's clock.
    """

    def __init__(self, slo_s: float, low: float, high: float, now: float) -> None:
        self.slo_s, self._floor = slo_s, low
        self.high = self.budget = high
        self.turned_down = self.turned_up = 0
        self._latencies: deque[float] = deque(maxlen=_RECENT)
        self._last_down = self._last_up = now

    def ask(self, high: float) -> None:
        """Take over another budget as the one that is used when there is room."""
        was_free = self.budget >= self.high
        self.high = high
        self.budget = high if was_free else min(self.budget, high)

    @property
    def low(self) -> float:
        """The cheapest budget: the floor, or less where less is asked for."""
        return min(self._floor, self.high)

    def answered(self, latency_s: float) -> None:
        """Take in how long a request took."""
        self._latencies.append(latency_s)

    def p99(self) -> float | None:
        """Return the 99th percentile of the latencies since the last turn; None where there are too few."""
        if len(self._latencies) < _ENOUGH:
            return None
        return sorted(self._latencies)[int(0.99 * (len(self._latencies) - 1))]

    def look(self, now: float, wait_s: float) -> Turn | None:
        """Turn if it is time to.

        Args:
            now: In seconds of the service's clock.
            wait_s: How long the work that waits will take.
        """
        slow = wait_s > _FULL * self.slo_s
        if now - self._last_down < _AGAIN_S or (not slow and now - self._last_up < _AGAIN_S):
            return None
        p99 = self.p99()
        if slow or (p99 is not None and p99 > _SLOW * self.slo_s):
            self._last_down = self._last_up = now
            return self._turn(self.low + _DOWN * (self.budget - self.low), wait_s, p99)
        if now - self._last_up < _RAISE_S:
            return None
        steps = int((now - self._last_up) / _RAISE_S)
        if wait_s > _ROOM * self.slo_s or (p99 is not None and p99 > 0.7 * self.slo_s):
            return None
        self._last_up = now
        return self._turn(self.budget + steps * _UP * (self.high - self.low), wait_s, p99)

    def _turn(self, budget: float, wait_s: float, p99_s: float | None) -> Turn | None:
        near = _ROUND * (self.high - self.low)
        budget = self.low if budget <= self.low + near else self.high if budget >= self.high - near else budget
        self._latencies.clear()
        if budget == self.budget:
            return None
        down = budget < self.budget
        self.turned_down, self.turned_up = self.turned_down + down, self.turned_up + (not down)
        self.budget = budget
        measured = "" if p99_s is None else f", p99 {1e3 * p99_s:.3g} ms"
        logger.info(
            "budget turned %s to %.4g: %.3g ms of work wait%s, target %.3g ms",
            "down" if down else "up",
            budget,
            1e3 * wait_s,
            measured,
            1e3 * self.slo_s,
        )
        return Turn(budget, down, wait_s, p99_s)


def cheapest(dial: Dial, floor: float | None) -> float:
    """Return the smallest budget whose utility on the calibration set is at least a floor.

    Args:
        dial: Knows cost and utility of its policies on that set; between two of them it mixes.
        floor: In [0, 1]; None: the dial's cheapest policy.

    Raises:
        InputError: No policy of the dial reaches it, or it is not in [0, 1].
    """
    low = max(dial.fit_costs[0], dial.costs.low)
    if floor is None:
        return low
    floor = number(floor, "floor", 0, 1)
    for i, (cost, utility) in enumerate(zip(dial.fit_costs, dial.fit_utilities, strict=True)):
        if utility >= floor:
            if not i:
                return low
            before, least = dial.fit_costs[i - 1], dial.fit_utilities[i - 1]
            return max(before + (cost - before) * (floor - least) / (utility - least), low)
    raise InputError(
        f"floor {floor:g} is out of reach: on the calibration set the dial's policies reached a utility of "
        f"{max(dial.fit_utilities):.4g} at most. Pass a smaller one."
    )


def expected_utility(dial: Dial, budget: float) -> float:
    """Return the utility of a budget on the calibration set: between two policies of the dial as they are mixed."""
    costs, utilities = dial.fit_costs, dial.fit_utilities
    return float(np.interp(budget, costs, utilities))


def _bucket(size: int) -> int:
    """Return the next power of two."""
    return 1 << (size - 1).bit_length()


def _mean(known: float | None, new: float) -> float:
    return new if known is None else known + _NEWEST * (new - known)
