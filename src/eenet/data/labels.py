"""Labels as files hold them: used only where every one of them is a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eenet.errors import DataError

__all__ = ["known_labels"]


def known_labels(labels: Sequence[object], classes: int, path: Path) -> list[int]:
    """Return the labels of a file, once all are known to be classes.

    Args:
        labels: what the file holds.
        classes: how many there are.
        path: the file, for the message.

    Raises:
        DataError: a label is no whole number, or none of a class; the first such is named with its row.
    """
    known: list[int] = []
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(
                f"data file {path} has the label {label!r} in row {row}: classes are the whole numbers 0 to "
                f"{classes - 1}. Get it again."
            )
        known.append(label)
    return known
