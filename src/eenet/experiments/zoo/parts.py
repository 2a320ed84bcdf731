"""What the models of the zoo share: where exits sit, their heads, and whether weights and nets of others fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from eenet.errors import DataError, InputError
from eenet.libraries import library
from eenet.models.heads import HeadFactory
from eenet.models.model import MultiExitModel

Part = TypeVar("Part")
Shape = TypeVar("Shape")


def divided(parts: Sequence[Part], exits: int | Sequence[int], part: str) -> list[Sequence[Part]]:
    """Return the parts of a net in stages, an early exit after each stage but the last.

    Args:
        parts: of the net, in order.
        exits: increasing numbers of parts after which an early exit sits; or how many exits there are, the original
            output included, at even distances.
        part: what a part of the net is called, such as ``block``.

    Raises:
        InputError: exits outside the net, or not increasing, or more than there are parts.
    """
    count = len(parts)
    if isinstance(exits, int):
        if not 2 <= exits <= count:
            raise InputError(
                f"exits {exits} are not possible: the net has {count} {part}s and the original output is one of the "
                f"exits. Ask for 2 to {count}."
            )
        ends = [round(k * count / exits) for k in range(1, exits)]
    else:
        ends = list(exits)
        if not ends or ends != sorted(set(ends)) or ends[0] < 1 or ends[-1] >= count:
            raise InputError(
                f"exits {tuple(ends)} are not possible: the net has {count} {part}s. Pass increasing {part} numbers "
                f"from 1 to {count - 1}."
            )
    return [parts[first:last] for first, last in pairwise((0, *ends, count))]


def with_heads(
    stages: Sequence[nn.Module],
    shapes: Sequence[Shape],
    num_classes: int,
    *,
    early: Callable[[Shape, int], nn.Module],
    last: Callable[[Shape, int], nn.Module],
) -> MultiExitModel:
    """Return stages with a head after each, made from the shapes it reads: the early ones, and the original output."""
    makes = [*[early] * (len(stages) - 1), last]
    return MultiExitModel(stages, [make(shape, num_classes) for make, shape in zip(makes, shapes, strict=True)])


def convolution(in_channels: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias, its batch norm and ReLU; the size of images changes by ``stride`` only."""
    conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class Reading(nn.Module):
    """A head that reads one tensor of a state, see `reading`."""

    def __init__(self, key: int | str, head: nn.Module) -> None:
        super().__init__()
        self.key, self.head = key, head

    def forward(self, state: Any) -> Tensor:  # noqa: ANN401
        logits: Tensor = self.head(state[self.key])
        return logits


def reading(key: int | str, head: HeadFactory) -> HeadFactory:
    """Return a head factory whose heads read one tensor of a state: any head for tensors then fits.

    Args:
        key: of the tensor: ``-1`` for the coarsest of several scales, ``"hidden"`` for the vectors of words.
        head: makes a head from the shape of that tensor.
    """
    return lambda shape, num_classes: Reading(key, head(shape, num_classes))


def check_stem(stem: str) -> None:
    """Refuse a stem that is neither that of ImageNet nor that of CIFAR."""
    if stem not in ("imagenet", "cifar"):
        raise InputError(f"stem {stem!r} is unknown: there are imagenet and cifar. Pass one of these.")


def check_kind(net: nn.Module, module: str, kind: str) -> None:
    """Refuse a net that is not of one class of a library, whose layers are taken by their names.

    Raises:
        InputError: It is of another class.
        MissingExtraError: The library is not installed.
    """
    if not isinstance(net, getattr(library(module), kind)):
        raise InputError(
            f"net {type(net).__name__} is no {kind} of {module.partition('.')[0]}: its layers are taken by their names "
            "there. Use eenet.attach for other models."
        )


def check_weights(own: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse the tensors of a file that are not called or shaped like a model's own."""
    for what, names in (
        ("lacks", [name for name in own if name not in found]),
        ("has, and the model has not,", [name for name in found if name not in own]),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise DataError(
                f"weights {str(path)!r} do not fit: the file {what} {', '.join(names[:5])}{more}. Pass the weights "
                "of this very model."
            )
    odd = next((name for name in own if own[name].shape != found[name].shape), None)
    if odd is not None:
        raise DataError(
            f"weights {str(path)!r} do not fit: {odd} has shape {tuple(found[odd].shape)}, the model's has "
            f"{tuple(own[odd].shape)}. Pass the weights of this very model, with as many classes."
        )
