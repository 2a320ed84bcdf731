"""Pictures and texts of samples, checked once."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

from eenet.errors import InputError, ShapeError
from eenet.report.plots import COLOURS
from eenet.tables.arrays import as_array
from eenet.tables.checks import listed

Images: TypeAlias = Any
"""Pictures ``[sample, height, width, 3]`` or ``[sample, height, width, 1]`` of whole numbers from 0 to 255."""

Texts: TypeAlias = Any
"""One text per sample."""

RIGHT, WRONG = COLOURS[0], COLOURS[1]
SOLID, DASHED = "-", (0, (2.2, 1.1))
"""Borders of right and of wrong answers."""


def border(*, right: bool) -> dict[str, Any]:
    """Return what the border of a sample looks like: blue and solid, or orange and dashed."""
    return {"edgecolor": RIGHT if right else WRONG, "linestyle": SOLID if right else DASHED, "linewidth": 2.2}


def checked_images(images: Images, num_samples: int) -> UInt8[np.ndarray, "sample height width 3"] | None:
    """Return pictures with three channels; None where there are none.

    Raises:
        ShapeError: There is not one picture per sample, or pictures have other axes.
        InputError: Values are no whole numbers of 8 bits.
    """
    if images is None:
        return None
    array = as_array(images)
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or len(array) != num_samples or 0 in array.shape:
        raise ShapeError(
            f"images of shape {array.shape} do not fit: the table has {num_samples} samples. Give one picture per "
            "sample, [sample, height, width, 3] or [sample, height, width, 1]."
        )
    if array.dtype != np.uint8:
        raise InputError(
            f"images of type {array.dtype} cannot be drawn: values are whole numbers from 0 to 255, of type uint8. "
            "Undo their normalisation and convert them."
        )
    return np.broadcast_to(array, (*array.shape[:3], 3))


def checked_texts(texts: Texts, num_samples: int) -> list[str] | None:
    """Return texts in one line each; None where there are none.

    Raises:
        ShapeError: There is not one text per sample.
        InputError: They are no list, or one of them is no text.
    """
    if texts is None:
        return None
    texts = listed(texts, "texts")
    if len(texts) != num_samples:
        raise ShapeError(
            f"texts, {len(texts)} of them, do not fit: the table has {num_samples} samples. Give one text per sample."
        )
    if not all(isinstance(text, str) for text in texts):
        raise InputError("texts contain something that is no text: each sample is drawn as one. Convert them.")
    return [" ".join(text.split()) for text in texts]
