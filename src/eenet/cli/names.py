"""Names of policies, recipes, experiments and engines: the only place where a name turns into an object."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.core.table import ExitTable
    from eenet.inference.engines import Engine
    from eenet.models.inputs import Inputs
    from eenet.models.model import MultiExitModel
    from eenet.recipes import Recipe
    from eenet.reproduce import Experiment
    from eenet.schedulers import Scheduler

BOUNDS = ("random", "oracle")


def _eenet(seed: int) -> Scheduler:
    from eenet.schedulers import EENetScheduler

    return EENetScheduler(seed=seed)


def _eenet_published(seed: int) -> Scheduler:
    from eenet.schedulers import EENetScheduler

    return EENetScheduler.published(seed=seed)


def _geometric(confidence: str) -> Callable[[int], Scheduler]:
    def make(seed: int) -> Scheduler:
        from eenet.schedulers import GeometricScheduler

        return GeometricScheduler(confidence=confidence, seed=seed)

    return make


def _joint(seed: int) -> Scheduler:
    from eenet.schedulers import JointScheduler

    return JointScheduler(seed=seed)


def _patience(seed: int) -> Scheduler:
    from eenet.schedulers import PatienceScheduler

    return PatienceScheduler(seed=seed)


def _pcee(seed: int) -> Scheduler:
    from eenet.schedulers import PceeScheduler

    return PceeScheduler(seed=seed)


def _eero(seed: int) -> Scheduler:
    from eenet.schedulers import EeroScheduler

    return EeroScheduler(seed=seed)


def _ztw(seed: int) -> Scheduler:
    from eenet.schedulers import GeometricScheduler, TransformedScheduler, fit_geometric_ensemble

    inner = GeometricScheduler(seed=seed)
    return TransformedScheduler(scheduler=inner, fit_transform=fit_geometric_ensemble, seed=seed)


def _stopping(seed: int) -> Scheduler:
    from eenet.schedulers import StoppingScheduler

    return StoppingScheduler(seed=seed)


def _auto(seed: int) -> Scheduler:
    from eenet.schedulers import AutoScheduler

    return AutoScheduler(seed=seed)


def _vote(seed: int) -> Scheduler:
    from eenet.schedulers import VoteScheduler

    return VoteScheduler(seed=seed)


def _eager(model: MultiExitModel, example_inputs: Inputs, dtype: str) -> Engine:
    import torch

    from eenet.inference.engines import EagerEngine

    if dtype == "float32":
        return EagerEngine(model)
    return EagerEngine(model, dtype=torch.bfloat16)


def _onnxruntime(model: MultiExitModel, example_inputs: Inputs, dtype: str) -> Engine:
    from eenet.inference.engines import OnnxEngine

    return OnnxEngine(model, example_inputs)


def _openvino(model: MultiExitModel, example_inputs: Inputs, dtype: str) -> Engine:
    from eenet.inference.engines import OpenVinoEngine

    return OpenVinoEngine(model, example_inputs, dtype="bfloat16" if dtype == "bfloat16" else "float32")


def _compiled(model: MultiExitModel, example_inputs: Inputs, dtype: str) -> Engine:
    from eenet.inference.engines import CompiledEngine

    return CompiledEngine(model, example_inputs)


POLICIES: Mapping[str, Callable[[int], Scheduler]] = {
    "auto": _auto,
    "stopping": _stopping,
    "eenet": _eenet,
    "eenet_published": _eenet_published,
    "max_prob": _geometric("max_prob"),
    "certainty": _geometric("certainty"),
    "margin": _geometric("margin"),
    "joint": _joint,
    "patience": _patience,
    "vote": _vote,
    "pcee": _pcee,
    "eero": _eero,
    "ztw": _ztw,
}
DEFAULT_POLICIES = tuple(name for name in POLICIES if name != "eenet_published")
ENGINES: Mapping[str, Callable[[MultiExitModel, Inputs, str], Engine]] = {
    "eager": _eager,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "compiled": _compiled,
}
DTYPES: Mapping[str, tuple[str, ...]] = {
    "eager": ("float32", "bfloat16"),
    "onnxruntime": ("float32",),
    "openvino": ("float32", "bfloat16"),
    "compiled": ("float32",),
}
DEFAULT_ENGINES = ("eager",)
DEFAULT_DTYPES = ("float32",)


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Make the error for a name that is not known, with the near ones (or all) in it."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    advice = f"Did you mean {' or '.join(near)}?" if near else f"Pass one of {', '.join(names)}."
    return InputError(f"{kind} {name!r} is unknown: there is none of that name. {advice}")


def scheduler(name: str, seed: int) -> Scheduler:
    """Return the scheduler of a policy's name.

    Raises:
        InputError: The name is unknown, or belongs to a bound, which is no policy.
    """
    if name in BOUNDS:
        raise InputError(
            f"policy {name!r} is a bound: it is computed on tables and cannot decide for new samples. "
            f"Pass one of {', '.join(POLICIES)}."
        )
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    return POLICIES[name](seed)


def with_progress(scheduler: Scheduler, progress: Callable[[str, int, int], None]) -> Scheduler:
    """Return the same scheduler, telling how far it is if it takes long enough for that to matter."""
    from dataclasses import replace

    from eenet.schedulers import AutoScheduler, EENetScheduler

    return replace(scheduler, progress=progress) if isinstance(scheduler, AutoScheduler | EENetScheduler) else scheduler


def schedulers(names: Sequence[str] | None, seed: int) -> dict[str, Scheduler]:
    """Return the schedulers of several names, the default ones if none is given.

    The bounds `random` and `oracle` are part of every comparison; naming them is allowed and adds nothing.

    Raises:
        InputError: A name is unknown.
    """
    asked = list(dict.fromkeys(names or DEFAULT_POLICIES))
    for name in asked:
        if name not in POLICIES and name not in BOUNDS:
            raise unknown("policy", name, (*POLICIES, *BOUNDS))
    return {name: scheduler(name, seed) for name in asked if name not in BOUNDS}


def unsuited(table: ExitTable) -> dict[str, str]:
    """Return the policies that cannot be fitted on a table, each with the reason."""
    found: dict[str, str] = {}
    if not table.combinable:
        found["ztw"] = "combining exits needs labels, and a utility that says whether answers are right"
    if table.holds_summaries:
        found |= dict.fromkeys(("patience", "vote"), "summaries of maps name no classes")
    return found


def engines(names: Sequence[str] | None, dtypes: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return every engine with every number format that was asked for, the default ones if none is given.

    Raises:
        InputError: A name is unknown, or an engine does not offer a format.
    """
    pairs = [(name, dtype) for name in names or DEFAULT_ENGINES for dtype in dtypes or DEFAULT_DTYPES]
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
    return ENGINES[name](model, example_inputs, dtype)


def _check_engine(name: str, dtype: str) -> None:
    """Refuse an engine that is not there, or not in this number format."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    known = sorted({one for offered in DTYPES.values() for one in offered})
    if dtype not in known:
        raise unknown("dtype", dtype, known)
    if dtype not in DTYPES[name]:
        able = " and ".join(other for other, offered in DTYPES.items() if dtype in offered)
        raise InputError(
            f"dtype {dtype!r} is not offered by the engine {name}: it computes in {' and '.join(DTYPES[name])}. "
            f"Use one of these, or the engines {able}."
        )


def recipe(name: str, seed: int) -> Recipe:
    """Return a recipe by name, with a seed.

    Raises:
        InputError: The name is unknown.
    """
    from eenet.recipes import RECIPES

    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name].with_seed(seed)


def experiment(name: str) -> Experiment:
    """Return an experiment by name.

    Raises:
        InputError: The name is unknown.
    """
    from eenet.reproduce import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
