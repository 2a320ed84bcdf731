"""CIFAR-10 and CIFAR-100, in their official layouts; CIFAR-10 also packed as JPEG files in two ``.npz`` archives.

Sources: A. Krizhevsky, *Learning multiple layers of features from tiny images*, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from jaxtyping import Int, UInt8
from rich.console import Console
from rich.progress import wrap_file
from torch import Tensor

from eenet.errors import DataError, RunError
from eenet.experiments.data.archives import known_labels, read_packed_jpeg, read_pickled
from eenet.experiments.data.dataset import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ArrayDataset,
    DataSplits,
    Normalisation,
    Part,
    halved,
)
from eenet.experiments.data.files import find_folder, missing
from eenet.tables.files import atomic_path

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_SCALE = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of the train images
SIZE = 32
PIXELS = 3 * SIZE * SIZE
ROWS = {"train": 50_000, "test": 10_000}
Batch: TypeAlias = tuple[UInt8[Tensor, "sample 3 32 32"], Int[Tensor, " sample"]]


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A ``.tar.gz`` on a public page.

    Args:
        url: where it is.
        md5: its checksum, as its authors publish it.
        folder: name of the folder in it.
    """

    url: str
    md5: str
    folder: str


CIFAR10_ARCHIVE = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
)
CIFAR100_ARCHIVE = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A form in which CIFAR lies on disk: its folder, the files of its two parts, how one is read, and class names."""

    folder: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    read: Callable[[Path], Batch]
    names: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All files that must be there."""
        return (*self.train, *self.held_out, *([self.names] if self.names else ()))


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
    return _load("CIFAR-10", CIFAR10_LAYOUTS, root, seed, archive=CIFAR10_ARCHIVE if download else None)


def load_cifar10_packed(root: Path, *, seed: int = 0) -> DataSplits:
    """Return CIFAR-10 from its packed layout, as `load_cifar10` does where there is no other."""
    return _load("CIFAR-10", CIFAR10_LAYOUTS[-1:], root, seed)


def load_cifar100(root: Path, *, seed: int = 0, download: bool = False) -> DataSplits:
    """Return CIFAR-100 with its 100 fine labels, split, looked for and refused as CIFAR-10 by `load_cifar10`.

    Args:
        root: the folder that holds ``cifar-100-python`` or ``cifar-100-binary``, or one of these itself.
        seed: decides which test images are calibration.
        download: fetch the binary layout (161 MB) from its author's page if none is there.
    """
    archive = CIFAR100_ARCHIVE if download else None
    return _load("CIFAR-100", CIFAR100_LAYOUTS, root, seed, archive=archive, scale=CIFAR100_SCALE)


def _load(
    what: str,
    layouts: Sequence[Layout],
    root: Path,
    seed: int,
    *,
    archive: Archive | None = None,
    scale: Normalisation = (IMAGENET_MEAN, IMAGENET_STD),
) -> DataSplits:
    """Return a data set from the first layout that is there; an archive is fetched if none is."""
    found = _found(layouts, root)
    if found is None and archive is not None:
        fetch(archive, Path(root))
        found = _found(layouts, root)
    if found is None:
        others = "".join(f", or {layout.folder}" for layout in layouts[1:])
        expected = ", ".join(layouts[0].files) + (f" ({others[2:]})" if others else "")
        raise missing(root, [layout.folder for layout in layouts], expected, what)
    layout, folder = found

    def read(part: Part) -> ArrayDataset:
        batches = [layout.read(folder / name) for name in (layout.train if part == "train" else layout.held_out)]
        images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        return ArrayDataset(images, labels, mean=scale[0], std=scale[1])

    return halved(read, CIFAR10_CLASSES if layout.names is None else _fine_names(folder / layout.names), seed)


def _found(layouts: Sequence[Layout], root: Path) -> tuple[Layout, Path] | None:
    folders = ((layout, find_folder(root, (layout.folder,), layout.files)) for layout in layouts)
    return next(((layout, folder) for layout, folder in folders if folder is not None), None)


# --- layouts ----------------------------------------------------------------------------------------------------------


def _pickled(path: Path, key: str, classes: int) -> Batch:
    """Return the images and labels of a pickled file, which is not executed; ``key`` is what it calls the labels."""
    batch = read_pickled(path)
    if not isinstance(batch.get("data"), np.ndarray) or not isinstance(batch.get(key), list):
        raise DataError(
            f"data file {path} is not of CIFAR: the array data and the list {key} were expected, found "
            f"{', '.join(sorted(batch)) or 'nothing'}. Get it again."
        )
    if batch["data"].shape != (len(batch[key]), PIXELS):
        raise DataError(
            f"data file {path} is damaged: {len(batch[key])} images of {PIXELS} bytes were expected, found "
            f"{batch['data'].shape}. Get it again."
        )
    return _batch(batch["data"], batch[key], classes, path)


def _records(path: Path, labels: int, classes: int) -> Batch:
    """Return the images and labels of a binary file: each image stands after its labels, the last of which counts."""
    length, raw = labels + PIXELS, np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if not len(raw) or len(raw) % length:
        raise DataError(
            f"data file {path} is truncated: records of {length} bytes were expected, found {len(raw)} bytes. Get "
            "it again."
        )
    records = raw.reshape(-1, length)
    return _batch(records[:, labels:], records[:, labels - 1].tolist(), classes, path)


def _batch(pixels: np.ndarray, labels: Sequence[object], classes: int, path: Path) -> Batch:
    return torch.tensor(pixels).view(-1, 3, SIZE, SIZE), torch.tensor(known_labels(labels, classes, path))


def _packed(path: Path) -> Batch:
    rows = ROWS[path.name.removesuffix("_jpeg.npz")]
    return read_packed_jpeg(path, size=SIZE, classes=len(CIFAR10_CLASSES), rows=rows)


def _fine_names(path: Path) -> tuple[str, ...]:
    """Return the names of the fine classes: a line each, or in a pickled file, which is not executed."""
    if path.suffix == ".txt":
        names = path.read_text(encoding="utf-8").split()
    else:
        found = read_pickled(path).get("fine_label_names", [])
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in found]
    if len(names) != 100:
        raise DataError(f"data file {path} names {len(names)} classes: 100 were expected. Get it again.")
    return tuple(names)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10_LAYOUTS = (
    Layout(
        folder="cifar-10-batches-py",
        train=_BATCHES,
        held_out=("test_batch",),
        read=partial(_pickled, key="labels", classes=10),
    ),
    Layout(
        folder="cifar-10-batches-bin",
        train=tuple(f"{name}.bin" for name in _BATCHES),
        held_out=("test_batch.bin",),
        read=partial(_records, labels=1, classes=10),
    ),
    Layout(folder="cifar10_jpeg_packed", train=("train_jpeg.npz",), held_out=("test_jpeg.npz",), read=_packed),
)
CIFAR100_LAYOUTS = (
    Layout(
        folder="cifar-100-python",
        train=("train",),
        held_out=("test",),
        read=partial(_pickled, key="fine_labels", classes=100),
        names="meta",
    ),
    Layout(
        folder="cifar-100-binary",
        train=("train.bin",),
        held_out=("test.bin",),
        read=partial(_records, labels=2, classes=100),
        names="fine_label_names.txt",
    ),
)

# --- download ---------------------------------------------------------------------------------------------------------


def fetch(archive: Archive, root: Path) -> Path:
    """Return the folder of an archive in ``root``, downloaded and unpacked, whole or not at all, unless it is there.

    Raises:
        RunError: the page does not answer, or the disk refuses.
        DataError: what came has another checksum, or holds something else.
    """
    target = Path(root) / archive.folder
    if target.is_dir():
        return target
    try:
        with atomic_path(target) as draft:
            packed = draft.with_name("packed")
            with (
                urllib.request.urlopen(archive.url, timeout=60) as answer,  # seconds without a byte
                _with_progress(answer, archive.folder) as counted,
                packed.open("wb") as file,
            ):
                shutil.copyfileobj(counted, file)
            _check_md5(archive, packed)
            _unpack(packed, draft.parent)
    except (OSError, tarfile.TarError) as error:
        raise RunError(
            f"download of {archive.url} failed: {error}. Try again, or get the file by hand and unpack it in {root}."
        ) from error
    return target


def _with_progress(answer: Any, name: str) -> AbstractContextManager[BinaryIO]:  # noqa: ANN401
    """Return what comes in, with a progress bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    size = int(answer.headers.get("Content-Length") or 0)
    return wrap_file(answer, size, description=name, console=console, transient=True, disable=not console.is_terminal)


def _unpack(packed: Path, folder: Path) -> None:
    """Write an archive's plain files, those inside ``folder`` only; the filters of tarfile need Python 3.11.4."""
    with tarfile.open(packed) as opened:
        for member in opened:
            path = (folder / member.name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise tarfile.TarError(f"it would write {member.name} elsewhere")
            content = opened.extractfile(member) if member.isfile() else None  # neither folders nor links
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file)


def _check_md5(archive: Archive, packed: Path) -> None:
    with packed.open("rb") as handle:
        found = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5:
        raise DataError(
            f"download of {archive.url} is not the published file: its MD5 is {found}, {archive.md5} was expected. "
            "Nothing was unpacked. Try again."
        )
