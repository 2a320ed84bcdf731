"""Cityscapes: street scenes of 50 cities, the class of every pixel.

Source: M. Cordts et al., *The Cityscapes dataset for semantic urban scene understanding*, CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from eenet.data.dataset import ArrayDataset, DataSplits
from eenet.data.files import UNLABELLED
from eenet.data.folders import content, data_folder
from eenet.data.mask_folder import masks_of, segmented
from eenet.data.sharing import Part, halved
from eenet.errors import DataError

__all__ = ["CITYSCAPES_CLASSES", "load_cityscapes"]

CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
FOLDERS = ("cityscapes", "Cityscapes")
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the classes, in order
NUMBERS = dict.fromkeys((*range(34), UNLABELLED), UNLABELLED) | {
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
    folder = data_folder(root, FOLDERS, ("leftImg8bit/train", "leftImg8bit/val", "gtFine"), "Cityscapes")

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
        return segmented(images, masks_of(masks), size, NUMBERS)

    return halved(read, CITYSCAPES_CLASSES, seed)
