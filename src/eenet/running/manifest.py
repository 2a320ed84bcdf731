"""The manifest of an export: what its files are, what the model takes and returns, and whether anything was changed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import Float32

from eenet.errors import BundleError, InputError, ShapeError
from eenet.running.engines.graphs import LOGITS, NEXT, STATE, GraphEngineName, TensorSpec, reason
from eenet.tables.arrays import as_array
from eenet.tables.costs import CostTable
from eenet.tables.files import read_manifest

_VERSION = 2
_ROUNDING = 0.01  # by which floats may lie outside 0 to 1


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How raw images become a model's inputs.

    Attributes:
        mean: Per channel, on the scale 0 to 1, subtracted.
        std: Per channel, on the scale 0 to 1, divided by.
        size: Height and width.

    Raises:
        InputError: Means and deviations are not as many, or are no finite numbers, the deviations positive; or a size
            is below 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be normalised with."""
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
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"size {self.size} is no height and width: an image has pixels. Pass 1 or more of each.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        return (len(self.mean), *self.size)

    def __call__(self, images: Any) -> Float32[np.ndarray, "sample channel height width"]:  # noqa: ANN401
        """Return raw images, scaled to 0 to 1 if they are uint8, then normalised.

        Args:
            images: Array-like ``[sample, channel, height, width]``, uint8 from 0 to 255 or floats from 0 to 1.

        Raises:
            InputError: Images of another type or scale.
            ShapeError: Images of another shape.
        """
        raw = as_array(images)
        if raw.ndim != 4 or raw.shape[1:] != self.shape:
            wanted = ", ".join(("sample", *map(str, self.shape)))
            raise ShapeError(
                f"images of shape {raw.shape} do not fit: the model takes ({wanted}). Resize them (bilinear, with "
                "antialiasing)."
            )
        _require_scale(raw)
        scaled = raw.astype(np.float32)
        if raw.dtype == np.uint8:
            scaled /= np.float32(255)
        mean, std = (np.array(values, dtype=np.float32).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        return (scaled - mean) / std


def _require_scale(images: np.ndarray) -> None:
    """Refuse images whose scale is not known."""
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        raise InputError(
            f"images of type {images.dtype} cannot be prepared: their scale is known for uint8 (0 to 255) and floats "
            "(0 to 1) only. Convert them."
        )
    bad = ~((images >= -_ROUNDING) & (images <= 1 + _ROUNDING)).all(axis=(1, 2, 3))
    if bad.any():
        raise InputError(
            f"images have a value outside 0 to 1 in image {int(bad.argmax())}: floats are on the scale 0 to 1. Rescale "
            "them, or pass uint8 from 0 to 255."
        )


@dataclass(frozen=True)
class StageSpec:
    """One stage's graph.

    Attributes:
        file: Its path inside the folder.
        inputs: Names ``state_i``; ``i`` counts the model's inputs at stage 0, what the stage before returned later on.
        outputs: ``logits``, then ``next_0``, ``next_1``, ...
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an export says about itself.

    Attributes:
        engine: What runs its stages.
        num_exits: Number of exits.
        num_classes: Number of classes.
        inputs: What the model takes, in order.
        stages: Its graphs, in order.
        costs: What leaving costs, where known.
        classes: Names of the classes, where known.
        preparation: How images become inputs, where known.
        files: Every other file of the folder, with its SHA-256.
    """

    engine: GraphEngineName
    num_exits: int
    num_classes: int
    inputs: tuple[TensorSpec, ...]
    stages: tuple[StageSpec, ...]
    costs: CostTable | None
    classes: tuple[str, ...] | None
    preparation: Preparation | None
    files: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON, as they stand in the file."""
        stored = json.loads(json.dumps(asdict(self), default=str))  # tuples become lists, types of numbers their names
        for one in stored["inputs"]:
            one["shape"].insert(0, None)  # the batch
        files = stored.pop("files")
        return {"format": "eenet export", "version": _VERSION, **stored, "sha256": files}

    def require_consistent(self) -> None:
        """Refuse values that contradict each other, and stages that take what none before them returns.

        Raises:
            ValueError: They do.
        """
        counts = [self.num_exits, len(self.stages)]
        counts += [] if self.costs is None else [self.costs.num_exits]
        if len(set(counts)) != 1 or min(self.num_exits, self.num_classes) < 2:
            raise ValueError(f"exits, stages and costs are {counts} in number, of {self.num_classes} classes")
        names = [one.name for one in self.inputs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"inputs {names} do not have a name each")
        for one in self.inputs:
            if any(size is None or size < 1 for size in one.shape):
                raise ValueError(f"shape {one.shape} of input {one.name!r} has a size that is no number of at least 1")
        require_described(self.inputs, self.num_classes, self.classes, self.preparation)
        offered = [f"{STATE}{i}" for i in range(len(names))]
        for k, stage in enumerate(self.stages):
            following = range(len(stage.outputs) - 1)
            known = len(set(stage.inputs)) == len(stage.inputs) > 0 and set(stage.inputs) <= set(offered)
            if not known or stage.outputs != (LOGITS, *(f"{NEXT}{i}" for i in following)):
                raise ValueError(
                    f"stage {k} takes {list(stage.inputs)} of {len(offered)} tensors and returns {list(stage.outputs)}"
                )
            if stage.file not in self.files:
                raise ValueError(f"file {stage.file!r} of stage {k} has no checksum")
            offered = [f"{STATE}{i}" for i in following]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder, compare the folder's files with it, and check every value.

        Raises:
            BundleError: A file is missing or was changed, or a value is missing or wrong.
        """
        stored = read_manifest(folder, "export", _VERSION)
        try:
            inputs = [one | {"shape": _without_batch(one["shape"])} for one in stored["inputs"]]
            manifest = _decoded(Manifest, stored | {"inputs": inputs, "files": stored["sha256"]}, "")
            manifest.require_consistent()
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(
                f"export {folder} has a damaged manifest: {type(error).__name__} {reason(error)} Export the model "
                "again."
            ) from error
        return manifest


def require_described(
    inputs: Sequence[TensorSpec], num_classes: int, classes: Sequence[str] | None, preparation: Preparation | None
) -> None:
    """Refuse names of classes, and a preparation, that are of another model.

    Raises:
        InputError: Not one name per class.
        ShapeError: Images are prepared to a shape that no input has.
    """
    if classes is not None and len(classes) != num_classes:
        raise InputError(f"classes of {len(classes)} names do not fit: the model has {num_classes}. Name each.")
    taken = [one.shape for one in inputs]
    if preparation is not None and preparation.shape not in taken:
        raise ShapeError(
            f"preparation to images of shape {preparation.shape} does not fit: the model takes "
            f"{' and '.join(map(str, taken))}. Name the channels and the size of its inputs."
        )


_KINDS = {str: "text", int: "whole number", float: "finite number"}


def _without_batch(shape: Any) -> Any:  # noqa: ANN401 - of JSON
    if not isinstance(shape, list) or shape[:1] != [None]:
        raise ValueError(f"shape {shape!r} is no list that begins with the batch, null")
    return shape[1:]


def _decoded(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - from JSON, by the annotations of dataclasses
    """Return a value of JSON as one of a type, in which everything is of the type that it must be.

    Raises:
        ValueError, LookupError, TypeError: It cannot be.
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        named = {one.name: f"{where}.{one.name}".removeprefix(".") for one in fields(kind)}
        return kind(**{name: _decoded(hints[name], value[name], place) for name, place in named.items()})  # type: ignore[operator]
    origin, inside = get_origin(kind), get_args(kind)
    if origin is UnionType:  # of something and None
        return None if value is None else _decoded(inside[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} {value!r} is no list")
        return tuple(_decoded(inside[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if origin is Literal:
        if value not in inside:
            raise ValueError(f"{where} {value!r} is none of {', '.join(inside)}")
        return value
    if origin is np.dtype:
        if np.dtype(value).kind not in "biuf" or str(np.dtype(value)) != value:
            raise ValueError(f"{where} {value!r} is no type of numbers")
        return np.dtype(value)
    if type(value) is int and kind is float:
        value = float(value)
    # checksums were compared with the files
    if type(value) is not (origin or kind) or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{where} {value!r} is no {_KINDS[kind]}")
    return value
