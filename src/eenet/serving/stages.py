"""One stage of an exported model by itself, for whoever carries samples from stage to stage, such as Ray."""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float32, Int

from eenet.errors import EenetError, InputError, RunError
from eenet.policies.mixture import UpTo
from eenet.policies.policy import Policy
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines.base import Engine
from eenet.running.exports import OpenedExport, open_export
from eenet.running.inputs import Inputs, shapes_of
from eenet.running.loop import Group, Loop
from eenet.running.sent import Sent
from eenet.running.split import split_export
from eenet.running.tiers import received, sent_on
from eenet.tables.costs import Budget, BudgetLike

_KEPT = 256  # policies


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """Samples of one request, on their way to a stage.

    Attributes:
        ids: Of the samples.
        inputs: Before stage 0; None later.
        state: Before later stages, see `Sent`; None before stage 0.
        budget: In the unit of the dial; None: the export's own policy decides.
        max_exit: Where they leave at the latest; None: at the last exit.
    """

    ids: Int[np.ndarray, " sample"]
    inputs: Inputs | None = None
    state: bytes | None = None
    budget: float | None = None
    max_exit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage did with a parcel.

    Attributes:
        left: Places, in the parcel, of the samples that leave here.
        log_probs: What these are answered.
        stay: Places of the others.
        so_far: What the others would be answered if they left here.
        rest: The others, for the next stage; None where nobody stays.
        error: Why the parcel could not be run; None where it was.
        ran: Samples, samples that stayed, and seconds, of the batch in which it ran; of one parcel of each batch.
    """

    left: Int[np.ndarray, " left"]
    log_probs: Float32[np.ndarray, "left class"] | None
    stay: Int[np.ndarray, " kept"]
    so_far: Float32[np.ndarray, "kept class"] | None = None
    rest: Parcel | None = None
    error: EenetError | None = None
    ran: tuple[int, int, float] | None = None


@final
class Stage:
    """Runs one stage of an export, and its exit; it has no weights of the others.

    What becomes of a parcel depends on nothing but the parcel: it may be run again, elsewhere.

    Args:
        export: The folder of the whole export.
        index: Of the stage.
        threads: Of its engine; None: its own choice.

    Raises:
        BundleError, InputError, MissingExtraError: As of `open_export` and `split_export`.
    """

    def __init__(self, export: str | os.PathLike[str], index: int, threads: int | None = None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "stage"
            split_export(export, part, first=index, last=index)
            self.opened: OpenedExport = open_export(part, threads)
        self.index, self.num_exits = index, self.opened.engine.num_exits
        self._policies: dict[tuple[float | None, int | None], Policy] = {}

    @property
    def engine(self) -> Engine:
        """What runs."""
        return self.opened.engine

    def run(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        """Run parcels together; one that cannot be run fails alone."""
        began = time.perf_counter()
        try:
            found = self._together(parcels)
        except Exception as error:  # noqa: BLE001 - whatever an engine or a policy raises belongs to the samples
            if len(parcels) == 1:
                return [_failed(error)]
            return [self.run([one])[0] for one in parcels]
        size, stay = sum(len(one.ids) for one in parcels), sum(len(one.stay) for one in found)
        found[0] = replace(found[0], ran=(size, stay, time.perf_counter() - began))
        return found

    def _together(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        by_shape: dict[Hashable, list[int]] = defaultdict(list)
        found: dict[int, Outcome] = {}
        with self.engine.session():
            groups = [self._group(one) for one in parcels]
            for i, group in enumerate(groups):
                by_shape[group.shapes].append(i)
            for members in by_shape.values():
                outcomes = self._ran([groups[i] for i in members], [parcels[i] for i in members])
                found |= dict(zip(members, outcomes, strict=True))
        return [found[i] for i in range(len(parcels))]

    def _group(self, parcel: Parcel) -> Group:
        """Return the samples of a parcel, each by its place in it."""
        policy, count = self._policy(parcel), len(parcel.ids)
        if parcel.state is None:
            state = self.engine.start(parcel.inputs)
            assert parcel.inputs is not None
            group = Group(state, parcel.ids, np.arange(count), policy, shapes_of(parcel.inputs))
        else:
            sent = Sent.from_bytes(parcel.state)
            if sent.exit + 1 != self.index:
                raise InputError(f"state after exit {sent.exit} does not fit: this is stage {self.index}.")
            group = received(self.engine, sent, policy)
            group.places = np.arange(count)
            group.shapes = tuple(array.shape[1:] for array in sent.arrays)
        group.own = np.empty(count, dtype=object)
        group.own[:] = policy
        return group

    def _policy(self, parcel: Parcel) -> Policy:
        """Return the policy of a parcel; the same object for the same wishes."""
        key = (parcel.budget, parcel.max_exit)
        found = self._policies.get(key)
        if found is None:
            found, dial = self.opened.policy, self.opened.dial
            if parcel.budget is not None:
                if dial is None:
                    raise InputError(f"budget {parcel.budget:g} cannot be followed: the export has no dial.")
                found = dial.at(Budget(parcel.budget, "", "", dial.costs.unit))
            if parcel.max_exit is not None:
                found = UpTo(found, parcel.max_exit)
            if len(self._policies) >= _KEPT:
                self._policies.clear()
            self._policies[key] = found
        return found

    def _ran(self, groups: Sequence[Group], parcels: Sequence[Parcel]) -> list[Outcome]:
        """Run groups of the same shapes as one, and divide what comes out."""
        starts = np.cumsum([0, *(len(group.ids) for group in groups)])
        for group, start in zip(groups, starts, strict=False):
            group.places = group.places + start
        loop = Loop(self.engine, groups[0].policy)
        rest = loop.through(loop.joined(groups), self.index, self.index)
        none = np.empty(0, dtype=np.int64)
        places = np.concatenate([none, *(part.places for part in loop.left)])
        answers = np.concatenate([part.answers for part in loop.left]) if loop.left else None
        found = []
        for parcel, (low, high) in zip(parcels, pairwise(starts.tolist()), strict=True):
            rows = np.flatnonzero((places >= low) & (places < high))
            rows = rows[np.argsort(places[rows])]
            outcome = Outcome(left=places[rows] - low, log_probs=None if answers is None else answers[rows], stay=none)
            if rest is not None:
                kept = np.flatnonzero((rest.places >= low) & (rest.places < high))
                if len(kept):
                    outcome = self._going_on(outcome, parcel, loop.kept(self.index, rest, rest.state, kept), low)
            found.append(outcome)
        return found

    def _going_on(self, outcome: Outcome, parcel: Parcel, group: Group, start: int) -> Outcome:
        """Return the outcome of a parcel some of whose samples stay."""
        assert group.seen is not None
        places = group.places - start
        so_far = group.answers(group.seen[:, : self.index + 1], slice(None))
        group.places = np.arange(len(places))
        state = sent_on(self.engine, group, self.index).to_bytes()
        return replace(
            outcome, stay=places, so_far=so_far, rest=replace(parcel, ids=group.ids, inputs=None, state=state)
        )


def asked_of_dial(model: AdaptiveModel, budget: BudgetLike) -> float:
    """Return a budget in the unit of the model's dial, as `Parcel` has it.

    Raises:
        BudgetError: As of `AdaptiveModel.at`.
        InputError: As of `AdaptiveModel.at`.
    """
    model.at(budget)
    assert model.dial is not None
    costs = model.costs or model.dial.costs
    factor = costs.factor(model.dial.costs)
    assert factor is not None
    return max(costs.budget(budget).value * factor, model.dial.costs.low)


def _failed(error: Exception) -> Outcome:
    """Return the outcome of a parcel that cannot be run."""
    if not isinstance(error, EenetError):
        error = RunError(f"stage failed: {type(error).__name__}: {error}. Check the sample.")
    none = np.empty(0, dtype=np.int64)
    return Outcome(left=none, log_probs=None, stay=none, error=error)
