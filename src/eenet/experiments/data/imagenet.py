"""Images in one folder per class: ImageNet (ILSVRC 2012), Tiny-ImageNet, and folders of one's own.

Sources: O. Russakovsky et al., *ImageNet large scale visual recognition challenge*, IJCV 2015; Y. Le, X. Yang, *Tiny
ImageNet visual recognition challenge*, Stanford CS 231N, 2015.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from eenet.errors import DataError
from eenet.experiments.data.archives import read_packed_jpeg
from eenet.experiments.data.dataset import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ArrayDataset,
    DataSplits,
    Normalisation,
    Part,
    Split,
    halved,
    shared,
)
from eenet.experiments.data.files import ImageFiles, content, data_folder, find_folder, images_in, missing
from eenet.experiments.data.texts import read_rows

# --- a folder per class -----------------------------------------------------------------------------------------------


def load_image_folder(
    root: Path, *, seed: int = 0, size: int = 224, normalisation: Normalisation = (IMAGENET_MEAN, IMAGENET_STD)
) -> DataSplits:
    """Return images as splits: 60 % to train on, 20 % for calibration, 20 % for testing, chosen by ``seed``.

    Classes are the folders in ``root``, in alphabetical order. Images are decoded when they are asked for; the split
    that is trained on has a margin that `framed` explains.

    Args:
        root: a folder with a folder per class, each with image files.
        seed: decides which image belongs to which split.
        size: height and width that the model takes, in pixels.
        normalisation: mean and standard deviation per colour, on the scale 0 to 1.

    Raises:
        DataError: there are fewer than 2 folders or 10 images, or a folder has none.
    """
    classes = _classes(Path(root))
    paths, labels = _by_class([Path(root) / name for name in classes])

    def read(rows: Int[Tensor, " row"], split: Split) -> ArrayDataset:
        chosen = [paths[row] for row in rows.tolist()]
        return framed(chosen, labels[rows], size, training=split == "train", normalisation=normalisation)

    return shared(read, len(paths), classes, seed, place=root)


def _classes(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, at least 2, in alphabetical order."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if len(names) < 2:
        raise DataError(
            f"data folder {root} has {len(names)} classes: a folder per class was expected, at least 2, found "
            f"{content(root)}. Pass the folder that holds them."
        )
    return tuple(names)


def _by_class(folders: Sequence[Path]) -> tuple[list[Path], Int[Tensor, " sample"]]:
    """Return the images of some folders, and for each the number of its folder."""
    found = [images_in(folder) for folder in folders]
    labels = torch.arange(len(found)).repeat_interleave(torch.tensor([len(paths) for paths in found]))
    return [path for paths in found for path in paths], labels


def framed(
    paths: Sequence[Path],
    labels: Int[Tensor, " sample"],
    size: int,
    *,
    training: bool,
    normalisation: Normalisation = (IMAGENET_MEAN, IMAGENET_STD),
) -> ArrayDataset:
    """Return images as classifiers of ImageNet take them.

    The short side is resized to 8/7 of ``size`` (256 pixels for 224). For calibration and testing the centre is cut
    out. For training the whole square of that larger side is kept, so that `random_resized_crop` can choose a part;
    it is brought to ``size`` when prepared.

    Args:
        paths: the image files.
        labels: their classes.
        size: height and width that the model takes, in pixels.
        training: keep what random crops choose from.
        normalisation: mean and standard deviation per colour.
    """
    whole = round(size * 8 / 7)
    kept = whole if training else size
    files = ImageFiles(paths, (kept, kept), short_side=whole)
    return ArrayDataset(files, labels, mean=normalisation[0], std=normalisation[1], size=(size, size))


# --- ImageNet ---------------------------------------------------------------------------------------------------------

PUBLISHED = "ILSVRC/Data/CLS-LOC"
FOLDERS = ("imagenet", "ILSVRC2012", PUBLISHED)
SOLUTION = "LOC_val_solution.csv"


def load_imagenet(root: Path, *, seed: int = 0, size: int = 224) -> DataSplits:
    """Return ImageNet: its train images for training, its val images halved by ``seed`` into calibration and test.

    Two layouts of the val images are read: a folder per class, and the official flat one (``ILSVRC2012_val_*.JPEG``)
    with ``LOC_val_solution.csv``, which names the class of each, in ``val``, beside it, in ``root`` or at the top of
    the published tree. (The list of numbers in the development kit is not read: its numbers are not in the usual
    order.) Classes are numbered in the alphabetical order of their folders ``n01440764`` and so on, as published
    weights have it. Images are decoded when they are asked for, see `framed`.

    Args:
        root: the folder that holds ``train`` and ``val``, or holds ``imagenet`` with these.
        seed: decides which val images are calibration.
        size: height and width that the model takes, in pixels.

    Raises:
        DataError: a folder or file is missing, or the classes of the two parts differ.
    """
    folder = data_folder(root, FOLDERS, ("train", "val"), "ImageNet")
    classes = _classes(folder / "train")

    @cache
    def listed(part: Part) -> tuple[list[Path], Int[Tensor, " sample"]]:
        if part == "train":
            return _by_class([folder / "train" / name for name in classes])
        if any(path.is_dir() for path in (folder / "val").iterdir()):
            return _val_by_class(folder / "val", classes)
        return _flat_val(folder / "val", _solution(folder, Path(root)), classes)

    def read(part: Part) -> ArrayDataset:
        return framed(*listed(part), size, training=part == "train")

    return halved(read, classes, seed)


def _val_by_class(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Int[Tensor, " sample"]]:
    found = _classes(folder)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise DataError(
            f"data folder {folder} has other classes than train: {odd[0]} is in one of them only. Complete both."
        )
    return _by_class([folder / name for name in classes])


def _solution(folder: Path, root: Path) -> Path:
    """Return the file that names the classes of flat val images."""
    places = [folder / "val", folder, root]
    if folder.absolute().match(PUBLISHED):  # root may be that folder itself
        places.append(folder.absolute().parents[2])
    solution = next((place / SOLUTION for place in places if (place / SOLUTION).is_file()), None)
    if solution is None:
        raise DataError(
            f"data folder {folder / 'val'} has neither a folder per class nor {SOLUTION}: one of these says what the "
            f"images show, found {content(folder / 'val')}. Put the file beside val."
        )
    return solution


def _flat_val(folder: Path, solution: Path, classes: tuple[str, ...]) -> tuple[list[Path], Int[Tensor, " sample"]]:
    with solution.open(encoding="utf-8", newline="") as lines:
        named = {row[0]: row[1].split()[0] for row in csv.reader(lines) if len(row) == 2 and row[1].split()}
    return _listed({path: named.get(path.stem) for path in images_in(folder)}, solution, classes)


def _listed(
    named: Mapping[Path, str | None], source: Path, classes: Sequence[str]
) -> tuple[list[Path], Int[Tensor, " sample"]]:
    """Return images and the numbers of the classes that a file gives them."""
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = next((path for path, name in named.items() if name not in numbers), None)
    if unknown is not None:
        raise DataError(
            f"data file {unknown} has no class: {source} gives it {named[unknown] or 'none'}, which is none of those "
            "to train on. Complete both."
        )
    return list(named), torch.tensor([numbers[name] for name in named.values() if name is not None])


# --- Tiny-ImageNet ----------------------------------------------------------------------------------------------------

TINY, TINY_PACKED = "tiny-imagenet-200", "tiny_imagenet_subset"
TINY_FILES = ("wnids.txt", "train", "val/val_annotations.txt")
TINY_PACKED_FILES = ("train.npz", "val.npz", "classes.csv")
TINY_SIZE = 64


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
    official = find_folder(Path(root), (TINY,), TINY_FILES)
    if official is not None:
        return _official(official, seed)
    packed = find_folder(Path(root), (TINY_PACKED,), TINY_PACKED_FILES)
    if packed is not None:
        return _packed(packed, seed)
    expected = f"{', '.join(TINY_FILES)} (or {TINY_PACKED} with {', '.join(TINY_PACKED_FILES)})"
    raise missing(root, (TINY, TINY_PACKED), expected, "Tiny-ImageNet")


def _official(folder: Path, seed: int) -> DataSplits:
    classes = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())

    def read(part: Part) -> ArrayDataset:
        if part == "train":
            paths, labels = _by_class([folder / "train" / name / "images" for name in classes])
        else:
            annotations = folder / "val" / "val_annotations.txt"
            rows = read_rows(annotations)
            places = {folder / "val" / "images" / row[0]: row[1] if len(row) > 1 else None for row in rows}
            paths, labels = _listed(places, annotations, classes)
        return ArrayDataset(ImageFiles(paths, (TINY_SIZE, TINY_SIZE)), labels, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    words = folder / "words.txt"
    names = {row[0]: row[1] for row in read_rows(words) if len(row) == 2} if words.is_file() else {}
    return halved(read, tuple(names.get(name, name) for name in classes), seed)


def _packed(folder: Path, seed: int) -> DataSplits:
    def read(part: Part) -> ArrayDataset:
        path = folder / ("train.npz" if part == "train" else "val.npz")
        images, labels = read_packed_jpeg(path, size=TINY_SIZE, classes=len(names))
        return ArrayDataset(images, labels, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    with (folder / "classes.csv").open(encoding="utf-8", newline="") as lines:
        names = [row["name"] for row in csv.DictReader(lines) if "name" in row]
    if not names:
        raise DataError(
            f"data file {folder / 'classes.csv'} names no classes: a column name was expected. Get it again."
        )
    return halved(read, tuple(names), seed)
