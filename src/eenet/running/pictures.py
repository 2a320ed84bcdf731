"""Image files: the one reader of training, recording, the command line, exports and servers."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
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
Picture: TypeAlias = Any
"""A `File`, or an image of Pillow."""

_HIDDEN = "hidden"
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # of 8 bits per channel, or fewer
_DEEP = re.compile(r";1[0-6][BLN]")  # how Pillow unpacks channels of more than 8 bits
_ORIENTATION = 0x0112  # in EXIF
_MOST_PIXELS = 1 << 26  # of a resized image, before its centre is cut out

# --- one file ---------------------------------------------------------------------------------------------------------


def bad_image(name: object, fact: str, advice: str = "Get it again, or leave it out.") -> DataError:
    """Return the error for an image file that cannot be used."""
    return DataError(f"image {name} {fact}. {advice}")


@contextmanager
def opening(file: Picture, name: object = None) -> Iterator[Image.Image]:
    """Open an image file with Pillow; whatever goes wrong with it becomes one sentence.

    Args:
        file: A path, an open file, or an image that is open already and stays so.
        name: What it is called in messages; default: its path.

    Raises:
        DataError: It is missing, no image, damaged or too large.
        MissingExtraError: Pillow is not installed.
    """
    require("PIL", reason="it reads image files")
    from PIL import Image, UnidentifiedImageError

    name = file if name is None else name
    try:
        with nullcontext(file) if isinstance(file, Image.Image) else Image.open(file) as image:
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


def check_picture(file: File, name: object = None, *, short_side: int | None = None) -> None:
    """Refuse a file that `read_image` would not read, as far as its header says.

    Raises:
        DataError: As `read_image` does.
    """
    name = file if name is None else name
    with opening(file, name) as image:
        _check(image, name)
        _resized(image.height, image.width, short_side, name)


def check_each(checks: Sequence[tuple[Callable[[Path], object], Path]], *, progress: bool = True) -> None:
    """Check files in several threads, with a progress bar where that takes a while, and refuse all bad ones together.

    Args:
        checks: What raises a `DataError` for a file that cannot be used, and the file.
        progress: Whether a bar may be shown.

    Raises:
        DataError: Some cannot be used: what is wrong with the first of them, and the names of others.
    """
    from eenet.running.progress import track

    def fault(check: tuple[Callable[[Path], object], Path]) -> DataError | None:
        try:
            check[0](check[1])
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        tracked = track(pool.map(fault, checks), len(checks), "checking files", enabled=progress)
        found = {path: error for (_, path), error in zip(checks, tracked, strict=True) if error is not None}
    if found:
        first, *others = found
        more = ", ".join(map(str, others[:3])) + (", ..." if len(others) > 3 else "")
        also = f" {len(others)} others cannot be used either: {more}." if others else ""
        raise DataError(f"{found[first]}{also}") from found[first]


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


def read_picture(file: Picture, channels: int = 3, name: object = None) -> UInt8[np.ndarray, "height width channel"]:
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
    file: Picture, size: tuple[int, int], *, short_side: int | None = None, channels: int = 3, name: object = None
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
    wanted = _resized(high, wide, short_side, name) or (width, height)
    if (wide, high) != wanted:
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        pixels = np.asarray(image.resize(wanted, Image.Resampling.BILINEAR)).reshape(wanted[1], wanted[0], channels)
    left, top = round((wanted[0] - width) / 2), round((wanted[1] - height) / 2)
    return pixels[top : top + height, left : left + width].transpose(2, 0, 1)


def _resized(high: int, wide: int, short_side: int | None, name: object) -> tuple[int, int] | None:
    """Return the width and height that an image of a size gets by its short side, refusing one that becomes huge."""
    if short_side is None or not min(high, wide):
        return None
    wanted = short_side * wide // min(high, wide), short_side * high // min(high, wide)
    if math.prod(wanted) > _MOST_PIXELS:
        fact = f"has {high} x {wide} pixels: with a short side of {short_side} it would have {math.prod(wanted)}"
        raise bad_image(name, fact, "Cut out what matters.")
    return wanted


# --- folders ----------------------------------------------------------------------------------------------------------


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is one that systems and tools put beside data, by its name."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


def images_in(*folders: Path, root: Path | None = None) -> list[list[Path]]:
    """Return the image files in each of some folders and in folders within it, by name.

    Whatever else is there is left out, and one warning says how much of each kind. What systems and tools put there is
    counted in it, and by itself gives no warning.

    Args:
        *folders: Where images are.
        root: The folder that these are in, where what is beside them is left out too.

    Raises:
        DataError: A folder has no images, or cannot be read.
    """
    left_out: Counter[str] = Counter()
    found = [sorted(_walked(folder, left_out)) for folder in folders]
    if root is not None:
        beside = [path for path in root.iterdir() if path not in folders]
        left_out.update("images outside the folders of classes" if _is_image(path) else _kind(path) for path in beside)
    empty = next((folder for folder, paths in zip(folders, found, strict=True) if not paths), None)
    if empty is not None:
        raise DataError(
            f"data folder {empty} has no images: files {' '.join(SUFFIXES)} were expected, found {content(empty)}. Put "
            "them there."
        )
    if left_out.keys() - {_HIDDEN}:
        what = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        warnings.warn(
            f"data folder {root or os.path.commonpath(folders)} has files that are not read: {what}. Images end in "
            f"{' '.join(SUFFIXES)}; convert or move the others.",
            stacklevel=3,
        )
    return found


def _is_image(path: Path) -> bool:
    return not is_hidden(path) and path.suffix.lower() in SUFFIXES


def _kind(path: Path) -> str:
    """Return what a file that is left out is called."""
    if is_hidden(path):
        return _HIDDEN
    return path.suffix.lower() or "without a suffix"


def _walked(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"data folder {error.filename} cannot be read: {error.strerror}. Check it.") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        left_out.update(_HIDDEN for name in folders if is_hidden(Path(name)))
        folders[:] = [name for name in folders if not is_hidden(Path(name))]
        left_out.update("linked folders" for name in folders if os.path.islink(os.path.join(place, name)))
        for path in (Path(place, name) for name in names):
            if _is_image(path):
                yield path
            else:
                left_out[_kind(path)] += 1


def content(folder: Path) -> str:
    """Return what a folder contains, in short."""
    if not folder.is_dir():
        return "no folder"
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "nothing"
    listed = 6
    return ", ".join(names[:listed]) + (f" and {len(names) - listed} more" if len(names) > listed else "")
