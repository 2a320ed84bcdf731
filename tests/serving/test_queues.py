"""Which samples run next, by hand."""

import numpy as np
import pytest
from replaying import policies

from eenet.running.loop import Group
from eenet.serving.queues import Block, Entry, Line, Queues

HOLDS = Group(None, np.arange(9), np.arange(9), policies(np.zeros((6, 3, 3), dtype=np.float32))["all leave at once"])


def put(queues: Queues, stage: int, at: float, deadlines: list[float], first: int, shapes: object = ()) -> Block:
    """Let samples wait that came together."""
    block = Block(HOLDS, at, len(deadlines))
    queues.put(stage, shapes, block, [Entry(one, first + row, block, row) for row, one in enumerate(deadlines)])
    return block


def test_only_before_stage_0_is_company_waited_for() -> None:
    queues = Queues(3, max_batch=4, max_wait_s=2)
    assert queues.choose(0) is None
    put(queues, 0, 10, [50, 50], 0)
    assert queues.choose(11) == 1  # ask again in so many seconds
    assert queues.choose(12) == (0, ())
    put(queues, 1, 11, [40], 2)
    assert queues.choose(11) == (1, ())  # neither is due: the later one
    assert queues.choose(12) == (0, ())  # stage 0 is due
    assert queues.choose(13) == (1, ())  # both are: the earlier deadline
    assert queues.waiting() == (2, 1, 0)
    assert queues.oldest_wait(13) == (3, 2, 0)


def test_a_full_batch_is_due_and_later_stages_come_first_when_equal() -> None:
    queues = Queues(2, max_batch=2, max_wait_s=100)
    put(queues, 0, 0, [7, 7], 0)
    assert queues.choose(0) == (0, ())
    put(queues, 1, 0, [7, 9], 2)
    assert queues.choose(0) == (1, ())


def test_only_samples_of_the_same_shapes_run_together() -> None:
    queues = Queues(1, max_batch=2, max_wait_s=5)
    put(queues, 0, 0, [3], 0, "a")
    put(queues, 0, 0, [1], 1, "b")
    assert queues.choose(0) == 5
    assert queues.choose(5) == (0, "b")
    [(_, rows)] = queues.take(0, "b")
    assert rows.tolist() == [0] and queues.choose(5) == (0, "a")


def test_the_earliest_deadlines_are_taken_from_all_blocks() -> None:
    line = Line()
    blocks = [Block(HOLDS, at, 2) for at in (1.0, 2.0)]
    line.put(blocks[0], [Entry(9, 0, blocks[0], 0), Entry(4, 1, blocks[0], 1)])
    line.put(blocks[1], [Entry(5, 2, blocks[1], 0), Entry(9, 3, blocks[1], 1)])
    assert (line.oldest, line.deadline, len(line)) == (1.0, 4, 4)
    taken = line.take(3)
    assert [(block is blocks[1], rows.tolist()) for block, rows in taken] == [(False, [1, 0]), (True, [0])]
    assert (line.oldest, len(line)) == (2.0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_lost_or_taken_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queues, found = Queues(2, max_batch=5, max_wait_s=1), []
    for first in range(0, 90, 3):
        put(queues, int(rng.integers(2)), first, rng.random(3).tolist(), first)
        while rng.random() < 0.4 and isinstance(chosen := queues.choose(first + 0.5), tuple):
            found += [(block.entered, row) for block, rows in queues.take(*chosen) for row in rows.tolist()]
    while isinstance(chosen := queues.choose(1000), tuple):
        found += [(block.entered, row) for block, rows in queues.take(*chosen, 2) for row in rows.tolist()]
    assert sorted(found) == [(float(first), row) for first in range(0, 90, 3) for row in range(3)]
    assert queues.choose(1000) is None and queues.waiting() == (0, 0)
