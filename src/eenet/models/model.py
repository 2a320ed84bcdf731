"""A model with exits: stages in a row, a head after each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from eenet.errors import InputError, ShapeError
from eenet.models.inputs import State


@final
class MultiExitModel(nn.Module):
    """A backbone cut into stages, with a head after every stage.

    Stage ``k`` maps a state to the next state, head ``k`` maps the state after stage ``k`` to logits. The last head is
    the backbone's own classifier (or the identity where the last stage holds it), so that the last exit is the original
    output to the bit. Samples never influence each other, which is what allows samples that leave to be dropped between
    stages: every tensor in a state has the samples in its first axis.

    Args:
        stages: the K pieces of the backbone, in order.
        heads: the K heads, the last one being the original output.
        start: maps the inputs to the first state; the inputs themselves are the first state when it is not given.
        whole: maps the inputs to what every head reads, in one go: a model from elsewhere that runs as its authors
            wrote it, in training too, while the stages serve inference. Default: the stages in a row.

    Raises:
        ShapeError: fewer than two stages, or another number of heads than of stages.

    Example:
        >>> import torch
        >>> stages = [torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)]
        >>> heads = [torch.nn.Linear(8, 3), torch.nn.Linear(8, 3)]
        >>> model = MultiExitModel(stages, heads)
        >>> [tuple(logits.shape) for logits in model(torch.zeros(5, 4))]
        [(5, 3), (5, 3)]
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        start: nn.Module | None = None,
        whole: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(stages) < 2:
            raise ShapeError(f"stages {len(stages)} are too few: leaving early needs at least 2. Pass one more stage.")
        if len(heads) != len(stages):
            raise ShapeError(
                f"heads {len(heads)} do not fit the stages: there are {len(stages)} stages and each needs one head. "
                "Pass as many heads as stages, the last one being the original output (nn.Identity() if a stage "
                "holds it)."
            )
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.entry = nn.Identity() if start is None else start
        self.whole = whole

    @property
    def num_exits(self) -> int:
        """The number of exits K, the original output included."""
        return len(self.stages)

    def start(self, inputs: State) -> State:
        """Return the state that stage 0 expects, made from the model's inputs."""
        return self.entry(inputs)

    def select(self, state: State, rows: Int[Tensor, " kept"] | Bool[Tensor, " sample"]) -> State:
        """Return the state of some samples only: every tensor in it is indexed along its first axis.

        Args:
            state: what a stage returned, a tensor or a pytree holding tensors; anything else in it is passed on as it
                is.
            rows: indices of the samples to keep, or one flag per sample.
        """
        return tree_map(lambda leaf: _rows(leaf, rows) if isinstance(leaf, Tensor) else leaf, state)

    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches as one: every tensor in them is joined along its first axis.

        Args:
            states: of the same stage and of the same shapes apart from the number of samples; anything else in them
                is taken from the first.
        """
        return tree_map(lambda leaf, *more: torch.cat((leaf, *more)) if isinstance(leaf, Tensor) else leaf, *states)

    def without(self, exits: Sequence[int]) -> MultiExitModel:
        """Return a model that cannot leave at some exits: their stages join the next ones, weights are shared.

        Args:
            exits: early exits to drop.

        Raises:
            InputError: there is no such early exit.
        """
        last = self.num_exits - 1
        strange = [k for k in exits if not 0 <= k < last]
        if strange:
            raise InputError(f"exits {strange} cannot be dropped: early exits are 0 to {last - 1}. Name some of these.")
        kept = [k for k in range(self.num_exits) if k not in exits]
        runs = [range(first, k + 1) for first, k in zip([0, *(k + 1 for k in kept)], kept, strict=False)]
        stages = [_joined([self.stages[j] for j in run]) for run in runs]
        return MultiExitModel(
            stages,
            [self.heads[k] for k in kept],
            start=self.entry,
            whole=None if self.whole is None else _Picked(self.whole, kept),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultiExitModel:
        """Move or convert all tensors; buffers that stages and the whole share stay shared, as parameters do."""
        owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in self.modules():
            for name, buffer in module._buffers.items():
                owners.setdefault(id(buffer), []).append((module, name))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for (first, own), *others in owners.values():
            for module, name in others:
                module._buffers[name] = first._buffers[own]
        return self

    def forward(self, inputs: State) -> list[Tensor]:
        """Return the logits of every exit, each of shape ``[sample, class]``, the original output last."""
        if self.whole is not None:
            return [head(shown) for head, shown in zip(self.heads, self.whole(inputs), strict=True)]
        outputs: list[Tensor] = []
        state = self.start(inputs)
        for stage, head in zip(self.stages, self.heads, strict=True):
            state = stage(state)
            outputs.append(head(state))
        return outputs


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return some rows in the tensor's own memory order."""
    if rows.dtype == torch.int64 and tensor.is_contiguous():  # twice as fast, but always answers in channels first
        return tensor.index_select(0, rows)
    return tensor[rows]


def _joined(stages: list[nn.Module]) -> nn.Module:
    return stages[0] if len(stages) == 1 else nn.Sequential(*stages)


class _Picked(nn.Module):
    """What some of the heads read."""

    def __init__(self, whole: nn.Module, kept: list[int]) -> None:
        super().__init__()
        self.whole, self.kept = whole, kept

    def forward(self, inputs: State) -> list[State]:
        shown = self.whole(inputs)
        return [shown[k] for k in self.kept]
