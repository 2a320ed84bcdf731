"""Scoring without hurry: samples that stay wait until a stage can be run on a full batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.core.policy import Policy
from eenet.inference.engines import Engine
from eenet.inference.stepping import Left, look, part
from eenet.models.inputs import Inputs, State

__all__ = ["Regrouping"]

_Shapes = tuple[tuple[int, ...], ...]


class _Group(NamedTuple):
    """Samples that travel together; the shapes of their inputs decide who may join them."""

    state: State
    seen: Tensor | None
    ids: Tensor
    rows: Tensor
    shapes: _Shapes


@dataclass
class _Queue:
    """Groups that wait for one stage."""

    groups: list[_Group] = field(default_factory=list)
    count: int = 0

    def put(self, group: _Group) -> None:
        self.groups.append(group)
        self.count += len(group.ids)


class Regrouping:
    """Runs batches so that every stage is run on full batches: what stays waits in a queue before the next stage.

    The answers come in another order than the samples went in; `Left.rows` says whose they are. Samples wait together
    if their inputs have the same shape: sentences padded to other lengths have queues of their own.

    Args:
        engine: What runs.
        policy: Where to leave.
        full: Samples that make a full batch.
    """

    def __init__(self, engine: Engine, policy: Policy, full: int) -> None:
        self.engine, self.policy, self.full = engine, policy, full
        self.left: list[Left] = []
        self._queues: list[dict[_Shapes, _Queue]] = [{} for _ in range(engine.num_exits)]

    def feed(self, inputs: Inputs, ids: Tensor, rows: Tensor) -> None:
        """Take in a batch, and run whatever stages have a full batch now.

        Args:
            inputs: The batch.
            ids: Names of its samples.
            rows: Their places in the whole job.
        """
        shapes = tuple(tuple(leaf.shape[1:]) for leaf in pytree.tree_leaves(inputs))
        self._run(0, _Group(self.engine.start(inputs), None, ids, rows, shapes))
        for k in range(1, self.engine.num_exits):
            for queue in self._queues[k].values():
                if queue.count >= self.full:
                    self._run(k, self._taken(queue))

    def finish(self) -> list[Left]:
        """Run what still waits and return who left where."""
        for k in range(1, self.engine.num_exits):
            for queue in self._queues[k].values():
                if queue.count:
                    self._run(k, self._taken(queue))
        return self.left

    def _taken(self, queue: _Queue) -> _Group:
        """Return all that wait in a queue as one group, and empty the queue."""
        groups, queue.groups, queue.count = queue.groups, [], 0
        if len(groups) == 1:
            return groups[0]
        return _Group(
            self.engine.join([group.state for group in groups]),
            torch.cat([group.seen for group in groups if group.seen is not None]),
            torch.cat([group.ids for group in groups]),
            torch.cat([group.rows for group in groups]),
            groups[0].shapes,
        )

    def _run(self, k: int, group: _Group) -> None:
        """Run a stage on a group; note who leaves and let the others wait for the next stage."""
        engine, policy, ids, rows = self.engine, self.policy, group.ids, group.rows
        state = engine.stage(k, group.state)
        seen = look(engine, k, state, group.seen)
        if k == engine.num_exits - 1:
            self.left.append(Left(k, rows, policy.answers(seen, ids)))
            return
        gone, stay, answers = part(policy, seen, ids)
        if gone is not None and answers is not None:
            self.left.append(Left(k, rows if stay is None else rows[gone], answers))
            if stay is None:
                return
            state, seen, ids, rows = engine.select(state, stay), seen[stay], ids[stay], rows[stay]
        queue = self._queues[k + 1].setdefault(group.shapes, _Queue())
        queue.put(_Group(state, seen, ids, rows, group.shapes))
