"""What `eenet run` reads: images, folders of images, arrays, or a split of the run's own data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eenet.cli.interrupt import require
from eenet.cli.options import existing
from eenet.errors import DataError, InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ARRAY_SUFFIXES = (".npy", ".npz")
IMAGE_KEYS = ("images", "inputs")
LABELS = "labels"


@dataclass(frozen=True)
class Source:
    """Samples from one place, read in slices so that large ones never stand in memory as a whole.

    Attributes:
        names: One name per sample.
        read: Returns what the model takes for a slice of the samples.
        labels: True classes `[sample]`, where they are known.
    """

    names: Sequence[str]
    read: Callable[[slice], Any]
    labels: np.ndarray | None = None

    def batches(self, batch_size: int) -> Iterator[Any]:
        """Yield what the model takes, at most `batch_size` samples at a time."""
        for start in range(0, len(self.names), batch_size):
            yield self.read(slice(start, min(start + batch_size, len(self.names))))


@dataclass(frozen=True)
class Images:
    """How raw images become what a model takes.

    Attributes:
        shape: Channels, height and width of raw images.
        prepare: From raw images `[sample, channel, height, width]`, uint8 or floats from 0 to 1, to inputs.
    """

    shape: tuple[int, int, int]
    prepare: Callable[[np.ndarray], Any]

    def files(self, words: Sequence[str]) -> Source:
        """Return the images that the user named, as files or folders of files."""
        paths = [path for word in words for path in _image_paths(existing(Path(word), "input"))]
        require("PIL")
        from PIL import Image, UnidentifiedImageError

        for path in paths:
            try:
                Image.open(path).close()
            except (UnidentifiedImageError, OSError, ValueError) as error:
                raise InputError(
                    f"input {str(path)!r} cannot be read: it is no image. Pass {' '.join(IMAGE_SUFFIXES)}, "
                    f"{' or '.join(ARRAY_SUFFIXES)} files, a folder of images, or split:test."
                ) from error
        return Source([str(path) for path in paths], lambda rows: self.prepare(self._decode(paths[rows])))

    def array(self, path: Path) -> Source:
        """Return the images of an array file."""
        arrays = read_arrays(path)
        key = next((key for key in (*IMAGE_KEYS, "") if key in arrays), None) or next(iter(arrays))
        if len(arrays) > 1 and key not in IMAGE_KEYS:
            raise InputError(
                f"input {str(path)!r} has no key {IMAGE_KEYS[0]!r}: it has {', '.join(arrays)}. Rename the key."
            )
        images = self._fitted(arrays[key], path)
        labels = arrays.get(LABELS)
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
            raise InputError(f"input {str(path)!r} has labels that do not fit: one whole number per image is needed.")
        names = [f"{path.name}:{row}" for row in range(len(images))]
        return Source(names, lambda rows: self.prepare(_on_scale(images[rows], path, rows)), labels)

    def _decode(self, files: Sequence[Path]) -> np.ndarray:
        from PIL import Image

        channels, height, width = self.shape
        decoded = np.empty((len(files), height, width, channels), dtype=np.uint8)
        for row, path in enumerate(files):
            try:
                with Image.open(path) as image:
                    fitted = image.convert("L" if channels == 1 else "RGB")
                    if fitted.size != (width, height):
                        fitted = fitted.resize((width, height), Image.Resampling.BILINEAR)
                    decoded[row] = np.asarray(fitted).reshape(height, width, channels)
            except (OSError, SyntaxError, ValueError) as error:
                raise DataError(
                    f"input {str(path)!r} is damaged: {error}. Get the file again or leave it out."
                ) from error
        return np.ascontiguousarray(decoded.transpose(0, 3, 1, 2))

    def _fitted(self, array: np.ndarray, path: Path) -> np.ndarray:
        channels, height, width = self.shape
        if array.shape == self.shape or (channels == 1 and array.shape == self.shape[1:]):
            array = array.reshape(1, *self.shape)
        if channels == 1 and array.shape[1:] == (height, width):
            array = array.reshape(-1, *self.shape)
        if array.ndim != 4 or array.shape[1:] != self.shape or not len(array):
            raise InputError(
                f"input {str(path)!r} of shape {array.shape} does not fit: the model takes (sample, {channels}, "
                f"{height}, {width}). Reshape it."
            )
        if array.dtype.kind != "f" and array.dtype != "uint8":
            raise InputError(
                f"input {str(path)!r} of type {array.dtype} does not fit: images are uint8 (0 to 255) or floats (0 to "
                "1)."
            )
        return array


def _image_paths(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(item for item in path.rglob("*") if item.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(
            f"input {str(path)!r} is empty: no image ({' '.join(IMAGE_SUFFIXES)}) in it. Pass another folder."
        )
    return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name; that of an .npy file is named "" and stays on disk until it is used."""
    existing(path, "input")
    try:
        if path.suffix.lower() == ".npy":
            return {"": np.load(path, allow_pickle=False, mmap_mode="r")}
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)
            single = isinstance(loaded, np.ndarray)
            found = {"": loaded} if single else {name: loaded[name] for name in loaded.files}
    except Exception as error:  # what numpy and zipfile raise on damaged files has no common base
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"input {str(path)!r} cannot be read: {reason}. Write it again with numpy, without objects."
        ) from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {str(path)!r} cannot be read: {name!r} is no array. Write it with numpy.savez.")
    return found


def _on_scale(images: np.ndarray, path: Path, rows: slice) -> np.ndarray:
    if images.dtype.kind == "f":
        bad = ~((images >= -0.01) & (images <= 1.01)).reshape(len(images), -1).all(axis=1)
        if bad.any():
            raise InputError(
                f"input {str(path)!r} has a value outside 0 to 1 in row {rows.start + int(bad.argmax())}: floats are "
                "images on the scale 0 to 1. Rescale it, or pass uint8 from 0 to 255."
            )
    return np.array(images)  # a copy: the file may be mapped read-only
