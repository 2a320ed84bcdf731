"""Policies on disk: a folder of ``policy.json`` and ``policy.safetensors``. No code is stored, none is run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet.core.combined import MixedPolicy, TransformedPolicy
from eenet.core.costs import CostTable
from eenet.core.files import atomic_path, check_replaceable, load_tensors, read_json, save_tensors, sha256, write_json
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import ConfidenceScorer, Scorer
from eenet.core.transform import Transform
from eenet.errors import BundleError, EenetError, InputError, ShapeError
from eenet.schedulers.eenet import EENetScorer
from eenet.schedulers.ensemble import Ensemble
from eenet.schedulers.heuristics import VoteScorer
from eenet.schedulers.rivals import PceeScorer
from eenet.schedulers.stopping import StoppingScorer

__all__ = ["SavedPolicy", "load_policy", "policy_from_spec", "policy_to_spec", "save_policy"]

_SCORERS: tuple[type[Scorer], ...] = (ConfidenceScorer, EENetScorer, PceeScorer, StoppingScorer, VoteScorer)
_TRANSFORMS: tuple[type[Transform], ...] = (Ensemble,)
_FORMAT = 2


@dataclass(frozen=True)
class SavedPolicy:
    """A policy with what is needed to use it.

    Attributes:
        policy: The rule.
        costs: The costs it was fitted with, where they were stored.
        info: Whatever else was stored: budget, scheduler, data.
        exits: Which exits of the model it decides over, where it was fitted for some of them only: it steers
            ``model.without`` the others.
    """

    policy: Policy
    costs: CostTable | None = None
    info: dict[str, Any] = field(default_factory=dict)
    exits: tuple[int, ...] | None = None


def policy_to_spec(policy: Policy) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe a policy by JSON values and named tensors.

    Raises:
        InputError: The policy or its scorer is of a class of yours.
    """
    tensors: dict[str, Tensor] = {}
    parts: list[Scorer | Transform] = []
    rule = _describe(policy, parts, tensors, "rule")
    described = []
    for i, part in enumerate(parts):
        described.append({"class": type(part).__name__, "settings": part.settings()})
        tensors |= {f"part{i}.{name}": value for name, value in part.state_dict().items()}
    return {"format": _FORMAT, "rule": rule, "parts": described}, tensors


def policy_from_spec(spec: object, tensors: dict[str, Tensor]) -> Policy:
    """Rebuild a policy from `policy_to_spec`.

    Raises:
        BundleError: Something is missing or does not fit.
    """
    try:
        if not isinstance(spec, dict) or spec["format"] != _FORMAT:
            raise BundleError(
                f"policy is of another format: this version of eenet reads format {_FORMAT}. Fit it again."
            )
        classes = {known.__name__: known for known in (*_SCORERS, *_TRANSFORMS)}
        parts = []
        for i, described in enumerate(spec["parts"]):
            part = classes[described["class"]](**described["settings"])
            prefix = f"part{i}."
            part.load_state_dict(
                {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            )
            parts.append(part)
        return _rebuild(spec["rule"], parts, tensors)
    except EenetError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(
            f"policy cannot be rebuilt: {type(error).__name__} {error}. It is incomplete or damaged; fit it again."
        ) from error


FILES = ("policy.json", "policy.safetensors")
"""What a saved policy consists of."""


def save_policy(
    policy: Policy,
    path: str | os.PathLike[str],
    *,
    costs: CostTable | None = None,
    info: dict[str, Any] | None = None,
    exits: Sequence[int] | None = None,
) -> None:
    """Write a policy as a folder, atomically.

    Args:
        policy: As returned by a scheduler.
        path: The folder; an earlier policy there is replaced.
        costs: What it was fitted with.
        info: JSON values to keep with it: budget, scheduler, data.
        exits: Which exits of the model it decides over; default: all.

    Raises:
        ShapeError: Another number of exits than the policy has.
        InputError: The policy cannot be saved, or ``path`` is a folder that holds something else.
    """
    spec, tensors = policy_to_spec(policy)
    if exits is not None and len(exits) != policy.num_exits:
        raise ShapeError(
            f"exits {list(exits)} do not fit: the policy decides over {policy.num_exits} exits. Name as many."
        )
    check_replaceable(Path(path), "policy", FILES)
    with atomic_path(path) as draft:
        draft.mkdir()
        save_tensors(draft / "policy.safetensors", tensors)
        stored = {
            "costs": None if costs is None else costs.to_dict(),
            "info": info or {},
            "exits": None if exits is None else list(exits),
            "sha256": sha256(draft / "policy.safetensors"),
        }
        write_json(draft / "policy.json", spec | stored)


def load_policy(path: str | os.PathLike[str]) -> SavedPolicy:
    """Read a policy written by `save_policy`.

    Raises:
        InputError: Nothing is there.
        BundleError: It is incomplete, damaged, or its tensors were changed since it was written.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"policy {path} is missing: there is no such folder. Pass what 'eenet fit --out' wrote.")
    stored = read_json(folder / "policy.json", "policy")
    tensors = load_tensors(folder / "policy.safetensors", "policy")
    if not isinstance(stored, dict) or stored.get("sha256") != sha256(folder / "policy.safetensors"):
        raise BundleError(
            f"policy {path} was changed since it was written: the checksum of its tensors differs. Fit it again."
        )
    costs = None if stored.get("costs") is None else CostTable.from_dict(stored["costs"])
    policy, exits = policy_from_spec(stored, tensors), stored.get("exits")
    if exits is not None and (not isinstance(exits, list) or len(exits) != policy.num_exits):
        raise BundleError(
            f"policy {path} cannot be used: its exits {exits!r} are not {policy.num_exits}. Fit it again."
        )
    return SavedPolicy(policy, costs, dict(stored.get("info") or {}), None if exits is None else tuple(exits))


def _describe(policy: Policy, parts: list[Scorer | Transform], tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    if isinstance(policy, MixedPolicy):
        sides = {side: _describe(getattr(policy, side), parts, tensors, f"{name}.{side}") for side in ("a", "b")}
        return {"mixed": sides, "weight": policy.weight, "seed": policy.seed}
    if isinstance(policy, TransformedPolicy) and isinstance(policy.transform, _TRANSFORMS):
        inner = _describe(policy.policy, parts, tensors, f"{name}.transformed")
        return {"transformed": inner, "transform": _place(policy.transform, parts)}
    if not isinstance(policy, ScorePolicy) or not isinstance(policy.scorer, _SCORERS):
        raise InputError(
            f"policy cannot be saved: {type(policy).__name__}, its scorer or its transform is a class of yours. Save "
            f"its tensors yourself."
        )
    tensors[f"{name}.thresholds"] = policy.thresholds
    return {"scorer": _place(policy.scorer, parts), "thresholds": f"{name}.thresholds"}


def _place(part: Scorer | Transform, parts: list[Scorer | Transform]) -> int:
    """Return the number of a part in the list, where it is put if it is new."""
    for i, known in enumerate(parts):
        if known is part:
            return i
    parts.append(part)
    return len(parts) - 1


def _rebuild(rule: dict[str, Any], parts: list[Any], tensors: dict[str, Tensor]) -> Policy:
    if "mixed" in rule:
        a, b = (_rebuild(rule["mixed"][side], parts, tensors) for side in ("a", "b"))
        return MixedPolicy(a, b, rule["weight"], rule["seed"])
    if "transformed" in rule:
        return TransformedPolicy(parts[rule["transform"]], _rebuild(rule["transformed"], parts, tensors))
    return ScorePolicy(parts[rule["scorer"]], torch.as_tensor(tensors[rule["thresholds"]]))
