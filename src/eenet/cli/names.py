"""Names of policies, engines, recipes and experiments: the only place where a name turns into an object."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import TYPE_CHECKING

from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.models.inputs import Inputs
    from eenet.models.model import MultiExitModel
    from eenet.running.engines.base import Engine
    from eenet.schedulers import Scheduler
    from eenet.tables.table import ExitTable

# name -> "module:callable setting=value ..."; called with seed=..., it returns the scheduler
POLICIES = {
    "auto": "eenet.schedulers:AutoScheduler",
    "stopping": "eenet.schedulers:StoppingScheduler",
    "eenet": "eenet.schedulers:EENetScheduler",
    "eenet_published": "eenet.schedulers:EENetScheduler.published",
    "max_prob": "eenet.schedulers:GeometricScheduler confidence=max_prob",
    "certainty": "eenet.schedulers:GeometricScheduler confidence=certainty",
    "margin": "eenet.schedulers:GeometricScheduler confidence=margin",
    "joint": "eenet.schedulers:JointScheduler",
    "patience": "eenet.schedulers:PatienceScheduler",
    "vote": "eenet.schedulers:VoteScheduler",
    "pcee": "eenet.schedulers:PceeScheduler",
    "eero": "eenet.schedulers:EeroScheduler",
    "ztw": "eenet.cli.names:ztw",
}
BOUNDS = ("random", "oracle")
DEFAULT_POLICIES = tuple(name for name in POLICIES if name != "eenet_published")

ENGINES = {
    "eager": ("float32", "bfloat16"),
    "onnxruntime": ("float32",),
    "openvino": ("float32", "bfloat16"),
    "compiled": ("float32",),
}
"""Engines, each with the number formats it offers."""


def ztw(seed: int) -> Scheduler:
    """Zero Time Waste: a geometric ensemble of the exits, thresholds on its confidence."""
    from eenet.schedulers import GeometricScheduler, TransformedScheduler, fit_geometric_ensemble

    inner = GeometricScheduler(seed=seed)
    return TransformedScheduler(scheduler=inner, fit_transform=fit_geometric_ensemble, seed=seed)


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """Return a name if it is one of those known.

    Raises:
        InputError: It is not; the near ones (or all) are in the message.
    """
    ordered = sorted(names)
    if name in ordered:
        return name
    near = difflib.get_close_matches(name.lower(), ordered, n=3, cutoff=0.5)
    advice = f"Did you mean {' or '.join(near)}?" if near else f"Pass one of {', '.join(ordered)}."
    raise InputError(f"{kind} {name!r} is unknown: there is none of that name. {advice}")


def scheduler(name: str, seed: int, progress: Callable[[str, int, int], None] | None = None) -> Scheduler:
    """Return the scheduler of a policy's name.

    Args:
        name: A key of `POLICIES`.
        seed: Of everything random.
        progress: Called with what is done, where fitting takes long enough for that to matter.

    Raises:
        InputError: The name is unknown, or belongs to a bound, which is no policy.
    """
    if name in BOUNDS:
        raise InputError(
            f"policy {name!r} is a bound: it is computed on tables and cannot decide for new samples. "
            f"Pass one of {', '.join(POLICIES)}."
        )
    path, *settings = POLICIES[known("policy", name, POLICIES)].split()
    module, _, attribute = path.partition(":")
    make = attrgetter(attribute)(importlib.import_module(module))
    made: Scheduler = make(seed=seed, **dict(setting.split("=", 1) for setting in settings))
    if progress is not None and "progress" in {field.name for field in fields(made)}:
        return replace(made, progress=progress)  # type: ignore[call-arg]  # looked up in the line above
    return made


def schedulers(names: Sequence[str] | None, seed: int) -> dict[str, Scheduler]:
    """Return the schedulers of several names, the default ones if none is given.

    The bounds `random` and `oracle` are part of every comparison; naming them is allowed and adds nothing.

    Raises:
        InputError: A name is unknown.
    """
    asked = [known("policy", name, (*POLICIES, *BOUNDS)) for name in names or DEFAULT_POLICIES]
    return {name: scheduler(name, seed) for name in asked if name not in BOUNDS}


def unsuited(table: ExitTable) -> dict[str, str]:
    """Return the policies that cannot be fitted on a table, each with the reason."""
    found: dict[str, str] = {}
    if not table.combinable:
        found["ztw"] = "combining exits needs labels, and a utility that says whether answers are right"
    if not table.has_classes:
        found |= dict.fromkeys(("patience", "vote"), "the table holds features, which name no classes")
        read = {"joint": "max_prob", "pcee": "max_prob", "eero": "max_prob"}
        read |= {name: name for name in ("max_prob", "certainty", "margin")}
        absent = {name: column for name, column in read.items() if column not in table.feature_names}
        found |= {name: f"the table has no feature {column!r}" for name, column in absent.items()}
    return found


def engines(names: Sequence[str] | None, dtypes: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return every engine with every number format that was asked for: eager in float32 by default.

    Raises:
        InputError: A name is unknown, or an engine does not offer a format.
    """
    pairs = [(name, dtype) for name in names or ("eager",) for dtype in dtypes or ("float32",)]
    for name, dtype in pairs:
        _check_engine(name, dtype)
    return list(dict.fromkeys(pairs))


def engine(name: str, model: MultiExitModel, example_inputs: Inputs, dtype: str = "float32") -> Engine:
    """Return a model's engine by name.

    Raises:
        InputError: The name is unknown, the engine does not offer the number format, or cannot be had here.
        MissingExtraError: It needs something that is not installed.
    """
    _check_engine(name, dtype)
    import torch

    from eenet import running

    if name == "eager":
        return running.EagerEngine(model, dtype=None if dtype == "float32" else getattr(torch, dtype))
    if name == "openvino":
        return running.OpenVinoEngine(model, example_inputs, dtype="bfloat16" if dtype == "bfloat16" else "float32")
    kind = running.OnnxEngine if name == "onnxruntime" else running.CompiledEngine
    return kind(model, example_inputs)


def _check_engine(name: str, dtype: str) -> None:
    """Refuse an engine that is not there, or not in this number format."""
    offered = ENGINES[known("engine", name, ENGINES)]
    if known("dtype", dtype, {one for formats in ENGINES.values() for one in formats}) not in offered:
        able = " and ".join(other for other, formats in ENGINES.items() if dtype in formats)
        raise InputError(
            f"dtype {dtype!r} is not offered by the engine {name}: it computes in {' and '.join(offered)}. "
            f"Use one of these, or the engines {able}."
        )
