"""What `eenet run` reads: images, folders of images, arrays, or a split of the run's own data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from eenet.cli.options import existing
from eenet.errors import InputError
from eenet.running.pictures import check_picture, images_in
from eenet.running.preparation import Preparation
from eenet.tables.files import read_arrays

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

    def named(self) -> Iterator[tuple[str, int | None]]:
        """Yield every sample's name, with its class where that is known."""
        return zip(self.names, repeat(None) if self.labels is None else self.labels.tolist(), strict=False)

    def batches(self, batch_size: int) -> Iterator[Any]:
        """Yield what the model takes, at most `batch_size` samples at a time."""
        for start in range(0, len(self.names), batch_size):
            yield self.read(slice(start, min(start + batch_size, len(self.names))))


@dataclass(frozen=True)
class Images:
    """Images in files and arrays, prepared as those of the model's data set are.

    Attributes:
        preparation: How.
    """

    preparation: Preparation

    def files(self, words: Sequence[str]) -> Source:
        """Return the images that the user named, as files or folders of files."""
        self.preparation.require_files()
        places = [existing(Path(word), "input") for word in words]
        paths = [path for place in places for path in (images_in(place)[0] if place.is_dir() else [place])]
        for path in paths:
            check_picture(path)
        read = self.preparation.read
        return Source(
            [str(path) for path in paths],
            lambda rows: self.preparation(np.stack([read(path) for path in paths[rows]])),
        )

    def array(self, path: Path) -> Source:
        """Return the images of an array file."""
        arrays = read_arrays(path, "input")
        labels = arrays.pop(LABELS, None)
        key = next((key for key in IMAGE_KEYS if key in arrays), next(iter(arrays), "") if len(arrays) == 1 else None)
        if key not in arrays:
            raise InputError(
                f"input {str(path)!r} has no key {IMAGE_KEYS[0]!r}: it has {', '.join(arrays)}. Rename the key."
            )
        images = self._batch(arrays[key], path)
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
            raise InputError(f"input {str(path)!r} has labels that do not fit: one whole number per image is needed.")

        def read(rows: slice) -> Any:  # noqa: ANN401 - whatever the model takes
            try:
                return self.preparation(images[rows])
            except InputError as error:
                raise InputError(f"input {str(path)!r} from row {rows.start} on: {error}") from error

        read(slice(0, 1))  # values of another type are refused before any work starts
        return Source([f"{path.name}:{row}" for row in range(len(images))], read, labels)

    def _batch(self, array: np.ndarray, path: Path) -> np.ndarray:
        """Return images as a batch: a single one may lack the axis of samples, grey ones that of channels."""
        shape = self.preparation.raw_shape
        channels, *size = shape
        if array.shape == shape or (channels == 1 and array.shape in (tuple(size), (len(array), *size))):
            array = array.reshape(-1, *shape)
        if array.shape[1:] != shape or not len(array):
            raise InputError(
                f"input {str(path)!r} of shape {array.shape} does not fit: the model takes (sample, "
                f"{', '.join(map(str, shape))}). Bring it to that, channels before height and width."
            )
        return array
