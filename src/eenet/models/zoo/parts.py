"""What the models of the zoo share: where exits sit, and heads for a state that is more than one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from eenet.errors import InputError
from eenet.models.heads import HeadFactory

__all__ = ["Reading", "exit_positions", "in_row", "reading"]


def exit_positions(exits: int | Sequence[int], count: int, part: str) -> tuple[int, ...]:
    """Return after how many parts of a net each early exit sits.

    Args:
        exits: these numbers themselves, increasing, each below ``count``; or how many exits there are, the original
            output included, at even distances.
        count: parts of the net, one after the other.
        part: what they are called, for example ``block``.

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


def in_row(modules: Sequence[nn.Module]) -> nn.Module:
    """Return modules as one that runs them in a row; a single one as it is."""
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


class Reading(nn.Module):
    """A head that reads one tensor of a state.

    Args:
        key: of the tensor in the state, a list or a dictionary.
        head: from that tensor to logits.
    """

    def __init__(self, key: int | str, head: nn.Module) -> None:
        super().__init__()
        self.key, self.head = key, head

    def forward(self, state: Any) -> Tensor:  # noqa: ANN401
        """Return the logits."""
        logits: Tensor = self.head(state[self.key])
        return logits


def reading(key: int | str, head: HeadFactory) -> HeadFactory:
    """Return a head factory whose heads read one tensor of a state: any head for tensors then fits.

    Args:
        key: of the tensor: ``-1`` for the coarsest of several scales, ``"hidden"`` for the vectors of words.
        head: makes a head from the shape of that tensor.
    """

    def build(shape: Sequence[int], num_classes: int) -> nn.Module:
        return Reading(key, head(shape, num_classes))

    return build
