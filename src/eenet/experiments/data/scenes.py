"""Street scenes and other images with the class of every pixel: CamVid, Cityscapes, and two folders of one's own.

Sources: G. Brostow, J. Fauqueur, R. Cipolla, *Semantic object classes in video*, Pattern Recognition Letters 2009; the
layout and the 11 classes of CamVid are those of the SegNet tutorial (V. Badrinarayanan, A. Kendall, R. Cipolla, TPAMI
2017); M. Cordts et al., *The Cityscapes dataset for semantic urban scene understanding*, CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eenet.errors import DataError
from eenet.experiments.data.dataset import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ArrayDataset,
    DataSplits,
    Part,
    Split,
    halved,
    shared,
)
from eenet.experiments.data.files import UNLABELLED, ImageFiles, MaskFiles, content, data_folder, images_in

# --- two folders ------------------------------------------------------------------------------------------------------


def load_mask_folder(root: Path, *, seed: int = 0, size: tuple[int, int] = (256, 256)) -> DataSplits:
    """Return images with masks as splits: 60 % to train on, 20 % for calibration, 20 % for testing, chosen by ``seed``.

    Args:
        root: a folder with ``images``, ``masks`` and ``classes.txt``. A mask is a ``.png`` named like its image, one
            channel (or a palette) of class numbers, 255 where there is none; ``classes.txt`` has a name per line, from
            class 0 on.
        seed: decides which image belongs to which split.
        size: height and width that images and masks are brought to, in pixels.

    Raises:
        DataError: something is missing, there are fewer than 10 images, or an image has no mask.
    """
    folder = data_folder(root, (), ("images", "masks", "classes.txt"), "images with masks")
    lines = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    classes = tuple(line.strip() for line in lines if line.strip())
    if not classes:
        raise DataError(f"data file {folder / 'classes.txt'} names no class: a name per line was expected. Add them.")
    images = images_in(folder / "images")
    numbers = {number: number for number in (*range(len(classes)), UNLABELLED)}
    whole = segmented(images, [folder / "masks" / f"{path.stem}.png" for path in images], size, numbers)
    return shared(lambda rows, _: whole.select(rows), len(images), classes, seed, place=root)


def segmented(
    images: Sequence[Path], masks: Sequence[Path], size: tuple[int, int], numbers: dict[int, int]
) -> ArrayDataset:
    """Return images with their masks, brought to one size; ``numbers`` has the class of every number, 255 for none."""
    lacking = next((path for path in masks if not path.is_file()), None)
    if lacking is not None:
        raise DataError(
            f"data file {lacking} is missing: every image needs its mask, found {content(lacking.parent)} in "
            f"{lacking.parent}. Add it, or remove the image."
        )
    return ArrayDataset(
        ImageFiles(images, size), MaskFiles(masks, size, numbers=numbers), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


# --- CamVid -----------------------------------------------------------------------------------------------------------

CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
FOLDERS = ("camvid", "CamVid")
PARTS: dict[Split, str] = {"train": "train", "calibration": "val", "test": "test"}
NUMBERS = {number: number for number in range(len(CAMVID_CLASSES))} | {len(CAMVID_CLASSES): UNLABELLED}


def load_camvid(root: Path, *, size: tuple[int, int] = (360, 480)) -> DataSplits:
    """Return CamVid: its train, val and test images for training, calibration and testing.

    The splits are those of the SegNet tutorial; no seed is needed. Its val frames are of a drive that train frames are
    of too, most of its test frames are not: calibration is easier than testing. Number 11, unlabelled, is neither
    learnt nor judged. Images and masks are decoded when they are asked for.

    Args:
        root: the folder that holds ``train``, ``trainannot``, ``val``, ``valannot``, ``test`` and ``testannot``, or
            holds ``camvid`` with these. Masks are ``.png`` named like their images.
        size: height and width that images and masks are brought to, in pixels; they have 360 x 480.

    Raises:
        DataError: a folder or a mask is missing.
    """
    needed = [f"{part}{kind}" for part in PARTS.values() for kind in ("", "annot")]
    folder = data_folder(root, FOLDERS, needed, "CamVid")

    def load(split: Split) -> ArrayDataset:
        images = images_in(folder / PARTS[split])
        masks = [folder / f"{PARTS[split]}annot" / f"{path.stem}.png" for path in images]
        return segmented(images, masks, size, NUMBERS)

    return DataSplits(load=load, classes=CAMVID_CLASSES)


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
    """Return Cityscapes: its train images for training, its val images halved into calibration and test.

    (The published test masks are empty.) The ``labelIds`` masks are read; the 19 classes that are judged keep their
    usual numbers, all else is left unlabelled. Images and masks are decoded when they are asked for.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``, or holds ``cityscapes`` with these.
        seed: decides which val images are calibration.
        size: height and width that images and masks are brought to, in pixels; they have 1024 x 2048. Figures at
            another size are not those of the official judge.

    Raises:
        DataError: a folder or a mask is missing.
    """
    folder = data_folder(root, CITYSCAPES_FOLDERS, ("leftImg8bit/train", "leftImg8bit/val", "gtFine"), "Cityscapes")

    def read(part: Part) -> ArrayDataset:
        name = "train" if part == "train" else "val"
        place = folder / "leftImg8bit" / name
        images = sorted(place.glob(f"*/*{IMAGE}"))
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
