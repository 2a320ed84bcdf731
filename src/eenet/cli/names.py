"""Names and places that the command line takes for policies and engines, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from eenet.errors import InputError
from eenet.imports import imported, known

if TYPE_CHECKING:
    from eenet.models.inputs import Inputs
    from eenet.models.model import MultiExitModel
    from eenet.policies.scorers import Part
    from eenet.running.engines.base import Engine
    from eenet.schedulers import Scheduler
    from eenet.tables.table import ExitTable

_LEFT_OUT = ("eenet_published", "geometric")  # of what is compared by default: slow; and max_prob under another name

ENGINES = {
    "eager": ("float32", "bfloat16"),
    "onnxruntime": ("float32",),
    "openvino": ("float32", "bfloat16"),
    "compiled": ("float32",),
}
"""Engines, each with the number formats it offers."""


def scheduler(
    name: str, seed: int, progress: Callable[[str, int, int], None] | None = None, confidence: str | None = None
) -> Scheduler:
    """Return the scheduler of a policy's name.

    Args:
        name: That of a policy of `eenet.schedulers.names`; or ``package.module:Class``, of the user's own.
        seed: Of everything random.
        progress: Called with what is done, where fitting takes long enough for that to matter.
        confidence: What samples leave by, for those policies that leave by any confidence.

    Raises:
        InputError: The name is unknown, or belongs to a bound, which is no policy; or the policy has a confidence of
            its own, or none.
    """
    from eenet.evaluation.results import BOUNDS
    from eenet.schedulers.names import CHOOSING, POLICIES
    from eenet.schedulers.names import scheduler as by_name

    if name in BOUNDS:
        raise InputError(
            f"policy {name!r} is a bound: it is computed on tables and cannot decide for new samples. "
            f"Pass one of {', '.join(POLICIES)}."
        )
    if confidence is not None and (":" in name or (name in POLICIES and name not in CHOOSING)):
        raise InputError(
            f"--confidence {confidence!r} has no meaning for {name}: only {', '.join(CHOOSING)} leave by any. "
            "Pass one of these as --policy, or leave it out."
        )
    own = users_own(name, "--policy") if ":" in name else None
    made = by_name(name, seed, confidence) if own is None else _own_scheduler(name, own, seed)
    if progress is not None and "progress" in {field.name for field in fields(made)}:
        return replace(made, progress=progress)  # type: ignore[call-arg]  # looked up in the line above
    return made


def users_own(spec: str, option: str) -> Any:  # noqa: ANN401
    """Return the object of the user's own that an option names.

    Raises:
        InputError: It is not there, or its module cannot be imported.
    """
    try:
        return imported(spec, option, "Run eenet in the folder of that module, and write package.module:Class.")
    except InputError:
        raise
    except Exception as error:  # whatever the code of others raises
        reason = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise InputError(f"{option} {spec!r} cannot be imported: {reason}. Correct it and try again.") from error


def _own_scheduler(spec: str, make: Any, seed: int) -> Scheduler:  # noqa: ANN401
    """Return the scheduler of the user's own, made with the seed."""
    from eenet.schedulers import Scheduler

    made = make if isinstance(make, Scheduler) else None
    try:
        made = replace(made, seed=seed) if made is not None else make(seed=seed)
    except Exception as error:  # whatever the code of others raises
        reason = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise InputError(
            f"--policy {spec!r} makes no scheduler: called with seed={seed} it fails ({reason}). Name a subclass of "
            "eenet.Scheduler."
        ) from error
    if not isinstance(made, Scheduler):
        raise InputError(
            f"--policy {spec!r} makes no scheduler: it returned {type(made).__name__}. Name a subclass of "
            "eenet.Scheduler."
        )
    return made


def parts(specs: Sequence[str] | None) -> list[type[Part]]:
    """Return the classes of the user's own that a saved policy may consist of.

    Raises:
        InputError: One is not there, or is no part of a policy.
    """
    from eenet.policies.scorers import Part

    found = [(spec, users_own(spec, "--parts")) for spec in specs or ()]
    for spec, one in found:
        if not (isinstance(one, type) and issubclass(one, Part)):
            raise InputError(f"--parts {spec!r} is no part of a policy: it is no Scorer or Transform. Name its class.")
    return [one for _, one in found]


def schedulers(names: Sequence[str] | None, seed: int, confidence: str | None = None) -> dict[str, Scheduler]:
    """Return the schedulers of several names, the default ones if none is given.

    The bounds `random` and `oracle` are part of every comparison; naming them is allowed and adds nothing. A
    confidence is that of all policies that leave by any.

    Raises:
        InputError: A name is unknown, or none of the policies leaves by any confidence.
    """
    from eenet.evaluation.results import BOUNDS
    from eenet.schedulers.names import CHOOSING, POLICIES

    left_out = _LEFT_OUT if confidence is None else _LEFT_OUT[:1]
    default = [name for name in POLICIES if name not in left_out]
    asked = [
        name for name in names or default if ":" in name or known("policy", name, (*POLICIES, *BOUNDS)) not in BOUNDS
    ]
    choosing = [name for name in asked if name in CHOOSING] or asked[:1]  # at least one of them must
    return {name: scheduler(name, seed, confidence=confidence if name in choosing else None) for name in asked}


def unsuited(table: ExitTable, confidence: str | None = None) -> dict[str, str]:
    """Return the default policies that cannot be fitted on a table, each with the reason.

    A confidence that was chosen and is not in the table is no reason: fitting refuses it.
    """
    from eenet.schedulers.names import CHOOSING

    made = schedulers(None, 0, confidence)
    judged = {name: one for name, one in made.items() if confidence is None or name not in CHOOSING}
    return {name: reason for name, one in judged.items() if (reason := one.unsuited(table))}


def engines(names: Sequence[str] | None, dtypes: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return every engine with every number format that was asked for: eager in float32 by default.

    Raises:
        InputError: A name is unknown, or an engine does not offer a format.
    """
    pairs = [(name, dtype) for name in names or ("eager",) for dtype in dtypes or ("float32",)]
    formats = dict.fromkeys(dtype for offered in ENGINES.values() for dtype in offered)
    for name, dtype in pairs:
        if known("dtype", dtype, formats) not in ENGINES[known("engine", name, ENGINES)]:
            able = " and ".join(other for other, offered in ENGINES.items() if dtype in offered)
            raise InputError(
                f"dtype {dtype!r} is not offered by the engine {name}: it computes in {' and '.join(ENGINES[name])}. "
                f"Use one of these, or the engines {able}."
            )
    return list(dict.fromkeys(pairs))


def engine(name: str, model: MultiExitModel, example_inputs: Inputs, dtype: str = "float32") -> Engine:
    """Return a model's engine by a pair of `engines`.

    Raises:
        InputError: The engine cannot be had here.
        MissingExtraError: It needs something that is not installed.
    """
    import torch

    from eenet import running

    if name == "eager":
        return running.EagerEngine(model, dtype=None if dtype == "float32" else getattr(torch, dtype))
    if name == "openvino":
        return running.OpenVinoEngine(model, example_inputs, dtype="bfloat16" if dtype == "bfloat16" else "float32")
    kind = running.OnnxEngine if name == "onnxruntime" else running.CompiledEngine
    return kind(model, example_inputs)
