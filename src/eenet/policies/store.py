"""Policies on disk: a folder of ``policy.json`` and ``policy.safetensors``. No code is stored, none is run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from eenet.errors import BundleError, EenetError, InputError, ShapeError
from eenet.policies.dial import Dial
from eenet.policies.learned import EENetScorer, StoppingScorer
from eenet.policies.mixture import MixedPolicy, TransformedPolicy
from eenet.policies.policy import Policy, ScorePolicy
from eenet.policies.scorers import ColumnScorer, ConfidenceScorer, Part, PceeScorer, Scorer, VoteScorer
from eenet.policies.transforms import Ensemble, Transform
from eenet.tables.costs import CostTable
from eenet.tables.files import atomic_path, check_replaceable, load_arrays, read_object, save_arrays, sha256, write_json

_PARTS: dict[str, type[Part]] = {
    part.__name__: part
    for part in (ColumnScorer, ConfidenceScorer, EENetScorer, Ensemble, PceeScorer, StoppingScorer, VoteScorer)
}
"""What a saved policy may consist of: the only list of its kind."""

_FORMAT = 3
_JSON, _TENSORS = "policy.json", "policy.safetensors"
FILES = (_JSON, _TENSORS)
"""What a saved policy consists of."""

_Arrays: TypeAlias = dict[str, np.ndarray]


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
        source: Fingerprint of the model whose outputs it was fitted on; empty where it is not known.
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
        InputError: The policy cannot be saved, or ``path`` is a folder that holds something else.
    """
    if exits is not None and len(exits) != policy.num_exits:
        raise ShapeError(
            f"exits {list(exits)} do not fit: the policy decides over {policy.num_exits} exits. Name as many."
        )
    writer = _Writer()
    stored: dict[str, Any] = {
        "format": _FORMAT,
        "rule": writer.rule(policy),
        "dial": None if dial is None else _dial_values(dial, writer),
        "parts": writer.parts,
        "costs": None if costs is None else costs.to_dict(),
        "info": info or {},
        "exits": None if exits is None else list(exits),
        "source": source,
    }
    check_replaceable(Path(path), "policy", FILES)
    with atomic_path(path) as draft:
        draft.mkdir()
        save_arrays(draft / _TENSORS, writer.arrays)
        stored["sha256"] = sha256(draft / _TENSORS)
        write_json(draft / _JSON, stored | {"checksum": _checksum(stored)})


def load_policy(path: str | os.PathLike[str]) -> SavedPolicy:
    """Read a policy written by `save_policy`.

    Raises:
        BundleError: It is missing, incomplete, damaged, was changed since it was written, or is of another format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"policy {path} is missing: there is no such folder. Pass what 'eenet fit --out' wrote.")
    stored = read_object(folder / _JSON, "policy")
    if stored.get("format") != _FORMAT:
        raise BundleError(
            f"policy {path} is of format {stored.get('format')!r}: this version of eenet reads format {_FORMAT}. Fit "
            "it again."
        )
    arrays = load_arrays(folder / _TENSORS, "policy")
    if stored.pop("checksum", None) != _checksum(stored) or stored.get("sha256") != sha256(folder / _TENSORS):
        raise BundleError(
            f"policy {path} was changed since it was written: a checksum of its files differs. Fit it again."
        )
    try:
        return _rebuilt(stored, arrays)
    except (EenetError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"policy {path} is incomplete or damaged: {type(error).__name__} {error}. Fit it again."
        ) from error


def _checksum(stored: dict[str, Any]) -> str:
    """Return the SHA-256 of everything in ``policy.json`` but itself, however it is laid out."""
    text = json.dumps(stored, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class _Writer:
    """Describes policies by JSON values and named arrays; parts that several share are written once."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []
        self.arrays: _Arrays = {}
        self._places: dict[Part, int] = {}
        self._thresholds = 0

    def rule(self, policy: Policy) -> dict[str, Any]:
        """Describe a policy.

        Raises:
            InputError: The policy or a part of it is of a class of yours.
        """
        match policy:
            case MixedPolicy(a=a, b=b):
                sides = {"a": self.rule(a), "b": self.rule(b)}
                return {"mixed": sides, "weight": policy.weight, "seed": policy.seed}
            case TransformedPolicy(transform=transform, policy=inner):
                return {"transformed": self.rule(inner), "transform": self._place(transform)}
            case ScorePolicy(scorer=scorer):
                name = f"thresholds{self._thresholds}"
                self._thresholds += 1
                self.arrays[name] = policy.thresholds
                return {"scorer": self._place(scorer), "thresholds": name}
        raise _unsavable(policy)

    def _place(self, part: Part) -> int:
        """Return the number of a part in the list, where it is put if it is new."""
        if part not in self._places:
            if _PARTS.get(type(part).__name__) is not type(part):
                raise _unsavable(part)
            i = self._places[part] = len(self.parts)
            self.parts.append({"class": type(part).__name__, "settings": part.settings()})
            self.arrays |= {f"part{i}.{name}": value for name, value in part.arrays().items()}
        return self._places[part]


def _unsavable(part: object) -> InputError:
    return InputError(
        f"policy cannot be saved: {type(part).__name__} is a class of yours. Save what it is made of yourself."
    )


def _dial_values(dial: Dial, writer: _Writer) -> dict[str, Any]:
    plain = {name: getattr(dial, name) for name in ("fit_costs", "fit_utilities", "seed", "reason")}
    return {"rules": [writer.rule(policy) for policy in dial.policies], "costs": dial.costs.to_dict()} | plain


def _rebuilt(stored: dict[str, Any], arrays: _Arrays) -> SavedPolicy:
    """Return a saved policy from what stands in its files; every value is checked by what it becomes part of."""
    parts = []
    for i, described in enumerate(stored["parts"]):
        prefix = f"part{i}."
        own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        if described["class"] not in _PARTS:
            raise InputError(f"its part {described['class']!r} is a class that this eenet does not know")
        parts.append(_PARTS[described["class"]](**described["settings"], **own))
    policy, exits = _policy(stored["rule"], parts, arrays), stored["exits"]
    costs, dial = stored["costs"], stored["dial"]
    if exits is not None and (len(exits) != policy.num_exits or any(type(k) is not int for k in exits)):
        raise ValueError(f"exits {exits!r} are not {policy.num_exits} numbers")
    return SavedPolicy(
        policy=policy,
        costs=None if costs is None else CostTable.from_dict(costs),
        info=dict(stored["info"]),
        exits=None if exits is None else tuple(exits),
        dial=None if dial is None else _dial(dial, parts, arrays),
        source=str(stored["source"]),
    )


def _dial(stored: dict[str, Any], parts: list[Any], arrays: _Arrays) -> Dial:
    return Dial(
        policies=tuple(_policy(rule, parts, arrays) for rule in stored["rules"]),
        fit_costs=tuple(map(float, stored["fit_costs"])),
        fit_utilities=tuple(map(float, stored["fit_utilities"])),
        costs=CostTable.from_dict(stored["costs"]),
        seed=int(stored["seed"]),
        reason=str(stored["reason"]),
    )


def _policy(rule: dict[str, Any], parts: list[Any], arrays: _Arrays) -> Policy:
    if "mixed" in rule:
        a, b = (_policy(rule["mixed"][side], parts, arrays) for side in ("a", "b"))
        return MixedPolicy(a, b, rule["weight"], rule["seed"])
    match parts[rule["transform" if "transformed" in rule else "scorer"]]:
        case Transform() as transform if "transformed" in rule:
            return TransformedPolicy(transform, _policy(rule["transformed"], parts, arrays))
        case Scorer() as scorer if "scorer" in rule:
            return ScorePolicy(scorer, arrays[rule["thresholds"]])
        case other:
            raise TypeError(f"{type(other).__name__} does not fit where it stands")
