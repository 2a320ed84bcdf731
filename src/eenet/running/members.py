"""What the members of a cascade are: their names, engines, exits and classes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

from eenet.errors import InputError
from eenet.running.engines import Engine, as_engine
from eenet.running.engines.function import FunctionEngine
from eenet.tables.checks import instance, listed

Prepare: TypeAlias = Callable[[Any], Any]
"""Makes what one member takes of a batch of raw inputs, such as token numbers of texts."""
Key: TypeAlias = str | int
"""A member: its name, or its number from 0."""


@dataclass(frozen=True, kw_only=True)
class Member:
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


def named(member: Any, number: int) -> tuple[str, Any]:  # noqa: ANN401
    """Return the name of a member, and the member."""
    if isinstance(member, tuple):
        if len(member) != 2 or not isinstance(member[0], str) or not member[0]:
            raise InputError(f"member {number} is a tuple of other values: a name and a model are needed. Pass both.")
        return member
    name = getattr(member, "__name__", None) or type(member).__name__
    if isinstance(member, str | os.PathLike):
        name = os.path.basename(os.fspath(member))
    return str(name).strip("<>"), member


def by_name(given: Mapping[Key, Any] | None, names: Sequence[str], what: str) -> dict[str, Any]:
    """Return what was given by name or number of a member, by names."""
    found = {}
    for key, value in (instance(given, Mapping, what, "Pass a dict by member.") if given is not None else {}).items():
        known = key in names if isinstance(key, str) else type(key) is int and 0 <= key < len(names)
        if not known:
            raise InputError(f"{what} of {key!r} belongs to no member: there are {', '.join(names)}. Name one.")
        name = key if isinstance(key, str) else names[key]
        if name in found:
            raise InputError(f"{what} of {name} stands twice: by name, and by number. Leave one out.")
        found[name] = value
    return found


def names_of_classes(given: Any, name: str) -> tuple[Any, ...]:  # noqa: ANN401
    """Return what was given as the classes of a member; refuse what cannot be looked up, such as lists."""
    found = tuple(listed(given, f"classes of {name}"))
    if not all(isinstance(one, Hashable) for one in found):
        raise InputError(f"classes of {name} {_some(found)} cannot be used: names or numbers are needed. Pass these.")
    return found


def member_of(name: str, model: Any) -> Member:  # noqa: ANN401
    """Return a model as a member: its engine, its exits, its classes."""
    if isinstance(model, str | os.PathLike):
        from eenet.running.exports import open_export

        opened = open_export(model)
        return Member(name=name, engine=opened.engine, exits=opened.engine.num_exits, classes=opened.manifest.classes)
    if isinstance(model, Engine):
        return Member(name=name, engine=model, exits=model.num_exits, classes=getattr(model, "classes", None))
    if hasattr(model, "predict_proba"):
        return Member(name=name, engine=FunctionEngine(model.predict_proba), exits=1, classes=_fitted(name, model))
    if "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module):
        return _torch_member(name, model)
    if callable(model) and not hasattr(model, "decision_function"):
        return Member(name=name, engine=FunctionEngine(model), exits=1)
    raise InputError(
        f"member {name} of type {type(model).__name__} is no classifier: a torch module, an estimator with "
        "predict_proba, a function that returns probabilities, the folder of an export, or an engine is needed. Wrap "
        "it in a function; of an estimator without probabilities, use CalibratedClassifierCV."
    )


def _fitted(name: str, model: Any) -> tuple[Any, ...] | None:  # noqa: ANN401
    """Return the classes of an estimator, None where it names none; refuse one that cannot be used."""
    known = getattr(model, "classes_", None)
    if known is None and hasattr(model, "fit"):
        raise InputError(
            f"member {name} is not fitted yet: it has no classes_. Fit it on training data before it is put together."
        )
    if isinstance(known, list) and any(np.ndim(one) for one in known):
        raise InputError(
            f"member {name} answers {len(known)} questions at once: a cascade has one answer per sample. Make a "
            "cascade of each."
        )
    return None if known is None else tuple(np.asarray(known).tolist())


def _torch_member(name: str, model: Any) -> Member:  # noqa: ANN401
    from eenet.models.model import MultiExitModel
    from eenet.models.whole import as_stages

    if isinstance(model, MultiExitModel):
        return Member(name=name, engine=as_engine(model), exits=model.num_exits)
    labels = getattr(getattr(model, "config", None), "id2label", None) or {}
    known = tuple(labels[i] for i in sorted(labels)) if labels else None
    if known == tuple(f"LABEL_{i}" for i in range(len(known or ()))):  # nobody named them
        known = None
    return Member(name=name, engine=as_engine(as_stages(model)), exits=1, classes=known)


def aligned(members: Sequence[Member]) -> list[Member]:
    """Return the members with the order of their columns, so that classes stand as the last member has them.

    Classes 0, 1, 2, ... in this order are numbers of columns, no names, unless all members have classes, and one of
    them others or in another order.

    Raises:
        InputError: The classes differ, or some members name theirs and others do not.
    """
    numbered = [member.classes == tuple(range(len(member.classes or ()))) for member in members]
    if all(numbered) or any(member.classes is None for member in members):
        pairs = zip(members, numbered, strict=True)
        named = [replace(member, classes=None) if bare else member for member, bare in pairs]
    else:
        named = list(members)
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
