"""What `eenet run` reads: images, folders of images, texts, arrays, or a split of the run's own data."""

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
from eenet.running.texts import NAMES, TextPreparation
from eenet.tables.checks import check_labels
from eenet.tables.files import read_arrays

ARRAY_SUFFIXES = (".npy", ".npz")
TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
IMAGE_KEYS = ("images", "inputs")
LABELS = "labels"


@dataclass(frozen=True)
class Source:
    """Samples from one place, read in slices so that large ones never stand in memory as a whole.

    Attributes:
        names: One name per sample.
        read: Returns what the model takes for a slice of the samples.
        labels: True classes `[sample]`, where they are known.
        texts: Whether the names are the texts themselves.
    """

    names: Sequence[str]
    read: Callable[[slice], Any]
    labels: np.ndarray | None = None
    texts: bool = False

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
        if texts := [word for word in words if Path(word).suffix.lower() in TEXT_SUFFIXES]:
            raise InputError(
                f"input {texts[0]!r} is a file of texts: the model reads images. Pass image files or arrays."
            )
        paths = [path for place in places for path in (images_in(place)[0] if place.is_dir() else [place])]
        for path in paths:
            check_picture(path)
        return Source([str(path) for path in paths], lambda rows: self.preparation.of(paths[rows]))

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


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Texts in files and token numbers in arrays, brought to the form in which the model read them in training.

    Attributes:
        preparation: How.
        classes: Names of the classes, in label order.
        columns: Names of the columns of labels and texts in the run's own file, where they were given.
    """

    preparation: TextPreparation
    classes: Sequence[str]
    columns: tuple[str, str] | None = None

    def files(self, words: Sequence[str]) -> Source:
        """Return the texts of the files that the user named, with their classes where all files have them."""
        from eenet.experiments.data.columns import read_texts

        texts: list[str] = []
        labels: list[int] = []
        for word in words:
            if Path(word).suffix.lower() not in TEXT_SUFFIXES:
                raise InputError(
                    f"input {word!r} cannot be read: the model reads texts. Pass files {' '.join(TEXT_SUFFIXES)}, or "
                    "token numbers in an .npz."
                )
            found, numbers = read_texts(existing(Path(word), "input"), self.columns, self.classes)
            texts += found
            labels += numbers or ()
        self.preparation(texts[:1])  # a tokenizer that fails does so before any work starts
        known = np.array(labels) if len(labels) == len(texts) else None
        return Source(texts, lambda rows: self.preparation(texts[rows]), known, texts=True)

    def array(self, path: Path) -> Source:
        """Return the token numbers of an array file, by the names of Hugging Face where the model takes these."""
        arrays = read_arrays(path, "input")
        labels = arrays.pop(LABELS, None)
        names = list(NAMES) if self.preparation.named else list(arrays)[:1]
        tokens = {name: arrays.get(name, np.zeros(0)) for name in names}
        shapes = {
            array.shape for array in tokens.values() if array.ndim == 2 and array.dtype.kind in "iu" and len(array)
        }
        if set(arrays) != set(names) or len(shapes) != 1 or any(not array.size for array in tokens.values()):
            wanted = " and ".join(NAMES if self.preparation.named else ("one array",))
            there = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
            raise InputError(
                f"input {str(path)!r} does not fit: it has {there}, the model reads {wanted}, whole numbers (sample, "
                "token). Store these, as the tokenizer returns them."
            )
        [(count, width)] = shapes
        if self.preparation.width not in (None, width):
            raise InputError(
                f"input {str(path)!r} has texts of {width} tokens: the model takes {self.preparation.width}. Pad them "
                "to that."
            )
        if labels is not None:
            check_labels(labels, len(self.classes))
            if labels.shape != (count,):
                raise InputError(f"input {str(path)!r} has labels of shape {labels.shape}: there are {count} texts.")
        whole = {name: array.astype(np.int64) for name, array in tokens.items()}

        def read(rows: slice) -> Any:  # noqa: ANN401 - whatever the model takes
            found = {name: array[rows] for name, array in whole.items()}
            return found if self.preparation.named else next(iter(found.values()))

        return Source([f"{path.name}:{row}" for row in range(count)], read, labels)
