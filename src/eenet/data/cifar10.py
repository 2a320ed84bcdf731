"""CIFAR-10, in the official layouts or packed as JPEG files in two ``.npz`` archives.

Source: A. Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eenet.data.cifar_files import SIZE, Batch, read_pickled_batches, read_records
from eenet.data.dataset import IMAGENET_MEAN, IMAGENET_STD, ArrayDataset, DataSplits
from eenet.data.download import Archive, fetch
from eenet.data.folders import find_folder, missing
from eenet.data.packed import read_packed_jpeg
from eenet.data.sharing import Part, halved
from eenet.errors import DataError

__all__ = ["CIFAR10_CLASSES", "load_cifar10", "load_cifar10_packed"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PICKLED, BINARY, FOLDER = "cifar-10-batches-py", "cifar-10-batches-bin", "cifar10_jpeg_packed"
FILES: dict[Part, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "held_out": ("test_batch",),
}
ROWS = {"train": 50_000, "test": 10_000}
CLASSES = len(CIFAR10_CLASSES)
ARCHIVE = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder=BINARY,
)


def load_cifar10(root: Path, *, seed: int = 0, download: bool = False) -> DataSplits:
    """Return CIFAR-10: its train images for training, its test images halved by ``seed`` into calibration and test.

    Calibration images are test images, not train images, because published weights have seen the latter. Whichever
    layout is there is read, looked for in this order: the official pickled one (read without executing it), the
    official binary one, the packed one. The files are checked to be there at once and read when a split is first
    asked for.

    Args:
        root: the folder that holds ``cifar-10-batches-py``, ``cifar-10-batches-bin`` or ``cifar10_jpeg_packed``, or
            one of these itself.
        seed: decides which test images are calibration.
        download: fetch the binary layout (162 MB) from its author's page if none is there.

    Raises:
        DataError: a file is missing, truncated, or does not hold what it should.
        RunError: the download failed.
    """
    root = Path(root)
    pickled = find_folder(root, (PICKLED,), [*FILES["train"], *FILES["held_out"]])
    if pickled is not None:
        return _splits(
            lambda part: read_pickled_batches([pickled / name for name in FILES[part]], "labels", CLASSES), seed
        )
    binary = find_folder(root, (BINARY,), [f"{name}.bin" for part in FILES.values() for name in part])
    packed = find_folder(root, (FOLDER,), [f"{part}_jpeg.npz" for part in ROWS])
    if binary is None and packed is None and download:
        binary = fetch(ARCHIVE, root)
    if binary is not None:
        return _splits(lambda part: read_records([binary / f"{name}.bin" for name in FILES[part]], 1, CLASSES), seed)
    if packed is not None:
        return load_cifar10_packed(packed, seed=seed)
    raise missing(root, (PICKLED, BINARY, FOLDER), f"data_batch_1 to 5 (or {BINARY}, or {FOLDER})", "CIFAR-10")


def load_cifar10_packed(root: Path, *, seed: int = 0) -> DataSplits:
    """Return CIFAR-10 from its packed layout, with the sides of `load_cifar10`.

    Args:
        root: the folder that holds ``cifar10_jpeg_packed``, or that folder itself.
        seed: decides which test images are calibration.

    Raises:
        DataError: a file is missing, truncated, or does not hold what it should.
    """
    folder = find_folder(Path(root), (FOLDER,), [f"{part}_jpeg.npz" for part in ROWS])
    if folder is None:
        lacking = next(part for part in ROWS if not (Path(root) / FOLDER / f"{part}_jpeg.npz").is_file())
        raise DataError(
            f"data root {root} has no CIFAR-10: {Path(root) / FOLDER / f'{lacking}_jpeg.npz'} was expected and not "
            "found. Pass the folder that holds cifar10_jpeg_packed."
        )

    def read(part: Part) -> Batch:
        name = "train" if part == "train" else "test"
        return read_packed_jpeg(folder / f"{name}_jpeg.npz", size=SIZE, classes=CLASSES, rows=ROWS[name])

    return _splits(read, seed)


def _splits(read: Callable[[Part], Batch], seed: int) -> DataSplits:
    def made(part: Part) -> ArrayDataset:
        images, labels = read(part)
        return ArrayDataset(images, labels, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    return halved(made, CIFAR10_CLASSES, seed)
