"""Images on disk, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from eenet.data.dataset import IMAGENET_MEAN, IMAGENET_STD, ArrayDataset, DataSplits, Normalisation, Split
from eenet.data.files import ImageFiles
from eenet.data.folders import content, images_in
from eenet.data.sharing import LEAST, shared
from eenet.errors import DataError

__all__ = ["class_folders", "framed", "images_by_class", "load_image_folder"]


def load_image_folder(
    root: Path, *, seed: int = 0, size: int = 224, normalisation: Normalisation = (IMAGENET_MEAN, IMAGENET_STD)
) -> DataSplits:
    """Return images as splits: 60 % to train on, 20 % for calibration, 20 % for testing, drawn by ``seed``.

    Classes are the folders in ``root``, in alphabetical order. Images are decoded when they are asked for; the side
    that is trained on shows a margin that `framed` explains.

    Args:
        root: a folder with a folder per class, each with image files.
        seed: decides which image belongs to which side.
        size: height and width that the model takes, in pixels.
        normalisation: mean and standard deviation per colour, on the scale 0 to 1.

    Raises:
        DataError: there are fewer than 2 folders or 10 images, or a folder has none.
    """
    classes = class_folders(Path(root))
    paths, labels = images_by_class([Path(root) / name for name in classes])
    if len(paths) < LEAST:
        raise DataError(f"data root {root} has {len(paths)} images: three sides need at least {LEAST}. Get more.")

    def read(rows: Int[Tensor, " row"], split: Split) -> ArrayDataset:
        chosen = [paths[row] for row in rows.tolist()]
        return framed(chosen, labels[rows], size, training=split == "train", normalisation=normalisation)

    return shared(read, len(paths), classes, seed)


def class_folders(root: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, in alphabetical order.

    Raises:
        DataError: there are fewer than 2.
    """
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if len(names) < 2:
        raise DataError(
            f"data folder {root} has {len(names)} classes: a folder per class was expected, at least 2, found "
            f"{content(root)}. Pass the folder that holds them."
        )
    return tuple(names)


def images_by_class(folders: Sequence[Path]) -> tuple[list[Path], Int[Tensor, " sample"]]:
    """Return the images of some folders, and for each the number of its folder.

    Raises:
        DataError: a folder has none.
    """
    paths, labels = [], []
    for number, folder in enumerate(folders):
        found = images_in(folder)
        paths += found
        labels += [number] * len(found)
    return paths, torch.tensor(labels)


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
        normalisation: mean and standard deviation per colour, on the scale 0 to 1.
    """
    whole = round(size * 8 / 7)
    shown = whole if training else size
    files = ImageFiles(paths, (shown, shown), short_side=whole)
    return ArrayDataset(files, labels, mean=normalisation[0], std=normalisation[1], size=(size, size))
