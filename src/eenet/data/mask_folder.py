"""Images and the class of every pixel, in two folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from eenet.data.dataset import IMAGENET_MEAN, IMAGENET_STD, ArrayDataset, DataSplits, Split
from eenet.data.files import UNLABELLED, ImageFiles, MaskFiles
from eenet.data.folders import content, data_folder, images_in
from eenet.data.sharing import LEAST, shared
from eenet.errors import DataError

__all__ = ["load_mask_folder", "masks_of", "segmented"]


def load_mask_folder(root: Path, *, seed: int = 0, size: tuple[int, int] = (256, 256)) -> DataSplits:
    """Return images with masks as splits: 60 % to train on, 20 % for calibration, 20 % for testing, drawn by ``seed``.

    Args:
        root: a folder with ``images``, ``masks`` and ``classes.txt``. A mask is a ``.png`` named like its image, one
            channel (or a palette) of class numbers, 255 where there is none; ``classes.txt`` has a name per line, from
            class 0 on.
        seed: decides which image belongs to which side.
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
    masks = masks_of([folder / "masks" / f"{path.stem}.png" for path in images])
    if len(images) < LEAST:
        raise DataError(f"data root {root} has {len(images)} images: three sides need at least {LEAST}. Get more.")
    numbers = {number: number for number in (*range(len(classes)), UNLABELLED)}
    whole = segmented(images, masks, size, numbers)

    def read(rows: Int[Tensor, " row"], split: Split) -> ArrayDataset:
        return whole.select(rows)

    return shared(read, len(images), classes, seed)


def masks_of(masks: Sequence[Path]) -> Sequence[Path]:
    """Return the masks of some images, once all are known to be there.

    Raises:
        DataError: one is missing.
    """
    lacking = next((path for path in masks if not path.is_file()), None)
    if lacking is not None:
        raise DataError(
            f"data file {lacking} is missing: every image needs its mask, found {content(lacking.parent)} in "
            f"{lacking.parent}. Add it, or remove the image."
        )
    return masks


def segmented(
    images: Sequence[Path], masks: Sequence[Path], size: tuple[int, int], numbers: dict[int, int]
) -> ArrayDataset:
    """Return images with their masks, all brought to one size and decoded when asked for.

    Args:
        images: the image files.
        masks: their masks.
        size: height and width, in pixels.
        numbers: class of every number that a mask may hold, 255 for none.
    """
    return ArrayDataset(
        ImageFiles(images, size), MaskFiles(masks, size, numbers=numbers), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
