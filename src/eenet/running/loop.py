"""The one loop: feed, run a stage, read its exit, let samples leave, and let the others wait for the next stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64, Int

from eenet.errors import InputError, RunError, ShapeError
from eenet.policies.policy import Policy
from eenet.running.engines.base import Engine, State, require_samples_first
from eenet.running.inputs import Inputs, Shapes, joined, rows_of, shapes_of
from eenet.tables.arrays import log_softmax

_ALL = slice(None)
Rows: TypeAlias = "slice | Int[np.ndarray, ' kept']"


class _Left(NamedTuple):
    """Samples that left together, and their answers: log-probabilities of classes, else what the head answered."""

    exit_index: int
    places: Int[np.ndarray, " left"]
    answers: Any
    classes: bool


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What came out for a batch, in the order of its samples.

    Attributes:
        exit_index: Where each sample left, 0-based.
        log_probs: The answers, as log-probabilities; None where the model does not classify whole samples.
        outputs: The answers: the log-probabilities; of maps the class of every pixel, at the size of the inputs (a list
            where sizes differ); else what the heads answered.
        cost: What each sample cost, in the unit of the cost table; None where none was given.
    """

    exit_index: Int[np.ndarray, " sample"]
    log_probs: Float32[np.ndarray, "sample class"] | None
    outputs: Any
    cost: Float64[np.ndarray, " sample"] | None = None

    @property
    def labels(self) -> Any:  # noqa: ANN401 - an array, or a list of maps of several sizes
        """The predicted class of every sample, or of every pixel.

        Raises:
            InputError: The model answers with something else.
        """
        if self.log_probs is not None:
            return self.log_probs.argmax(axis=1)
        first = self.outputs[0]
        if not isinstance(first, np.ndarray) or first.dtype.kind != "i":
            raise InputError("labels are unknown: the model's heads answer with no classes. Read outputs.")
        return self.outputs


@dataclass(slots=True)
class Group:
    """Samples that travel together.

    Attributes:
        state: Before the next stage.
        ids: Of the samples, for mixed policies.
        places: Which samples, counted from 0 in the order they were fed.
        policy: Which they follow.
        shapes: Of their inputs: samples of other shapes cannot join.
        seen: The outputs of the exits so far, with room for those of all later exits; None before stage 0.
        borrowed: The state may be what was fed, which its owner may overwrite before the next batch.
        own: The policy of each sample, where they follow several; None: all follow ``policy``.
    """

    state: State
    ids: np.ndarray
    places: np.ndarray
    policy: Policy
    shapes: Shapes = ()
    seen: np.ndarray | None = None
    borrowed: bool = False
    own: np.ndarray | None = None

    def followers(self) -> list[tuple[Policy, Rows]]:
        """Return each policy that samples follow, with their rows."""
        own = [self.policy] if self.own is None else self.own.tolist()
        policies = {id(one): one for one in own}
        if len(policies) == 1:
            return [(own[0], _ALL)]
        followed = np.array([id(one) for one in own])
        return [(one, np.flatnonzero(followed == key)) for key, one in policies.items()]

    def decide(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return who leaves, as `Policy.decide` of each sample's policy says, and the answers where these are known."""
        followers = self.followers()
        if len(followers) == 1:
            return followers[0][0].decide(seen, self.ids)
        leaves = np.empty(len(seen), dtype=np.bool_)
        for policy, rows in followers:
            leaves[rows] = policy.leaves(seen[rows], self.ids[rows])
        return leaves, None

    def answers(self, seen: np.ndarray, rows: Rows) -> np.ndarray:
        """Return what samples that leave now are answered with, each by its policy."""
        if self.own is None:
            return self.policy.answers(seen[rows], self.ids[rows])
        leaving = Group(None, self.ids[rows], self.places[rows], self.policy, own=self.own[rows])
        seen = seen[rows]
        answers = np.empty_like(seen[:, -1])
        for policy, of in leaving.followers():
            answers[of] = policy.answers(seen[of], leaving.ids[of])
        return answers


class Loop:
    """Runs samples through an engine, stage by stage, and lets a policy decide who leaves.

    There is one queue before every stage, and a stage runs as soon as ``full`` samples wait before it. With 1 no sample
    ever waits: a batch runs through all stages at once and shrinks as its samples leave. With more, late stages run on
    full batches as well. Only samples whose inputs have the same shape wait together.

    Args:
        engine: What runs.
        policy: Where to leave.
        full: How many samples a stage waits for.
    """

    def __init__(self, engine: Engine, policy: Policy, full: int = 1) -> None:
        self.engine, self.policy, self.full = engine, policy, full
        self.left: list[_Left] = []
        self.fed = 0
        self._last = engine.num_exits - 1
        self._queues: list[dict[Shapes, list[Group]]] = [{} for _ in range(engine.num_exits)]

    def feed(self, inputs: Inputs, sample_ids: Int[np.ndarray, " sample"]) -> None:
        """Take in a batch with int64 ids, and run the stages before which enough samples wait.

        Raises:
            InputError: The policy does not suit exits that name no classes.
            RunError: An exit returns NaN or infinity.
            ShapeError: The policy was made for other exits or classes, or the state has not the samples in its first
                axis.
        """
        places = np.arange(self.fed, self.fed + len(sample_ids))
        self.fed += len(sample_ids)
        with self.engine.session():
            state = self.engine.start(inputs)
            if self.full == 1:
                self.through(Group(state, sample_ids, places, self.policy.following(sample_ids)))
                return
            require_samples_first(self.engine, state, -1, len(sample_ids))
            self._put(0, Group(state, sample_ids, places, self.policy, shapes_of(inputs), borrowed=True))
            self._run(self.full)
            self._keep()

    def finish(self, costs: Float64[np.ndarray, " exit"] | None = None) -> Prediction:
        """Run all that still waits, and return what came out for all samples, which is one at least.

        Args:
            costs: What leaving at each exit costs, where that is known.
        """
        if self.full > 1:
            with self.engine.session():
                self._run(1)
        return gathered(self.left, costs)

    def through(self, group: Group, first: int = 0, last: int | None = None) -> Group | None:
        """Run a group through some stages at once, default: all; return who stays after them, None: nobody does."""
        rest: Group | None = group
        for k in range(first, self._last + 1 if last is None else last + 1):
            if rest is None:
                break
            rest = self._step(k, rest)
        return rest

    def _run(self, full: int) -> None:
        """Run every stage before which so many samples wait."""
        for k, queues in enumerate(self._queues):
            for queue in queues.values():
                if sum(len(group.ids) for group in queue) >= full:
                    group = self.joined(queue)
                    queue.clear()
                    rest = self._step(k, group)
                    if rest is not None:
                        self._put(k + 1, rest)

    def _put(self, k: int, group: Group) -> None:
        self._queues[k].setdefault(group.shapes, []).append(group)

    def _keep(self) -> None:
        """Copy what still waits of the batch that was fed last: a loader may use its memory again."""
        for group in (group for queues in self._queues for queue in queues.values() for group in queue):
            if group.borrowed:
                group.state = self.engine.select(group.state, np.arange(len(group.ids)))
                group.borrowed = False

    def joined(self, groups: Sequence[Group]) -> Group:
        """Return groups that wait for the same stage as one."""
        if len(groups) == 1:
            return groups[0]
        first = groups[0]
        return Group(
            self.engine.join([group.state for group in groups]),
            np.concatenate([group.ids for group in groups]),
            np.concatenate([group.places for group in groups]),
            first.policy,
            first.shapes,
            None if first.seen is None else np.concatenate([group.seen for group in groups if group.seen is not None]),
            own=None if first.own is None else np.concatenate([group.own for group in groups if group.own is not None]),
        )

    def _step(self, k: int, group: Group) -> Group | None:
        """Run a stage, let go who leaves there, and return those who stay; None: none does."""
        state = self.engine.stage(k, group.state)
        output, answer = self.engine.head(k, state)
        seen = self.read(k, group, output, answer)
        if k == self._last:
            self.leave(k, group, _ALL, answer)
            return None
        leaves, known = group.decide(seen)
        gone = leaves.nonzero()[0]
        if len(gone) == len(group.ids):
            self.leave(k, group, _ALL, answer, known)
            return None
        if not len(gone):
            group.state = state
            return group
        self.leave(k, group, gone, answer, known)
        stays = np.ones(len(group.ids), dtype=np.bool_)
        stays[gone] = False
        return self.kept(k, group, state, stays.nonzero()[0])

    def read(self, k: int, group: Group, output: Any, answer: object) -> np.ndarray:  # noqa: ANN401
        """Return what the policy sees at exit ``k``: its output, after those of all earlier exits."""
        columns = None if group.seen is None else group.seen.shape[2]
        if output.ndim != 2 or len(output) != len(group.ids) or columns not in (None, output.shape[1]):
            raise ShapeError(
                f"exit {k} returns {tuple(output.shape)} for {len(group.ids)} samples: one row per sample is needed, "
                "equally long at all exits. Use heads that return [sample, class], and states with the samples first."
            )
        if group.seen is None:
            for policy, _ in group.followers():
                self._require_fit(output.shape[1], policy, classes=answer is None)
            group.seen = np.empty((len(output), self._last + 1, output.shape[1]), dtype=np.float32)
        newest = log_softmax(output) if answer is None else output
        # a row of logits is NaN as a whole
        first = newest[:, 0] if answer is None else np.where(np.isfinite(newest).all(axis=1), 0.0, np.nan)
        if math.isnan(np.minimum.reduce(first)):
            row = int(np.isnan(first).argmax())
            raise RunError(
                f"exit {k} returns NaN or infinity for sample {group.places[row]} (id {group.ids[row]}): the policy "
                "cannot decide. Check the sample, and the weights of the model."
            )
        group.seen[:, k] = newest
        return group.seen[:, : k + 1]

    def kept(self, k: int, group: Group, state: State, rows: Int[np.ndarray, " kept"]) -> Group:
        """Return some samples of a group, read by exit ``k``, as one of their own, with the state after its stage."""
        assert group.seen is not None
        require_samples_first(self.engine, state, k, len(group.ids))
        seen = np.empty((len(rows), *group.seen.shape[1:]), dtype=np.float32)
        seen[:, : k + 1] = group.seen[:, : k + 1][rows]
        kept = self.engine.select(state, rows)
        own = None if group.own is None else group.own[rows]
        return Group(kept, group.ids[rows], group.places[rows], group.policy, group.shapes, seen, own=own)

    def leave(
        self,
        k: int,
        group: Group,
        rows: slice | Int[np.ndarray, " left"],
        answer: Any,  # noqa: ANN401
        known: np.ndarray | None = None,
    ) -> None:
        """Note who leaves at exit ``k``, and with what: the head's answer, what the policy said of all, or says now."""
        classes = answer is None
        if classes and known is not None:
            answers = known[rows]
        elif classes:
            assert group.seen is not None
            answers = group.answers(group.seen[:, : k + 1], rows)
        else:
            answers = answer[rows]
        self.left.append(_Left(k, group.places[rows], answers, classes))

    def _require_fit(self, columns: int, policy: Policy, *, classes: bool) -> None:
        """Refuse a policy made for other exits than these."""
        if classes and columns < 2:
            raise ShapeError(
                f"exits return {columns} logit per sample: a choice of classes has at least 2. Let the heads return "
                "logits of both classes, such as 0 and the one."
            )
        policy.require(self._last + 1, columns)
        if not classes and policy.compares_classes:
            raise InputError(
                "policy compares the classes that exits chose: these exits return features, which name none. Fit "
                "another, such as stopping or auto, on a table recorded from this model."
            )
        if not classes and not policy.answers_newest:
            raise InputError(
                "policy answers with several exits together: these exits return features, and a sample is answered by "
                "the exit it leaves at. Fit without an ensemble, on a table recorded from this model."
            )


def gathered(left: Sequence[_Left], costs: np.ndarray | None) -> Prediction:
    """Return what came out for every sample, in the order they were fed."""
    exit_index, places, answers, classes = left[0]
    exits = np.full(len(places), exit_index)
    if len(left) > 1:
        exits = np.repeat([part.exit_index for part in left], [len(part.places) for part in left])
        places, answers = np.concatenate([part.places for part in left]), joined([part.answers for part in left])
    if len(places) > 1:
        order = np.empty_like(places)
        order[places] = np.arange(len(places))
        exits, answers = exits[order], rows_of(answers, order)
    return Prediction(
        exit_index=exits,
        log_probs=answers if classes else None,
        outputs=answers,
        cost=None if costs is None else costs[exits],
    )
