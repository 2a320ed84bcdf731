"""Several models, small to large, as exits of one: each answers on the inputs by itself."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
from jaxtyping import Int

from eenet.errors import EenetError, InputError, RunError, ShapeError
from eenet.evaluation.exits import CostParts
from eenet.running.engines import Engine
from eenet.running.engines.base import ExitOutput
from eenet.running.engines.graphs import reason
from eenet.running.inputs import Inputs, batch_of, copy_of, joined, rows_of, shapes_of
from eenet.running.members import Key, Member, Prepare, aligned, by_name, member_of, named, names_of_classes
from eenet.tables.arrays import as_array, batch_size
from eenet.tables.checks import instance, listed
from eenet.tables.costs import CostTable

if TYPE_CHECKING:
    from eenet.models.model import MultiExitModel


class _Part(NamedTuple):
    """Samples whose prepared inputs have the same shape.

    Attributes:
        inputs: Of the cascade, for later members.
        inner: The state within the member that ran last.
        shapes: Of what that member was given.
    """

    inputs: Inputs
    inner: Any = None
    shapes: Any = None


class _Flow(NamedTuple):
    """The state of a cascade: samples in their order, after some stage.

    Attributes:
        after: The stage; -1: none has run.
        parts: The samples.
    """

    after: int
    parts: tuple[_Part, ...]


def cascade(
    members: Sequence[Any],
    *,
    prepare: Mapping[Key, Prepare] | None = None,
    classes: Mapping[Key, Sequence[Any]] | None = None,
    source: str = "",
) -> Cascade:
    """Return an engine whose exits are models that exist already, the least expensive one first.

    It goes wherever a multi-exit model goes: `record`, `measure`, `AdaptiveModel`, `bench`. A member is called for the
    samples only that no earlier member has answered.

    Args:
        members: At least two exits together. Each is a classifier: a torch module that returns logits, or an object
            with ``logits``, as models of Hugging Face do; an estimator of scikit-learn with ``predict_proba``; a
            function from a batch to probabilities ``[sample, class]``; the folder of an export; an engine; or a
            `MultiExitModel`, whose exits all become exits. ``(name, member)`` gives it a name.
        prepare: By the name or number of a member: a function from a batch of the cascade's inputs to those of this
            member. Only those samples are prepared that the member is called for.
        classes: By the name or number of a member: what its classes are called, in the order of its outputs. Known
            without it are those of estimators, exports and models of Hugging Face.
        source: A name for members that have no weights to be told apart by, such as functions: tables and policies
            carry it and are refused for cascades of another name.

    Returns:
        The cascade; its classes are in the order of the last member's.

    Raises:
        InputError: Fewer than two exits, a member that is no classifier, names that occur twice, or classes that
            differ between members or are known of some members only.
        MissingExtraError: A package that an export needs is not installed.

    Example:
        >>> small = lambda x: np.tile([0.6, 0.4], (len(x), 1))
        >>> large = lambda x: np.tile([0.1, 0.9], (len(x), 1))
        >>> both = cascade([("small", small), ("large", large)])
        >>> both.num_exits, both.names
        (2, ('small', 'large'))
    """
    given = [named(member, i) for i, member in enumerate(listed(members, "members"))]
    twice = [name for name, count in Counter(name for name, _ in given).items() if count > 1]
    names = [f"{name} {i}" if name in twice else name for i, (name, _) in enumerate(given)]
    if (twice and any(isinstance(one, tuple) and one[0] in twice for one in members)) or len(set(names)) < len(names):
        same = twice or [name for name in names if names.count(name) > 1]
        raise InputError(f"members {same} occur more than once: names tell them apart. Give each its own.")
    preparing, naming = by_name(prepare, names, "prepare"), by_name(classes, names, "classes")
    found = []
    for name, (_, model) in zip(names, given, strict=True):
        if name in preparing:
            instance(preparing[name], Callable, f"prepare of {name}", "Pass a function.")  # type: ignore[arg-type]
        member = member_of(name, model)
        known = names_of_classes(naming[name], name) if name in naming else member.classes
        found.append(replace(member, prepare=preparing.get(name), classes=known))
    if sum(member.exits for member in found) < 2:
        raise InputError("members are too few: there is 1 exit, and leaving early needs 2. Add a model.")
    return Cascade(aligned(found), instance(source, str, "source", "Pass a name."))


@final
class Cascade(Engine):
    """An engine that runs one model after another on the samples that are left; made by `cascade`.

    Attributes:
        names: Of the members.
        exit_names: Of the exits: the member, with the number of its own exit where it has several.
        classes: Names of the classes, in the order of the outputs; None where they are not known.
    """

    def __init__(self, members: Sequence[Member], source: str = "") -> None:
        self._members, self._given_source = tuple(members), source
        self._places = [(m, k) for m, member in enumerate(self._members) for k in range(member.exits)]
        self.name, self.num_exits = "cascade", len(self._places)
        last = self._members[-1]
        self.dtype, self.device, self.threads = last.engine.dtype, last.engine.device, last.engine.threads
        self.names = tuple(member.name for member in self._members)
        self.exit_names = tuple(
            self.names[m] if self._members[m].exits == 1 else f"{self.names[m]} {k}" for m, k in self._places
        )
        self.classes = last.classes

    def __repr__(self) -> str:
        """Name the members."""
        return f"Cascade of {', '.join(self.names)}: {self.num_exits} exits"

    @cached_property
    def source(self) -> str:
        """Fingerprint of all members, that of `as_model` where there is one; empty where one has none and no name."""
        if all(member.engine.source for member in self._members):
            with suppress(InputError):
                model = self.as_model()
                from eenet.running.engines.eager import fingerprint

                return fingerprint(model)
        own = [member.engine.source or self._given_source for member in self._members]
        return hashlib.sha256("\n".join(own).encode()).hexdigest() if all(own) else ""

    def encoded(self, labels: Any) -> Int[np.ndarray, " sample"]:  # noqa: ANN401 - array-like
        """Return the number of each label among `classes`, as tables have them.

        Raises:
            InputError: The classes are not known, or a label is none of them.
        """
        if self.classes is None:
            raise InputError("classes are unknown: no member names them. Pass classes= to cascade.")
        number = {name: i for i, name in enumerate(self.classes)}
        values = as_array(labels).tolist()
        strange = [one for one in values if isinstance(one, list) or one not in number]
        if strange:
            raise InputError(f"label {strange[0]!r} is no class: there are {list(self.classes)}. Correct the labels.")
        return np.array([number[one] for one in values], dtype=np.int64)

    def session(self) -> AbstractContextManager[object]:
        stack = ExitStack()
        for member in self._members:
            stack.enter_context(member.engine.session())
        return stack

    def start(self, inputs: Inputs) -> _Flow:
        return _Flow(-1, (_Part(inputs),))

    def stage(self, index: int, state: _Flow) -> _Flow:
        m, k = self._places[index]
        member = self._members[m]
        with _naming(f"member {member.name}", _count(state)):
            return _Flow(index, tuple(_run(member, k, part) for part in state.parts))

    def head(self, index: int, state: _Flow) -> ExitOutput:
        m, k = self._places[index]
        member = self._members[m]
        with _naming(f"member {member.name}", count := _count(state)):
            outputs = [member.engine.head(k, part.inner) for part in state.parts]
            if any(answer is not None for _, answer in outputs):
                raise InputError("it returns no classes, and a cascade chooses among these. Leave it out.")
            rows = np.concatenate([seen for seen, _ in outputs]) if len(outputs) > 1 else outputs[0][0]
            if rows.ndim != 2 or len(rows) != count or rows.shape[1] < 2:
                raise ShapeError(
                    f"outputs of shape {tuple(rows.shape)} for {count} samples do not fit: one row per sample, "
                    "with 2 classes or more, is needed. Let it return [sample, class]."
                )
            if self.classes is not None and rows.shape[1] != len(self.classes):
                raise ShapeError(
                    f"outputs of {rows.shape[1]} classes do not fit: the cascade has {len(self.classes)}. Let it tell "
                    "the same classes apart."
                )
            if not (rows < np.inf).all():
                row = int((~(rows < np.inf)).any(axis=1).argmax())
                raise RunError(
                    f"it returns NaN or infinity for sample {row} of {count}. Check the sample, and its weights."
                )
        return (rows if member.columns is None else rows[:, member.columns]), None

    def select(self, state: _Flow, rows: Int[np.ndarray, " kept"]) -> _Flow:
        inside, kept, first = self._inside(state.after), [], 0
        for part in state.parts:
            count = batch_size(part.inputs)
            own = rows[(rows >= first) & (rows < first + count)] - first
            first += count
            if len(own):
                inner = None if inside is None else inside.select(part.inner, own)
                kept.append(_Part(rows_of(part.inputs, own), inner, part.shapes))
        return _Flow(state.after, tuple(kept))

    def misfit(self, state: _Flow, count: int) -> tuple[int, ...] | None:
        inside = self._inside(state.after)
        if inside is None:
            return None
        found = (inside.misfit(part.inner, batch_size(part.inputs)) for part in state.parts)
        return next((shape for shape in found if shape is not None), None)

    def join(self, states: Sequence[_Flow]) -> _Flow:
        """Return states as one; samples of several shapes stay apart until the next member prepares them anew."""
        inside = self._inside(states[0].after)
        parts = [part for state in states for part in state.parts]
        if inside is None:
            return _Flow(states[0].after, (_Part(joined([part.inputs for part in parts])),))
        if any(part.shapes != parts[0].shapes for part in parts):
            return _Flow(states[0].after, tuple(parts))
        inputs, inner = joined([part.inputs for part in parts]), inside.join([part.inner for part in parts])
        return _Flow(states[0].after, (_Part(inputs, inner, parts[0].shapes),))

    def inside(self, inputs: Inputs) -> Iterator[tuple[Engine, Inputs]]:
        """Yield the members from whose own states samples are dropped; all others are asked for whole samples."""
        for member in self._members:
            if member.exits > 1:
                with _naming(f"member {member.name}", batch_size(inputs)):
                    given = _prepared(member, inputs)
                yield member.engine, given

    def full(self, inputs: Inputs) -> object:
        """Run the last member alone."""
        last = self._members[-1]
        with _naming(f"member {last.name}", batch_size(inputs)):
            with self.session():
                given = _prepared(last, inputs)
            return last.engine.full(given)

    def as_model(self) -> MultiExitModel:
        """Return the cascade as one model of PyTorch, for `Bundle`, `export` and `measure_flops`; weights are shared.

        Raises:
            InputError: A member is no model of PyTorch, or its inputs are prepared.
        """
        found = []
        for member in self._members:
            if member.prepare is not None:
                raise InputError(_NO_MODEL.format(f"the inputs of member {member.name} are prepared by a function"))
            try:
                model = member.engine.as_model()
            except InputError as error:
                raise InputError(_NO_MODEL.format(f"member {member.name} is none")) from error
            columns = None if member.columns is None else member.columns.tolist()
            found.append((model, member.exits, columns))
        from eenet.models.joined import Joined, joined_models  # PyTorch is there: all members are models of it

        return joined_models([Joined(*one) for one in found])

    def parts(self, costs: CostTable) -> CostParts:
        """Return what costs consist of, for `advise`: a member that is dropped saves all that it costs.

        Of a member with exits of its own that is not the last one, this is known of its exits together only, and they
        count as needed by what follows.

        Args:
            costs: Of leaving at each exit, as measured.

        Raises:
            ShapeError: Costs of another number of exits.
        """
        costs.require(self.num_exits, "the cascade")
        shared = [self._members[m].exits > 1 for m, _ in self._places]
        steps = costs.stage_costs
        return CostParts(
            stages=tuple(step if inside else 0.0 for step, inside in zip(steps, shared, strict=True)),
            heads=tuple(0.0 if inside else step for step, inside in zip(steps, shared, strict=True)),
        )

    def synchronise(self) -> None:
        for member in self._members:
            member.engine.synchronise()

    def _inside(self, index: int) -> Engine | None:
        """Return the engine that goes on after a stage with the state it has; None: the next member begins anew."""
        if index < 0:
            return None
        m, k = self._places[index]
        return self._members[m].engine if k < self._members[m].exits - 1 else None


def _run(member: Member, k: int, part: _Part) -> _Part:
    """Return samples after stage ``k`` of a member."""
    inner, shapes = part.inner, part.shapes
    if k == 0:
        given = _prepared(member, part.inputs)
        inner, shapes = member.engine.start(given), shapes_of(given)
    return _Part(part.inputs, member.engine.stage(k, inner), shapes)


def _prepared(member: Member, inputs: Inputs) -> Inputs:
    """Return what a member takes of inputs of the cascade."""
    if member.prepare is None:
        return inputs
    count = batch_size(inputs)
    with _naming("prepare", count):
        given = batch_of(member.prepare(copy_of(inputs)))
        if (found := batch_size(given)) != count:
            raise ShapeError(f"it returns {found} samples for {count}. Let it return one for each, in their order.")
    return given


def _count(state: _Flow) -> int:
    return sum(batch_size(part.inputs) for part in state.parts)


@contextmanager
def _naming(what: str, count: int) -> Iterator[None]:
    """Say what failed, and on how many samples."""
    try:
        yield
    except EenetError as error:
        raise type(error)(f"{what}: {error}") from error
    except Exception as error:
        samples = "1 sample" if count == 1 else f"{count} samples"
        raise RunError(
            f"{what} failed on a batch of {samples}: {reason(error)} Try it alone on such a batch."
        ) from error


_NO_MODEL = (
    "cascade cannot become one model: {}, and bundles and exports hold models of PyTorch. Save the policy with "
    "save_policy, make the cascade again where it runs, and pass both to AdaptiveModel."
)
