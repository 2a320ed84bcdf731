"""Tiny-ImageNet: 200 classes of ImageNet in 64 x 64 pixels, in the official layout or packed.

Source: Y. Le, X. Yang, *Tiny ImageNet visual recognition challenge*, Stanford CS 231N, 2015.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from eenet.data.dataset import IMAGENET_MEAN, IMAGENET_STD, ArrayDataset, DataSplits
from eenet.data.files import ImageFiles
from eenet.data.folders import find_folder, missing
from eenet.data.image_folder import images_by_class
from eenet.data.packed import read_packed_jpeg
from eenet.data.sharing import Part, halved
from eenet.data.text_files import read_rows
from eenet.errors import DataError

__all__ = ["load_tiny_imagenet"]

FOLDER, PACKED = "tiny-imagenet-200", "tiny_imagenet_subset"
OFFICIAL_FILES = ("wnids.txt", "train", "val/val_annotations.txt")
PACKED_FILES = ("train.npz", "val.npz", "classes.csv")
SIZE = 64


def load_tiny_imagenet(root: Path, *, seed: int = 0) -> DataSplits:
    """Return Tiny-ImageNet: its train images for training, its val images halved into calibration and test.

    (The published test images have no labels.) Classes are numbered in the alphabetical order of their folders. The
    official layout is looked for first, and its images are decoded when asked for; then the packed one.

    Args:
        root: the folder that holds ``tiny-imagenet-200``, or ``tiny_imagenet_subset`` with ``train.npz``, ``val.npz``
            (JPEG files joined, as `read_packed_jpeg` has it) and ``classes.csv``; or one of these itself.
        seed: decides which val images are calibration.

    Raises:
        DataError: a file is missing or damaged.
    """
    official = find_folder(Path(root), (FOLDER,), OFFICIAL_FILES)
    if official is not None:
        return _official(official, seed)
    packed = find_folder(Path(root), (PACKED,), PACKED_FILES)
    if packed is not None:
        return _packed(packed, seed)
    expected = f"{', '.join(OFFICIAL_FILES)} (or {PACKED} with {', '.join(PACKED_FILES)})"
    raise missing(root, (FOLDER, PACKED), expected, "Tiny-ImageNet")


def _official(folder: Path, seed: int) -> DataSplits:
    classes = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())

    def read(part: Part) -> ArrayDataset:
        if part == "train":
            paths, labels = images_by_class([folder / "train" / name / "images" for name in classes])
        else:
            rows = read_rows(folder / "val" / "val_annotations.txt")
            numbers = {name: number for number, name in enumerate(classes)}
            odd = next((row for row in rows if len(row) < 2 or row[1] not in numbers), None)
            if odd is not None:
                raise DataError(
                    f"data file {folder / 'val' / 'val_annotations.txt'} has the row {' '.join(odd)!r}: a file and one "
                    "of the classes of wnids.txt were expected. Get it again."
                )
            paths = [folder / "val" / "images" / row[0] for row in rows]
            labels = torch.tensor([numbers[row[1]] for row in rows])
        return ArrayDataset(ImageFiles(paths, (SIZE, SIZE)), labels, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    words = folder / "words.txt"
    names = {row[0]: row[1] for row in read_rows(words) if len(row) == 2} if words.is_file() else {}
    return halved(read, tuple(names.get(name, name) for name in classes), seed)


def _packed(folder: Path, seed: int) -> DataSplits:
    def read(part: Part) -> ArrayDataset:
        path = folder / ("train.npz" if part == "train" else "val.npz")
        images, labels = read_packed_jpeg(path, size=SIZE, classes=len(names))
        return ArrayDataset(images, labels, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    with (folder / "classes.csv").open(encoding="utf-8", newline="") as lines:
        names = [row["name"] for row in csv.DictReader(lines) if "name" in row]
    if not names:
        raise DataError(
            f"data file {folder / 'classes.csv'} names no classes: a column name was expected. Get it again."
        )
    return halved(read, tuple(names), seed)
