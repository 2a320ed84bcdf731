"""Reading a folder that `eenet.running.exporting` wrote, and running it; without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from eenet.errors import BundleError, EenetError, InputError, ShapeError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.scorers import Part
from eenet.policies.store import NeedsParts, load_policy
from eenet.running.adaptive import require_parts
from eenet.running.engines.base import Engine
from eenet.running.engines.graphs import (
    LOGITS,
    NEXT,
    STATE,
    Graph,
    GraphEngine,
    TensorSpec,
    alike,
    opener,
    reason,
    require_samples,
)
from eenet.running.manifest import Manifest
from eenet.running.preparation import is_on_scale, require_scale
from eenet.tables.atomic import steady
from eenet.tables.checks import check_labels, number
from eenet.tables.costs import CostTable

POLICY = "policy"
"""The folder of the policy inside an export."""

_LABELS, _RAW = "labels", "images"
_LOOKED_AT = 64  # samples, to see what an array contains


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
            arrays: By name; a model of one input takes the only array whatever its name, the true classes are under
                ``labels``. Where the preparation is known, ``images`` are raw images and are prepared.
            source: Where they come from, for messages.

        Raises:
            InputError: Other names, no samples, different numbers of them, labels that are not one class each, or
                numbers that may be raw images as well as prepared ones.
        """
        inputs, names = dict(arrays), [one.name for one in self.manifest.inputs]
        labels = None if _LABELS in names else inputs.pop(_LABELS, None)
        if len(names) == len(inputs) == 1:
            [(given, array)] = inputs.items()
            inputs = {names[0]: array if given == names[0] else self._as_inputs(given, array, source)}
        if set(inputs) != set(names):
            raise InputError(
                f"inputs {source} contain {sorted(inputs)} and do not fit: the model takes {names}. Store arrays by "
                "these names."
            )
        require_samples({name: inputs[name] for name in names}, f"inputs {source}")
        if labels is not None:
            if labels.shape != (count := len(inputs[names[0]]),):
                raise ShapeError(
                    f"labels of shape {labels.shape} do not fit: there are {count} samples. Pass one class each."
                )
            check_labels(labels, self.manifest.num_classes)
        return inputs, labels

    def _as_inputs(self, name: str, array: np.ndarray, source: str | os.PathLike[str]) -> np.ndarray:
        """Return an array of another name than the model's input: raw floats prepared, bytes left to `batches`.

        Where the name does not say whether floats are prepared, they must not be on a scale of raw ones, 0 to 1 or
        0 to 255.
        """
        how = self.manifest.preparation
        if how is None or array.dtype.kind != "f" or array.shape[1:] != how.raw_shape:
            return array
        if name == _RAW or how.raw_shape != how.shape:
            return how(array)
        first = array[:_LOOKED_AT]
        if {*how.mean} == {0.0} and {*how.std} == {1.0}:  # raw and prepared are the same
            require_scale(array)
        elif len(first) and is_on_scale(first).all():
            raise InputError(
                f"inputs {source} are floats from 0 to 1: they may be raw images, or prepared already. Store them in a "
                f".npz, raw images under {_RAW!r}, prepared ones under {self.manifest.inputs[0].name!r}."
            )
        elif len(first) and first.min() >= 0 and first.max() > 1.1 * how.highest:
            raise InputError(
                f"inputs {source} are floats from {first.min():g} to {first.max():g}, outside 0 to 1: raw images are "
                f"on that scale, and prepared ones are {how.highest:.3g} at most. Divide them by 255, and store them "
                f"in a .npz under {_RAW!r}; or pass uint8 from 0 to 255."
            )
        return array

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


@steady
def open_export(
    path: str | os.PathLike[str], threads: int | None = None, *, parts: Sequence[type[Part]] = ()
) -> OpenedExport:
    """Open an export; everything is checked before anything runs.

    Args:
        path: The folder that `eenet.running.exporting` or ``eenet export --out`` wrote.
        threads: How many threads the engine may use, None for its own choice.
        parts: Classes of yours that its policy consists of.

    Raises:
        BundleError: It is missing, incomplete, was changed since it was written, is of another version, or its parts
            do not fit together.
        InputError: ``threads`` is below 1.
        MissingExtraError: The engine it was exported for is not installed.
    """
    if threads is not None:
        threads = int(number(threads, "threads", 1, whole=True))
    folder = Path(path)
    manifest = Manifest.read(folder)
    try:
        saved = load_policy(folder / POLICY, parts)
        require_parts(manifest.num_exits, saved.policy, saved.costs, saved.dial, num_classes=manifest.num_classes)
        if saved.costs != manifest.costs:
            raise InputError(f"costs {saved.costs} of the policy are not those of the manifest, {manifest.costs}.")
    except NeedsParts:
        raise
    except EenetError as error:
        raise BundleError(f"export {folder} is damaged: {reason(error)} Export the model again.") from error
    engine = GraphEngine(
        _graphs(folder, manifest, threads),
        manifest.inputs,
        name=manifest.engine,
        threads=threads,
        source=manifest.source,
        first=manifest.first,
        num_exits=manifest.num_exits,
        sends=manifest.sends,
        original=manifest.original,
    )
    return OpenedExport(engine=engine, policy=saved.policy, dial=saved.dial, costs=manifest.costs, manifest=manifest)


def _graphs(folder: Path, manifest: Manifest, threads: int | None) -> list[Graph]:
    """Return the graphs of an export, opened and compared with its manifest and with each other."""
    opened, graphs = opener(manifest.engine, threads), []
    # what a stage is given, by name; where the stage before is elsewhere, what it asks for
    given = None if manifest.first else {f"{STATE}{i}": one for i, one in enumerate(manifest.inputs)}
    for k, file in enumerate(manifest.stages, manifest.first):
        try:
            graph = opened(folder / file)
        except Exception as error:
            raise BundleError(
                f"graph {folder / file} cannot be opened: {reason(error)} Update {manifest.engine}, or export the "
                "model again."
            ) from error
        returned = {one.name: one for one in graph.outputs}
        given = {one.name: one for one in graph.inputs} if given is None else given
        if k == manifest.original:  # so that it can run on the inputs as well
            given = {name: one for name, one in given.items() if int(name.removeprefix(STATE)) < len(manifest.inputs)}
        if fault := _fault(graph.inputs, returned, given, manifest.num_classes):
            raise BundleError(f"graph {folder / file} does not fit its manifest: {fault}. Export the model again.")
        graphs.append(graph)
        given = {name.replace(NEXT, STATE): one for name, one in returned.items() if name != LOGITS}
    if missing := [i for i in manifest.sends if f"{STATE}{i}" not in (given or {})]:
        raise BundleError(
            f"export {folder} is damaged: its last stage does not return tensor {missing[0]}, which it is to send. "
            "Export the model again."
        )
    return graphs


def _fault(
    inputs: Sequence[TensorSpec], outputs: Mapping[str, TensorSpec], given: Mapping[str, TensorSpec], num_classes: int
) -> str | None:
    """Return what is wrong with a graph: what it takes and is not given, or logits of other classes."""
    for one in inputs:
        wanted = given.get(one.name)
        if wanted is None or one.dtype != wanted.dtype or not alike(one.shape, wanted.shape):
            found = _described(wanted) if wanted else sorted(given)
            return f"it takes {one.name} as {_described(one)} and is given {found}"
    logits = outputs.get(LOGITS)
    if logits is None or logits.dtype.kind != "f" or not alike(logits.shape, (num_classes,)):
        found = f"logits as {_described(logits)}" if logits else sorted(outputs)
        return f"it returns {found}, and there are {num_classes} classes"
    return None


def _described(one: TensorSpec) -> str:
    return f"{one.dtype} [{', '.join(('sample', *('?' if size is None else str(size) for size in one.shape)))}]"
