"""What the models of the zoo share: where exits sit, heads for a state of several tensors, and whether weights fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from eenet.errors import DataError, InputError
from eenet.models.heads import HeadFactory

Part = TypeVar("Part")


def exit_positions(exits: int | Sequence[int], count: int, part: str) -> tuple[int, ...]:
    """Return after how many parts of a net each early exit sits, given increasing numbers of them.

    Or given how many exits there are, the original output included, at even distances; ``part`` is what a part of the
    net is called, such as ``block``.

    Raises:
        InputError: exits outside the net, or not increasing, or more than there are parts.
    """
    if isinstance(exits, int):
        if not 2 <= exits <= count:
            raise InputError(
                f"exits {exits} are not possible: the net has {count} {part}s and the original output is one of the "
                f"exits. Ask for 2 to {count}."
            )
        return tuple(round(k * count / exits) for k in range(1, exits))
    found = tuple(exits)
    if not found or list(found) != sorted(set(found)) or found[0] < 1 or found[-1] >= count:
        raise InputError(
            f"exits {found} are not possible: the net has {count} {part}s. Pass increasing {part} numbers from 1 to "
            f"{count - 1}."
        )
    return found


def divided(parts: Sequence[Part], exits: int | Sequence[int], part: str) -> list[Sequence[Part]]:
    """Return the parts of a net in stages, cut where `exit_positions` puts early exits."""
    bounds = (0, *exit_positions(exits, len(parts), part), len(parts))
    return [parts[first:last] for first, last in pairwise(bounds)]


class Reading(nn.Module):
    """A head that reads one tensor of a state, see `reading`."""

    def __init__(self, key: int | str, head: nn.Module) -> None:
        super().__init__()
        self.key, self.head = key, head

    def forward(self, state: Any) -> Tensor:  # noqa: ANN401
        """Return the logits."""
        return self.head(state[self.key])


def reading(key: int | str, head: HeadFactory) -> HeadFactory:
    """Return a head factory whose heads read one tensor of a state: any head for tensors then fits.

    Args:
        key: of the tensor: ``-1`` for the coarsest of several scales, ``"hidden"`` for the vectors of words.
        head: makes a head from the shape of that tensor.
    """

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        return Reading(key, head(shape, num_classes))

    return build


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
