"""Inference that really stops early, without torch: samples that leave are dropped, the rest go on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet_runtime.confidence import Array, Doubles, Floats
from eenet_runtime.errors import ExportError, InputError
from eenet_runtime.inputs import check_ids, checked
from eenet_runtime.load import load_policy
from eenet_runtime.manifest import POLICY, Manifest, read_manifest
from eenet_runtime.policy import Flags, Ids, Policy
from eenet_runtime.queues import run_in_groups
from eenet_runtime.sessions import Session, opener
from eenet_runtime.softmax import log_softmax, log_softmax_one

__all__ = ["Model", "Prediction", "load"]

Inputs = ArrayLike | Mapping[str, ArrayLike]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What came out for a batch, in the order of its samples.

    Attributes:
        log_probs: The answers, as float32 log-probabilities ``[sample, class]``.
        exit_index: Where each sample left, 0-based.
        cost: What each sample cost, in the unit of the model's costs; None where none were exported.
    """

    log_probs: Floats
    exit_index: Ids
    cost: Doubles | None = None

    @property
    def labels(self) -> Ids:
        """The predicted classes."""
        labels: Ids = self.log_probs.argmax(axis=1)
        return labels


@final
class Model:
    """An exported model steered by its policy; makes the decisions of `eenet.AdaptiveModel` with the same engine.

    Made by `load`. Calls from several threads at once are not allowed: open one per thread.

    Args:
        manifest: What the model says about itself.
        policy: Where to leave.
        sessions: Its stages; each returns logits and what the next one reads.

    Attributes:
        manifest: As handed in: inputs, classes, costs, preparation.
        policy: As handed in.
        next_id: The id of the next sample, where none are given.
    """

    def __init__(self, manifest: Manifest, policy: Policy, sessions: list[Session]) -> None:
        self.manifest, self.policy = manifest, policy
        self.num_exits, self.num_classes = manifest.num_exits, manifest.num_classes
        self.next_id = 0
        self._sessions = sessions
        self._first = manifest.stages[0].takes
        self._seen = np.empty((manifest.num_exits, manifest.num_classes), dtype=np.float32)

    def __call__(self, inputs: Inputs, sample_ids: ArrayLike | None = None) -> Prediction:
        """Predict a batch.

        Args:
            inputs: An array where the model takes one input, else arrays by name; batch first.
            sample_ids: Names of the samples for policies that toss a coin; the same id always falls the same way.
                By default samples are counted from 0, going on from call to call (`next_id`).

        Raises:
            InputError: Inputs or ids do not fit.
        """
        state = self._state(inputs)
        count = len(state[0])
        if sample_ids is None:
            ids = np.arange(self.next_id, self.next_id + count, dtype=np.int64)
            self.next_id += count
        else:
            ids = check_ids(sample_ids, count)
        return self._prediction(*self._run(state, ids))

    def predict_all(self, batches: Iterable[Any], *, regroup: int | None = None) -> Prediction:
        """Predict every batch, counting samples from 0.

        Args:
            batches: Yields inputs, or tuples that begin with the inputs (and, say, labels).
            regroup: How many samples a stage shall run at once: samples that stay wait before the next stage until so
                many are there, from whichever batches. Work on leftovers of batches is saved where nobody waits for
                single answers; decisions change no more than they do at another batch size.

        Raises:
            InputError: There is no batch, one does not fit, or ``regroup`` is below 1.
        """
        if regroup is not None and regroup < 1:
            raise InputError(f"regroup {regroup} is too small: a stage runs at least 1 sample. Pass 1 or more.")
        states = (self._state(batch[0] if isinstance(batch, tuple | list) else batch) for batch in batches)
        if regroup is not None:
            return self._prediction(*run_in_groups(self.run_stage, self.policy, states, regroup))
        parts: list[tuple[Floats, Ids]] = []
        first = 0
        for state in states:
            count = len(state[0])
            parts.append(self._run(state, np.arange(first, first + count)))
            first += count
        if not parts:
            raise InputError("batches are empty: there is nothing to predict. Pass at least 1 sample.")
        log_probs, exit_index = (np.concatenate(part) for part in zip(*parts, strict=True))
        return self._prediction(log_probs, exit_index)

    def prepare(self, images: ArrayLike) -> Array:
        """Return raw images as the model takes them: scaled to 0 to 1 if they are uint8, then normalised.

        Args:
            images: ``[sample, channel, height, width]``, uint8 from 0 to 255 or floats from 0 to 1.

        Raises:
            InputError: The export does not say how, or images are of another shape, type or scale.
        """
        how, given = self.manifest.preparation, np.asarray(images)
        if how is None:
            raise InputError("images cannot be prepared: the export does not say how. Pass prepared inputs.")
        wanted = (len(how.mean), *how.size)
        if given.ndim != 4 or given.shape[1:] != wanted:
            shown = ", ".join(("sample", *map(str, wanted)))
            raise InputError(
                f"images of shape {given.shape} do not fit: the model takes ({shown}). Resize them (bilinear, with "
                "antialiasing)."
            )
        return how(given)

    def run_stage(self, k: int, state: list[Array], seen: Floats | None) -> tuple[Floats, list[Array]]:
        """Run stage ``k``; return what was seen with the newest exit behind it, and what stage ``k + 1`` reads."""
        logits, *state = self._sessions[k].run(state)
        newest = log_softmax(logits)[:, None]
        return newest if seen is None else np.concatenate((seen, newest), axis=1), state

    def _state(self, inputs: Inputs) -> list[Array]:
        """Return what stage 0 reads."""
        arrays = checked(inputs, self.manifest.inputs)
        return [arrays[i] for i in self._first]

    def _run(self, state: list[Array], ids: Ids) -> tuple[Floats, Ids]:
        """Return answers and exits of a batch."""
        return self._run_one(state, ids) if len(ids) == 1 else self._run_many(state, ids)

    def _run_one(self, state: list[Array], ids: Ids) -> tuple[Floats, Ids]:
        """Run one sample: nothing to gather, nothing to scatter."""
        sample_id, decide, k = int(ids[0]), self.policy.decide, 0
        while True:
            logits, *state = self._sessions[k].run(state)
            self._seen[k] = log_softmax_one(logits[0])
            seen = self._seen[: k + 1]
            if decide(seen, sample_id):
                return self.policy.answer(seen, sample_id)[None].copy(), np.array([k], dtype=np.int64)
            k += 1

    def _run_many(self, state: list[Array], ids: Ids) -> tuple[Floats, Ids]:
        """Run a batch, dropping the samples that leave after each stage."""
        log_probs = np.empty((len(ids), self.num_classes), dtype=np.float32)
        exit_index = np.full(len(ids), self.num_exits - 1, dtype=np.int64)
        rows, seen = np.arange(len(ids)), None
        for k in range(self.num_exits):
            seen, state = self.run_stage(k, state, seen)
            leaving = self.policy.leaves(seen, ids)
            gone, staying = _split(leaving)
            if len(gone):
                log_probs[rows[gone]], exit_index[rows[gone]] = self.policy.answers(seen[gone], ids[gone]), k
                if not len(staying):
                    break
                rows, ids, seen = rows[staying], ids[staying], seen[staying]
                state = [one.take(staying, axis=0) for one in state]
        return log_probs, exit_index

    def _prediction(self, log_probs: Floats, exit_index: Ids) -> Prediction:
        costs = self.manifest.costs
        cost = None if costs is None else costs.cumulative[exit_index]
        return Prediction(log_probs=log_probs, exit_index=exit_index, cost=cost)


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Model:
    """Open an exported model.

    Args:
        path: The folder that `eenet.export` or ``eenet export --out`` wrote.
        threads: How many threads the engine may use, None for its own choice.

    Raises:
        ExportError: It is missing, incomplete, was changed since it was written, or is of an unknown version.
        PolicyError: Its policy cannot be served.
        InputError: ``threads`` is below 1.
        MissingExtraError: The engine it was exported for is not installed.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads {threads} are too few: at least 1 is needed. Pass None for the engine's own choice.")
    folder = Path(path)
    manifest = read_manifest(folder)
    policy = load_policy(folder / POLICY)
    if policy.num_exits != manifest.num_exits or policy.num_classes not in (None, manifest.num_classes):
        raise ExportError(
            f"export {folder} is damaged: the policy has {policy.num_exits} exits, the model {manifest.num_exits}. "
            "Export the model again."
        )
    open_session = opener(manifest.engine, threads)
    reads = [tuple(f"next_{i}" for i in stage.takes) for stage in manifest.stages[1:]]
    sessions = [
        open_session(folder / stage.file, stage, ("logits", *wanted))
        for stage, wanted in zip(manifest.stages, [*reads, ()], strict=True)
    ]
    return Model(manifest, policy, sessions)


def _split(leaving: Flags) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows that leave and those that stay."""
    return leaving.nonzero()[0], (~leaving).nonzero()[0]
