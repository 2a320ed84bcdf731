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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Int, UInt8
from rich.console import Console
from rich.progress import wrap_file
from torch import Tensor

from eenet.errors import DataError, RunError
from eenet.experiments.data.archives import known_labels, read_packed_jpeg, read_pickled
from eenet.experiments.data.dataset import IMAGENET, ArrayDataset, DataSplits, Normalisation, Part, halved
from eenet.experiments.data.files import bad_file, data_folder, read_text
from eenet.log import logger
from eenet.tables.atomic import atomic_path

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_SCALE = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of the train images
SIZE = 32
PIXELS = 3 * SIZE * SIZE
ROWS = {"train": 50_000, "test": 10_000}
Batch: TypeAlias = tuple[UInt8[Tensor, "sample 3 32 32"], Int[Tensor, " sample"]]


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A ``.tar.gz`` on a public page, its checksum as its authors publish it, and the name of the folder in it."""

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


class Form(NamedTuple):
    """A form in which CIFAR is published: its folder, the files of its two parts, how one is read, and class names."""

    folder: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    read: Callable[[Path], Batch]
    names: str | None = None

    @property
    def layout(self) -> tuple[Sequence[str], Sequence[str]]:
        """The name of its folder, and what must be in it."""
        return (self.folder,), (*self.train, *self.held_out, *([self.names] if self.names else ()))


def load_cifar10(root: Path, *, seed: int = 0, download: bool = False) -> DataSplits:
    """Return CIFAR-10: its train images for training, its test images halved by ``seed`` into calibration and test.

    Calibration images are test images, not train images, because published weights have seen the latter. The first form
    that is found is read, in this order: the official pickled one, ``cifar-10-batches-py`` (read without executing it),
    the official binary one, ``cifar-10-batches-bin``, and a packed one, ``cifar10_jpeg_packed``. With ``download`` the
    binary form (162 MB) is fetched from its author's page if none is there.

    Raises:
        DataError: a file is missing, truncated, or does not contain what it should.
        RunError: the download failed.
    """
    return _load("CIFAR-10", CIFAR10_FORMS, root, seed, archive=CIFAR10_ARCHIVE if download else None)


def load_cifar10_packed(root: Path, *, seed: int = 0) -> DataSplits:
    """Return CIFAR-10 from its packed form, as `load_cifar10` does where there is no other."""
    return _load("CIFAR-10", CIFAR10_FORMS[-1:], root, seed)


def load_cifar100(root: Path, *, seed: int = 0, download: bool = False) -> DataSplits:
    """Return CIFAR-100 with its 100 fine labels, as `load_cifar10` returns CIFAR-10.

    Its forms are ``cifar-100-python`` and ``cifar-100-binary``; ``download`` fetches the latter (161 MB).
    """
    archive = CIFAR100_ARCHIVE if download else None
    return _load("CIFAR-100", CIFAR100_FORMS, root, seed, archive=archive, scale=CIFAR100_SCALE)


def _load(
    what: str,
    forms: Sequence[Form],
    root: Path,
    seed: int,
    *,
    archive: Archive | None = None,
    scale: Normalisation = IMAGENET,
) -> DataSplits:
    """Return a data set from the first form that is there; an archive is fetched if none is."""
    layouts = [form.layout for form in forms]
    try:
        folder, number = data_folder(root, what, *layouts)
    except DataError:
        if archive is None:
            raise
        fetch(archive, Path(root))
        folder, number = data_folder(root, what, *layouts)
    form = forms[number]

    def read(part: Part) -> ArrayDataset:
        batches = [form.read(folder / name) for name in (form.train if part == "train" else form.held_out)]
        images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        return ArrayDataset(images, labels, mean=scale[0], std=scale[1])

    return halved(read, CIFAR10_CLASSES if form.names is None else _fine_names(folder / form.names), seed)


# --- forms ------------------------------------------------------------------------------------------------------------


def _pickled(path: Path, key: str, classes: int) -> Batch:
    """Return the images and labels of a pickled file, which is not executed; ``key`` is what it calls the labels."""
    batch = read_pickled(path)
    pixels, labels = batch.get("data"), batch.get(key)
    if not isinstance(pixels, np.ndarray) or not isinstance(labels, list):
        found = ", ".join(sorted(batch)) or "nothing"
        raise bad_file(path, f"is not of CIFAR: the array data and the list {key} were expected, found {found}")
    if pixels.shape != (len(labels), PIXELS):
        expected = f"{len(labels)} images of {PIXELS} bytes were expected"
        raise bad_file(path, f"is damaged: {expected}, found {pixels.shape}")
    return _batch(pixels, labels, classes, path)


def _records(path: Path, labels: int, classes: int) -> Batch:
    """Return the images and labels of a binary file: each image follows its labels, the last of which counts."""
    try:
        length, raw = labels + PIXELS, np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise bad_file(path, f"cannot be read: {error.strerror}", "Check the file.") from error
    if not len(raw) or len(raw) % length:
        raise bad_file(path, f"is truncated: records of {length} bytes were expected, found {len(raw)} bytes")
    records = raw.reshape(-1, length)
    return _batch(records[:, labels:], records[:, labels - 1].tolist(), classes, path)


def _batch(pixels: np.ndarray, labels: Sequence[object], classes: int, path: Path) -> Batch:
    return torch.tensor(pixels).view(-1, 3, SIZE, SIZE), known_labels(labels, classes, path)


def _packed(path: Path) -> Batch:
    rows = ROWS[path.name.removesuffix("_jpeg.npz")]
    return read_packed_jpeg(path, size=SIZE, classes=len(CIFAR10_CLASSES), rows=rows)


def _fine_names(path: Path) -> tuple[str, ...]:
    """Return the names of the fine classes: a line each, or in a pickled file, which is not executed."""
    if path.suffix == ".txt":
        names = read_text(path).split()
    else:
        found = read_pickled(path).get("fine_label_names", [])
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in found]
    if len(names) != 100:
        raise bad_file(path, f"names {len(names)} classes: 100 were expected")
    return tuple(names)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_BINARY = tuple(f"{name}.bin" for name in _BATCHES)
CIFAR10_FORMS = (
    Form("cifar-10-batches-py", _BATCHES, ("test_batch",), partial(_pickled, key="labels", classes=10)),
    Form("cifar-10-batches-bin", _BINARY, ("test_batch.bin",), partial(_records, labels=1, classes=10)),
    Form("cifar10_jpeg_packed", ("train_jpeg.npz",), ("test_jpeg.npz",), _packed),
)
_read_fine, _read_records = (
    partial(_pickled, key="fine_labels", classes=100),
    partial(_records, labels=2, classes=100),
)
CIFAR100_FORMS = (
    Form("cifar-100-python", ("train",), ("test",), _read_fine, "meta"),
    Form("cifar-100-binary", ("train.bin",), ("test.bin",), _read_records, "fine_label_names.txt"),
)

# --- download ---------------------------------------------------------------------------------------------------------


def fetch(archive: Archive, root: Path) -> Path:
    """Return the folder of an archive in ``root``, downloaded and unpacked, whole or not at all, unless it is there.

    Raises:
        RunError: the page does not answer, or the disk refuses.
        DataError: what came has another checksum, or contains something else.
    """
    target = Path(root) / archive.folder
    if target.is_dir():
        return target
    try:
        with atomic_path(target) as draft:
            packed = draft.with_name("packed")
            _download(archive, packed)
            _unpack(packed, draft.parent)
    except (OSError, tarfile.TarError) as error:
        raise RunError(
            f"download of {archive.url} failed: {error}. Try again, or get the file by hand and unpack it in {root}."
        ) from error
    return target


def _download(archive: Archive, path: Path) -> None:
    """Write an archive to a file, with a progress bar on stderr where that is a terminal, and check it."""
    console = Console(stderr=True)
    logger.info("downloading %s to %s", archive.url, path)
    with urllib.request.urlopen(archive.url, timeout=60) as answer, path.open("w+b") as file:  # seconds without a byte
        size, hidden = int(answer.headers.get("Content-Length") or 0), not console.is_terminal
        with wrap_file(
            answer, size, description=archive.folder, console=console, transient=True, disable=hidden
        ) as counted:
            shutil.copyfileobj(counted, file)
        file.seek(0)
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5:
        raise DataError(
            f"download of {archive.url} is not the published file: its MD5 is {found}, {archive.md5} was expected. "
            "Nothing was unpacked. Try again."
        )


def _unpack(packed: Path, folder: Path) -> None:
    """Write an archive's plain files, neither folders nor links, those inside ``folder`` only."""
    with tarfile.open(packed) as opened:
        opened.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
        members = [member for member in opened if member.isfile()]
        for member in members:
            if not (folder / member.name).resolve().is_relative_to(folder.resolve()):
                raise tarfile.TarError(f"it would write {member.name} elsewhere")
        opened.extractall(folder, members)
