"""Files of data: rows of text, arrays, folders, and images and masks that stay on disk until rows are asked for."""

from __future__ import annotations

import codecs
import copy
import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar, final

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from eenet.errors import DataError
from eenet.running.pictures import (
    check_picture,
    content,
    opening,
    packing,
    picture_size,
    read_image,
    require_single,
    upright,
)
from eenet.running.preparation import check_size
from eenet.tables import files

if TYPE_CHECKING:
    from PIL import Image

Chosen = TypeVar("Chosen", bound="Files")
UNLABELLED = 255
"""What a mask contains where nothing is to be learnt or evaluated."""
_LOSSY = ("JPEG", "JPEG2000", "MPO")  # numbers in these are not what was written
_SPREAD = {"L;2": 85, "L;4": 17}  # Pillow spreads numbers of 2 and 4 bits over 0 to 255
_NEAREST = 0  # of Pillow
_MARKS = (
    *((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),  # after UTF-32, which begins alike
)


def bad_file(path: Path, fact: str, advice: str = "Get it again.") -> DataError:
    """Return the error for a file of data that cannot be used."""
    return DataError(f"data file {path} {fact}. {advice}")


# --- rows and arrays --------------------------------------------------------------------------------------------------


def read_rows(path: Path, separator: str = ",") -> list[list[str]]:
    """Return the rows of a ``.csv`` file, or of a file with tabs between columns, in which quotes are text.

    Args:
        path: UTF-8, or UTF-16 or UTF-32 that begin with a byte order mark.
        separator: stands between the columns of a ``.csv`` file.
    """
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        rows = _comma_separated(text, path, separator)
    else:
        rows = [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
    if not rows:
        raise bad_file(path, "is empty: rows of columns were expected")
    odd = next((number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])), None)
    if odd is not None:
        found = f"has {len(rows[odd - 1])} columns in row {odd}: the first row has {len(rows[0])}"
        raise bad_file(path, found, "Correct the row; in a .csv file, quote texts that contain the separator.")
    return rows


def _comma_separated(text: str, path: Path, separator: str) -> list[list[str]]:
    """Return the rows of text with a separator between columns, which may be quoted."""
    limit = csv.field_size_limit(len(text) + 1)  # texts may be long; a quote that is never closed is an error anyway
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if row]
    except csv.Error as error:
        raise bad_file(path, f"cannot be read: {error}", "Quote texts, and double the quotes in them.") from error
    finally:
        csv.field_size_limit(limit)


def read_text(path: Path) -> str:
    """Return the text of a file: UTF-8, or UTF-16 or UTF-32 that begin with a byte order mark, which is left out."""
    _check_exists(path)
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise bad_file(path, f"cannot be read: it is no text in UTF-8 ({error})", "Write it as UTF-8.") from error
    except OSError as error:
        raise bad_file(path, f"cannot be read: {error.strerror}", "Change its permissions.") from error
    if (place := text.find("\0")) >= 0:
        fact = f"contains a NUL character in line {text.count(chr(10), 0, place) + 1}: it is no text in UTF-8"
        raise bad_file(path, fact, "Write it as UTF-8.")
    return text


def read_arrays(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return arrays of an ``.npz`` file by name: all that are needed, and the optional ones that it contains."""
    arrays = files.read_arrays(path, "data file", (*needed, *optional), DataError)
    absent = [name for name in needed if name not in arrays]
    if absent:
        raise bad_file(path, f"lacks {' and '.join(absent)}: {' and '.join(needed)} are needed", "Add them.")
    return arrays


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise bad_file(path, "is missing: there is no such file", "Check the path.")


# --- images and masks -------------------------------------------------------------------------------------------------


class Files(ABC):
    """Image files that are read like an array: ``files[rows]`` decodes those rows, in several threads.

    Args:
        paths: the files, one per sample.
        size: height and width that every image is brought to, in pixels.
        channels: those of a decoded image before height and width.
        reading: distinguishes images that the same files become.

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
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that all images together have once decoded."""
        return len(self), *self.channels, *self.size

    @property
    def names(self) -> list[str]:
        """Folder and name of every file: they identify a data set, whatever folder it is moved to."""
        return ["/".join(path.parts[-2:]) for path in self.paths]

    def __getitem__(self, rows: Int[Tensor, " row"] | Bool[Tensor, " sample"] | slice) -> UInt8[Tensor, "row ..."]:
        """Return some images decoded; a file that is missing, damaged or of another kind is named."""
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

    @abstractmethod
    def check(self, path: Path) -> None:
        """Refuse a file that cannot be read, as far as its header says."""

    @abstractmethod
    def _read(self, path: Path) -> np.ndarray:
        """Return the content of a file at the one size."""


@final
class ImageFiles(Files):
    """Colour images on disk: ``[sample, 3, height, width]`` once decoded, ``uint8``; grey ones become colour.

    They are read as everywhere in eenet, see `eenet.running.pictures.read_image`.

    Args:
        paths: the files, one per sample.
        size: height and width, in pixels.
        short_side: pixels that the short side is resized to before ``size`` is cut from the centre, as is usual for
            classification; by default images are stretched to ``size``, as segmentation needs it.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], *, short_side: int | None = None) -> None:
        check_size(size, short_side)
        super().__init__(paths, size, (3,), short_side)
        self.short_side = short_side

    def check(self, path: Path) -> None:
        check_picture(path, short_side=self.short_side)

    def _read(self, path: Path) -> np.ndarray:
        return read_image(path, self.size, short_side=self.short_side)


@final
class MaskFiles(Files):
    """Masks on disk: the class of every pixel, ``[sample, height, width]`` once decoded, ``uint8``.

    Masks are resized by taking the nearest pixel. 255 marks pixels where nothing is to be learnt or evaluated.

    Args:
        paths: the files, one per sample: one channel of whole numbers up to 255, or indices into a palette.
        size: height and width, in pixels.
        numbers: class of every number that a file may contain; other numbers are refused.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], *, numbers: dict[int, int]) -> None:
        check_size(size)
        self._classes = np.full(256, -1, dtype=np.int16)
        self._classes[list(numbers)] = list(numbers.values())
        super().__init__(paths, size, (), self._classes.tolist())

    def check(self, path: Path) -> None:
        with opening(path) as image:
            _require_mask(image, path)

    def _read(self, path: Path) -> np.ndarray:
        from PIL import Image

        numbers = _numbers(path)
        classes = self._classes[np.clip(numbers, 0, 255)]
        wrong = (classes < 0) | (numbers != np.clip(numbers, 0, 255))
        if wrong.any():
            known = np.flatnonzero(self._classes >= 0)
            fact = (
                f"contains the number {numbers[wrong][0]}: classes have the numbers {known.min()} to "
                f"{known[known < UNLABELLED].max()}, {UNLABELLED} where there is none"
            )
            raise bad_file(path, fact, "Correct the mask, or name all classes.")
        height, width = self.size
        mask = Image.fromarray(classes.astype(np.uint8))
        return np.asarray(mask if mask.size == (width, height) else mask.resize((width, height), _NEAREST))


def _numbers(path: Path) -> Int[np.ndarray, "height width"]:
    """Return the numbers in a mask, as they were written, upright."""
    with opening(path) as image:
        _require_mask(image, path)
        spread = _SPREAD.get(packing(image), 1)
        return np.asarray(upright(image)).astype(np.int32) // spread


def _require_mask(image: Image.Image, path: Path) -> None:
    require_single(image, path)
    if image.format in _LOSSY or image.mode.partition(";")[0] not in ("1", "L", "P", "I"):
        fact = f"is no mask: it is a {image.format} of kind {image.mode!r}, one channel of class numbers is needed"
        raise bad_file(path, fact, "Pass masks of class numbers as .png, not their coloured form.")


def require_same_size(images: Sequence[Path], masks: Sequence[Path]) -> None:
    """Refuse masks of another height or width than their images; only the files' headers are read.

    Raises:
        DataError: a mask does not fit, or a file cannot be read.
    """
    with ThreadPoolExecutor(max_workers=8) as pool:
        for image, mask, wanted, found in zip(
            images, masks, pool.map(picture_size, images), pool.map(picture_size, masks), strict=True
        ):
            if wanted != found:
                fact = f"has {found[0]} x {found[1]} pixels, its image {image} has {wanted[0]} x {wanted[1]} upright"
                raise bad_file(mask, f"{fact}: they must show the same", "Make the mask of this image again.")


# --- folders ----------------------------------------------------------------------------------------------------------

Layout: TypeAlias = tuple[Sequence[str], Sequence[str]]
"""Names that the folder of a data set may have, and what must be in it."""


def data_folder(root: Path, what: str, *layouts: Layout) -> tuple[Path, int]:
    """Return the folder of the first complete layout of a data set, and the number of that layout.

    The folder is looked for in ``root`` under each of its names; it may be ``root`` itself.

    Raises:
        DataError: no layout is complete; the message lists what was expected and what was found.
    """
    root = Path(root)
    for number, (names, needed) in enumerate(layouts):
        for folder in (*(root / name for name in names), root):
            if all((folder / part).exists() for part in needed):
                return folder, number
    near = next((root / name for names, _ in layouts for name in names if (root / name).is_dir()), root)
    first, *others = (" with ".join([*names[:1], ", ".join(needed)]) for names, needed in layouts)
    expected = first + (f" (or {', or '.join(others)})" if others else "")
    raise DataError(
        f"data root {root} has no {what}: {expected} was expected, found {content(near)} in {near}. Pass the folder "
        f"that holds {next(iter(layouts[0][0]), 'them')}."
    )
