"""Writing a folder that runs without torch: one graph per stage, the policy, and a manifest of both."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from eenet.errors import RunError, ShapeError
from eenet.models.form import SameForm
from eenet.models.inputs import Inputs, evaluating
from eenet.models.model import MultiExitModel
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.store import own_parts, save_policy
from eenet.running.adaptive import require_parts, require_source
from eenet.running.engines import Engine, as_engine, plain_model
from eenet.running.engines.graphs import GraphEngineName, input_specs
from eenet.running.engines.programs import (
    example_tensors,
    require_exporter,
    require_float32,
    specs_of,
    stage_programs,
)
from eenet.running.exports import POLICY, open_export
from eenet.running.manifest import Manifest, require_described
from eenet.running.preparation import Preparation
from eenet.tables.arrays import log_softmax
from eenet.tables.atomic import atomic_path
from eenet.tables.costs import CostTable
from eenet.tables.files import MANIFEST, check_free, checksums, write_json

_TOLERANCE = 1e-4  # of the largest logit of an exit


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: The folder.
        manifest: The content of its ``manifest.json``.
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


def export(
    model: object,
    policy: Policy,
    example_inputs: Any,  # noqa: ANN401 - array-likes, see Args
    path: str | os.PathLike[str],
    *,
    engine: GraphEngineName = "onnxruntime",
    costs: CostTable | None = None,
    classes: Sequence[str] | None = None,
    preparation: Preparation | None = None,
    dial: Dial | None = None,
    check_source: bool = True,
) -> Exported:
    """Write a model and its policy as a folder that `open_export` and `AdaptiveModel` run without torch, atomically.

    Every stage becomes one graph with its head fused in, for any number of samples; all other sizes are those of the
    example inputs, but for those that `attach` left free, such as the length of texts. The folder is then opened and
    run on the example inputs, also cut and lengthened where sizes are free, samples being dropped between the stages;
    the logits of every exit must be the model's to within 1e-4 of its largest one. No code is stored. The manifest
    contains the SHA-256 of every file, which reveals damage and changes but is no signature.

    Args:
        model: The multi-exit model, or a cascade of models of PyTorch, in float32 on the CPU; it is exported as it is
            now, in evaluation mode, its flags restored.
        policy: Where to leave.
        example_inputs: What its inputs look like, a tensor or a mapping of tensors by name, at least 2 samples; real
            ones, for the check to mean something.
        path: The folder; an older export is replaced.
        engine: What will run it: ``onnxruntime`` or ``openvino``.
        costs: What leaving costs, reported with every answer.
        classes: Names of the classes, in label order.
        preparation: How raw images become inputs.
        dial: The same policy for every other budget.
        check_source: Refuse a policy that was fitted on a table of another model, as `AdaptiveModel` does.

    Returns:
        What was written.

    Raises:
        InputError: The engine is unknown, the policy cannot be saved or is that of another model, the model is not in
            float32, names are not one per class, or ``path`` is a folder of something else.
        MissingExtraError: What the engine needs is not installed.
        ShapeError: Model, policy, dial and costs disagree on the number of exits, model and policy on that of classes,
            the preparation makes inputs of another shape, or fewer than 2 samples are given.
        RunError: The logits of the graphs are not the model's.
    """
    require_exporter(engine)
    model = plain_model(model)
    original = as_engine(model, optimise=False)
    if check_source:
        require_source(policy, original)
    require_float32(model)
    inputs = example_tensors(example_inputs)
    logits = _logits(model, inputs)
    require_parts(model.num_exits, policy, costs, dial, num_classes=logits.shape[-1])
    require_described(input_specs(inputs), logits.shape[-1], classes, preparation)
    _require_decisions(policy, logits)
    with atomic_path(path, partial(check_free, what="export")) as draft:
        draft.mkdir()
        save_policy(policy, draft / POLICY, costs=costs, dial=dial)
        programs = stage_programs(model, inputs)
        specs = specs_of(model, inputs, programs[0])
        manifest = Manifest(
            engine=engine,
            source=original.source,
            num_exits=model.num_exits,
            num_classes=logits.shape[-1],
            inputs=specs,
            stages=tuple(_written(program, draft / f"stage_{k}", engine) for k, program in enumerate(programs)),
            costs=costs,
            classes=None if classes is None else tuple(classes),
            preparation=preparation,
            files=checksums(draft),
            original=model.original,
        )
        write_json(draft / MANIFEST, manifest.to_dict(), sealed=True)
        opened = open_export(draft, parts=own_parts(policy, dial)).engine
        error = _error(opened, inputs, logits)
        if isinstance(model.entry, SameForm) and any(spec.free for spec in specs):
            for other in model.entry.others(inputs):
                error = max(error, _error(opened, other, _logits(model, other)))
    return Exported(path=Path(path), manifest=manifest.to_dict(), error=error)


def _logits(model: MultiExitModel, inputs: Inputs) -> Float[np.ndarray, "sample exit class"]:
    """Return the logits of every exit for the example inputs."""
    with evaluating(model), torch.no_grad():
        outputs = [output.numpy() for output in model(inputs)]
    for k, output in enumerate(outputs):
        if output.ndim != 2 or output.shape != outputs[0].shape:
            raise ShapeError(
                f"logits of exit {k} of shape {output.shape} do not fit: exports decide on [sample, class]. Use heads "
                "that return one vector per sample; models of maps run in torch only."
            )
    return np.stack(outputs, axis=1)


def _require_decisions(policy: Policy, logits: Float[np.ndarray, "sample exit class"]) -> None:
    """Let the policy decide once at every exit, so that a fault in it appears now and not where the export runs."""
    seen, ids = log_softmax(logits), np.arange(len(logits))
    for k in range(policy.num_exits):
        policy.leaves(seen[:, : k + 1], ids)
        policy.answers(seen[:, : k + 1], ids)


def _written(program: bytes, stem: Path, engine: GraphEngineName) -> str:
    """Write one graph, and return the name of the file that describes it."""
    if engine == "onnxruntime":
        file = stem.with_suffix(".onnx")
        file.write_bytes(program)
    else:
        file, openvino = stem.with_suffix(".xml"), importlib.import_module("openvino")
        openvino.save_model(openvino.Core().read_model(program), file, compress_to_fp16=False)
    return file.name


def _error(engine: Engine, inputs: Inputs, logits: Float[np.ndarray, "sample exit class"]) -> float:
    """Return the graphs' largest error, one sample leaving after every stage; refuse more than is allowed."""
    state, rows, largest = engine.start(inputs), np.arange(len(logits)), 0.0
    for k in range(engine.num_exits):
        state = engine.stage(k, state)
        found, wanted = engine.head(k, state)[0], logits[rows, k]
        error = float(np.abs(found - wanted).max() / max(float(np.abs(logits[:, k]).max()), 1e-30))
        if not error <= _TOLERANCE:  # also where it is NaN
            raise RunError(
                f"export of stage {k} is wrong: its logits differ from the model's by {error:.2g} of the largest one, "
                f"{_TOLERANCE:g} is allowed. Try the other engine."
            )
        largest = max(largest, error)
        if len(rows) > 1:
            rows, state = rows[1:], engine.select(state, np.arange(1, len(rows)))
    return largest
