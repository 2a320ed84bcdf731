"""Reading a folder that `eenet.running.exporting` wrote, and running it; without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from eenet.errors import BundleError, EenetError, InputError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.store import load_policy
from eenet.running.adaptive import require_parts
from eenet.running.engines.base import Engine
from eenet.running.engines.graphs import (
    LOGITS,
    NEXT,
    STATE,
    Graph,
    GraphEngine,
    TensorSpec,
    opener,
    reason,
    require_samples,
)
from eenet.running.manifest import Manifest, StageSpec
from eenet.tables.costs import CostTable

POLICY = "policy"
"""The folder of the policy inside an export."""

_LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class OpenedExport:
    """An export, ready to run: ``AdaptiveModel(opened.engine, opened.policy, opened.costs, dial=opened.dial)``.

    Attributes:
        engine: Runs the stages. One caller at a time; open the folder again for another thread.
        policy: Where to leave.
        dial: The same fit for every other budget, where it was exported.
        costs: What leaving costs, where known.
        manifest: Inputs, classes, preparation.
    """

    engine: Engine
    policy: Policy
    dial: Dial | None
    costs: CostTable | None
    manifest: Manifest

    def prepare(self, images: Any) -> Float32[np.ndarray, "sample channel height width"]:  # noqa: ANN401
        """Return raw images as the model takes them, see `Preparation`.

        Raises:
            InputError: The export does not say how, or images of another type or scale.
            ShapeError: Images of another shape.
        """
        if self.manifest.preparation is None:
            raise InputError("images cannot be prepared: the export does not say how. Pass prepared inputs.")
        return self.manifest.preparation(images)

    def samples(
        self, arrays: Mapping[str, np.ndarray], source: str | os.PathLike[str]
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Return inputs by the model's names, and labels where there are some.

        Args:
            arrays: By name; a model of one input takes the only array whatever its name, the true classes stand under
                ``labels``.
            source: Where they come from, for messages.

        Raises:
            InputError: Other names, no samples, different numbers of them, or labels that are no classes.
        """
        inputs, names = dict(arrays), [one.name for one in self.manifest.inputs]
        labels = None if _LABELS in names else inputs.pop(_LABELS, None)
        if len(names) == len(inputs) == 1:
            inputs = {names[0]: next(iter(inputs.values()))}
        if set(inputs) != set(names):
            raise InputError(
                f"inputs {source} contain {sorted(inputs)} and do not fit: the model takes {names}. Store arrays by "
                "these names."
            )
        require_samples({name: inputs[name] for name in names}, f"inputs {source}")
        if labels is not None:
            _require_labels(labels, len(inputs[names[0]]), self.manifest.num_classes)
        return inputs, labels

    def batches(self, inputs: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches of inputs; raw images (uint8 where the model takes another type) are prepared.

        Args:
            inputs: By name, as `samples` returns them.
            size: Samples per batch.
        """
        for first in range(0, len(next(iter(inputs.values()))), size):
            batch = {name: array[first : first + size] for name, array in inputs.items()}
            for one in self.manifest.inputs:
                if self.manifest.preparation is not None and batch[one.name].dtype == np.uint8 != one.dtype:
                    batch[one.name] = self.prepare(batch[one.name])
            yield batch


def _require_labels(labels: np.ndarray, count: int, num_classes: int) -> None:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"labels of shape {labels.shape} and type {labels.dtype} do not fit: there are {count} samples. Pass one "
            "class number per sample."
        )
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(outside.argmax())
        raise InputError(
            f"labels contain {int(labels[row])} at sample {row}: there are {num_classes} classes, 0 to "
            f"{num_classes - 1}. Correct the labels."
        )


def open_export(path: str | os.PathLike[str], threads: int | None = None) -> OpenedExport:
    """Open an export; everything is checked before anything runs.

    Args:
        path: The folder that `eenet.running.exporting` or ``eenet export --out`` wrote.
        threads: How many threads the engine may use, None for its own choice.

    Raises:
        BundleError: It is missing, incomplete, was changed since it was written, is of another version, or its parts
            do not fit together.
        InputError: ``threads`` is below 1.
        MissingExtraError: The engine it was exported for is not installed.
    """
    if threads is not None and threads < 1:
        raise InputError(
            f"threads {threads} cannot be used: at least 1 is needed. Pass None for the engine's own choice."
        )
    folder = Path(path)
    manifest = Manifest.read(folder)
    try:
        saved = load_policy(folder / POLICY)
        require_parts(manifest.num_exits, saved.policy, saved.costs, saved.dial, num_classes=manifest.num_classes)
        if saved.costs != manifest.costs:
            raise InputError(f"costs {saved.costs} of the policy are not those of the manifest, {manifest.costs}.")
    except EenetError as error:
        raise BundleError(f"export {folder} is damaged: {reason(error)} Export the model again.") from error
    graphs = opened_graphs(folder, manifest, threads)
    engine = GraphEngine(graphs, manifest.inputs, name=manifest.engine, threads=threads, source=saved.source)
    return OpenedExport(engine=engine, policy=saved.policy, dial=saved.dial, costs=manifest.costs, manifest=manifest)


def opened_graphs(folder: Path, manifest: Manifest, threads: int | None) -> list[Graph]:
    """Return the graphs of an export, opened and compared with its manifest and with each other.

    Raises:
        BundleError: The engine cannot open a graph, or it is not the one that the manifest describes.
        MissingExtraError: The engine is not installed.
    """
    opened, graphs = opener(manifest.engine, threads), []
    given = {f"{STATE}{i}": one for i, one in enumerate(manifest.inputs)}  # what a stage is given, by name
    for stage in manifest.stages:
        try:
            graph = opened(folder / stage.file)
        except Exception as error:
            raise BundleError(
                f"graph {folder / stage.file} cannot be opened: {reason(error)} Update {manifest.engine}, or export "
                "the model again."
            ) from error
        fault = _fault(graph, stage, given, manifest.num_classes)
        if fault:
            raise BundleError(
                f"graph {folder / stage.file} does not fit its manifest: {fault}. Export the model again."
            )
        graphs.append(graph)
        returned = {one.name: one for one in graph.outputs}
        given = {f"{STATE}{name.removeprefix(NEXT)}": returned[name] for name in stage.outputs[1:]}
    return graphs


def _fault(graph: Graph, stage: StageSpec, given: Mapping[str, TensorSpec], num_classes: int) -> str | None:
    """Return in what a graph differs from what its stage must be."""
    inputs, outputs = ({one.name: one for one in ports} for ports in (graph.inputs, graph.outputs))
    if set(inputs) != set(stage.inputs) or not set(stage.outputs) <= set(outputs):
        return f"it takes {sorted(inputs)} and returns {sorted(outputs)}"
    for name, one in inputs.items():
        if one.dtype != given[name].dtype or not _alike(one.shape, given[name].shape):
            return f"it takes {name} as {_described(one)} and is given {_described(given[name])}"
    if not _alike(outputs[LOGITS].shape, (num_classes,)):
        return f"it returns logits as {_described(outputs[LOGITS])}, and there are {num_classes} classes"
    return None


def _alike(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    """Return whether two shapes can be the same, as far as their sizes are known."""
    return len(a) == len(b) and all(None in (x, y) or x == y for x, y in zip(a, b, strict=True))


def _described(one: TensorSpec) -> str:
    return f"{one.dtype} [{', '.join(('sample', *('?' if size is None else str(size) for size in one.shape)))}]"
