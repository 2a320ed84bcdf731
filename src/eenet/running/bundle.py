"""A folder with everything a trained adaptive model needs, under checksums."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

from torch import Tensor

from eenet.errors import BundleError, InputError
from eenet.models.model import MultiExitModel
from eenet.models.weights import load_tensors, save_tensors
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.scorers import Part
from eenet.policies.store import FILES, NeedsParts, load_policy, save_policy
from eenet.running.adaptive import AdaptiveModel, require_parts
from eenet.running.engines import plain_model
from eenet.tables.atomic import atomic_path, steady
from eenet.tables.costs import CostTable
from eenet.tables.files import check_free, read_json, read_manifest, seal, write_json

_VERSION = 1
_MODEL, _POLICY, _INFO = "model.safetensors", "policy", "info.json"


@final
@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model, the policy that steers it, what its exits cost, and how to build it again.

    Attributes:
        model: The `MultiExitModel`, without what ``torch.compile`` or ``DataParallel`` wrap around it.
        policy: Where to leave.
        costs: What leaving costs, where known.
        info: JSON values from which the model can be built again, for example ``{"recipe": "digits"}``.
        dial: The same fit for every other budget, for `AdaptiveModel.at`.
    """

    model: Any
    policy: Policy
    costs: CostTable | None = None
    info: dict[str, Any] = field(default_factory=dict)
    dial: Dial | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", plain_model(self.model))

    def __repr__(self) -> str:
        """Say what is in it."""
        dial = "" if self.dial is None else ", with a dial"
        return f"Bundle of a model with {self.model.num_exits} exits{dial}; policy: {self.policy!r}"

    def adaptive(self, *, check_source: bool = True) -> AdaptiveModel:
        """Return the model that stops early; argument and errors are those of `AdaptiveModel`."""
        return AdaptiveModel(self.model, self.policy, self.costs, dial=self.dial, check_source=check_source)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bundle as a folder, atomically; an older one is replaced.

        No code is stored, only numbers and JSON. The manifest contains the SHA-256 of every file: it shows
        damage and changes, it is no signature.

        Raises:
            InputError: The policy cannot be saved, ``info`` is no JSON, or ``path`` is a folder with something else
                in it.
            ShapeError: Model, policy, dial and costs disagree on the number of exits.
        """
        require_parts(self.model.num_exits, self.policy, self.costs, self.dial)
        try:
            json.dumps(self.info, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"info cannot be saved: it is no JSON ({error}). Use plain values.") from error
        with atomic_path(path, partial(check_free, what="bundle")) as draft:
            draft.mkdir()
            save_tensors(draft / _MODEL, self.model.state_dict())
            save_policy(self.policy, draft / _POLICY, costs=self.costs, dial=self.dial)
            write_json(draft / _INFO, self.info)
            seal(draft, "bundle", _VERSION)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        build: Callable[[dict[str, Any]], MultiExitModel],
        *,
        parts: Sequence[type[Part]] = (),
    ) -> Bundle:
        """Read a bundle, in evaluation mode.

        Args:
            path: The folder.
            build: Makes the (untrained) model from the bundle's ``info``; its weights are then filled in, in the number
                format that they were saved in.
            parts: Classes of yours that its policy consists of.

        Raises:
            BundleError: A file is missing, truncated or was changed, or the weights do not fit the model built.
        """
        return _read(path, build, parts)


@steady
def _read(
    path: str | os.PathLike[str], build: Callable[[dict[str, Any]], MultiExitModel], parts: Sequence[type[Part]]
) -> Bundle:
    folder = Path(path)
    read_manifest(folder, "bundle", _VERSION, (_MODEL, _INFO, *(f"{_POLICY}/{name}" for name in FILES)))
    try:
        info = read_json(folder / _INFO, "bundle file")
        saved = load_policy(folder / _POLICY, parts)
    except NeedsParts:
        raise
    except InputError as error:
        raise BundleError(f"bundle {folder} cannot be used: {error}") from error
    model = plain_model(build(info))
    try:
        _fill(model, load_tensors(folder / _MODEL, "bundle file"))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise BundleError(
            f"bundle {folder} does not fit the model that was built from {json.dumps(info)}: {reason} "
            "Build the model it was saved from."
        ) from error
    return Bundle(model=model.eval(), policy=saved.policy, costs=saved.costs, info=info, dial=saved.dial)


def _fill(model: MultiExitModel, tensors: dict[str, Tensor]) -> None:
    """Give a model its weights, in the number format that they were saved in."""
    own = model.state_dict()
    tensors = {name: one.to(own[name].device) if name in own else one for name, one in tensors.items()}
    other_format = any(name in own and own[name].dtype != one.dtype for name, one in tensors.items())
    model.load_state_dict(tensors, assign=other_format)
