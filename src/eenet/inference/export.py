"""A folder that runs without torch: one graph per stage, the policy, and a manifest that says how they fit together."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from eenet.core.costs import CostTable
from eenet.core.files import atomic_path, sha256, write_json
from eenet.core.policy import Policy
from eenet.errors import InputError, MissingExtraError, RunError, ShapeError
from eenet.inference.bundle import require_free
from eenet.inference.engines.graphs import named_inputs, require_float32
from eenet.inference.engines.onnx import stage_programs
from eenet.inference.fitting import require_classes, require_exits
from eenet.models.inputs import Inputs, batch_size, evaluating
from eenet.models.model import MultiExitModel
from eenet.schedulers.saved import save_policy

__all__ = ["EXPORT_ENGINES", "ExportEngine", "Exported", "Preparation", "export", "require_engine"]

ExportEngine = Literal["onnx", "openvino"]
EXPORT_ENGINES: tuple[ExportEngine, ...] = get_args(ExportEngine)
"""What an export can be made for."""

_FORMAT, _VERSION = "eenet export", 1
_MANIFEST, _POLICY = "manifest.json", "policy"
_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
_TOLERANCE = 1e-4  # of the largest logit of an exit

_Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How raw images become the model's inputs, for whoever runs the export.

    Attributes:
        mean: Per channel, on the scale 0 to 1, subtracted.
        std: Per channel, on the scale 0 to 1, divided by.
        size: Height and width.

    Raises:
        InputError: Means and deviations are not as many, or are no finite numbers, the deviations positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        """Refuse what nothing can be normalised with."""
        if len(self.mean) != len(self.std):
            raise InputError(
                f"mean and std of {len(self.mean)} and {len(self.std)} numbers do not fit: every channel has one of "
                "each. Pass as many."
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < value < math.inf for value in self.std):
            raise InputError(
                f"mean {list(self.mean)} and std {list(self.std)} cannot be used: channels are divided by their "
                "deviation. Pass finite numbers, deviations above 0."
            )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: The folder.
        manifest: What its ``manifest.json`` holds.
        error: The largest difference between the graphs' logits and the model's on the example inputs, as a share of
            the exit's largest logit.
    """

    path: Path
    manifest: dict[str, Any]
    error: float

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A stage's file, opened again by the engine that will run it."""

    file: str
    inputs: list[str]
    outputs: list[str]
    run: Callable[[_Arrays], _Arrays]


def export(
    model: MultiExitModel,
    policy: Policy,
    example_inputs: Inputs,
    path: str | os.PathLike[str],
    *,
    engine: ExportEngine = "onnx",
    costs: CostTable | None = None,
    classes: Sequence[str] | None = None,
    preparation: Preparation | None = None,
) -> Exported:
    """Write a model and its policy as a folder that `eenet_runtime.load` runs without torch, atomically.

    Every stage becomes one graph with its head fused in, for any number of samples; all other sizes are those of the
    example inputs. The files are then opened again and run on the example inputs, samples being dropped between the
    stages; every exit must say what the model says to within 1e-4 of its largest logit. No code is stored. The
    manifest holds the SHA-256 of every file: it shows damage and changes, it is no signature.

    Args:
        model: The multi-exit model, in float32 on the CPU; it is exported as it is now, in evaluation mode, its flags
            restored.
        policy: Where to leave.
        example_inputs: What its inputs look like, at least 2 samples; real ones, for the check to mean something.
        path: The folder; an older export is replaced.
        engine: ``onnx`` (run by ONNX Runtime) or ``openvino``.
        costs: What leaving costs, to be told with every answer.
        classes: Names of the classes, in label order.
        preparation: How raw images become inputs.

    Returns:
        What was written.

    Raises:
        InputError: The policy cannot be saved or reads features, the model is not in float32, names are not one per
            class, or ``path`` is a folder that holds something else.
        MissingExtraError: What the engine needs is not installed.
        ShapeError: Model, policy and costs disagree on the number of exits, model and policy on that of classes, the
            preparation makes inputs of another shape, or fewer than 2 samples are given.
        RunError: The graphs do not say what the model says.
    """
    require_engine(engine)
    require_free(Path(path), "export")
    require_exits(model.num_exits, policy, costs)
    require_float32(model)
    _require_prepared(example_inputs, preparation)
    logits = _logits(model, policy, example_inputs)
    if classes is not None and len(classes) != logits.shape[-1]:
        raise InputError(f"classes of {len(classes)} names do not fit: the model has {logits.shape[-1]}. Name each.")
    with atomic_path(path) as draft:
        draft.mkdir()
        graphs = _write_stages(model, example_inputs, draft, engine)
        error = _check(graphs, example_inputs, logits)
        save_policy(policy, draft / _POLICY, costs=costs)
        files = sorted(file for file in draft.rglob("*") if file.is_file())
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "engine": engine,
            "num_exits": model.num_exits,
            "num_classes": logits.shape[-1],
            "inputs": _described(example_inputs),
            "stages": [{"file": graph.file, "inputs": graph.inputs, "outputs": graph.outputs} for graph in graphs],
            "costs": None if costs is None else costs.to_dict(),
            "classes": None if classes is None else list(classes),
            "preparation": None if preparation is None else _values(preparation),
            "sha256": {file.relative_to(draft).as_posix(): sha256(file) for file in files},
        }
        write_json(draft / _MANIFEST, manifest)
    return Exported(path=Path(path), manifest=manifest, error=error)


def require_engine(engine: str) -> None:
    """Refuse an engine that is unknown or not installed.

    Raises:
        InputError: It is unknown.
        MissingExtraError: What it needs is not installed.
    """
    if engine not in EXPORT_ENGINES:
        raise InputError(f"engine {engine!r} is unknown: exports are made for {' and '.join(EXPORT_ENGINES)}.")
    for name in _NEEDED[engine]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f"{name} is missing: an export for {engine} needs {', '.join(_NEEDED[engine])}. "
                f'Run pip install "eenet[{engine}]".'
            ) from error


def _require_prepared(example_inputs: Inputs, preparation: Preparation | None) -> None:
    """Refuse a preparation that makes images of another shape than the model takes."""
    if preparation is None:
        return
    made = (len(preparation.mean), *preparation.size)
    taken = [tuple(one["shape"][1:]) for one in _described(example_inputs)]
    if made not in taken:
        raise ShapeError(
            f"preparation to images of shape {made} does not fit: the model takes {' and '.join(map(str, taken))}. "
            "Name the channels and the size of its inputs."
        )


def _logits(model: MultiExitModel, policy: Policy, example_inputs: Inputs) -> Tensor:
    """Return what every exit says about the example inputs; the policy must be able to decide on it."""
    if batch_size(example_inputs) < 2:
        raise ShapeError("example_inputs of 1 sample are too few: the batch must be told from the rest. Pass 2.")
    with evaluating(model), torch.no_grad():
        outputs = model(example_inputs)
        for k, output in enumerate(outputs):
            if output.dim() != 2 or output.shape != outputs[0].shape:
                raise ShapeError(
                    f"logits of exit {k} of shape {tuple(output.shape)} do not fit: exports decide on [sample, class]. "
                    "Use heads that return one vector per sample; models of maps run with DenseAdaptiveModel."
                )
        logits = torch.stack(outputs, dim=1)
        require_classes(policy, logits.shape[-1])
        seen, ids = torch.log_softmax(logits, dim=-1), torch.arange(len(logits))
        for k in range(model.num_exits):
            policy.leaves(seen[:, : k + 1], ids)
    return logits


def _write_stages(model: MultiExitModel, example_inputs: Inputs, folder: Path, engine: str) -> list[_Graph]:
    """Write one graph per stage and open each again."""
    programs = stage_programs(model, example_inputs)
    if engine == "onnx":
        for k, program in enumerate(programs):
            (folder / f"stage_{k}.onnx").write_bytes(program)
        return [_open_onnx(folder / f"stage_{k}.onnx") for k in range(len(programs))]
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    for k, program in enumerate(programs):
        openvino.save_model(core.read_model(program, b""), folder / f"stage_{k}.xml", compress_to_fp16=False)
    return [_open_openvino(core, folder / f"stage_{k}.xml") for k in range(len(programs))]


def _open_onnx(path: Path) -> _Graph:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs, outputs = ([one.name for one in ports] for ports in (session.get_inputs(), session.get_outputs()))

    def run(feed: _Arrays) -> _Arrays:
        return dict(zip(outputs, session.run(outputs, feed), strict=True))

    return _Graph(file=path.name, inputs=inputs, outputs=outputs, run=run)


def _open_openvino(core: Any, path: Path) -> _Graph:  # noqa: ANN401
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = [name for port in compiled.inputs for name in port.get_names() if name.startswith("state_")]
    outputs = [
        name for port in compiled.outputs for name in port.get_names() if name == "logits" or name.startswith("next_")
    ]

    def run(feed: _Arrays) -> _Arrays:
        found = compiled(feed)
        return {name: found[name] for name in outputs}

    return _Graph(file=path.name, inputs=inputs, outputs=outputs, run=run)


def _check(graphs: Sequence[_Graph], example_inputs: Inputs, logits: Tensor) -> float:
    """Return how far the graphs are from the model, one sample leaving after every stage.

    Raises:
        RunError: Too far.
    """
    values = example_inputs.values() if isinstance(example_inputs, dict) else [example_inputs]
    state = [value.numpy(force=True) for value in values]
    largest, first = 0.0, 0
    for k, graph in enumerate(graphs):
        found = graph.run(
            {name: np.ascontiguousarray(state[int(name.removeprefix("state_"))]) for name in graph.inputs}
        )
        wanted = logits[first:, k].numpy()
        error = float(np.abs(found["logits"] - wanted).max() / max(float(logits[:, k].abs().max()), 1e-30))
        if not error <= _TOLERANCE:  # also where it is no number
            raise RunError(
                f"export of stage {k} is wrong: its logits differ from the model's by {error:.2g} of the largest one, "
                f"{_TOLERANCE:g} is allowed. Try the other engine."
            )
        largest = max(largest, error)
        drop = 1 if len(wanted) > 1 else 0
        first += drop
        state = [found[f"next_{i}"][drop:] for i in range(len(graph.outputs) - 1)]
    return largest


def _described(example_inputs: Inputs) -> list[dict[str, Any]]:
    """Return the names, types and shapes of the inputs, None for the batch."""
    named = named_inputs(example_inputs)
    return [
        {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": [None, *value.shape[1:]]}
        for name, value in named.items()
    ]


def _values(preparation: Preparation) -> dict[str, list[float] | list[int]]:
    return {"mean": list(preparation.mean), "std": list(preparation.std), "size": list(preparation.size)}
