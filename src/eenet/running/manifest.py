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

from eenet.errors import BundleError, InputError, ShapeError
from eenet.running.engines.graphs import GraphEngineName, TensorSpec
from eenet.running.preparation import Preparation
from eenet.tables.costs import CostTable
from eenet.tables.files import fault, read_manifest

_VERSION = 2
_ABSENT = {"source": "", "first": 0, "sends": [], "original": 0}
"""What a manifest that does not say otherwise means."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of an export.

    Attributes:
        engine: What runs its stages.
        source: Fingerprint of the model that they were made from; empty where it is not known.
        num_exits: Number of exits.
        num_classes: Number of classes.
        inputs: What the model takes, in order.
        stages: Files of its graphs, in order.
        costs: What leaving costs, where known.
        classes: Names of the classes, where known.
        preparation: How images become inputs, where known.
        files: Every other file of the folder, with its SHA-256.
        first: The first stage that is here; the ones before, if any, are on other devices.
        sends: Numbers of the tensors that the stage after the last one here takes; empty where none follows.
        original: The first stage that the original model needs; it takes the model's inputs, not what the one before
            returned.
    """

    engine: GraphEngineName
    source: str
    num_exits: int
    num_classes: int
    inputs: tuple[TensorSpec, ...]
    stages: tuple[str, ...]
    costs: CostTable | None
    classes: tuple[str, ...] | None
    preparation: Preparation | None
    files: dict[str, str]
    first: int = 0
    sends: tuple[int, ...] = ()
    original: int = 0

    @property
    def held(self) -> range:
        """The stages that are here."""
        return range(self.first, self.first + len(self.stages))

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON, as they stand in the file."""
        stored = json.loads(json.dumps(asdict(self), default=str))  # tuples become lists, types of numbers their names
        for one in stored["inputs"]:
            one["shape"].insert(0, None)  # the batch
            if not one["free"]:
                del one["free"]
        if len(self.stages) == self.num_exits:  # as ever
            del stored["first"], stored["sends"]
        if not self.original:
            del stored["original"]
        stored["stages"], files = [{"file": file} for file in self.stages], stored.pop("files")
        return {"format": "eenet export", "version": _VERSION, **stored, "sha256": files}

    def require_consistent(self) -> None:
        """Refuse values that contradict each other, by a ValueError."""
        is_part = self.first or self.sends
        counts = [self.num_exits, self.num_exits if is_part else len(self.stages)]
        counts += [] if self.costs is None else [self.costs.num_exits]
        if len(set(counts)) != 1 or min(self.num_exits, self.num_classes) < 2:
            raise ValueError(f"exits, stages and costs are {counts} in number, of {self.num_classes} classes")
        ends = self.held.stop == self.num_exits
        if not self.stages or self.first < 0 or self.held.stop > self.num_exits or ends != (not self.sends):
            raise ValueError(
                f"stages are {len(self.stages)} from stage {self.first} on, of {self.num_exits}, and send {self.sends}"
            )
        if not 0 <= self.original < self.num_exits:
            raise ValueError(f"the original model begins with stage {self.original} of {self.num_exits}")
        names = [one.name for one in self.inputs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"inputs {names} do not have a name each")
        for one in self.inputs:
            free = [axis for axis, size in enumerate(one.shape, 1) if size is None]
            if any(size is not None and size < 1 for size in one.shape) or free != [size.axis for size in one.free]:
                raise ValueError(
                    f"shape {one.shape} of input {one.name!r} has a size that is no number of at least 1, and not free"
                )
        require_described(self.inputs, self.num_classes, self.classes, self.preparation)
        for k, file in enumerate(self.stages):
            if file not in self.files:
                raise ValueError(f"file {file!r} of stage {k} has no checksum")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder, compare the folder's files with it, and check every value.

        Raises:
            BundleError: A file is missing or was changed, or a value is missing or wrong.
        """
        stored = read_manifest(folder, "export", _VERSION)
        try:
            inputs = [{"free": []} | one | {"shape": _without_batch(one["shape"])} for one in stored["inputs"]]
            values = {"inputs": inputs, "stages": [one["file"] for one in stored["stages"]], "files": stored["sha256"]}
            manifest: Manifest = decoded(Manifest, _ABSENT | stored | values, "")
            manifest.require_consistent()
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(
                f"export {folder} has a damaged manifest: {fault(error)}. Export the model again."
            ) from error
        return manifest


def require_described(
    inputs: Sequence[TensorSpec], num_classes: int, classes: Sequence[str] | None, preparation: Preparation | None
) -> None:
    """Refuse names that are not one per class, and a preparation that makes inputs of a shape that the model lacks."""
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


def decoded(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - from JSON, by the annotations of dataclasses
    """Return a value of JSON as one of a type, or raise what `Manifest.read` expects where a part is of another."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        named = {one.name: f"{where}.{one.name}".removeprefix(".") for one in fields(kind)}
        return kind(**{name: decoded(hints[name], value[name], place) for name, place in named.items()})  # type: ignore[operator]
    origin, inside = get_origin(kind), get_args(kind)
    if origin is UnionType:  # of something and None
        return None if value is None else decoded(inside[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} {value!r} is no list")
        return tuple(decoded(inside[0], one, f"{where}[{i}]") for i, one in enumerate(value))
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
