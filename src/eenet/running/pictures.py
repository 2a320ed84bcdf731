"""Image files: the one reader of training, recording, the command line, exports and servers."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

from eenet.errors import DataError, EenetError, require

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""How names of image files end, in small or capital letters."""
File: TypeAlias = str | os.PathLike[str] | BytesIO | BufferedReader
"""A path, or an open file of bytes."""

_NOTES = (".csv", ".db", ".html", ".ini", ".json", ".log", ".md", ".txt", ".xml", ".yaml", ".yml")  # beside images
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # of 8 bits per channel, or fewer
_DEEP = re.compile(r";1[0-6][BLN]")  # how Pillow unpacks channels of more than 8 bits
_ORIENTATION = 0x0112  # in EXIF
_MOST_PIXELS = 1 << 26  # of a resized image, before its centre is cut out

# --- one file ---------------------------------------------------------------------------------------------------------


def bad_image(name: object, fact: str, advice: str = "Get it again, or leave it out.") -> DataError:
    """Return the error for an image file that cannot be used."""
    return DataError(f"image {name} {fact}. {advice}")


@contextmanager
def opening(file: File, name: object = None) -> Iterator[Image.Image]:
    """Open an image file with Pillow; whatever goes wrong with it becomes one sentence.

    Args:
        file: A path, or an open file.
        name: What it is called in messages; default: its path.

    Raises:
        DataError: It is missing, no image, damaged or too large.
        MissingExtraError: Pillow is not installed.
    """
    require("PIL", reason="it reads image files")
    from PIL import Image, UnidentifiedImageError

    name = file if name is None else name
    try:
        with Image.open(file) as image:
            yield image
    except EenetError:
        raise
    except FileNotFoundError as error:
        raise bad_image(name, "is missing: there is no such file", "Put it back.") from error
    except UnidentifiedImageError as error:
        kinds = " ".join(SUFFIXES)
        raise bad_image(name, "is damaged or no image: it cannot be decoded", f"Pass {kinds}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise bad_image(name, f"is refused: {_line(error)}", "Make it smaller.") from error
    except Exception as error:  # what Pillow raises on damaged files has no common base
        if isinstance(error, OSError) and error.strerror:
            raise bad_image(name, f"cannot be read: {error.strerror}", "Check the file.") from error
        raise bad_image(name, f"is damaged: it cannot be decoded ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def require_single(image: Image.Image, name: object) -> None:
    """Refuse a file with several images: which one is meant is not known."""
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's photo with its preview
        raise bad_image(name, "has several frames or pages: one image per file is read", "Save the one you mean.")


def check_picture(file: File, name: object = None) -> None:
    """Refuse a file that `read_picture` would not read, as far as its header says.

    Raises:
        DataError: As `read_picture` does.
    """
    with opening(file, name) as image:
        _check(image, file if name is None else name)


def _check(image: Image.Image, name: object) -> None:
    require_single(image, name)
    deep = _DEEP.search(packing(image)) is not None
    if deep or image.mode not in _MODES:
        fact = f"has pixels of mode {image.mode}{' with more than 8 bits per channel' if deep else ''}"
        limit = "8 bits per channel of grey, RGB or CMYK are read, the scale of others is not known"
        raise bad_image(name, f"{fact}: {limit}", "Convert it to 8 bits, grey or RGB.")


def packing(image: Image.Image) -> str:
    """Return how Pillow unpacks the pixels of an opened image that is not decoded yet; empty where it does not say."""
    tiles: Sequence[Any] = getattr(image, "tile", ())
    return str(tiles[0][3]) if tiles else ""


def upright(image: Image.Image) -> Image.Image:
    """Return an image decoded, and turned and mirrored as its EXIF data say."""
    from PIL.Image import Transpose

    image.load()
    turns = (
        *(None, None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM),
        *(Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    turn = turns[_orientation(image)]
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return how an image is to be turned, 1 to 8; 1 where its EXIF data do not say or are damaged."""
    with suppress(Exception):
        found = image.getexif().get(_ORIENTATION)
        if type(found) is int and 1 <= found <= 8:
            return found
    return 1


def picture_size(file: File, name: object = None) -> tuple[int, int]:
    """Return the height and width of an image once it is upright; only its header is read."""
    with opening(file, name) as image:
        width, height = image.size
        known = image.format not in ("PNG", "TIFF") or "exif" in image.info  # Pillow turns TIFF by itself
        turned = known and _orientation(image) >= 5
        return (width, height) if turned else (height, width)


def read_picture(file: File, channels: int = 3, name: object = None) -> UInt8[np.ndarray, "height width channel"]:
    """Return the pixels of an image file: upright, what is transparent on white, in colour or grey.

    Args:
        file: A path, or an open file.
        channels: 3 for red, green and blue, 1 for grey.
        name: What the file is called in messages; default: its path.

    Raises:
        DataError: It is missing, damaged, no image, too large, has more than 8 bits per channel, or several frames.
        MissingExtraError: Pillow is not installed.
    """
    name = file if name is None else name
    with opening(file, name) as image:
        _check(image, name)
        coloured = _opaque(upright(image))
        pixels = np.asarray(coloured if channels == 3 else coloured.convert("L"))
    return pixels if channels == 3 else pixels[..., None]


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image in RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        transparent = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), transparent)
    return image.convert("RGB")


def read_image(
    file: File, size: tuple[int, int], *, short_side: int | None = None, channels: int = 3, name: object = None
) -> UInt8[np.ndarray, "channel height width"]:
    """Return an image file brought to one size, as data sets, runs and exports read it.

    Args:
        file: A path, or an open file.
        size: Height and width, in pixels.
        short_side: Pixels that the short side is resized to before ``size`` is cut from the centre; None: the image is
            stretched to ``size``.
        channels: 3 for red, green and blue, 1 for grey.
        name: What the file is called in messages; default: its path.

    Raises:
        DataError: As of `read_picture`; or it is so long that resized it would be too large.
    """
    name = file if name is None else name
    pixels = read_picture(file, channels, name)
    from PIL import Image

    (high, wide), (height, width) = pixels.shape[:2], size
    wanted = width, height
    if short_side is not None:
        short = min(high, wide)
        wanted = short_side * wide // short, short_side * high // short
        if math.prod(wanted) > _MOST_PIXELS:
            fact = f"has {high} x {wide} pixels: with a short side of {short_side} it would have {math.prod(wanted)}"
            raise bad_image(name, fact, "Cut out what matters.")
    if (wide, high) != wanted:
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        pixels = np.asarray(image.resize(wanted, Image.Resampling.BILINEAR)).reshape(wanted[1], wanted[0], channels)
    left, top = round((wanted[0] - width) / 2), round((wanted[1] - height) / 2)
    return pixels[top : top + height, left : left + width].transpose(2, 0, 1)


# --- folders ----------------------------------------------------------------------------------------------------------


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is one that systems and tools put beside data, by its name."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "@eaDir")


def images_in(*folders: Path) -> list[list[Path]]:
    """Return the image files in each of some folders and in folders within it, by name.

    Hidden files and folders, whose names begin with a dot, are passed over. Other files that are left out are said with
    their number, in one warning.

    Raises:
        DataError: A folder has no images, or cannot be read.
    """
    left_out: Counter[str] = Counter()
    found = [sorted(_walked(folder, left_out)) for folder in folders]
    empty = next((folder for folder, paths in zip(folders, found, strict=True) if not paths), None)
    if empty is not None:
        raise DataError(
            f"data folder {empty} has no images: files {' '.join(SUFFIXES)} were expected, found {content(empty)}. Put "
            "them there."
        )
    if left_out:
        what = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common())
        warnings.warn(
            f"data folder {os.path.commonpath(folders)} has files that are not read: {what}. Images end in "
            f"{' '.join(SUFFIXES)}; convert or rename the others.",
            stacklevel=3,
        )
    return found


def _walked(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"data folder {error.filename} cannot be read: {error.strerror}. Check it.") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(Path(name))]
        links = sum(os.path.islink(os.path.join(place, name)) for name in folders)
        left_out.update({"linked folders": links} if links else {})
        for path in (Path(place, name) for name in names if not is_hidden(Path(name))):
            suffix = path.suffix.lower()
            if suffix in SUFFIXES:
                yield path
            elif suffix not in _NOTES:
                left_out[suffix or "without a suffix"] += 1


def content(folder: Path) -> str:
    """Return what a folder contains, in short."""
    if not folder.is_dir():
        return "no folder"
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "nothing"
    listed = 6
    return ", ".join(names[:listed]) + (f" and {len(names) - listed} more" if len(names) > listed else "")
