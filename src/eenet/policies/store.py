"""Policies on disk: a folder of ``policy.json`` and ``policy.safetensors``. No code is stored, none is run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from eenet.errors import BundleError, EenetError, InputError, ShapeError
from eenet.policies.dial import Dial
from eenet.policies.learned import EENetScorer, StoppingScorer
from eenet.policies.mixture import MixedPolicy, TransformedPolicy
from eenet.policies.policy import Policy, ScorePolicy
from eenet.policies.scorers import ColumnScorer, ConfidenceScorer, Part, PceeScorer, Scorer, VoteScorer
from eenet.policies.transforms import Ensemble, MatrixCombination, Transform
from eenet.tables.atomic import atomic_path, steady
from eenet.tables.checks import instance, listed, number
from eenet.tables.costs import CostTable
from eenet.tables.files import check_free, fault, read_object, sha256, write_json
from eenet.tables.tensors import load_arrays, save_arrays

_PARTS: dict[str, type[Part]] = {
    part.__name__: part
    for part in (
        ColumnScorer,
        ConfidenceScorer,
        EENetScorer,
        Ensemble,
        MatrixCombination,
        PceeScorer,
        StoppingScorer,
        VoteScorer,
    )
}
"""What a saved policy may consist of without more ado; classes of the user's own are passed when it is loaded."""

_FORMAT = 3
_JSON, _TENSORS = "policy.json", "policy.safetensors"
FILES = (_JSON, _TENSORS)
"""What a saved policy consists of."""

_Arrays: TypeAlias = dict[str, np.ndarray]
_Kind = TypeVar("_Kind")


class NeedsParts(InputError):
    """A saved policy consists of a class of the user's own that was not passed."""


@dataclass(frozen=True)
class SavedPolicy:
    """A policy with what is needed to use it.

    Attributes:
        policy: The rule.
        costs: The costs it was fitted with, where they were stored.
        info: Whatever else was stored: budget, scheduler, data.
        exits: Which exits of the model it decides over, where it was fitted for some of them only: it steers
            ``model.without`` the others.
        dial: The same fit for every other budget, where it was stored.
        source: As of the policy.
    """

    policy: Policy
    costs: CostTable | None = None
    info: dict[str, Any] = field(default_factory=dict)
    exits: tuple[int, ...] | None = None
    dial: Dial | None = None
    source: str = ""


def save_policy(
    policy: Policy,
    path: str | os.PathLike[str],
    *,
    costs: CostTable | None = None,
    info: dict[str, Any] | None = None,
    exits: Sequence[int] | None = None,
    dial: Dial | None = None,
    source: str = "",
) -> None:
    """Write a policy as a folder, atomically.

    An earlier policy at ``path`` is replaced. What is stored beside the policy: see `SavedPolicy`.

    Raises:
        ShapeError: Another number of exits than the policy has.
        InputError: The policy cannot be saved, or ``path`` is a folder of something else.
    """
    instance(policy, Policy, "policy", "Of what load_policy returns, pass .policy.")
    exits = None if exits is None else _exits(exits, policy)
    if costs is not None:
        instance(costs, CostTable, "costs").require(policy.num_exits, "the policy")
    if dial is not None:
        instance(dial, Dial, "dial")
    writer = _Writer()
    stored: dict[str, Any] = {
        "format": _FORMAT,
        "rule": writer.rule(policy),
        "dial": None if dial is None else writer.dial(dial),
        "parts": writer.parts,
        "costs": None if costs is None else costs.to_dict(),
        "info": info or {},
        "exits": None if exits is None else list(exits),
        "source": source or policy.source,
    }
    with atomic_path(path, partial(check_free, what="policy", names=FILES)) as draft:
        draft.mkdir()
        save_arrays(draft / _TENSORS, writer.arrays)
        try:
            write_json(draft / _JSON, stored | {"sha256": sha256(draft / _TENSORS)}, sealed=True)
            _read(draft, writer.own)
        except (TypeError, ValueError, RecursionError) as error:  # what cannot be read again replaces nothing
            if writer.own and isinstance(error, BundleError):
                names = ", ".join(part.__qualname__ for part in writer.own)
                raise InputError(
                    f"policy cannot be saved: {names} cannot be made again from what is stored of it ({error}). List "
                    "all arguments of its class in its parameters."
                ) from error
            raise InputError(
                f"policy cannot be saved, its info or settings are no plain JSON: {str(error).rstrip('.')}. Use plain "
                "values."
            ) from error


@steady
def load_policy(path: str | os.PathLike[str], parts: Sequence[type[Part]] = ()) -> SavedPolicy:
    """Read a policy written by `save_policy`.

    Args:
        path: The folder.
        parts: Classes of yours that it consists of. Nothing is imported by a name from the file.

    Raises:
        InputError: It consists of a class of yours that is not among ``parts``.
        BundleError: It is missing, incomplete, damaged, was changed since it was written, or is of another format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"policy {path} is missing: there is no such folder. Pass what 'eenet fit --out' wrote.")
    return _read(folder, parts)


def policy_fingerprint(policy: Policy) -> str:
    """Return what identifies a rule, a SHA-256; empty where it is of a class of yours that cannot be saved."""
    writer = _Writer()
    try:
        described = json.dumps([writer.rule(policy), writer.parts], sort_keys=True)
    except (InputError, TypeError, ValueError):
        return ""
    digest = hashlib.sha256(described.encode())
    for name, array in sorted(writer.arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def policy_size(policy: Policy) -> int | None:
    """Return how many numbers a policy consists of: the weights of its scores and transforms, and its thresholds.

    None where it is of a class of yours that cannot be saved, whose numbers are not known.
    """
    writer = _Writer()
    try:
        writer.rule(policy)
    except InputError:
        return None
    return sum(array.size for array in writer.arrays.values())


def own_parts(policy: Policy, dial: Dial | None = None) -> list[type[Part]]:
    """Return the classes of the user's own that a policy and its dial consist of.

    Raises:
        InputError: They cannot be saved.
    """
    writer = _Writer()
    writer.rule(policy)
    if dial is not None:
        writer.dial(dial)
    return writer.own


def _read(path: Path, parts: Sequence[type[Part]] = ()) -> SavedPolicy:
    try:
        stored, arrays = read_object(path / _JSON, "policy", sealed=True), load_arrays(path / _TENSORS, "policy")
    except InputError as error:
        raise BundleError(str(error)) from error
    if stored.get("format") != _FORMAT:
        raise BundleError(
            f"policy {path} is of format {stored.get('format')!r}: this version of eenet reads format {_FORMAT}. Fit "
            "it again."
        )
    if stored.get("sha256") != sha256(path / _TENSORS):
        raise BundleError(
            f"policy {path} was changed since it was written: {_JSON} belongs to another {_TENSORS}. Fit it again."
        )
    _require_known(stored, path)
    known = {part.__qualname__: part for part in parts}
    try:
        _require_own(stored["parts"], known, path)
        return _rebuilt(stored, arrays, known)
    except NeedsParts:
        raise
    except (EenetError, LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise BundleError(f"policy {path} is incomplete or damaged: {fault(error)}. Fit it again.") from error


def _require_known(stored: dict[str, Any], path: Path) -> None:
    """Refuse parts of classes that others wrote, which is no damage."""
    parts = stored.get("parts")
    for part in parts if isinstance(parts, list) else ():
        name = part.get("class") if isinstance(part, dict) else None
        if isinstance(name, str) and name not in _PARTS and "module" not in part:
            raise BundleError(
                f"policy {path} has the part {name!r}: this version of eenet knows no such class. Use the version that "
                "wrote it, or fit it again."
            )


def _require_own(parts: list[dict[str, Any]], known: dict[str, type[Part]], path: Path) -> None:
    """Refuse parts of the user's own that were not passed."""
    for part in parts:
        if "module" in part and part["class"] not in known:
            name, spec = part["class"], f"{part['module']}:{part['class']}"
            raise NeedsParts(
                f"policy {path} consists of {name}, a class of yours: nothing is imported by a name from a file. Pass "
                f"parts=[{name}], on the command line --parts {spec}, if you trust that module."
            )


def _exits(exits: Sequence[int], policy: Policy) -> tuple[int, ...]:
    """Return which exits of a model a policy decides over, refusing what are none, or not as many, or not rising."""
    found = tuple(int(number(k, "exit", 0, whole=True)) for k in listed(exits, "exits"))
    if len(found) != policy.num_exits or list(found) != sorted(set(found)):
        raise ShapeError(
            f"exits {list(found)} do not fit: the policy decides over {policy.num_exits} exits. Name as many, in "
            "increasing order."
        )
    return found


def _is(kind: type[_Kind], value: object, name: str) -> _Kind:
    """Return a value of JSON that must be of a type."""
    if type(value) is not kind:
        raise TypeError(f"{name} {str(value)[:50]!r} is of type {type(value).__name__}, not {kind.__name__}")
    return value


class _Writer:
    """Describes policies by JSON values and named arrays; shared parts are written one time."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []
        self.own: list[type[Part]] = []
        self.arrays: _Arrays = {}
        self._places: dict[Part, int] = {}
        self._thresholds = 0

    def rule(self, policy: Policy) -> dict[str, Any]:
        """Describe a policy.

        Raises:
            InputError: The policy itself is of a class of yours.
        """
        match policy:
            case MixedPolicy(a=a, b=b):
                mixed = {"a": self.rule(a), "b": self.rule(b)}
                return {"mixed": mixed, "weight": policy.weight, "seed": policy.seed}
            case TransformedPolicy(transform=transform, policy=inner):
                return {"transformed": self.rule(inner), "transform": self._place(transform)}
            case ScorePolicy(scorer=scorer):
                name = f"thresholds{self._thresholds}"
                self._thresholds += 1
                self.arrays[name] = policy.thresholds
                return {"scorer": self._place(scorer), "thresholds": name}
        raise _unsavable(policy)

    def dial(self, dial: Dial) -> dict[str, Any]:
        """Describe a dial."""
        plain = {name: getattr(dial, name) for name in ("fit_costs", "fit_utilities", "seed", "reason")}
        return {"rules": [self.rule(policy) for policy in dial.policies], "costs": dial.costs.to_dict()} | plain

    def _place(self, part: Part) -> int:
        """Return the number of a part in the list, where it is put if it is new."""
        if part not in self._places:
            kind, described = type(part), {"class": type(part).__qualname__, "settings": part.settings()}
            if _PARTS.get(kind.__name__) is not kind:
                self.own += [] if kind in self.own else [kind]
                described["module"] = kind.__module__
            i = self._places[part] = len(self.parts)
            self.parts.append(described)
            self.arrays |= {f"part{i}.{name}": value for name, value in part.arrays().items()}
        return self._places[part]


def _unsavable(part: object) -> InputError:
    return InputError(
        f"policy cannot be saved: {type(part).__name__} is a class of yours. Save what it is made of yourself."
    )


def _rebuilt(stored: dict[str, Any], arrays: _Arrays, known: dict[str, type[Part]]) -> SavedPolicy:
    """Return a saved policy from what stands in its files; every value is checked by what it becomes part of.

    Its parts are eenet's, or ``known`` classes of the user's own.
    """
    parts = []
    for i, described in enumerate(stored["parts"]):
        prefix = f"part{i}."
        own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        kinds = known if "module" in described else _PARTS
        parts.append(kinds[described["class"]](**described["settings"], **own))
    source, exits = _is(str, stored["source"], "source"), stored["exits"]
    policy = _policy(stored["rule"], parts, arrays).from_source(source)
    costs = None if stored["costs"] is None else CostTable.from_dict(stored["costs"])
    dial = None if stored["dial"] is None else _dial(stored["dial"], parts, arrays).from_source(source)
    if costs is not None:
        costs.require(policy.num_exits, "the policy")
    for other in () if dial is None else dial.policies:
        other.require(policy.num_exits, policy.num_columns)
    return SavedPolicy(
        policy=policy,
        costs=costs,
        info=_is(dict, stored["info"], "info"),
        exits=None if exits is None else _exits(_is(list, exits, "exits"), policy),
        dial=dial,
        source=source,
    )


def _dial(stored: dict[str, Any], parts: list[Any], arrays: _Arrays) -> Dial:
    return Dial(
        policies=tuple(_policy(rule, parts, arrays) for rule in stored["rules"]),
        fit_costs=tuple(_is(list, stored["fit_costs"], "fit_costs")),
        fit_utilities=tuple(_is(list, stored["fit_utilities"], "fit_utilities")),
        costs=CostTable.from_dict(stored["costs"]),
        seed=stored["seed"],
        reason=_is(str, stored["reason"], "reason"),
    )


def _policy(rule: dict[str, Any], parts: list[Any], arrays: _Arrays) -> Policy:
    if "mixed" in rule:
        a, b = (_policy(rule["mixed"][name], parts, arrays) for name in ("a", "b"))
        return MixedPolicy(a, b, rule["weight"], rule["seed"])
    number(place := rule["transform" if "transformed" in rule else "scorer"], "part", 0, whole=True)
    match parts[place]:
        case Transform() as transform if "transformed" in rule:
            return TransformedPolicy(transform, _policy(rule["transformed"], parts, arrays))
        case Scorer() as scorer if "scorer" in rule:
            return ScorePolicy(scorer, arrays[rule["thresholds"]])
        case other:
            raise TypeError(f"{type(other).__name__} does not fit where it stands")
