"""Street scenes and other images with the class of every pixel: CamVid, Cityscapes, and two folders of one's own.

Sources: G. Brostow, J. Fauqueur, R. Cipolla, *Semantic object classes in video*, Pattern Recognition Letters 2009; the
layout and the 11 classes of CamVid are those of the SegNet tutorial (V. Badrinarayanan, A. Kendall, R. Cipolla, TPAMI
2017); M. Cordts et al., *The Cityscapes dataset for semantic urban scene understanding*, CVPR 2016.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from eenet.errors import DataError
from eenet.experiments.data.dataset import ArrayDataset, DataSplits, Part, Split, halved, shared
from eenet.experiments.data.files import (
    UNLABELLED,
    ImageFiles,
    MaskFiles,
    bad_file,
    data_folder,
    read_text,
    require_same_size,
)
from eenet.experiments.data.names import tidy, twins
from eenet.running.pictures import content, images_in, is_hidden

_LOOKED_AT = 1000  # masks, to see which classes occur

# --- two folders ------------------------------------------------------------------------------------------------------


def load_mask_folder(root: Path, *, seed: int = 0, size: tuple[int, int] = (256, 256)) -> DataSplits:
    """Return images with masks as splits: 60 % to train on, 20 % for calibration, 20 % for testing, chosen by ``seed``.

    Args:
        root: a folder with ``images``, ``masks`` and ``classes.txt``. A mask is a ``.png`` named like its image and of
            its size, one channel (or a palette) of class numbers, 255 where there is none; ``classes.txt`` has a name
            per line, from class 0 on. A warning names classes that are in no mask.
        seed: decides which image belongs to which split.
        size: height and width that images and masks are brought to, in pixels.

    Raises:
        DataError: a file is missing or damaged, a mask has another size than its image, or masks have fewer than 2
            classes.
    """
    folder, _ = data_folder(root, "images with masks", ((), ("images", "masks", "classes.txt")))
    classes = _named(folder / "classes.txt")
    [images] = images_in(folder / "images")
    inside = [path.relative_to(folder / "images").with_suffix(".png") for path in images]
    masks = [folder / "masks" / path for path in inside]
    numbers = {number: number for number in (*range(len(classes)), UNLABELLED)}
    whole = segmented(images, masks, size, numbers)
    require_same_size(images, masks)
    _check_classes(MaskFiles(masks, size, numbers=numbers), classes, folder)
    return shared(lambda rows, _: whole.select(rows), len(images), classes, seed, place=root)


def _named(path: Path) -> tuple[str, ...]:
    """Return the names of the classes in a file, one per line."""
    names = [name for line in re.split(r"[\r\n]+", read_text(path)) if (name := tidy(line))]
    if not 2 <= len(names) <= UNLABELLED or twins(names):
        fact = f"names {len(names)} classes: 2 to {UNLABELLED} are needed, a line with another name for each"
        raise bad_file(path, fact, "Correct it; the first line is class 0.")
    return tuple(names)


def _check_classes(masks: MaskFiles, classes: tuple[str, ...], folder: Path) -> None:
    """Refuse masks of fewer than two classes, and warn of classes that are in none; only some of many are looked at."""
    rows = torch.linspace(0, len(masks) - 1, min(len(masks), _LOOKED_AT)).long()
    seen: set[int] = set()
    for first in range(0, len(rows), 64):
        seen.update(np.unique(masks[rows[first : first + 64]]).tolist())
        if seen.issuperset(range(len(classes))):
            return
    absent = ", ".join(name for number, name in enumerate(classes) if number not in seen)
    fact = f"{absent} in none of {len(rows)} masks" + (
        f", and {UNLABELLED}, which marks pixels without a class, in some" if UNLABELLED in seen else ""
    )
    advice = f"Masks contain the numbers 0 to {len(classes) - 1}, in the order of classes.txt"
    if len(seen - {UNLABELLED}) < 2 and len(rows) == len(masks):
        raise DataError(f"data folder {folder} has masks of fewer than 2 classes: it has {fact}. {advice}.")
    warnings.warn(f"data folder {folder} has masks without some classes: it has {fact}. {advice}.", stacklevel=3)


def segmented(
    images: Sequence[Path],
    masks: Sequence[Path],
    size: tuple[int, int],
    numbers: dict[int, int],
    groups: Sequence[str] | None = None,
) -> ArrayDataset:
    """Return images with their masks, brought to one size; ``numbers`` has the class of every number, 255 for none."""
    absent = next((path for path in masks if not path.is_file()), None)
    if absent is not None:
        fact = f"is missing: every image needs its mask, found {content(absent.parent)} in {absent.parent}"
        raise bad_file(absent, fact, "Add it, or remove the image.")
    return ArrayDataset(ImageFiles(images, size), MaskFiles(masks, size, numbers=numbers), groups=groups)


# --- CamVid -----------------------------------------------------------------------------------------------------------

CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
FOLDERS = ("camvid", "CamVid")
_STREET = 600  # frames: twenty seconds
_EVERY = 4  # streets of which one is moved to the calibration set
PARTS: dict[Split, str] = {"train": "train", "calibration": "val", "test": "test"}
NUMBERS = {number: number for number in range(len(CAMVID_CLASSES))} | {len(CAMVID_CLASSES): UNLABELLED}


def load_camvid(root: Path, *, size: tuple[int, int] = (360, 480), streets: bool = False) -> DataSplits:
    """Return CamVid: its train, val and test images for training, calibration and testing.

    The splits are those of the SegNet tutorial; no seed is needed. Its val frames are seven seconds of one street, in a
    drive that train frames are of too; most of its test frames are of another drive: calibration is easier than
    testing. Number 11, unlabelled, is neither learnt nor evaluated. Images and masks are decoded when they are asked
    for.

    Every image says its street, as the ``groups`` of a data set: the drive, and which twenty seconds of it.

    Args:
        root: the folder that holds ``train``, ``trainannot``, ``val``, ``valannot``, ``test`` and ``testannot``, or
            holds ``camvid`` with these. Masks are ``.png`` named like their images.
        size: height and width that images and masks are brought to, in pixels; they have 360 x 480.
        streets: calibrate on many streets: every fourth street of the train images, and the rest of the one that the
            val images are of, are moved to the calibration set.
    """
    needed = [f"{part}{kind}" for part in PARTS.values() for kind in ("", "annot")]
    folder, _ = data_folder(root, "CamVid", (FOLDERS, needed))

    def load(split: Split) -> ArrayDataset:
        images = _on_streets(folder, split) if streets and split != "test" else images_in(folder / PARTS[split])[0]
        masks = [path.parent.with_name(f"{path.parent.name}annot") / f"{path.stem}.png" for path in images]
        return segmented(images, masks, size, NUMBERS, [street(path) for path in images])

    return DataSplits(load=load, classes=CAMVID_CLASSES)


def _on_streets(folder: Path, split: Split) -> list[Path]:
    """Return the images to train on, or to calibrate on, of which no street has both."""
    [train], [val] = (images_in(folder / PARTS[part]) for part in ("train", "calibration"))
    names = list(dict.fromkeys(map(street, train)))
    held_out = {*names[_EVERY - 1 :: _EVERY], *map(street, val)}
    return [path for path in (*train, *val) if (street(path) in held_out) == (split == "calibration")]


def street(path: Path) -> str:
    """Return where an image of CamVid was taken, by its name: the drive, and which twenty seconds of it."""
    drive, _, frame = path.stem.partition("_")
    digits = frame.lstrip("f")
    if not digits.isdecimal():
        raise bad_file(path, "does not say its drive and frame, as in 0016E5_07959", "Give it the published name.")
    return f"{drive}/{int(digits) // _STREET}"


# --- Cityscapes -------------------------------------------------------------------------------------------------------

CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CITYSCAPES_FOLDERS = ("cityscapes", "Cityscapes")
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the classes, in order
CITYSCAPES_NUMBERS = dict.fromkeys((*range(34), UNLABELLED), UNLABELLED) | {
    label: number for number, label in enumerate(LABEL_IDS)
}
IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


def load_cityscapes(root: Path, *, seed: int = 0, size: tuple[int, int] = (512, 1024)) -> DataSplits:
    """Return Cityscapes: its train images for training, its val images halved by ``seed`` into calibration and test.

    (The published test masks are empty.) The ``labelIds`` masks are read; the 19 classes that are evaluated keep their
    usual numbers, all else is left unlabelled. Images and masks are decoded when they are asked for.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``, or holds ``cityscapes`` with these.
        seed: decides which val images are calibration.
        size: height and width that images and masks are brought to, in pixels; they have 1024 x 2048. Figures at
            another size are not those of the official evaluation.
    """
    needed = ("leftImg8bit/train", "leftImg8bit/val", "gtFine")
    folder, _ = data_folder(root, "Cityscapes", (CITYSCAPES_FOLDERS, needed))

    def read(part: Part) -> ArrayDataset:
        name = "train" if part == "train" else "val"
        place = folder / "leftImg8bit" / name
        images = sorted(path for path in place.glob(f"*/*{IMAGE}") if not is_hidden(path))
        if not images:
            raise DataError(
                f"data folder {place} has no images: CITY/*{IMAGE} were expected, found {content(place)}. Unpack it "
                "again."
            )
        masks = [
            folder / "gtFine" / name / path.parent.name / (path.name.removesuffix(IMAGE) + MASK) for path in images
        ]
        return segmented(images, masks, size, CITYSCAPES_NUMBERS)

    return halved(read, CITYSCAPES_CLASSES, seed)
