"""What `eenet run` is fed: images, folders of images, arrays, or a split of the run's own data."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eenet.cli import paths
from eenet.errors import DataError, InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from eenet.data.dataset import LabelledDataset

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ARRAY_SUFFIXES = (".npy", ".npz")
ARRAY_KEYS = ("images", "inputs")
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Source:
    """Samples from one place, read in slices so that large ones never stand in memory as a whole.

    Args:
        names: One name per sample.
        read: Raw images `[sample, channel, height, width]` of a slice, as the data set holds them.
        labels: True classes `[sample]`, where they are known.
    """

    names: Sequence[str]
    read: Callable[[slice], Tensor]
    labels: Tensor | None = None


def open_inputs(words: Sequence[str], dataset: Callable[[str], LabelledDataset], shape: Shape) -> list[Source]:
    """Return the sources that the user named, each checked as far as can be without reading all of it.

    Args:
        words: Image files, folders, `.npy` or `.npz` files, or `split:NAME`.
        dataset: Returns a split of the run's own data.
        shape: Channels, height and width that the model takes.

    Raises:
        InputError: If something is missing, is of no known kind, or does not fit the model.
    """
    sources: list[Source] = []
    images: list[Path] = []
    for word in words:
        if word.startswith("split:"):
            sources.append(_split(word.removeprefix("split:"), dataset))
            continue
        path = paths.existing(Path(word), "input")
        if path.is_dir():
            images.extend(_folder(path))
        elif path.suffix.lower() in ARRAY_SUFFIXES:
            sources.append(_array(path, shape))
        else:
            images.append(path)
    if images:
        sources.append(_images(images, shape))
    return sources


def batches(sources: Sequence[Source], batch_size: int) -> Iterator[tuple[Sequence[str], Tensor, Tensor | None]]:
    """Yield names, raw images and labels, at most `batch_size` samples at a time."""
    for source in sources:
        for start in range(0, len(source.names), batch_size):
            rows = slice(start, min(start + batch_size, len(source.names)))
            yield source.names[rows], source.read(rows), None if source.labels is None else source.labels[rows]


def _split(name: str, dataset: Callable[[str], LabelledDataset]) -> Source:
    from eenet.data.dataset import as_images

    data = as_images(dataset(name))
    names = [f"{name}:{row}" for row in range(len(data))]
    return Source(names, lambda rows: data.images[rows], data.labels)


def _folder(path: Path) -> list[Path]:
    found = sorted(item for item in path.rglob("*") if item.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(
            f"input {str(path)!r} is empty: no image ({' '.join(IMAGE_SUFFIXES)}) in it. Pass another folder."
        )
    return found


def _images(files: list[Path], shape: Shape) -> Source:
    from PIL import Image, UnidentifiedImageError

    for path in files:
        try:
            Image.open(path).close()
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise InputError(
                f"input {str(path)!r} cannot be read: it is no image. Pass {' '.join(IMAGE_SUFFIXES)}, "
                f"{' or '.join(ARRAY_SUFFIXES)} files, a folder of images, or split:test."
            ) from error
    return Source([str(path) for path in files], lambda rows: _decode(files[rows], shape))


def _decode(files: list[Path], shape: Shape) -> Tensor:
    import numpy as np
    import torch
    from PIL import Image

    channels, height, width = shape
    decoded = np.empty((len(files), height, width, channels), dtype=np.uint8)
    for row, path in enumerate(files):
        try:
            with Image.open(path) as image:
                fitted = image.convert("L" if channels == 1 else "RGB")
                if fitted.size != (width, height):
                    fitted = fitted.resize((width, height), Image.Resampling.BILINEAR)
                decoded[row] = np.asarray(fitted).reshape(height, width, channels)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"input {str(path)!r} is damaged: {error}. Get the file again or leave it out.") from error
    return torch.from_numpy(decoded).permute(0, 3, 1, 2)


def _array(path: Path, shape: Shape) -> Source:
    arrays = _load(path)
    key = next((key for key in (*ARRAY_KEYS, "") if key in arrays), None) or next(iter(arrays))
    if len(arrays) > 1 and key not in ARRAY_KEYS:
        raise InputError(
            f"input {str(path)!r} has no key {ARRAY_KEYS[0]!r}: it has {', '.join(arrays)}. Rename the key."
        )
    images = _fit_shape(arrays[key], path, shape)
    labels = arrays.get("labels")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise InputError(f"input {str(path)!r} has labels that do not fit: one whole number per image is needed.")

    import torch

    return Source(
        [f"{path.name}:{row}" for row in range(len(images))],
        lambda rows: _finite(torch.from_numpy(images[rows].copy()), path, rows.start),
        None if labels is None else torch.from_numpy(labels.astype("int64")),
    )


def _load(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    try:
        loaded: Any = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"input {str(path)!r} cannot be read: {error}. Write it again with numpy, without objects."
        ) from error


def _fit_shape(array: np.ndarray, path: Path, shape: Shape) -> np.ndarray:
    channels, height, width = shape
    if array.shape == shape or (channels == 1 and array.shape == shape[1:]):
        array = array.reshape(1, *shape)
    if channels == 1 and array.shape[1:] == (height, width):
        array = array.reshape(-1, *shape)
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise InputError(
            f"input {str(path)!r} of shape {array.shape} does not fit: the model takes (sample, {channels}, {height}, "
            f"{width}). Reshape it."
        )
    if array.dtype.kind != "f" and array.dtype != "uint8":
        raise InputError(
            f"input {str(path)!r} of type {array.dtype} does not fit: images are uint8 (0 to 255) or floats (0 to 1)."
        )
    return array


def _finite(images: Tensor, path: Path, start: int) -> Tensor:
    if images.is_floating_point():
        bad = ~((images >= -0.01) & (images <= 1.01)).flatten(1).all(dim=1)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            raise InputError(
                f"input {str(path)!r} has a value outside 0 to 1 in row {row}: floats are images on the scale 0 to 1. "
                "Rescale it, or pass uint8 from 0 to 255."
            )
    return images
