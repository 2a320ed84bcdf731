"""Images packed as JPEG files in an ``.npz`` archive."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from eenet.data.labels import known_labels
from eenet.errors import DataError

__all__ = ["read_packed_jpeg"]


def read_packed_jpeg(
    path: Path, *, size: int, classes: int, rows: int | None = None
) -> tuple[UInt8[Tensor, "sample 3 size size"], Tensor]:
    """Return the images and labels of a packed archive.

    Args:
        path: ``.npz`` with ``jpeg`` (the files joined together, uint8), ``offsets`` (int64, one more than images) and
            ``labels`` (int64).
        size: height and width of every image, in pixels.
        classes: how many there are.
        rows: how many images there must be; default: as many as labels.

    Raises:
        DataError: the archive is unreadable or truncated, or holds something else than expected.
    """
    jpeg, offsets, labels = _read_arrays(path)
    rows = len(labels) if rows is None else rows
    if len(offsets) != rows + 1 or len(labels) != rows:
        raise DataError(
            f"data file {path} is not complete: {rows} images were expected, found {len(offsets) - 1} images and "
            f"{len(labels)} labels. Get it again."
        )
    if offsets[0] != 0 or offsets[-1] != len(jpeg) or bool((np.diff(offsets) <= 0).any()):
        raise DataError(
            f"data file {path} is truncated: the offsets say {offsets[-1]} bytes of JPEG, found {len(jpeg)}. Get it "
            "again."
        )
    known = torch.tensor(known_labels(labels.tolist(), classes, path), dtype=torch.int64)
    images = np.empty((rows, size, size, 3), dtype=np.uint8)
    raw = jpeg.tobytes()
    for row in range(rows):
        images[row] = _decode(raw[offsets[row] : offsets[row + 1]], size, path, row)
    return torch.from_numpy(images).permute(0, 3, 1, 2), known


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            return archive["jpeg"], archive["offsets"], archive["labels"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"data file {path} cannot be read: an .npz archive with jpeg, offsets and labels was expected, found: "
            f"{str(error) or type(error).__name__}. "
            "Get it again."
        ) from error


def _decode(data: bytes, size: int, path: Path, row: int) -> np.ndarray:
    from PIL import Image

    try:
        image = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"data file {path} is damaged: image {row} cannot be decoded ({error}). Get the file again."
        ) from error
    if image.shape != (size, size, 3):
        raise DataError(
            f"data file {path} is not as expected: image {row} has shape {image.shape}, expected {(size, size, 3)}. "
            "Get the file again."
        )
    return image
