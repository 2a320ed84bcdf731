"""The manifest of an exported model: what its files are, what it takes and says, and whether anything was changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eenet_runtime.confidence import Array, Doubles
from eenet_runtime.errors import ExportError, InputError

__all__ = [
    "ENGINES",
    "MANIFEST",
    "POLICY",
    "Costs",
    "InputSpec",
    "Manifest",
    "Preparation",
    "StageSpec",
    "read_manifest",
]

MANIFEST, POLICY = "manifest.json", "policy"
ENGINES = ("onnx", "openvino")
_FORMAT, _VERSION = "eenet export", 1
_STATE, _NEXT = "state_", "next_"
_TOLERANCE = 0.01


@dataclass(frozen=True)
class InputSpec:
    """One of the model's inputs.

    Attributes:
        name: As the model calls it.
        dtype: Type of its numbers.
        shape: Of one sample.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


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

    @property
    def takes(self) -> tuple[int, ...]:
        """Numbers of the tensors it reads."""
        return tuple(int(name.removeprefix(_STATE)) for name in self.inputs)


@dataclass(frozen=True)
class Costs:
    """What leaving at each exit costs.

    Attributes:
        cumulative: Cost per sample of leaving at each exit.
        unit: Of these numbers.
    """

    cumulative: Doubles
    unit: str


@dataclass(frozen=True)
class Preparation:
    """How images become inputs.

    Attributes:
        mean: Per channel, on the scale 0 to 1, subtracted.
        std: Per channel, divided by.
        size: Height and width.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]

    def __call__(self, images: Array) -> Array:
        """Return raw images ``[sample, channel, height, width]`` as normalised float32.

        Raises:
            InputError: They are neither uint8 nor floats from 0 to 1.
        """
        _check_scale(images)
        scaled = images.astype(np.float32)
        if images.dtype == np.uint8:
            scaled /= np.float32(255)
        mean, std = (np.array(values, dtype=np.float32).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        prepared: Array = (scaled - mean) / std
        return prepared


def _check_scale(images: Array) -> None:
    """Refuse images whose scale is not known."""
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        raise InputError(
            f"images of type {images.dtype} cannot be prepared: their scale is known for uint8 (0 to 255) and floats "
            "(0 to 1) only. Convert them."
        )
    bad = ~((images >= -_TOLERANCE) & (images <= 1 + _TOLERANCE)).all(axis=(1, 2, 3))
    if bad.any():
        raise InputError(
            f"images have a value outside 0 to 1 in image {int(bad.argmax())}: floats are on the scale 0 to 1. Rescale "
            "them, or pass uint8 from 0 to 255."
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an exported model says about itself.

    Attributes:
        engine: What runs its stages: ``onnx`` or ``openvino``.
        num_exits: Number of exits.
        num_classes: Number of classes.
        inputs: What the model takes, in order.
        stages: Its graphs, in order.
        costs: What leaving costs, where known.
        classes: Names of the classes, where known.
        preparation: How images become inputs, where known.
        files: Every other file of the folder, with its SHA-256.
    """

    engine: str
    num_exits: int
    num_classes: int
    inputs: tuple[InputSpec, ...]
    stages: tuple[StageSpec, ...]
    costs: Costs | None
    classes: tuple[str, ...] | None
    preparation: Preparation | None
    files: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder and hold the folder's files against it.

    Raises:
        ExportError: The folder is missing, is no export, is of an unknown version, or a file is missing, changed, or
            too many.
    """
    if not folder.is_dir():
        raise ExportError(f"export {folder} is missing: there is no such folder. Pass what 'eenet export --out' wrote.")
    stored = _json(folder)
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        raise ExportError(
            f"export {folder} is none: its {MANIFEST} is of another format. Pass what 'eenet export --out' wrote."
        )
    if stored.get("version") != _VERSION:
        raise ExportError(
            f"export {folder} is of version {stored.get('version')!r}: this eenet-runtime reads version {_VERSION}. "
            "Update it, or export the model again."
        )
    try:
        manifest = _manifest(stored)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"export {folder} has a damaged manifest: {type(error).__name__} {error}. Export the model again."
        ) from error
    _verify(folder, manifest)
    return manifest


def _json(folder: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ExportError(
            f"export {folder} is none: it holds no {MANIFEST}. Pass what 'eenet export --out' wrote."
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ExportError(
            f"export {folder} cannot be read: {MANIFEST} is not JSON ({error}). Export the model again."
        ) from error


def _manifest(stored: dict[str, Any]) -> Manifest:
    """Return the values of a manifest, checked against each other."""
    classes, preparation, costs = stored["classes"], stored["preparation"], stored["costs"]
    manifest = Manifest(
        engine=stored["engine"],
        num_exits=int(stored["num_exits"]),
        num_classes=int(stored["num_classes"]),
        inputs=tuple(_input(one) for one in stored["inputs"]),
        stages=tuple(StageSpec(one["file"], tuple(one["inputs"]), tuple(one["outputs"])) for one in stored["stages"]),
        costs=None if costs is None else Costs(np.array(costs["cumulative"], dtype=np.float64), str(costs["unit"])),
        classes=None if classes is None else tuple(map(str, classes)),
        preparation=None if preparation is None else _preparation(preparation),
        files={str(name): str(digest) for name, digest in stored["sha256"].items()},
    )
    if manifest.engine not in ENGINES:
        raise ValueError(f"engine {manifest.engine!r} is none of {', '.join(ENGINES)}")
    numbers = [manifest.num_exits, len(manifest.stages)]
    numbers += [] if manifest.costs is None else [len(manifest.costs.cumulative)]
    if len(set(numbers)) != 1 or manifest.num_exits < 2:
        raise ValueError(f"exits, stages and costs are {numbers} in number")
    if manifest.classes is not None and len(manifest.classes) != manifest.num_classes:
        raise ValueError(f"{manifest.num_classes} classes have {len(manifest.classes)} names")
    _check_wiring(manifest)
    return manifest


def _input(stored: dict[str, Any]) -> InputSpec:
    shape = tuple(int(size) for size in stored["shape"][1:])
    if stored["shape"][:1] != [None] or min(shape, default=1) < 1:
        raise ValueError(f"shape {stored['shape']} of input {stored['name']!r} does not begin with the batch")
    return InputSpec(str(stored["name"]), np.dtype(stored["dtype"]), shape)


def _preparation(stored: dict[str, Any]) -> Preparation:
    mean, std = (tuple(float(value) for value in stored[name]) for name in ("mean", "std"))
    height, width = stored["size"]
    if len(mean) != len(std):
        raise ValueError(f"{len(mean)} means and {len(std)} deviations")
    return Preparation(mean, std, (int(height), int(width)))


def _check_wiring(manifest: Manifest) -> None:
    """Refuse stages that read what nobody makes."""
    offered = len(manifest.inputs)
    for k, stage in enumerate(manifest.stages):
        follow = [f"{_NEXT}{i}" for i in range(len(stage.outputs) - 1)]
        if list(stage.outputs) != ["logits", *follow] or not all(0 <= i < offered for i in stage.takes):
            raise ValueError(f"stage {k} reads {stage.inputs} of {offered} tensors and returns {stage.outputs}")
        if stage.file not in manifest.files:
            raise ValueError(f"file {stage.file!r} of stage {k} has no checksum")
        offered = len(follow)


def _verify(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder whose files are not the ones its manifest lists."""
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {MANIFEST}
    for name in sorted(present | set(manifest.files)):
        if name not in present:  # also what a manifest that points outside the folder comes to
            fault = "is missing"
        elif name not in manifest.files:
            fault = "is not in the manifest"
        elif _sha256(folder / name) != manifest.files[name]:
            fault = "was changed or truncated: its checksum differs from the manifest"
        else:
            continue
        raise ExportError(f"export {folder} is damaged: file {name} {fault}. Copy it or export the model again.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
