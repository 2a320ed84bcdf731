"""Writing a folder that runs without torch: one graph per stage, the policy, and a manifest of both."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from eenet.errors import RunError, ShapeError
from eenet.models.inputs import Inputs, evaluating
from eenet.models.model import MultiExitModel
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.store import save_policy
from eenet.running.adaptive import require_parts
from eenet.running.engines.eager import fingerprint
from eenet.running.engines.graphs import LOGITS, NEXT, GraphEngine, GraphEngineName, input_specs, opener
from eenet.running.engines.programs import example_tensors, require_exporter, require_float32, stage_programs
from eenet.running.exports import POLICY, opened_graphs
from eenet.running.manifest import Manifest, Preparation, StageSpec, require_described
from eenet.tables.arrays import batch_size, log_softmax
from eenet.tables.costs import CostTable
from eenet.tables.files import MANIFEST, atomic_path, check_free, checksums, write_json

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
    model: MultiExitModel,
    policy: Policy,
    example_inputs: Any,  # noqa: ANN401 - array-likes, see Args
    path: str | os.PathLike[str],
    *,
    engine: GraphEngineName = "onnxruntime",
    costs: CostTable | None = None,
    classes: Sequence[str] | None = None,
    preparation: Preparation | None = None,
    dial: Dial | None = None,
) -> Exported:
    """Write a model and its policy as a folder that `open_export` and `AdaptiveModel` run without torch, atomically.

    Every stage becomes one graph with its head fused in, for any number of samples; all other sizes are those of the
    example inputs. The files are then opened again and run on the example inputs, samples being dropped between the
    stages; the logits of every exit must be the model's to within 1e-4 of its largest one. No code is stored. The
    manifest contains the SHA-256 of every file, which reveals damage and changes but is no signature.

    Args:
        model: The multi-exit model, in float32 on the CPU; it is exported as it is now, in evaluation mode, its flags
            restored.
        policy: Where to leave.
        example_inputs: What its inputs look like, a tensor or a mapping of tensors by name, at least 2 samples; real
            ones, for the check to mean something.
        path: The folder; an older export is replaced.
        engine: What will run it: ``onnxruntime`` or ``openvino``.
        costs: What leaving costs, reported with every answer.
        classes: Names of the classes, in label order.
        preparation: How raw images become inputs.
        dial: The same policy for every other budget.

    Returns:
        What was written.

    Raises:
        InputError: The engine is unknown, the policy cannot be saved, the model is not in float32, names are not one
            per class, or ``path`` is a folder of something else.
        MissingExtraError: What the engine needs is not installed.
        ShapeError: Model, policy, dial and costs disagree on the number of exits, model and policy on that of classes,
            the preparation makes inputs of another shape, or fewer than 2 samples are given.
        RunError: The logits of the graphs are not the model's.
    """
    require_exporter(engine)
    check_free(Path(path), "export")
    require_float32(model)
    inputs = example_tensors(example_inputs)
    logits = _logits(model, inputs)
    require_parts(model.num_exits, policy, costs, dial, num_classes=logits.shape[-1])
    require_described(input_specs(inputs), logits.shape[-1], classes, preparation)
    _require_decisions(policy, logits)
    with atomic_path(path) as draft:
        draft.mkdir()
        save_policy(policy, draft / POLICY, costs=costs, dial=dial, source=fingerprint(model))
        manifest = Manifest(
            engine=engine,
            num_exits=model.num_exits,
            num_classes=logits.shape[-1],
            inputs=input_specs(inputs),
            stages=_write_stages(model, inputs, draft, engine),
            costs=costs,
            classes=None if classes is None else tuple(classes),
            preparation=preparation,
            files=checksums(draft),
        )
        error = _check(draft, manifest, inputs, logits)
        write_json(draft / MANIFEST, manifest.to_dict())
    return Exported(path=Path(path), manifest=manifest.to_dict(), error=error)


def _logits(model: MultiExitModel, inputs: Inputs) -> Float[np.ndarray, "sample exit class"]:
    """Return the logits of every exit for the example inputs."""
    if batch_size(inputs) < 2:
        raise ShapeError(
            "example_inputs of 1 sample are not enough: the batch must differ from the other sizes. Pass at least 2."
        )
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
    """Let the policy decide once at every exit: what it lacks, it lacks now and not where the export runs."""
    seen, ids = log_softmax(logits), np.arange(len(logits))
    for k in range(policy.num_exits):
        policy.leaves(seen[:, : k + 1], ids)
        policy.answers(seen[:, : k + 1], ids)


def _write_stages(
    model: MultiExitModel, inputs: Inputs, folder: Path, engine: GraphEngineName
) -> tuple[StageSpec, ...]:
    """Write one graph per stage; return the files with what each takes and returns, as the engine opens it."""
    stages, opened = [], opener(engine, None)
    for k, program in enumerate(stage_programs(model, inputs)):
        if engine == "onnxruntime":
            file = folder / f"stage_{k}.onnx"
            file.write_bytes(program)
        else:
            file = folder / f"stage_{k}.xml"
            openvino = importlib.import_module("openvino")
            openvino.save_model(openvino.Core().read_model(program), file, compress_to_fp16=False)
        graph = opened(file)
        following = [f"{NEXT}{i}" for i in range(len(graph.outputs) - 1)]
        stages.append(StageSpec(file.name, tuple(one.name for one in graph.inputs), (LOGITS, *following)))
    return tuple(stages)


def _check(folder: Path, manifest: Manifest, inputs: Inputs, logits: Float[np.ndarray, "sample exit class"]) -> float:
    """Return how far the graphs' logits are from the model's, one sample leaving after every stage; refuse too far."""
    engine = GraphEngine(opened_graphs(folder, manifest, None), manifest.inputs, name=manifest.engine)
    state, rows, largest = engine.start(inputs), np.arange(len(logits)), 0.0
    for k in range(manifest.num_exits):
        state = engine.stage(k, state)
        found, wanted = engine.head(k, state)[0], logits[rows, k]
        error = float(np.abs(found - wanted).max() / max(float(np.abs(logits[:, k]).max()), 1e-30))
        if not error <= _TOLERANCE:  # also where it is no number
            raise RunError(
                f"export of stage {k} is wrong: its logits differ from the model's by {error:.2g} of the largest one, "
                f"{_TOLERANCE:g} is allowed. Try the other engine."
            )
        largest = max(largest, error)
        if len(rows) > 1:
            rows, state = rows[1:], engine.select(state, np.arange(1, len(rows)))
    return largest
