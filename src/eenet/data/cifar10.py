"""CIFAR-10 packed as JPEG files in two ``.npz`` archives.

Source: A. Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.
"""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from eenet.data.dataset import ArrayDataset, DataSplits, Split
from eenet.errors import DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
FOLDER = "cifar10_jpeg_packed"
ROWS = {"train": 50_000, "test": 10_000}
SIZE = 32


def load_cifar10_packed(root: Path, *, seed: int = 0) -> DataSplits:
    """Return CIFAR-10: its train images for training, its test images halved by ``seed`` into calibration and test.

    The files are checked to be there at once and read when a split is first asked for.

    Args:
        root: the folder that holds ``cifar10_jpeg_packed``.
        seed: decides which test images are calibration.

    Raises:
        DataError: a file is missing, truncated, or does not hold what it should.
    """
    folder = Path(root) / FOLDER
    for part in ROWS:
        if not (folder / f"{part}_jpeg.npz").is_file():
            raise DataError(
                f"data root {root} has no CIFAR-10: {folder / f'{part}_jpeg.npz'} was expected and not found. "
                "Pass the folder that holds cifar10_jpeg_packed."
            )

    def load(split: Split) -> ArrayDataset:
        part = "train" if split == "train" else "test"
        images, labels = read_packed_jpeg(folder / f"{part}_jpeg.npz", ROWS[part], SIZE)
        data = ArrayDataset(images, labels, mean=MEAN, std=STD)
        if split == "train":
            return data
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        half = len(data) // 2
        return data.select((order[:half] if split == "calibration" else order[half:]).sort().values)

    return DataSplits(load=load, classes=CIFAR10_CLASSES)


def read_packed_jpeg(path: Path, rows: int, size: int) -> tuple[UInt8[Tensor, "sample 3 size size"], Tensor]:
    """Return the images and labels of a packed archive.

    Args:
        path: ``.npz`` with ``jpeg`` (the files joined together, uint8), ``offsets`` (int64, one more than images) and
            ``labels`` (int64).
        rows: how many images there must be.
        size: height and width of every image, in pixels.

    Raises:
        DataError: the archive is unreadable or truncated, or holds something else than expected.
    """
    jpeg, offsets, labels = _read_arrays(path)
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
    images = np.empty((rows, size, size, 3), dtype=np.uint8)
    raw = jpeg.tobytes()
    for row in range(rows):
        images[row] = _decode(raw[offsets[row] : offsets[row + 1]], size, path, row)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))


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
