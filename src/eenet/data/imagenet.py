"""ImageNet (ILSVRC 2012), as its users have it on disk.

Source: O. Russakovsky et al., *ImageNet large scale visual recognition challenge*, IJCV 2015.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from eenet.data.dataset import ArrayDataset, DataSplits
from eenet.data.folders import content, data_folder, images_in
from eenet.data.image_folder import class_folders, framed, images_by_class
from eenet.data.sharing import Part, halved
from eenet.errors import DataError

__all__ = ["load_imagenet"]

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
    classes = class_folders(folder / "train")

    @cache
    def listed(part: Part) -> tuple[list[Path], Int[Tensor, " sample"]]:
        if part == "train":
            return images_by_class([folder / "train" / name for name in classes])
        if any(path.is_dir() for path in (folder / "val").iterdir()):
            return _val_by_class(folder / "val", classes)
        return _flat_val(folder / "val", _solution(folder, Path(root)), classes)

    def read(part: Part) -> ArrayDataset:
        return framed(*listed(part), size, training=part == "train")

    return halved(read, classes, seed)


def _val_by_class(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Int[Tensor, " sample"]]:
    found = class_folders(folder)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise DataError(
            f"data folder {folder} has other classes than train: {odd[0]} is in one of them only. Complete both."
        )
    return images_by_class([folder / name for name in classes])


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
        shown = {row[0]: row[1].split()[0] for row in csv.reader(lines) if len(row) == 2 and row[1].split()}
    numbers = {name: number for number, name in enumerate(classes)}
    paths = images_in(folder)
    unknown = next((path for path in paths if shown.get(path.stem) not in numbers), None)
    if unknown is not None:
        raise DataError(
            f"data file {unknown} has no class: {solution} gives it {shown.get(unknown.stem, 'none')}, which is no "
            "folder of train. Complete both."
        )
    return paths, torch.tensor([numbers[shown[path.stem]] for path in paths])
