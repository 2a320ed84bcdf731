"""What a device can hold or afford per sample: parameters, bytes, operations or time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from eenet.errors import InputError
from eenet.tables.checks import listed
from eenet.tables.costs import unit_factor

_WRITTEN = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([kKMG]?i?)\s*(params|parameters|B|bytes)\s*")
_COST = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(\S+)\s*")
_SIZES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "ki": 2.0**10, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_NAMES = {"params": "params", "parameters": "params", "B": "bytes", "bytes": "bytes"}
_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The most that a tier of devices takes.

    Attributes:
        text: As it was written.
        value: In the unit of its kind.
        kind: ``params``, ``bytes``, ``FLOPs`` or ``ms``.
    """

    text: str
    value: float
    kind: str

    def written(self, value: float) -> str:
        """Return an amount of this kind in words."""
        return written(value, self.kind)


def written(value: float, kind: str) -> str:
    """Return an amount of a kind in words, such as ``1.2 MB``."""
    if kind == "ms":
        return f"{value:.4g} ms"
    factor, prefix = next((step for step in _STEPS if value >= step[0]), _STEPS[-1])
    return f"{value / factor:.4g} {prefix}{'B' if kind == 'bytes' else kind}"


def read_capacities(texts: Sequence[str]) -> tuple[Capacity, ...]:
    """Read the capacities of tiers of devices, the weakest first.

    Args:
        texts: Such as ``"0.3M params"``, ``"1.2MB"`` (also ``KiB``, ``MiB``), ``"20MFLOPs"``, ``"5ms"``; the kinds may
            differ from tier to tier.

    Raises:
        InputError: One is no capacity, or those of one kind do not rise.
    """
    found = tuple(map(_read, listed(texts, "capacities")))
    if not found:
        raise InputError("capacities are empty: there is one per tier but the last. Pass at least one, such as '1MB'.")
    for kind in dict.fromkeys(one.kind for one in found):
        for before, after in pairwise([one for one in found if one.kind == kind]):
            if after.value <= before.value:
                raise InputError(
                    f"capacities {before.text!r} and {after.text!r} do not rise: every tier continues what a weaker "
                    "one began. Name the weakest tier first, each capacity once."
                )
    return found


def _read(text: object) -> Capacity:
    said = str(text)
    match = _WRITTEN.fullmatch(said)
    if match and match[2] in _SIZES and float(match[1]) > 0:
        return Capacity(text=said, value=float(match[1]) * _SIZES[match[2]], kind=_NAMES[match[3]])
    match = _COST.fullmatch(said)
    for kind in ("FLOPs", "ms"):
        factor = unit_factor(match[2], kind) if match else None
        if match and factor is not None and float(match[1]) > 0:
            return Capacity(text=said, value=float(match[1]) * factor, kind=kind)
    raise InputError(
        f"capacity {said!r} is none: a number above 0 with a unit is needed. Write parameters ('0.3M params'), "
        "bytes ('1.2MB'), operations per sample ('20MFLOPs') or time per sample ('5ms')."
    )
