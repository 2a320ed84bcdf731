"""Images and masks that stay on disk, decoded when rows are asked for; and finding them in folders."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, final

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from eenet.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
Chosen = TypeVar("Chosen", bound="Files")
UNLABELLED = 255
"""What a mask holds where nothing is to be learnt or judged."""


class Files(ABC):
    """Picture files that are read like an array: ``files[rows]`` decodes those rows, in several threads.

    Args:
        paths: the files, one per sample.
        size: height and width that every picture is brought to, in pixels.
        channels: those of a decoded picture before height and width.
        reading: what tells apart pictures that the same files become.

    Raises:
        DataError: there are no files.
    """

    dtype = torch.uint8

    def __init__(
        self, paths: Sequence[Path], size: tuple[int, int], channels: tuple[int, ...], reading: object
    ) -> None:
        if not paths:
            raise DataError("paths are empty: a data set needs at least 1 file. Pass the files' paths.")
        self.paths, self.size, self.channels, self.reading = tuple(paths), size, channels, f"{size} of {reading}"

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that all pictures together have once decoded."""
        return len(self), *self.channels, *self.size

    @property
    def names(self) -> list[str]:
        """Folder and name of every file: what tells data sets apart wherever they lie."""
        return ["/".join(path.parts[-2:]) for path in self.paths]

    def __getitem__(self, rows: Int[Tensor, " row"] | Bool[Tensor, " sample"] | slice) -> UInt8[Tensor, "row ..."]:
        """Return some pictures decoded.

        Raises:
            DataError: a file is missing, damaged or of another kind; it is named.
        """
        chosen = self.select(rows).paths
        with ThreadPoolExecutor(max_workers=min(len(chosen), 8) or 1) as pool:
            decoded = list(pool.map(self._read, chosen))
        if not decoded:
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        return torch.from_numpy(np.stack(decoded))

    def select(self: Chosen, rows: Int[Tensor, " row"] | Bool[Tensor, " sample"] | slice) -> Chosen:
        """Return some of the files, still on disk: those of the rows, or those where a mask is true."""
        chosen = range(len(self))[rows] if isinstance(rows, slice) else torch.arange(len(self))[rows].tolist()
        kept = copy.copy(self)
        kept.paths = tuple(self.paths[row] for row in chosen)
        return kept

    def _read(self, path: Path) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(path) as image:
                return self._decoded(image, path)
        except DataError:
            raise
        except FileNotFoundError as error:
            raise DataError(f"data file {path} is missing: it was there when listed. Put it back.") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"data file {path} is damaged: it cannot be decoded ({error}). Get the file again."
            ) from error

    @abstractmethod
    def _decoded(self, image: Image.Image, path: Path) -> np.ndarray:
        """Return the content of an opened picture at the one size."""


@final
class ImageFiles(Files):
    """Colour images on disk: ``[sample, 3, height, width]`` once decoded, ``uint8``; grey ones become colour.

    Args:
        paths: the files, one per sample.
        size: height and width, in pixels.
        short_side: pixels that the short side is resized to before ``size`` is cut from the centre, as is usual for
            classification; by default images are stretched to ``size``, as segmentation wants it.

    Raises:
        DataError: there are no files, or ``size`` is larger than ``short_side``.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], *, short_side: int | None = None) -> None:
        super().__init__(paths, size, (3,), short_side)
        if short_side is not None and max(size) > short_side:
            raise DataError(
                f"size {size[0]} x {size[1]} pixels cannot be cut: the short side has {short_side}. Pass a larger "
                "short_side."
            )
        self.short_side = short_side

    def _decoded(self, image: Image.Image, path: Path) -> np.ndarray:
        from PIL import Image

        if image.mode.startswith(("I", "F")):
            raise DataError(
                f"data file {path} has pixels of mode {image.mode}: 8 bits per colour are read, more would come out "
                "white. Convert it to 8 bits."
            )
        height, width = self.size
        colour = image.convert("RGB")
        if self.short_side is None:
            wanted = width, height
        else:
            short = min(colour.size)
            wanted = self.short_side * colour.width // short, self.short_side * colour.height // short
        if colour.size != wanted:
            colour = colour.resize(wanted, Image.Resampling.BILINEAR)
        left, top = round((wanted[0] - width) / 2), round((wanted[1] - height) / 2)
        pixels = np.asarray(colour)[top : top + height, left : left + width]
        return pixels.transpose(2, 0, 1)


@final
class MaskFiles(Files):
    """Masks on disk: the class of every pixel, ``[sample, height, width]`` once decoded, ``uint8``.

    Masks are resized by taking the nearest pixel. 255 stands where nothing is to be learnt or judged.

    Args:
        paths: the files, one per sample: one channel of whole numbers up to 255, or indices into a palette.
        size: height and width, in pixels.
        numbers: class of every number that a file may hold; other numbers are refused.

    Raises:
        DataError: there are no files.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], *, numbers: dict[int, int]) -> None:
        self._classes = np.full(256, -1, dtype=np.int16)
        self._classes[list(numbers)] = list(numbers.values())
        super().__init__(paths, size, (), self._classes.tolist())

    def _decoded(self, image: Image.Image, path: Path) -> np.ndarray:
        from PIL import Image

        if image.mode not in ("L", "P"):
            raise DataError(
                f"data file {path} is no mask: it is of kind {image.mode!r}, one channel of class numbers is needed. "
                "Pass the masks of class numbers, not their coloured form."
            )
        height, width = self.size
        near = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.NEAREST)
        classes = self._classes[np.asarray(near)]
        if classes.min() < 0:
            known = np.flatnonzero(self._classes >= 0)
            raise DataError(
                f"data file {path} holds the number {np.asarray(near)[classes < 0][0]}: classes have the numbers "
                f"{known.min()} to {known[known < UNLABELLED].max()}, {UNLABELLED} where there is none. Correct the "
                "mask, or name all classes."
            )
        return np.asarray(classes, dtype=np.uint8)


# --- folders ----------------------------------------------------------------------------------------------------------

_LISTED = 6


def find_folder(root: Path, names: Sequence[str], needed: Sequence[str]) -> Path | None:
    """Return the first of ``root/name`` and ``root`` itself that holds everything needed; None if none does."""
    folders = [*(Path(root) / name for name in names), Path(root)]
    return next((folder for folder in folders if all((folder / part).exists() for part in needed)), None)


def data_folder(root: Path, names: Sequence[str], needed: Sequence[str], what: str) -> Path:
    """Return the folder of a data set as `find_folder` does, or say what was expected and what was found."""
    folder = find_folder(root, names, needed)
    if folder is None:
        raise missing(root, names, " and ".join(needed), what)
    return folder


def missing(root: Path, names: Sequence[str], expected: str, what: str) -> DataError:
    """Make the error for a data set that is not there."""
    near = next((Path(root) / name for name in names if (Path(root) / name).is_dir()), Path(root))
    inside, what_to_pass = (f"{names[0]} with ", names[0]) if names else ("", "them")
    return DataError(
        f"data root {root} has no {what}: {inside}{expected} was expected, found {content(near)} in {near}. Pass the "
        f"folder that holds {what_to_pass}."
    )


def content(folder: Path) -> str:
    """Return what a folder holds, briefly."""
    if not folder.is_dir():
        return "no folder"
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def images_in(folder: Path) -> list[Path]:
    """Return the image files in a folder by name, at least one; those in folders in it are not looked for."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(
            f"data folder {folder} has no images: files {' '.join(IMAGE_SUFFIXES)} were expected, found "
            f"{content(folder)}. Put them there."
        )
    return found
