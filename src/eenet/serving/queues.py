"""Queues before the stages: the earliest deadline first, and which stage runs next."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float32, Int

from eenet.errors import EenetError, RunError
from eenet.running.adaptive import AdaptiveModel
from eenet.running.inputs import Inputs, joined, rows_of
from eenet.running.loop import Group, Loop

A = TypeVar("A")


@dataclass(slots=True, eq=False, kw_only=True)
class Request(Generic[A]):
    """One request on its way.

    Attributes:
        inputs: Of its samples.
        ids: Of its samples.
        own: The policy of each sample.
        shapes: Of one sample; only samples of the same shapes run together.
        future: Takes the answer.
        accepted: When it was accepted, in seconds of the service's clock.
        deadline: By when it should be answered; it decides who goes first.
        first: Number of its first sample; samples are numbered as they come.
        strict: Whether samples leave early so that the deadline is met.
        steered: Whether its samples follow the budget of the service, and not one of their own.
        promised: What one sample was expected to cost when it was accepted; NaN where that is not known.
        compared: The class that was answered, for a sample that runs to the last exit only to compare; else None.
        missing: How many of its samples have no answer yet.
        probabilities: The answers, ``[sample, class]``, from the first on.
        exits: Where its samples left.
        run: Answers it at once, between two stages of others; None: its samples wait before stage 0.
    """

    inputs: Inputs
    ids: Int[np.ndarray, " sample"]
    own: np.ndarray
    shapes: Hashable
    future: Future[A]
    accepted: float
    deadline: float
    first: int = 0
    strict: bool = False
    steered: bool = True
    promised: float = np.nan
    compared: int | None = None
    missing: int = 0
    probabilities: Float32[np.ndarray, "sample class"] | None = None
    exits: Int[np.ndarray, " sample"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    run: Callable[[], A] | None = None

    @property
    def places(self) -> range:
        """Numbers of its samples."""
        return range(self.first, self.first + len(self.ids))

    def failed(self, place: int, error: Exception) -> EenetError:
        """Return what the request is told where one of its samples cannot be run."""
        if isinstance(error, EenetError):
            return error
        failed = RunError(
            f"sample of id {self.ids[place - self.first]} could not be run: {type(error).__name__}: {error}. Check its "
            "values."
        )
        failed.__cause__ = error
        return failed

    def take(self, row: int, exit_index: int, probabilities: Float32[np.ndarray, " class"]) -> bool:
        """Note the answer of one sample; return whether it was the last one."""
        if self.probabilities is None:
            self.probabilities = np.empty((len(self.ids), len(probabilities)), dtype=np.float32)
            self.exits = np.empty(len(self.ids), dtype=np.int64)
        self.probabilities[row] = probabilities
        self.exits[row] = exit_index
        self.missing -= 1
        return not self.missing


@dataclass(slots=True, eq=False)
class Block:
    """Samples that came to a stage together.

    Attributes:
        holds: Before stage 0 their request, later the group that has run the stage before.
        entered: When, in seconds of the service's clock.
        waiting: How many of them still wait.
    """

    holds: Request[Any] | Group
    entered: float
    waiting: int

    def places(self, rows: Int[np.ndarray, " picked"]) -> list[int]:
        """Return the numbers of some of its samples."""
        numbers = self.holds.first + rows if isinstance(self.holds, Request) else self.holds.places[rows]
        return [int(one) for one in numbers]


class Entry(NamedTuple):
    """One sample that waits: those with the earliest deadline come first, then those that came first."""

    deadline: float
    place: int
    block: Block
    row: int


Picked: TypeAlias = "list[tuple[Block, np.ndarray]]"
"""Samples that run together, as rows of the blocks that they came in."""


class Line:
    """Samples of the same shapes before one stage."""

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._blocks: deque[Block] = deque()

    def __len__(self) -> int:
        """Return how many samples wait."""
        return len(self._heap)

    def put(self, block: Block, entries: list[Entry]) -> None:
        """Let the samples of a block wait."""
        self._blocks.append(block)
        for entry in entries:
            heapq.heappush(self._heap, entry)

    @property
    def oldest(self) -> float:
        """When the oldest sample came."""
        while not self._blocks[0].waiting:
            self._blocks.popleft()
        return self._blocks[0].entered

    @property
    def deadline(self) -> float:
        """The earliest deadline."""
        return self._heap[0].deadline

    def take(self, most: int) -> Picked:
        """Take out so many samples at most, those with the earliest deadlines."""
        rows: dict[Block, list[int]] = {}
        for _ in range(min(most, len(self._heap))):
            entry = heapq.heappop(self._heap)
            entry.block.waiting -= 1
            rows.setdefault(entry.block, []).append(entry.row)
        return [(block, np.array(of)) for block, of in rows.items()]


class Queues:
    """One queue per stage.

    A line of samples is due when it fills a batch, or when its oldest sample has waited long enough before this stage.
    Of those that are due the one with the earliest deadline runs, the later stage where they are equal. Where none is
    due, the latest stage that has samples runs: only before stage 0 is it worth while to wait for company.

    Args:
        stages: How many there are.
        max_batch: How many samples run together.
        max_wait_s: How long samples wait for a full batch.

    Attributes:
        at_once: Requests that are answered between two batches, see `Request.run`.
    """

    def __init__(self, stages: int, max_batch: int, max_wait_s: float) -> None:
        self.max_batch, self.max_wait_s = max_batch, max_wait_s
        self._lines: list[dict[Hashable, Line]] = [{} for _ in range(stages)]
        self.at_once: deque[Request[Any]] = deque()
        self._was_at_once = False

    def put(self, stage: int, shapes: Hashable, block: Block, entries: list[Entry]) -> None:
        """Let the samples of a block wait before a stage."""
        self._lines[stage].setdefault(shapes, Line()).put(block, entries)

    def waiting(self) -> tuple[int, ...]:
        """Return how many samples wait before each stage."""
        return tuple(sum(map(len, lines.values())) for lines in self._lines)

    def oldest_wait(self, now: float) -> tuple[float, ...]:
        """Return how long the oldest sample has waited before each stage, in seconds; 0 without any."""
        return tuple(max((now - line.oldest for line in lines.values()), default=0.0) for lines in self._lines)

    def choose(self, now: float) -> tuple[int, Hashable] | float | None:
        """Return which stage runs next, for which shapes; or in how many seconds to ask again; None: nobody waits."""
        best: tuple[float, int, Hashable] | None = None
        late: tuple[int, Hashable] | None = None
        wait: float | None = None
        for stage, lines in enumerate(self._lines):
            for shapes, line in lines.items():
                rest = line.oldest + self.max_wait_s - now
                if len(line) >= self.max_batch or rest <= 0:
                    if best is None or (line.deadline, -stage) < best[:2]:
                        best = (line.deadline, -stage, shapes)
                elif stage:
                    late = (stage, shapes)
                else:
                    wait = rest if wait is None else min(rest, wait)
        if best is not None:
            return -best[1], best[2]
        return wait if late is None else late

    def take(self, stage: int, shapes: Hashable, most: int | None = None) -> Picked:
        """Take out the samples that run next; no more than ``most``, where that is given."""
        line = self._lines[stage][shapes]
        picked = line.take(min(most or self.max_batch, self.max_batch))
        if not len(line):
            del self._lines[stage][shapes]
        return picked

    def take_at_once(self, *, due: bool) -> Request[Any] | None:
        """Take out the next request of `at_once`; where samples are due too, these have every second turn."""
        self._was_at_once = bool(self.at_once) and not (due and self._was_at_once)
        return self.at_once.popleft() if self._was_at_once else None

    def clear(self) -> None:
        """Forget all that wait."""
        self.at_once.clear()
        for lines in self._lines:
            lines.clear()


def first_groups(model: AdaptiveModel, picked: Picked) -> list[Group]:
    """Return samples of requests as one group before stage 0; to be called inside a `session` of the engine."""
    parts = []
    for block, rows in picked:
        assert isinstance(block.holds, Request)
        parts.append((block.holds, rows))
    inputs = joined([rows_of(request.inputs, rows) for request, rows in parts])
    ids = np.concatenate([request.ids[rows] for request, rows in parts])
    own = np.concatenate([request.own[rows] for request, rows in parts])
    places = np.concatenate([request.first + rows for request, rows in parts])
    model.look_at(inputs, len(ids))
    return [Group(model.engine.start(inputs), ids, places, own[0], own=own)]


def later_groups(loop: Loop, stage: int, picked: Picked) -> list[Group]:
    """Return samples that wait before a later stage as groups; to be called inside a `session` of the engine."""
    groups = []
    for block, rows in picked:
        group = block.holds
        assert isinstance(group, Group)
        whole = np.array_equal(rows, np.arange(len(group.ids)))
        groups.append(group if whole else loop.kept(stage - 1, group, group.state, rows))
    return groups
