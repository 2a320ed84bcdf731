"""Which inputs the stages of an attached model take: their names, their sizes, and which sizes are free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import ShapeError
from eenet.models.inputs import Inputs, State, evaluating
from eenet.models.model import MultiExitModel

Axes: TypeAlias = Mapping[str, Mapping[int, str]]
"""Names of the axes of free size, by the input and the number of the axis; ``""`` is a tensor by itself."""
Free: TypeAlias = Axes | Mapping[int, str]
"""The same, as users give it: of a tensor by itself the axes alone."""
Moving: TypeAlias = list[list[tuple[int, ...]]]
"""For every stage and tensor that it takes, the axes whose size follows a free size of the inputs."""
Limits: TypeAlias = tuple[int, int | None]
"""The smallest and the largest size that an axis may have, None where no largest one is known."""

_TEXT = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_LONGER = 3  # by so much, for a check at another length


class SameForm(nn.Module):
    """Passes the inputs on to the stages, which are cut for inputs of the names and sizes of ``inputs``.

    Args:
        inputs: The example.
        axes: Those of free size.
        limits: Of every free size, by its name.

    Attributes:
        sizes: The size of a sample, by the name of the input: numbers, and the names of free sizes.
        limits: As given.
        example: The free sizes of the example.
    """

    def __init__(self, inputs: Inputs, axes: Axes | None = None, limits: Mapping[str, Limits] | None = None) -> None:
        super().__init__()
        found, axes = _sizes(inputs), axes or {}
        self.sizes: dict[str, tuple[int | str, ...]] = {
            name: tuple(axes.get(name, {}).get(axis, size) for axis, size in enumerate(sizes, 1))
            for name, sizes in found.items()
        }
        self.limits = dict(limits or {})
        self.example = self.lengths(inputs)

    @property
    def axes(self) -> dict[str, dict[int, str]]:
        """The axes of free size, by the name of the input."""
        return {
            name: {axis: size for axis, size in enumerate(sizes, 1) if isinstance(size, str)}
            for name, sizes in self.sizes.items()
        }

    def lengths(self, inputs: Inputs) -> dict[str, int]:
        """Return the free sizes of some inputs, by their names."""
        named = by_name(inputs)
        return {one: named[name].shape[axis] for name, axes in self.axes.items() for axis, one in axes.items()}

    def check_names(self, inputs: Inputs) -> None:
        """Refuse inputs by other names than those of the example inputs, with a `ShapeError`."""
        found, wanted = _sizes(inputs).keys(), self.sizes.keys()
        if found != wanted:
            names, example = (", ".join(sorted(keys)) or "one tensor" for keys in (found, wanted))
            raise ShapeError(
                f"inputs ({names}) do not fit: exits were attached with example inputs ({example}). "
                "Pass these, no more and no less: without its mask, for example, padding would be read as text."
            )

    def check(self, inputs: Inputs) -> None:
        """Refuse inputs of other names or sizes than the stages are cut for, with a `ShapeError`."""
        self.check_names(inputs)
        found = _sizes(inputs)
        lengths: dict[str, int] = {}
        for name, sizes in found.items():
            wanted = self.sizes[name]
            same = len(sizes) == len(wanted)
            for size, free in zip(sizes, wanted, strict=False):
                same = same and size == (lengths.setdefault(free, size) if isinstance(free, str) else free)
            if not same:
                example = [tuple(self.example.get(str(size), size) for size in one) for one in self.sizes.values()]
                named = [f"{name} {limited(*limits)}" for name, limits in self.limits.items()]
                raise ShapeError(
                    f"inputs of size {list(found.values())} per sample do not fit: exits were attached with example "
                    f"inputs of size {example}, and the stages are cut for these"
                    + (f", with {' and '.join(named)} alike in all inputs" if named else "")
                    + ". Resize or pad them, or attach with inputs of theirs."
                )
        for name, length in lengths.items():
            low, high = self.limits[name]
            if length < low or (high is not None and length > high):
                raise ShapeError(
                    f"inputs of {name} {length} do not fit: the stages take {limited(low, high)}. Pad or cut them."
                )

    def forward(self, inputs: Inputs) -> Inputs:
        if not torch.compiler.is_compiling():  # while stages are compiled or exported, sizes may be symbols
            self.check(inputs)
        return inputs

    def others(self, inputs: Inputs) -> Iterator[Inputs]:
        """Yield the inputs at other free sizes: a little longer (else shorter), and shortest; nothing without any."""
        other, shortest, lengths = {}, {}, self.lengths(inputs)
        for name, size in lengths.items():
            low, high = self.limits[name]
            most = size + _LONGER if high is None else high
            tried = (size + _LONGER, size - _LONGER, most, low)
            other[name] = next(one for one in tried if low <= one <= most and one != size)
            shortest[name] = low
        if other != lengths:
            yield resized(inputs, self.axes, other)
        if shortest != lengths:  # whose masks may have nothing but padding at their start
            yield resized(pytree.tree_map_only(Tensor, _unmasked, inputs), self.axes, shortest)


def _unmasked(leaf: Tensor) -> Tensor:
    """Return ones for a mask, and what is none as it is."""
    return leaf if leaf.is_floating_point() or int(leaf.max()) != 1 else torch.ones_like(leaf)


def limited(low: int, high: int | None) -> str:
    """Return limits in words."""
    return f"{low} and more" if high is None else f"{low} to {high}"


def _sizes(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Return the size of a sample by the name of the input, ``""`` for a tensor by itself."""
    return {name: tuple(leaf.shape[1:]) for name, leaf in by_name(inputs).items()}


def by_name(inputs: Inputs) -> Mapping[str, Tensor]:
    """Return inputs by name, ``""`` for a tensor by itself."""
    return {"": inputs} if isinstance(inputs, Tensor) else inputs


def resized(inputs: Inputs, axes: Axes, lengths: Mapping[str, int]) -> Inputs:
    """Return inputs whose free axes have other sizes: cut, or begun again from their start."""

    def one(name: str, leaf: Tensor) -> Tensor:
        for axis, free in axes.get(name, {}).items():
            places = torch.arange(lengths[free], device=leaf.device) % leaf.shape[axis]
            leaf = leaf.index_select(axis, places)
        return leaf

    changed = {name: one(name, leaf) for name, leaf in by_name(inputs).items()}
    return changed[""] if isinstance(inputs, Tensor) else changed


def free_axes(inputs: Inputs, asked: Free | None) -> Axes:
    """Return the axes whose size shall be free: those asked for, checked, or by default those of texts.

    A text is an input of one of the names that tokenizers use, or whole numbers ``[sample, token]``; beside such an
    input, other whole numbers whose second axis is as long.

    Raises:
        ShapeError: One that is asked for is not there, or axes of one name differ in size.
    """
    named = by_name(inputs)
    if asked is None:
        first = next((leaf.shape[1] for name, leaf in named.items() if _is_text(name, leaf)), None)
        return {
            name: {1: "token"}
            for name, leaf in named.items()
            if leaf.dim() > 1 and leaf.shape[1] == first and (name in _TEXT or not leaf.is_floating_point())
        }
    given: Any = {"": asked} if asked and "" in named and "" not in asked else asked
    if not isinstance(given, Mapping) or not all(name in named and isinstance(given[name], Mapping) for name in given):
        there = ", ".join(repr(name) for name in named if name) or "one tensor"
        raise ShapeError(
            f"free {asked!r} does not fit: the inputs are {there}. Name an input, and the number and name of its axis, "
            'as in {"input_ids": {1: "token"}}; of one tensor {1: "token"}.'
        )
    axes: dict[str, Mapping[int, str]] = {}
    sizes: dict[str, int] = {}
    for name, one in given.items():
        axes[name] = dict(one)
        for axis, label in one.items():
            size = _size(name, named[name], axis, label)
            if sizes.setdefault(label, size) != size:
                raise ShapeError(
                    f"free axis {label!r} has the sizes {sizes[label]} and {size}: axes of one name have one. Give "
                    "them two names."
                )
    return axes


def _size(name: str, leaf: Tensor, axis: object, label: object) -> int:
    """Return the size of an axis that shall be free."""
    if isinstance(axis, int) and isinstance(label, str) and 1 <= axis < leaf.dim() and leaf.shape[axis] > 1:
        return leaf.shape[axis]
    raise ShapeError(
        f"free axis {axis!r} named {label!r} does not fit an input{f' {name!r}' if name else ''} of shape "
        f"{tuple(leaf.shape)}: axes are numbered from 1, after the samples, have a name, and at least 2 entries in the "
        "example. Name such."
    )


def _is_text(name: str, leaf: Tensor) -> bool:
    numbers = leaf.dtype in (torch.int32, torch.int64)
    return leaf.dim() == 2 and leaf.shape[1] > 1 and (name in _TEXT or numbers)


def fault_next_to(whole: nn.Module, example: Inputs, axes: Axes) -> str | None:
    """Return why an axis cannot be free: the model runs at neither size next to the example's. None where it does.

    One run tells in milliseconds what recording with free sizes would find out in many seconds.
    """
    sizes = SameForm(example, axes).example
    for name, size in sizes.items():
        others = [
            changed
            for step in (1, -1)
            for changed in (sizes | {name: size + step}, {one: length + step for one, length in sizes.items()})
        ]
        if not any(_runs(whole, resized(example, axes, one)) for one in others):
            return f"the model takes {name} {size}, and no size next to it"
    return None


def _runs(whole: nn.Module, inputs: Inputs) -> bool:
    try:
        with evaluating(whole), torch.no_grad():
            whole(pytree.tree_map(Tensor.clone, inputs))
    except Exception:  # noqa: BLE001 - whatever a foreign model raises at a size that it does not take
        return False
    return True


def moving_axes(model: MultiExitModel, inputs: Inputs) -> Moving:
    """Return the axes of free size of what every stage takes.

    They are found by running the stages at another length; an empty list where nothing is free. The first stage takes
    the inputs.
    """
    other = next(model.entry.others(inputs), None) if isinstance(model.entry, SameForm) else None
    if other is None:
        return []
    with evaluating(model), torch.no_grad():
        pairs = zip(_taken(model, inputs), _taken(model, other), strict=True)
        return [
            [
                tuple(axis for axis in range(1, a.dim()) if a.shape[axis] != b.shape[axis])
                for a, b in zip(one, two, strict=True)
            ]
            for one, two in pairs
        ]


def _taken(model: MultiExitModel, inputs: Inputs) -> list[list[Tensor]]:
    """Return the tensors that every stage takes."""
    states: list[State] = [inputs]
    state = model.start(inputs)
    for stage in list(model.stages)[:-1]:
        state = stage(state)
        states.append(state)
    return [pytree.tree_leaves(one) for one in states]
