"""CIFAR-100, in its official layouts.

Source: A. Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.
"""

from __future__ import annotations

from pathlib import Path

from eenet.data.cifar_files import Batch, read_names, read_pickled_batches, read_pickled_names, read_records
from eenet.data.dataset import ArrayDataset, DataSplits
from eenet.data.download import Archive, fetch
from eenet.data.folders import find_folder, missing
from eenet.data.sharing import Part, halved

__all__ = ["load_cifar100"]

CLASSES = 100
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of the train images
PICKLED, BINARY = "cifar-100-python", "cifar-100-binary"
FILES: dict[Part, str] = {"train": "train", "held_out": "test"}
ARCHIVE = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder=BINARY,
)


def load_cifar100(root: Path, *, seed: int = 0, download: bool = False) -> DataSplits:
    """Return CIFAR-100: its train images for training, its test images halved by ``seed`` into calibration and test.

    Labels are the 100 fine ones. Calibration images are test images, not train images, because published weights have
    seen the latter. The official pickled layout (read without executing it) is looked for first, then the binary one.
    Names are read at once, images when a split is first asked for.

    Args:
        root: the folder that holds ``cifar-100-python`` or ``cifar-100-binary``, or one of these itself.
        seed: decides which test images are calibration.
        download: fetch the binary layout (161 MB) from its author's page if none is there.

    Raises:
        DataError: a file is missing, truncated, or does not hold what it should.
        RunError: the download failed.
    """
    root = Path(root)
    pickled = find_folder(root, (PICKLED,), ("train", "test", "meta"))
    if pickled is not None:
        names = read_pickled_names(pickled / "meta", "fine_label_names", CLASSES)
        return halved(
            lambda part: _made(read_pickled_batches([pickled / FILES[part]], "fine_labels", CLASSES)), names, seed
        )
    binary = find_folder(root, (BINARY,), ("train.bin", "test.bin", "fine_label_names.txt"))
    if binary is None and download:
        binary = fetch(ARCHIVE, root)
    if binary is None:
        raise missing(root, (PICKLED, BINARY), f"train, test and meta (or {BINARY})", "CIFAR-100")
    names = read_names(binary / "fine_label_names.txt", CLASSES)
    return halved(lambda part: _made(read_records([binary / f"{FILES[part]}.bin"], 2, CLASSES)), names, seed)


def _made(batch: Batch) -> ArrayDataset:
    images, labels = batch
    return ArrayDataset(images, labels, mean=MEAN, std=STD)
