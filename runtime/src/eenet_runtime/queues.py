"""Offline inference in full batches: samples that stay wait for others before the next stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from eenet_runtime.confidence import Array, Floats
from eenet_runtime.errors import InputError
from eenet_runtime.policy import Ids, Policy

__all__ = ["run_in_groups"]

RunStage = Callable[[int, list[Array], "Floats | None"], tuple[Floats, list[Array]]]


class _Queue:
    """Samples that wait before a stage: their rows, what was seen of them, and what the stage reads."""

    def __init__(self) -> None:
        self._parts: list[list[Array]] = []
        self.waiting = 0

    def put(self, rows: Ids, seen: Floats | None, state: list[Array]) -> None:
        """Add samples."""
        self._parts.append([rows, *([] if seen is None else [seen]), *state])
        self.waiting += len(rows)

    def take(self, most: int, *, with_seen: bool) -> tuple[Ids, Floats | None, list[Array]]:
        """Remove the samples that have waited longest, at most so many."""
        parts, found = [], 0
        while self._parts and found < most:
            part = self._parts.pop(0)
            spare = found + len(part[0]) - most
            if spare > 0:
                kept = len(part[0]) - spare
                self._parts.insert(0, [array[kept:] for array in part])
                part = [array[:kept] for array in part]
            parts.append(part)
            found += len(part[0])
        self.waiting -= found
        whole = parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        return whole[0], whole[1] if with_seen else None, whole[2:] if with_seen else whole[1:]


def run_in_groups(run_stage: RunStage, policy: Policy, states: Iterable[list[Array]], size: int) -> tuple[Floats, Ids]:
    """Run samples, each stage on ``size`` of them at a time; only the last groups may be smaller.

    The deepest stage with a full queue runs first, so that no queue holds more than ``2 size`` samples, the first one
    no more than ``size`` beside the newest batch.

    Args:
        run_stage: As `Model.run_stage`.
        policy: Where to leave; ids are row numbers.
        states: What stage 0 reads, batch by batch.
        size: Samples a stage runs at once.

    Returns:
        Answers and exits, in the order of the samples.

    Raises:
        InputError: There is no batch.
    """
    queues = [_Queue() for _ in range(policy.num_exits)]
    done: list[tuple[Ids, int, Floats]] = []

    def step(k: int) -> None:
        rows, seen, state = queues[k].take(size, with_seen=k > 0)
        seen, state = run_stage(k, [np.ascontiguousarray(one) for one in state], seen)
        leaving = policy.leaves(seen, rows)
        if leaving.any():
            done.append((rows[leaving], k, policy.answers(seen[leaving], rows[leaving])))
        if not leaving.all():
            stay = ~leaving
            queues[k + 1].put(rows[stay], seen[stay], [one[stay] for one in state])  # copies: sessions reuse memory

    total = 0
    for state in states:
        queues[0].put(np.arange(total, total + len(state[0])), None, state)
        total += len(state[0])
        while full := [k for k, queue in enumerate(queues) if queue.waiting >= size]:
            step(full[-1])
    for k, queue in enumerate(queues):
        while queue.waiting:
            step(k)
    if not done:
        raise InputError("batches are empty: there is nothing to predict. Pass at least 1 sample.")
    return _in_order(done)


def _in_order(done: list[tuple[Ids, int, Floats]]) -> tuple[Floats, Ids]:
    """Put answers and exits into the order of the samples."""
    rows = np.concatenate([one for one, _, _ in done])
    answers = np.concatenate([answer for _, _, answer in done])
    exits = np.concatenate([np.full(len(one), k, dtype=np.int64) for one, k, _ in done])
    log_probs, exit_index = np.empty_like(answers), np.empty_like(exits)
    log_probs[rows], exit_index[rows] = answers, exits
    return log_probs, exit_index
