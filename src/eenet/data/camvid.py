"""CamVid: frames of drives through Cambridge, the class of every pixel.

Source: G. Brostow, J. Fauqueur, R. Cipolla, *Semantic object classes in video*, Pattern Recognition Letters 2009; the
layout and the 11 classes are those of the SegNet tutorial (V. Badrinarayanan, A. Kendall, R. Cipolla, TPAMI 2017).
"""

from __future__ import annotations

from pathlib import Path

from eenet.data.dataset import ArrayDataset, DataSplits, Split
from eenet.data.files import UNLABELLED
from eenet.data.folders import data_folder, images_in
from eenet.data.mask_folder import masks_of, segmented

__all__ = ["CAMVID_CLASSES", "load_camvid"]

CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
FOLDERS = ("camvid", "CamVid")
PARTS: dict[Split, str] = {"train": "train", "calibration": "val", "test": "test"}
NUMBERS = {number: number for number in range(len(CAMVID_CLASSES))} | {len(CAMVID_CLASSES): UNLABELLED}


def load_camvid(root: Path, *, size: tuple[int, int] = (360, 480)) -> DataSplits:
    """Return CamVid: its train, val and test images for training, calibration and testing.

    The sides are those of the SegNet tutorial; no seed is needed. Its val frames are of a drive that train frames are
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
        return segmented(images, masks_of(masks), size, NUMBERS)

    return DataSplits(load=load, classes=CAMVID_CLASSES)
