"""Where exits go for tiers of devices: each at the end of the largest sub-model that a tier can hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import AttachError
from eenet.models.counting import counter, plain_attention
from eenet.models.inputs import Inputs, evaluating
from eenet.models.model import MultiExitModel
from eenet.models.taps import Run, Whole, blocks_of
from eenet.tables.arrays import batch_size
from eenet.tables.capacity import Capacity, read_capacities

_PASSES = 11  # of which the median time is taken
_WHOLE = 0.98  # of the operations: an exit there would be the original output

MakeHeads: TypeAlias = Callable[[Whole, Inputs, Sequence[Tensor]], list[nn.Module]]
"""From a tapped model, inputs and its outputs for them to the heads of its early exits."""
_Head: TypeAlias = tuple[nn.Module, Tensor]


@dataclass(frozen=True, kw_only=True)
class Capacities:
    """Exits by what tiers of devices can hold, see `capacities`.

    Attributes:
        tiers: Of all tiers but the last, which holds the whole model.
    """

    tiers: tuple[Capacity, ...]

    def ends(self, model: nn.Module, example: Inputs, run: Run, make: MakeHeads) -> list[str]:
        """Return the name of the block at whose end each exit stands.

        Args:
            model: The original.
            example: A batch of its inputs.
            run: Returns its logits for a batch.
            make: Makes the heads of exits.

        Raises:
            AttachError: A capacity holds no block, no more than the tier before, or the whole model.
        """
        sizes = _Sizes(model, example, run, make, len(self.tiers) + 1)
        ends: list[int] = []
        heads: list[_Head] = []
        for k, tier in enumerate(self.tiers):
            end, head = self._end(k, tier, sizes, ends, heads)
            ends.append(end)
            heads.append(head)
        return [sizes.blocks[end].name for end in ends]

    def _end(
        self, k: int, tier: Capacity, sizes: _Sizes, before: Sequence[int], heads: Sequence[_Head]
    ) -> tuple[int, _Head]:
        """Return the last block of a tier, and its head."""
        *reached, whole = sizes.of(tier.kind)
        if whole <= tier.value:
            raise AttachError(
                f"capacity {tier.text!r} of tier {k} holds the whole model, {tier.written(whole)}: the last exit, the "
                "original output, is for such a tier. Leave this capacity out."
            )
        spent, needed = sum(sizes.head(tier.kind, *head) for head in heads), 0.0
        for end in reversed(range(len(reached))):
            needed = reached[end] + spent
            if needed > tier.value or not sizes.is_early(end):
                continue
            if before and end <= before[-1]:
                break
            head = sizes.head_after(end)
            needed += sizes.head(tier.kind, *head)
            if needed <= tier.value:
                return end, head
        following = before[-1] + 1 if before else 0
        if following >= len(reached) or not sizes.is_early(following):
            raise AttachError(
                f"capacity {tier.text!r} of tier {k} cannot be used: no block follows that at which tier {k - 1} ends. "
                "Leave it out, or lower the capacities before it."
            )
        name = sizes.blocks[following].name
        smallest = tier.written(reached[following] + spent + sizes.head(tier.kind, *sizes.head_after(following)))
        if before:
            raise AttachError(
                f"capacity {tier.text!r} of tier {k} ends at the same block as tier {k - 1}, "
                f"{sizes.blocks[before[-1]].name!r}, or before it: up to the next one, {name!r}, the model takes "
                f"{smallest} with its heads. Leave one out, or raise it to that."
            )
        raise AttachError(
            f"capacity {tier.text!r} of tier {k} holds no block: up to the end of the first one, {name!r}, the model "
            f"takes {smallest} with its head. Raise it to that at least."
        )


def capacities(tiers: Sequence[str]) -> Capacities:
    """Return where exits go for tiers of devices, for ``attach(model, inputs, exits=capacities(["1MB", "20MFLOPs"]))``.

    Exit ``k`` stands at the end of the largest sub-model that is within the capacity of tier ``k``: everything that
    runs up to a block's end, and the heads of exits ``0..k``. The last exit is the original output, for devices that
    hold the whole model, and needs no capacity.

    Args:
        tiers: The smallest capacity of each tier, the weakest first, in parameters (``"0.3M params"``), bytes of
            parameters and buffers (``"1.2MB"``), operations per sample (``"20MFLOPs"``), or measured time of one sample
            on this machine (``"5ms"``). Policies add next to nothing.

    Raises:
        InputError: One is no capacity, or those of one kind do not rise.

    Source:
        Ilhan et al., WACV 2024, section 3.1.
    """
    return Capacities(tiers=read_capacities(tiers))


def exit_sizes(model: MultiExitModel) -> dict[str, list[float]]:
    """Return the parameters (``params``) and the ``bytes`` of a model up to each exit: its stages and heads so far."""
    parts: list[object] = [model.entry]
    found: dict[str, list[float]] = {"params": [], "bytes": []}
    for stage, head in zip(model.stages, model.heads, strict=True):
        parts += [stage, head]
        for kind, size in _size(parts).items():
            found[kind].append(size)
    return found


def plain_size(model: MultiExitModel) -> dict[str, float]:
    """Return the same of the model without exits: the stages that it needs and the last head."""
    return _size([model.entry, *model.stages[model.original :], model.heads[-1]])


def _size(parts: Iterable[object]) -> dict[str, float]:
    """Return parameters and bytes of the modules among some parts."""
    tensors: dict[int, tuple[Tensor, bool]] = {}  # shared ones count once
    for part in parts:
        if isinstance(part, nn.Module):
            tensors |= {id(one): (one, True) for one in part.parameters()}
            tensors |= {id(one): (one, False) for inner in part.modules() for one in _buffers(inner)}
    return {
        "params": float(sum(one.numel() for one, learnt in tensors.values() if learnt)),
        "bytes": float(sum(one.nbytes for one, _ in tensors.values())),
    }


class _Sizes:
    """What a model takes up to each block's end, and as a whole."""

    def __init__(self, model: nn.Module, example: Inputs, run: Run, make: MakeHeads, exits: int) -> None:
        self.model, self.example, self.run, self.make = model, example, run, make
        self.blocks, self.total, _ = blocks_of(model, self._copied(slice(None)), exits, run)
        self._known: dict[str, list[float]] = {}

    def is_early(self, end: int) -> bool:
        """Return whether an exit after this block is another one than the original output."""
        return self.blocks[end].flops < _WHOLE * self.total

    def of(self, kind: str) -> list[float]:
        """Return what the model takes up to each block's end; last that of the whole model."""
        if kind not in self._known:
            self._known |= self._found(kind)
        return self._known[kind]

    def _found(self, kind: str) -> dict[str, list[float]]:
        if kind == "ms":
            return {kind: self._times()}
        if kind == "FLOPs":
            count = batch_size(self.example)
            return {kind: [flops / count for flops in (*(block.flops for block in self.blocks), self.total)]}
        return self._weights()

    def head_after(self, end: int) -> _Head:
        """Return the head of an exit after a block, and an example of what it reads."""
        whole = Whole(self.model, [self.blocks[end].name], self.run)
        with evaluating(self.model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = whole(self._copied(slice(None)))
            [head] = self.make(whole, self._copied(slice(None)), outputs)
        return head, outputs[0]

    def head(self, kind: str, head: nn.Module, tap: Tensor) -> float:
        """Return what a head takes."""
        if kind == "params":
            return float(sum(one.numel() for one in head.parameters()))
        if kind == "bytes":
            parts = [(*part.parameters(recurse=False), *_buffers(part)) for part in head.modules()]
            return float(sum(one.nbytes for part in parts for one in part))
        with evaluating(head), torch.no_grad(), plain_attention():
            if kind == "FLOPs":
                with counter() as counting:
                    head(tap)
                return float(counting.get_total_flops() / len(tap))
            return median(_timed(partial(head, tap[:1])) for _ in range(_PASSES))

    def _weights(self) -> dict[str, list[float]]:
        """Return parameters and bytes: a weight counts from the first call of the module that it belongs to."""
        called: dict[str, int] = {}
        ends: dict[str, int] = {}
        with ExitStack() as hooks, evaluating(self.model), torch.no_grad(), plain_attention():

            def before(name: str, *_: Any) -> None:  # noqa: ANN401
                called.setdefault(name, len(called))

            def after(name: str, *_: Any) -> None:  # noqa: ANN401
                ends[name] = len(called)

            for name, module in self.model.named_modules():
                hooks.enter_context(module.register_forward_pre_hook(partial(before, name)))
            for block in self.blocks:
                hooks.enter_context(
                    self.model.get_submodule(block.name).register_forward_hook(partial(after, block.name))
                )
            self.run(self.model, self._copied(slice(None)))
        first: dict[int, tuple[int, Tensor, bool]] = {}
        for name, module in self.model.named_modules(remove_duplicate=False):
            owner = name
            while owner and owner not in called:  # read by the module around it, as attention does
                owner = owner.rpartition(".")[0]
            for one in (*module.parameters(recurse=False), *_buffers(module)):
                since = min(called.get(owner, 0), first.get(id(one), (len(called), one, False))[0])
                first[id(one)] = since, one, isinstance(one, nn.Parameter)
        limits = [*(ends[block.name] for block in self.blocks), len(called) + 1]
        kept = [[(one, learnt) for since, one, learnt in first.values() if since < limit] for limit in limits]
        return {
            "params": [float(sum(one.numel() for one, learnt in weights if learnt)) for weights in kept],
            "bytes": [float(sum(one.nbytes for one, _ in weights)) for weights in kept],
        }

    def _times(self) -> list[float]:
        """Return the median times in ms, for one sample alone."""
        passes: list[list[float]] = []
        with ExitStack() as hooks, evaluating(self.model), torch.no_grad():
            now: dict[str, float] = {}

            def after(name: str, *_: Any) -> None:  # noqa: ANN401
                now[name] = _clock()

            for block in self.blocks:
                hooks.enter_context(
                    self.model.get_submodule(block.name).register_forward_hook(partial(after, block.name))
                )
            for _ in range(_PASSES + 2):  # the first ones warm up
                given, start = self._copied(slice(0, 1)), _clock()
                self.run(self.model, given)
                passes.append([now[block.name] - start for block in self.blocks] + [_clock() - start])
        return [median(column) for column in zip(*passes[2:], strict=True)]

    def _copied(self, rows: slice) -> Inputs:
        copies: Inputs = pytree.tree_map(lambda leaf: leaf[rows].clone(), self.example)
        return copies


def _buffers(module: nn.Module) -> list[Tensor]:
    """Return what a module stores beside its parameters, without counters: those of batch norms serve training."""
    return [one for one in module.buffers(recurse=False) if one.dim()]


def _clock() -> float:
    """Return the time in ms, once a GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * time.perf_counter()


def _timed(work: Callable[[], object]) -> float:
    start = _clock()
    work()
    return _clock() - start
