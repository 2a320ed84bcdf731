"""A folder that holds everything a trained adaptive model needs, and notices when it was changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from eenet.core.costs import CostTable
from eenet.core.files import atomic_path, check_replaceable, read_json, sha256, write_json
from eenet.core.policy import Policy
from eenet.errors import BundleError, InputError
from eenet.inference.adaptive import AdaptiveModel
from eenet.inference.fitting import require_exits
from eenet.models.model import MultiExitModel
from eenet.schedulers.saved import load_policy, save_policy

__all__ = ["Bundle", "require_free"]

_FORMAT = "eenet bundle"
_VERSION = 1
_MODEL, _POLICY, _INFO, _MANIFEST = "model.safetensors", "policy", "info.json", "manifest.json"


@final
@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model, the policy that steers it, what its exits cost, and how to build it again.

    Attributes:
        model: The multi-exit model.
        policy: Where to leave.
        costs: What leaving costs, where known.
        info: JSON values that tell the builder which model to make, for example ``{"recipe": "digits"}``.
    """

    model: MultiExitModel
    policy: Policy
    costs: CostTable | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def adaptive(self) -> AdaptiveModel:
        """Return the model that stops early."""
        return AdaptiveModel(self.model, self.policy, self.costs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bundle as a folder, atomically; an older one is replaced.

        No code is stored, only numbers and JSON. The manifest holds the SHA-256 of every file: it shows damage and
        changes, it is no signature.

        Raises:
            InputError: The policy cannot be saved, ``info`` is no JSON, or ``path`` is a folder that holds something
                else.
            ShapeError: Model, policy and costs disagree on the number of exits.
        """
        require_free(Path(path), "bundle")
        require_exits(self.model.num_exits, self.policy, self.costs)
        try:
            json.dumps(self.info, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"info cannot be saved: it is no JSON ({error}). Use plain values.") from error
        with atomic_path(path) as draft:
            draft.mkdir()
            save_model(self.model, str(draft / _MODEL))
            save_policy(self.policy, draft / _POLICY, costs=self.costs)
            write_json(draft / _INFO, self.info)
            shutil.copymode(draft / _INFO, draft / _MODEL)  # safetensors lets nobody but the owner read its files
            files = sorted(file for file in draft.rglob("*") if file.is_file())
            digests = {file.relative_to(draft).as_posix(): sha256(file) for file in files}
            write_json(draft / _MANIFEST, {"format": _FORMAT, "version": _VERSION, "sha256": digests})

    @classmethod
    def load(cls, path: str | os.PathLike[str], build: Callable[[dict[str, Any]], MultiExitModel]) -> Bundle:
        """Read a bundle, in evaluation mode.

        Args:
            path: The folder.
            build: Makes the (untrained) model from the bundle's ``info``; its weights are then filled in.

        Raises:
            BundleError: A file is missing, truncated or was changed, or the weights do not fit the model built.
        """
        folder = Path(path)
        _verify(folder)
        try:
            info = read_json(folder / _INFO, "bundle file")
            saved = load_policy(folder / _POLICY)
        except InputError as error:
            raise BundleError(f"bundle {folder} cannot be used: {error}") from error
        model = build(info)
        try:
            load_model(model, folder / _MODEL, strict=True)
        except (SafetensorError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BundleError(
                f"bundle {folder} does not fit the model that was built from {json.dumps(info)}: {reason} "
                "Build the model it was saved from."
            ) from error
        return cls(model=model.eval(), policy=saved.policy, costs=saved.costs, info=info)


def require_free(folder: Path, what: str) -> None:
    """Refuse to replace a folder that holds anything but an earlier result, by the files its manifest lists.

    Args:
        folder: What would be replaced; nothing, or an empty folder, will do.
        what: What it may hold: ``bundle`` or ``export``.

    Raises:
        InputError: It holds something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        manifest = read_json(folder / _MANIFEST, f"{what} manifest")
    except InputError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != f"eenet {what}":
        raise InputError(f"output {folder} is taken: it is a folder that holds no {what}. Choose another.")
    digests = manifest.get("sha256")
    files = [Path(name) for name in (_MANIFEST, *(digests if isinstance(digests, dict) else ()))]
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        inside = place.relative_to(folder)
        names = [file.relative_to(inside).parts[0] for file in files if inside in file.parents]
        check_replaceable(place, f"saved {what}", names)


def _verify(folder: Path) -> None:
    """Refuse a folder whose files are not the ones its manifest lists."""
    if not folder.is_dir():
        raise BundleError(f"bundle {folder} is missing: there is no such folder. Check the path.")
    try:
        manifest = read_json(folder / _MANIFEST, "bundle manifest")
    except InputError as error:
        raise BundleError(str(error)) from error
    digests = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(digests, dict) or manifest.get("format") != _FORMAT:
        raise BundleError(f"bundle {folder} has no usable manifest: it lists no checksums. Save the bundle again.")
    if manifest.get("version") != _VERSION:
        raise BundleError(
            f"bundle {folder} is of version {manifest.get('version')!r}: this eenet reads version {_VERSION}. "
            "Save the bundle again with this version."
        )
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    needed = set(digests) | {_MODEL, _INFO, f"{_POLICY}/policy.json", f"{_POLICY}/policy.safetensors"}
    for name in sorted(needed):
        if name not in digests:
            fault = "is not in the manifest"
        elif name not in present:  # also what a manifest that points outside the folder comes to
            fault = "is missing"
        elif sha256(folder / name) != digests[name]:
            fault = "was changed or truncated: its checksum differs from the manifest"
        else:
            continue
        raise BundleError(f"bundle {folder} is damaged: file {name} {fault}. Copy or save the bundle again.")
