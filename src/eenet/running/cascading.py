"""Several models, small to large, as exits of one: each answers on the inputs by itself."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Int

from eenet.errors import EenetError, InputError, RunError, ShapeError
from eenet.running.engines import Engine, as_engine
from eenet.running.engines.base import ExitOutput
from eenet.running.engines.function import FunctionEngine
from eenet.running.engines.graphs import reason
from eenet.running.inputs import Inputs, batch_of, joined, rows_of, shapes_of
from eenet.tables.arrays import as_array, batch_size
from eenet.tables.checks import instance, listed

Prepare: TypeAlias = Callable[[Any], Any]
"""Makes what one member takes of a batch of raw inputs, such as token numbers of texts."""
Key: TypeAlias = str | int
"""A member: its name, or its number from 0."""


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A model of a cascade.

    Attributes:
        name: In messages.
        engine: Runs it.
        exits: Of its own.
        prepare: Makes its inputs; None: it takes those of the cascade.
        classes: What its columns are called, where known.
        columns: Where the classes of the cascade stand in its outputs; None: in this order.
    """

    name: str
    engine: Engine
    exits: int
    prepare: Prepare | None = None
    classes: tuple[Any, ...] | None = None
    columns: Int[np.ndarray, " class"] | None = None


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
    given = [_named(member, i) for i, member in enumerate(listed(members, "members"))]
    twice = [name for name, count in Counter(name for name, _ in given).items() if count > 1]
    names = [f"{name} {i}" if name in twice else name for i, (name, _) in enumerate(given)]
    if twice and any(isinstance(member, tuple) and member[0] in twice for member in members):
        raise InputError(f"members {twice} occur more than once: names tell them apart. Give each its own.")
    preparing, naming = _by_name(prepare, names, "prepare"), _by_name(classes, names, "classes")
    found = []
    for name, (_, model) in zip(names, given, strict=True):
        if name in preparing:
            instance(preparing[name], Callable, f"prepare of {name}", "Pass a function.")  # type: ignore[arg-type]
        member = _member(name, model)
        known = tuple(listed(naming[name], f"classes of {name}")) if name in naming else member.classes
        found.append(replace(member, prepare=preparing.get(name), classes=known))
    if sum(member.exits for member in found) < 2:
        raise InputError("members are too few: there is 1 exit, and leaving early needs 2. Add a model.")
    return Cascade(_aligned(found), source)


@final
class Cascade(Engine):
    """An engine that runs one model after another on the samples that are left; made by `cascade`.

    Attributes:
        names: Of the members.
        exit_names: Of the exits: the member, with the number of its own exit where it has several.
        classes: Names of the classes, in the order of the outputs; None where they are not known.
    """

    def __init__(self, members: Sequence[_Member], source: str = "") -> None:
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

    @cached_property
    def source(self) -> str:
        """Fingerprint of all members; empty where one has none and no name was given."""
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
        strange = next((one for one in values if one not in number), None)
        if strange is not None:
            raise InputError(f"label {strange!r} is no class: there are {list(self.classes)}. Correct the labels.")
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
        with _naming(member, state):
            return _Flow(index, tuple(_run(member, k, part) for part in state.parts))

    def head(self, index: int, state: _Flow) -> ExitOutput:
        m, k = self._places[index]
        member = self._members[m]
        with _naming(member, state):
            outputs = [member.engine.head(k, part.inner) for part in state.parts]
            if any(answer is not None for _, answer in outputs):
                raise InputError("it returns no classes, and a cascade chooses among these. Leave it out.")
            rows = np.concatenate([seen for seen, _ in outputs]) if len(outputs) > 1 else outputs[0][0]
            if rows.ndim != 2 or len(rows) != (count := _count(state)):
                raise ShapeError(
                    f"outputs of shape {tuple(rows.shape)} for {count} samples do not fit: one row per sample is "
                    "needed. Let it return [sample, class]."
                )
            if self.classes is not None and rows.shape[1] != len(self.classes):
                raise ShapeError(
                    f"outputs of {rows.shape[1]} classes do not fit: the cascade has {len(self.classes)}. Let it tell "
                    "the same classes apart."
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
                yield member.engine, _prepared(member, inputs)

    def full(self, inputs: Inputs) -> object:
        """Run the last member alone."""
        last = self._members[-1]
        with self.session():
            given = _prepared(last, inputs)
        return last.engine.full(given)

    def synchronise(self) -> None:
        for member in self._members:
            member.engine.synchronise()

    def _inside(self, index: int) -> Engine | None:
        """Return the engine that goes on after a stage with the state it has; None: the next member begins anew."""
        if index < 0:
            return None
        m, k = self._places[index]
        return self._members[m].engine if k < self._members[m].exits - 1 else None


def _run(member: _Member, k: int, part: _Part) -> _Part:
    """Return samples after stage ``k`` of a member."""
    inner, shapes = part.inner, part.shapes
    if k == 0:
        given = _prepared(member, part.inputs)
        inner, shapes = member.engine.start(given), shapes_of(given)
    return _Part(part.inputs, member.engine.stage(k, inner), shapes)


def _prepared(member: _Member, inputs: Inputs) -> Inputs:
    return inputs if member.prepare is None else batch_of(member.prepare(inputs))


def _count(state: _Flow) -> int:
    return sum(batch_size(part.inputs) for part in state.parts)


@contextmanager
def _naming(member: _Member, state: _Flow) -> Iterator[None]:
    """Say which member failed."""
    try:
        yield
    except EenetError as error:
        raise type(error)(f"member {member.name}: {error}") from error
    except Exception as error:
        raise RunError(
            f"member {member.name} failed on a batch of {_count(state)} samples: {reason(error)} Try it alone on "
            "such a batch."
        ) from error


# --- what members are -------------------------------------------------------------------------------------------------


def _named(member: Any, number: int) -> tuple[str, Any]:  # noqa: ANN401
    """Return the name of a member, and the member."""
    if isinstance(member, tuple):
        if len(member) != 2 or not isinstance(member[0], str) or not member[0]:
            raise InputError(f"member {number} is a tuple of other values: a name and a model are needed. Pass both.")
        return member
    name = getattr(member, "__name__", None) or type(member).__name__
    if isinstance(member, str | os.PathLike):
        name = os.path.basename(os.fspath(member))
    return str(name).strip("<>"), member


def _by_name(given: Mapping[Key, Any] | None, names: Sequence[str], what: str) -> dict[str, Any]:
    """Return what was given by name or number of a member, by names."""
    found = {}
    for key, value in (instance(given, Mapping, what, "Pass a dict by member.") if given is not None else {}).items():
        known = key in names if isinstance(key, str) else type(key) is int and 0 <= key < len(names)
        if not known:
            raise InputError(f"{what} of {key!r} belongs to no member: there are {', '.join(names)}. Name one.")
        found[key if isinstance(key, str) else names[key]] = value
    return found


def _member(name: str, model: Any) -> _Member:  # noqa: ANN401
    """Return a model as a member: its engine, its exits, its classes."""
    if isinstance(model, str | os.PathLike):
        from eenet.running.exports import open_export

        opened = open_export(model)
        return _Member(name=name, engine=opened.engine, exits=opened.engine.num_exits, classes=opened.manifest.classes)
    if isinstance(model, Engine):
        own = model.classes if isinstance(model, Cascade) else None
        return _Member(name=name, engine=model, exits=model.num_exits, classes=own)
    if hasattr(model, "predict_proba"):
        known = getattr(model, "classes_", None)
        classes = None if known is None else tuple(np.asarray(known).tolist())
        return _Member(name=name, engine=FunctionEngine(model.predict_proba), exits=1, classes=classes)
    if "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module):
        return _torch_member(name, model)
    if callable(model) and not hasattr(model, "decision_function"):
        return _Member(name=name, engine=FunctionEngine(model), exits=1)
    raise InputError(
        f"member {name} of type {type(model).__name__} is no classifier: a torch module, an estimator with "
        "predict_proba, a function that returns probabilities, the folder of an export, or an engine is needed. Wrap "
        "it in a function; of an estimator without probabilities, use CalibratedClassifierCV."
    )


def _torch_member(name: str, model: Any) -> _Member:  # noqa: ANN401
    from eenet.models.model import MultiExitModel
    from eenet.models.whole import as_stages

    if isinstance(model, MultiExitModel):
        return _Member(name=name, engine=as_engine(model), exits=model.num_exits)
    labels = getattr(getattr(model, "config", None), "id2label", None) or {}
    known = tuple(labels[i] for i in sorted(labels)) if labels else None
    if known == tuple(f"LABEL_{i}" for i in range(len(known or ()))):  # nobody named them
        known = None
    return _Member(name=name, engine=as_engine(as_stages(model)), exits=1, classes=known)


def _aligned(members: Sequence[_Member]) -> list[_Member]:
    """Return the members with the order of their columns, so that classes stand as the last member has them.

    Classes 0, 1, 2, ... in this order are numbers of columns, no names.

    Raises:
        InputError: The classes differ, or some members name theirs and others do not.
    """
    named = [
        replace(member, classes=None if member.classes == tuple(range(len(member.classes or ()))) else member.classes)
        for member in members
    ]
    wanted = named[-1].classes
    known = [member for member in named if member.classes is not None]
    if not known:
        return named
    if len(known) < len(named):
        unknown = next(member.name for member in named if member.classes is None)
        raise InputError(
            f"classes of member {unknown} are unknown, and those of {known[0].name} are "
            f"{_some(known[0].classes)}: whether they stand in the same order is not clear. Pass classes="
            f"{{{unknown!r}: [...]}}."
        )
    assert wanted is not None
    found = []
    for member in named:
        own = member.classes or ()
        if len(set(own)) != len(own) or set(own) != set(wanted):
            raise InputError(
                f"classes of member {member.name} are {_some(own)} and do not fit: those of {named[-1].name} are "
                f"{_some(wanted)}. Take members that tell the same classes apart, or name them alike with classes=."
            )
        columns = None if own == wanted else np.array([own.index(name) for name in wanted])
        found.append(replace(member, classes=wanted, columns=columns))
    return found


def _some(classes: Sequence[Any] | None) -> str:
    """Return classes as a text, the first of many."""
    found = list(classes or ())
    return f"{found[:8]}" + (f" and {len(found) - 8} more" if len(found) > 8 else "")
