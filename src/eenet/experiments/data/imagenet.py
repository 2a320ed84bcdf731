"""Images in one folder per class: ImageNet (ILSVRC 2012), Tiny-ImageNet, and folders of one's own.

Sources: O. Russakovsky et al., *ImageNet large scale visual recognition challenge*, IJCV 2015; Y. Le, X. Yang, *Tiny
ImageNet visual recognition challenge*, Stanford CS 231N, 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from eenet.errors import DataError
from eenet.experiments.data.archives import read_packed_jpeg
from eenet.experiments.data.dataset import (
    IMAGENET,
    ArrayDataset,
    DataSplits,
    Normalisation,
    Part,
    Split,
    halved,
    shared,
)
from eenet.experiments.data.files import ImageFiles, bad_file, data_folder, read_rows, read_text
from eenet.experiments.data.names import twins
from eenet.running.pictures import content, images_in, is_hidden

Listed: TypeAlias = tuple[list[Path], Int[Tensor, " sample"]]
"""Image files and the numbers of their classes."""
Images: TypeAlias = tuple[ImageFiles | Tensor, Int[Tensor, " sample"]]
"""Images and the numbers of their classes."""

_TRAINING = {"train", "training"}  # how parts of a data set are called
_HELD_OUT = {"dev", "test", "testing", "val", "valid", "validation"}

# --- a folder per class -----------------------------------------------------------------------------------------------


def load_image_folder(
    root: Path, *, seed: int = 0, size: int = 224, normalisation: Normalisation = IMAGENET
) -> DataSplits:
    """Return images as splits: 60 % to train on, 20 % for calibration, 20 % for testing, chosen by ``seed``.

    Classes are the folders in ``root``, in alphabetical order. Images are decoded when they are asked for; training
    images have a margin that `framed` explains. Folders within the folder of a class are searched too, hidden files and
    folders are passed over, and one warning says how many files of which kind are not read.

    Args:
        root: a folder with a folder per class, each with image files.
        seed: decides which image belongs to which split.
        size: height and width that the model takes, in pixels.
        normalisation: mean and standard deviation per colour, on the scale 0 to 1.

    Raises:
        DataError: there are fewer than 2 folders or 10 images, a folder has none, or the folders are parts such as
            ``train`` and ``val``.
    """
    classes = _classes(Path(root))
    paths, labels = _by_class([Path(root) / name for name in classes], Path(root))

    def read(rows: Int[Tensor, " row"], split: Split) -> ArrayDataset:
        chosen = [paths[row] for row in rows.tolist()]
        return framed(chosen, labels[rows], size, training=split == "train", normalisation=normalisation)

    return shared(read, labels, classes, seed, place=root)


def _classes(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, at least 2, in alphabetical order; hidden ones are passed over."""
    inside = [path for path in sorted(root.iterdir()) if not is_hidden(path)] if root.is_dir() else []
    names = [path.name for path in inside if path.is_dir()]
    if len(names) < 2:
        raise DataError(
            f"data folder {root} has {len(names)} classes: a folder per class was expected, at least 2, found "
            f"{content(root)}. Pass the folder that holds them."
        )
    if pair := twins(names):
        raise DataError(
            f"data folder {root} has the folders {pair[0]!a} and {pair[1]!a}: their names look alike, or "
            "differ in upper and lower case only, so they may be one class. Join or rename them."
        )
    if not _TRAINING.isdisjoint(names) and not _HELD_OUT.isdisjoint(names):
        raise DataError(
            f"data folder {root} has the folders {', '.join(names)}: these are parts of a data set, not classes. Pass "
            "one of them, or use load_imagenet for parts of your own."
        )
    return tuple(names)


def _by_class(folders: Sequence[Path], root: Path | None = None) -> Listed:
    """Return the images of some folders, which are those in ``root``, and for each the number of its folder."""
    found = images_in(*folders, root=root)
    labels = torch.arange(len(found)).repeat_interleave(torch.tensor([len(paths) for paths in found]))
    return [path for paths in found for path in paths], labels


def framed(
    paths: Sequence[Path],
    labels: Int[Tensor, " sample"],
    size: int,
    *,
    training: bool,
    normalisation: Normalisation = IMAGENET,
) -> ArrayDataset:
    """Return images as classifiers of ImageNet take them, of a height and width of ``size`` pixels.

    The short side is resized to 8/7 of ``size`` (256 pixels for 224). For calibration and testing the centre is cut
    out. For training the whole square of that larger side is kept, so that `random_resized_crop_flip` can choose a part
    of it; it is brought to ``size`` when prepared.
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
    """
    folder, _ = data_folder(root, "ImageNet", (FOLDERS, ("train", "val")))
    classes = _classes(folder / "train")

    @cache
    def listed(part: Part) -> Listed:
        if part == "train":
            return _by_class([folder / "train" / name for name in classes], folder / "train")
        if any(path.is_dir() for path in (folder / "val").iterdir() if not is_hidden(path)):
            return _val_by_class(folder / "val", classes)
        solution = _solution(folder, Path(root))
        named = {row[0]: row[1].split()[0] for row in read_rows(solution) if len(row) == 2 and row[1].split()}
        return _listed({path: named.get(path.stem) for path in images_in(folder / "val")[0]}, solution, classes)

    return halved(lambda part: framed(*listed(part), size, training=part == "train"), classes, seed)


def _val_by_class(folder: Path, classes: tuple[str, ...]) -> Listed:
    found = _classes(folder)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise DataError(
            f"data folder {folder} has other classes than train: {odd[0]} is in one of them only. Complete both."
        )
    return _by_class([folder / name for name in classes], folder)


def _solution(folder: Path, root: Path) -> Path:
    """Return the file that names the classes of flat val images."""
    places = [folder / "val", folder, root]
    if folder.absolute().match(PUBLISHED):  # root may be that folder itself
        places.append(folder.absolute().parents[2])
    solution = next((place / SOLUTION for place in places if (place / SOLUTION).is_file()), None)
    if solution is None:
        raise DataError(
            f"data folder {folder / 'val'} has neither a folder per class nor {SOLUTION}: one of these gives the "
            f"classes of the images, found {content(folder / 'val')}. Put the file beside val."
        )
    return solution


def _listed(named: Mapping[Path, str | None], source: Path, classes: Sequence[str]) -> Listed:
    """Return images and the numbers of the classes that a file gives them."""
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = next((path for path, name in named.items() if name not in numbers), None)
    if unknown is not None:
        fact = f"has no class: {source} gives it {named[unknown] or 'none'}, which is none of the training classes"
        raise bad_file(unknown, fact, "Complete both.")
    return list(named), torch.tensor([numbers[name] for name in named.values() if name is not None])


# --- Tiny-ImageNet ----------------------------------------------------------------------------------------------------

TINY = (("tiny-imagenet-200",), ("wnids.txt", "train", "val/val_annotations.txt"))
TINY_PACKED = (("tiny_imagenet_subset",), ("train.npz", "val.npz", "classes.csv"))
TINY_SIZE = 64


def load_tiny_imagenet(root: Path, *, seed: int = 0) -> DataSplits:
    """Return Tiny-ImageNet: its train images for training, its val images halved by ``seed`` into calibration and test.

    (The published test images have no labels.) Classes are numbered in the alphabetical order of their folders. The
    official ``tiny-imagenet-200`` is looked for first, and its images are decoded when asked for; then
    ``tiny_imagenet_subset`` with ``train.npz``, ``val.npz`` (as `read_packed_jpeg` has them) and ``classes.csv``.
    """
    folder, number = data_folder(root, "Tiny-ImageNet", TINY, TINY_PACKED)
    names, read = (_official, _packed)[number](folder)

    return halved(lambda part: ArrayDataset(*read(part)), names, seed)


def _official(folder: Path) -> tuple[tuple[str, ...], Callable[[Part], Images]]:
    """Return the names of the classes, and what reads the images and labels of a part."""
    classes = sorted(read_text(folder / "wnids.txt").split())
    words, annotations = folder / "words.txt", folder / "val" / "val_annotations.txt"

    def read(part: Part) -> Images:
        if part == "train":
            paths, labels = _by_class([folder / "train" / name / "images" for name in classes])
        else:
            rows, images = read_rows(annotations), annotations.parent / "images"
            named = {images / row[0]: row[1] if len(row) > 1 else None for row in rows}
            paths, labels = _listed(named, annotations, classes)
        return ImageFiles(paths, (TINY_SIZE, TINY_SIZE)), labels

    names = {row[0]: row[1] for row in read_rows(words) if len(row) == 2} if words.is_file() else {}
    return tuple(names.get(name, name) for name in classes), read


def _packed(folder: Path) -> tuple[tuple[str, ...], Callable[[Part], Images]]:
    """Return the same of the packed layout."""
    heading, *rows = read_rows(folder / "classes.csv")
    if "name" not in heading or not rows:
        raise bad_file(folder / "classes.csv", "names no classes: a column name was expected")
    names = tuple(row[heading.index("name")] for row in rows)

    def read(part: Part) -> Images:
        path = folder / ("train.npz" if part == "train" else "val.npz")
        return read_packed_jpeg(path, size=TINY_SIZE, classes=len(names))

    return names, read
