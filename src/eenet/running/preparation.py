"""From raw images to what a model takes: one value of a data set that runs and exports carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped, UInt8

from eenet.errors import InputError, ShapeError
from eenet.running.pictures import Picture, read_image
from eenet.tables.arrays import as_array

_MOST_PIXELS = 1 << 28
_ROUNDING = 0.01  # by which floats may lie outside 0 to 1


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How an image file becomes what a model takes: a data set's preparation, which runs and exports carry.

    A file is read by `read_image`, which gives a raw image; raw images are scaled to 0 to 1, resized where the model
    takes another size, and normalised.

    Attributes:
        mean: Per channel, on the scale 0 to 1, subtracted.
        std: Per channel, on the scale 0 to 1, divided by.
        size: Height and width of inputs.
        raw_size: Height and width of raw images; None: those of inputs.
        short_side: Pixels that the short side of a file is resized to before ``raw_size`` is cut from its centre; None:
            files are stretched.

    Raises:
        InputError: Means and deviations are not as many, or are no finite numbers, the deviations positive; or a size
            is below 1, or larger than the short side that it is cut from.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    raw_size: tuple[int, int] | None = None
    short_side: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be normalised with; numbers of numpy become plain ones, which are stored."""
        for name, kind in (("mean", float), ("std", float), ("size", index), ("raw_size", index)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(map(kind, getattr(self, name))))
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(
                f"mean and std of {len(self.mean)} and {len(self.std)} numbers do not fit: every channel has one of "
                "each. Pass as many."
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < value < math.inf for value in self.std):
            raise InputError(
                f"mean {list(self.mean)} and std {list(self.std)} cannot be used: channels are divided by their "
                "deviation. Pass finite numbers, deviations above 0."
            )
        check_size(self.size)
        check_size(self.raw_shape[1:], self.short_side)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input: channels, height, width."""
        return (len(self.mean), *self.size)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Of one raw image: channels, height, width."""
        return (len(self.mean), *(self.raw_size or self.size))

    @property
    def highest(self) -> float:
        """The largest number that inputs contain: a channel at its brightest."""
        return max((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))

    def read(self, file: Picture, name: object = None) -> UInt8[np.ndarray, "channel height width"]:
        """Return a raw image from a file or an image of Pillow, see `read_image`.

        Raises:
            DataError: The file cannot be used.
            InputError: Images have other channels than files have.
        """
        self.require_files()
        channels, *size = self.raw_shape
        return read_image(file, (size[0], size[1]), short_side=self.short_side, channels=channels, name=name)

    def of(self, files: Sequence[Picture]) -> Float32[np.ndarray, "sample channel height width"]:
        """Return inputs from image files, or images of Pillow; errors are those of `read`."""
        return self(np.stack([self.read(file) for file in files]))

    def require_files(self) -> None:
        """Refuse to read files where images have other channels than these."""
        if len(self.mean) not in (1, 3):
            raise InputError(
                f"images of {len(self.mean)} channels cannot be read from image files: these are grey or have 3 "
                "colours. Pass arrays."
            )

    def __call__(self, images: Any) -> Float32[np.ndarray, "sample channel height width"]:  # noqa: ANN401
        """Return inputs from raw images.

        Args:
            images: Array-like ``[sample, channel, height, width]``, uint8 from 0 to 255 or floats from 0 to 1.

        Raises:
            InputError: Images of another type or scale.
            ShapeError: Images of another shape.
        """
        raw = as_array(images)
        if raw.ndim != 4 or raw.shape[1:] != self.raw_shape:
            wanted = ", ".join(("sample", *map(str, self.raw_shape)))
            raise ShapeError(
                f"images of shape {raw.shape} do not fit: the model takes ({wanted}). Resize them (bilinear, with "
                "antialiasing), or read their files by Preparation.read."
            )
        require_scale(raw)
        return self.normalised(raw)

    def normalised(
        self, images: Shaped[np.ndarray, "sample channel _ _"]
    ) -> Float32[np.ndarray, "sample channel height width"]:
        """Return inputs from images of any size that are known to be on the scale."""
        scaled = images.astype(np.float32)
        if images.dtype == np.uint8:
            scaled /= np.float32(255)
        if scaled.shape[2:] != self.size:
            scaled = _weights(self.size[0], scaled.shape[2]) @ scaled @ _weights(self.size[1], scaled.shape[3]).T
        mean, std = (np.array(values, dtype=np.float32).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        return (scaled - mean) / std


def _weights(after: int, before: int) -> Float32[np.ndarray, "after before"]:
    """Return what each old pixel of a line adds to each new one: bilinear, with antialiasing, as Pillow has it."""
    centres = (np.arange(after)[:, None] + 0.5) * (before / after)
    near = 1 - np.abs(np.arange(before) + 0.5 - centres) / max(before / after, 1)
    weights = np.maximum(near, 0)
    shares: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return shares.astype(np.float32)


def check_size(size: tuple[int, ...], short_side: int | None = None) -> None:
    """Refuse a height and width that images cannot be brought to, or not by cutting them from such a short side."""
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size {size} is no height and width: an image has pixels. Pass 1 or more of each.")
    if math.prod(size) > _MOST_PIXELS:
        raise InputError(f"size {size} is too large: images of {_MOST_PIXELS} pixels at most are made. Pass less.")
    if short_side is not None and max(size) > short_side:
        raise InputError(
            f"size {size[0]} x {size[1]} pixels cannot be cut: the short side has {short_side}. Pass a larger one."
        )


def require_scale(images: np.ndarray) -> None:
    """Refuse images whose scale is not known."""
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        raise InputError(
            f"images of type {images.dtype} cannot be prepared: their scale is known for uint8 (0 to 255) and floats "
            "(0 to 1) only. Convert them."
        )
    bad = ~is_on_scale(images)
    if bad.any():
        raise InputError(
            f"images have a value outside 0 to 1 in image {int(bad.argmax())}: floats are on the scale 0 to 1. Rescale "
            "them, or pass uint8 from 0 to 255."
        )


def is_on_scale(images: Float[np.ndarray, "sample channel _ _"]) -> Bool[np.ndarray, " sample"]:
    """Return which images have floats from 0 to 1 only, but for rounding."""
    inside = (images >= -_ROUNDING) & (images <= 1 + _ROUNDING)
    return np.asarray(inside.all(axis=(1, 2, 3)))
