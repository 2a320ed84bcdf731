"""Names of policies and recipes: the only place where a name turns into an object."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.schedulers import Scheduler

BOUNDS = ("random", "oracle")


def _eenet(seed: int) -> Scheduler:
    from eenet.schedulers import EENetScheduler

    return EENetScheduler(seed=seed)


def _eenet_published(seed: int) -> Scheduler:
    from eenet.schedulers import EENetScheduler

    return EENetScheduler.published(seed=seed)


def _max_prob(seed: int) -> Scheduler:
    from eenet.core.confidence import max_prob
    from eenet.schedulers import GeometricScheduler

    return GeometricScheduler(confidence=max_prob, seed=seed)


def _certainty(seed: int) -> Scheduler:
    from eenet.core.confidence import certainty
    from eenet.schedulers import GeometricScheduler

    return GeometricScheduler(confidence=certainty, seed=seed)


def _margin(seed: int) -> Scheduler:
    from eenet.core.confidence import margin
    from eenet.schedulers import GeometricScheduler

    return GeometricScheduler(confidence=margin, seed=seed)


def _joint(seed: int) -> Scheduler:
    from eenet.schedulers import Joint

    return Joint(seed=seed)


def _patience(seed: int) -> Scheduler:
    from eenet.schedulers import Patience

    return Patience(seed=seed)


def _vote(seed: int) -> Scheduler:
    from eenet.schedulers import Vote

    return Vote(seed=seed)


POLICIES: Mapping[str, Callable[[int], Scheduler]] = {
    "eenet": _eenet,
    "eenet_published": _eenet_published,
    "max_prob": _max_prob,
    "certainty": _certainty,
    "margin": _margin,
    "joint": _joint,
    "patience": _patience,
    "vote": _vote,
}
DEFAULT_POLICIES = tuple(name for name in POLICIES if name != "eenet_published")


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Make the error for a name that is not known, with the near ones (or all) in it."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    advice = f"Did you mean {' or '.join(near)}?" if near else f"Pass one of {', '.join(names)}."
    return InputError(f"{kind} {name!r} is unknown: there is none of that name. {advice}")


def scheduler(name: str, seed: int) -> Scheduler:
    """Return the scheduler of a policy's name.

    Raises:
        InputError: If the name is unknown, or belongs to a bound, which is no policy.
    """
    if name in BOUNDS:
        raise InputError(
            f"policy {name!r} is a bound: it is computed on tables and cannot decide for new samples. "
            f"Pass one of {', '.join(POLICIES)}."
        )
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    return POLICIES[name](seed)


def schedulers(names: Sequence[str] | None, seed: int) -> dict[str, Scheduler]:
    """Return the schedulers of several names, the default ones if none is given.

    The bounds `random` and `oracle` are part of every comparison; naming them is allowed and adds nothing.

    Raises:
        InputError: If a name is unknown.
    """
    asked = list(dict.fromkeys(names or DEFAULT_POLICIES))
    for name in asked:
        if name not in POLICIES and name not in BOUNDS:
            raise unknown("policy", name, (*POLICIES, *BOUNDS))
    return {name: scheduler(name, seed) for name in asked if name not in BOUNDS}
