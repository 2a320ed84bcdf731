"""Names of policies: the only place where one turns into the scheduler that learns it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from eenet.errors import InputError
from eenet.imports import known
from eenet.schedulers.auto import AutoScheduler
from eenet.schedulers.base import Scheduler
from eenet.schedulers.baselines import EeroScheduler, PatienceScheduler, PceeScheduler, VoteScheduler
from eenet.schedulers.eenet import EENetScheduler
from eenet.schedulers.ensemble import TransformedScheduler, fit_ensemble, fit_geometric_ensemble
from eenet.schedulers.stopping import StoppingScheduler
from eenet.schedulers.thresholds import GeometricScheduler, JointScheduler


def scheduler(name: str, seed: int = 0, confidence: str | None = None) -> Scheduler:
    """Return the scheduler of a policy's name.

    Args:
        name: A key of `POLICIES`.
        seed: Of everything random.
        confidence: What samples leave by, for `CHOOSING`, the policies that leave by any confidence.

    Raises:
        InputError: The name is unknown; or the policy has a confidence of its own, or none.
    """
    make = POLICIES[known("policy", name, POLICIES)]
    if confidence is None:
        return make(seed=seed)
    if name not in CHOOSING:
        raise InputError(
            f"confidence {confidence!r} has no meaning for {name}: only {', '.join(CHOOSING)} leave by any. Take one "
            "of these policies, or leave it out."
        )
    return make(seed=seed, confidence=confidence)


def _ztw(seed: int) -> Scheduler:
    """Zero Time Waste: a geometric ensemble of the exits, thresholds on its confidence."""
    inner = GeometricScheduler(seed=seed)
    return TransformedScheduler(scheduler=inner, fit_transform=fit_geometric_ensemble, seed=seed)


def _with_ensemble(seed: int, make: Callable[..., Scheduler]) -> Scheduler:
    """A policy on the answers that `stopping` and `auto` may give: the learnt combination of the exits seen."""
    return TransformedScheduler(scheduler=make(seed=seed), fit_transform=fit_ensemble, seed=seed)


_max_prob = partial(GeometricScheduler, confidence="max_prob")

POLICIES: dict[str, Callable[..., Scheduler]] = {
    "auto": AutoScheduler,
    "stopping": StoppingScheduler,
    "eenet": EENetScheduler,
    "eenet_paper": EENetScheduler.paper,
    "eenet_published": EENetScheduler.published,
    "max_prob": _max_prob,
    "certainty": partial(GeometricScheduler, confidence="certainty"),
    "margin": partial(GeometricScheduler, confidence="margin"),
    "geometric": GeometricScheduler,
    "joint": JointScheduler,
    "patience": PatienceScheduler,
    "vote": VoteScheduler,
    "pcee": PceeScheduler,
    "eero": EeroScheduler,
    "ztw": _ztw,
    "max_prob+ensemble": partial(_with_ensemble, make=_max_prob),
    "joint+ensemble": partial(_with_ensemble, make=JointScheduler),
}
"""By name; called with ``seed=``, each returns a scheduler."""

CHOOSING = ("geometric", "joint", "pcee", "eero")
"""Policies that leave by any confidence."""
