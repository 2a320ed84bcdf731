"""A folder with everything a trained adaptive model needs, under checksums."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, final

from torch import Tensor

from eenet.errors import BundleError, InputError, MissingExtraError
from eenet.evaluation.saving import Saving
from eenet.models.model import MultiExitModel
from eenet.models.structure import rebuild, structure_of
from eenet.models.weights import load_tensors, save_tensors
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.scorers import Part
from eenet.policies.store import FILES, NeedsParts, load_policy, save_policy
from eenet.running.adaptive import AdaptiveModel, require_parts
from eenet.running.card import CARD, model_card
from eenet.running.engines import plain_model
from eenet.running.hub import fetched, pushed
from eenet.running.stored import (
    CLASSES,
    PREPARATION,
    TOKENIZER,
    Prepares,
    store_preparation,
    stored_classes,
    stored_preparation,
)
from eenet.tables.atomic import atomic_path, steady
from eenet.tables.costs import CostTable
from eenet.tables.files import (
    MANIFEST,
    check_free,
    listed_files,
    read_json,
    read_manifest,
    read_object,
    seal,
    write_json,
)

_VERSION = 1
_MODEL, _POLICY, _INFO, _INPUTS = "model.safetensors", "policy", "info.json", "inputs.json"
_FILES = (MANIFEST, _MODEL, _INFO, _INPUTS, f"{_POLICY}/*", f"{TOKENIZER}/*")
_STRUCTURE = "structure"
Build: TypeAlias = Callable[[dict[str, Any]], MultiExitModel]
"""From the ``info`` of a bundle to its model, untrained."""


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
        classes: Names of the classes, in label order, where known.
        preparation: How image files or texts become inputs, where known; of texts with the tokenizer.
    """

    model: Any
    policy: Policy
    costs: CostTable | None = None
    info: dict[str, Any] = field(default_factory=dict)
    dial: Dial | None = None
    classes: tuple[str, ...] | None = None
    preparation: Prepares | None = None

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
        self._require_consistent()
        with atomic_path(path, partial(check_free, what="bundle")) as draft:
            self._write(draft)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str | None = None,
        saving: Saving | None = None,
        budget: str | None = None,
        data: str | None = None,
        license: str | None = None,
    ) -> None:
        """Write the bundle as `save` does, with a model card, as a folder that `from_pretrained` reads.

        Of a model whose structure can be written down (see `eenet.models.structure`), it is, so that loading needs no
        function of yours. The card, ``README.md``, is for people: it is not read when the bundle is loaded, may be
        edited, and is written anew with the bundle.

        Args:
            folder: Where; an older bundle and its card are replaced.
            name: What the card calls it; default: the folder.
            saving: What `eenet.evaluation.saving` found on samples that took no part in fitting.
            budget: The one its policy was fitted for, as it was asked for.
            data: What it was trained and fitted on, in your words.
            license: Its identifier, such as ``apache-2.0``.

        Raises:
            InputError, ShapeError: As `save` does.
        """
        self._require_consistent()
        place = Path(folder)
        info = self.info
        if not {_STRUCTURE, "recipe"} & info.keys() and (found := structure_of(self.model)) is not None:
            info = {**info, _STRUCTURE: found}
        card = model_card(
            self,
            name or str(place),
            saving=saving,
            budget=budget,
            data=data,
            license=license,
            alone=_STRUCTURE in info,
        )
        names = [*listed_files(place, "bundle"), CARD] if (place / MANIFEST).is_file() else None
        with atomic_path(place, partial(check_free, what="bundle", names=names)) as draft:
            replace(self, info=info)._write(draft)
            (draft / CARD).write_text(card, encoding="utf-8")

    def push_to_hub(
        self,
        repository: str,
        *,
        saving: Saving | None = None,
        budget: str | None = None,
        data: str | None = None,
        license: str | None = None,
        private: bool | None = None,
        message: str = "Upload a bundle of eenet",
        token: str | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Put the bundle and its card into a repository of the Hugging Face Hub; return the address of the commit.

        Files of an older bundle there are replaced in the same commit; others stay as they are.

        Args:
            repository: Its name, ``owner/name``; it is made where there is none.
            saving: See `save_pretrained`.
            budget: See `save_pretrained`.
            data: See `save_pretrained`.
            license: See `save_pretrained`.
            private: Whether a repository that is made is private; default: as the account is set.
            message: Of the commit.
            token: Of the user; default: what ``hf auth login`` stored.
            endpoint: Address of the Hub; default: the public one, or that of ``HF_ENDPOINT``.

        Raises:
            InputError, ShapeError: As `save` does; or it is no name of a repository.
            MissingExtraError: huggingface_hub is not installed.
            RunError: The Hub does not answer, or refuses.
        """
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "bundle"
            self.save_pretrained(folder, name=repository, saving=saving, budget=budget, data=data, license=license)
            return pushed(
                folder,
                repository,
                replaces=_FILES,
                message=message,
                private=private,
                token=token,
                endpoint=endpoint,
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        build: Build | None = None,
        *,
        parts: Sequence[type[Part]] = (),
        revision: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> Bundle:
        """Read a bundle from a folder or from the Hugging Face Hub, in evaluation mode.

        Only the files of a bundle are downloaded, and each must have its checksum in the manifest. No code from there
        is run: the model is built by installed libraries from what the bundle says of its structure, or by ``build``.

        Args:
            source: A folder on this machine; else the name of a repository, ``owner/name``.
            build: Makes the (untrained) model from the bundle's ``info``; needed where the bundle does not contain
                its structure.
            parts: Classes of yours that its policy consists of.
            revision: A branch, tag or commit of the repository. Name a commit where it must not change.
            token: Of the user; default: what ``hf auth login`` stored.
            endpoint: Address of the Hub; default: the public one, or that of ``HF_ENDPOINT``.

        Raises:
            BundleError: A file is missing, has no checksum or was changed, or the weights do not fit the model built.
            InputError: There is no such repository, or ``build`` is needed.
            MissingExtraError: huggingface_hub, or the library that has the model, is not installed.
            RunError: The Hub does not answer, or refuses.
        """
        folder = Path(source)
        if not folder.is_dir() and isinstance(source, str):
            folder = fetched(str(source), _FILES, revision=revision, token=token, endpoint=endpoint)
        return _read(folder, build or partial(_rebuilt, folder), parts)

    def _require_consistent(self) -> None:
        """Refuse what cannot be saved."""
        require_parts(self.model.num_exits, self.policy, self.costs, self.dial)
        try:
            json.dumps(self.info, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"info cannot be saved: it is no JSON ({error}). Use plain values.") from error

    def _write(self, folder: Path) -> None:
        """Write the files of the bundle, and their manifest, into a new folder."""
        folder.mkdir()
        save_tensors(folder / _MODEL, self.model.state_dict())
        save_policy(self.policy, folder / _POLICY, costs=self.costs, dial=self.dial)
        write_json(folder / _INFO, self.info)
        if self.classes is not None or self.preparation is not None:
            prepared = store_preparation(self.preparation, folder)
            write_json(folder / _INPUTS, {CLASSES: list(self.classes or ()), PREPARATION: prepared})
        seal(folder, "bundle", _VERSION)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        build: Build,
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
def _read(path: str | os.PathLike[str], build: Build, parts: Sequence[type[Part]]) -> Bundle:
    folder = Path(path)
    inputs = [_INPUTS] if (folder / _INPUTS).exists() else []
    read_manifest(folder, "bundle", _VERSION, (_MODEL, _INFO, *inputs, *(f"{_POLICY}/{name}" for name in FILES)))
    try:
        info = read_json(folder / _INFO, "bundle file")
        stored = read_object(folder / _INPUTS, "bundle file") if inputs else {}
        classes, preparation = stored_classes(stored), stored_preparation(stored, folder, "bundle")
        saved = load_policy(folder / _POLICY, parts)
    except (NeedsParts, MissingExtraError):
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
    return Bundle(
        model=model.eval(),
        policy=saved.policy,
        costs=saved.costs,
        info=info,
        dial=saved.dial,
        classes=classes,
        preparation=preparation,
    )


def _rebuilt(folder: Path, info: dict[str, Any]) -> MultiExitModel:
    """Return the model from the structure that a bundle contains."""
    if isinstance(info, dict) and isinstance(info.get(_STRUCTURE), dict):
        return rebuild(info[_STRUCTURE])
    hint = "eenet.experiments.recipes.build" if isinstance(info, dict) and "recipe" in info else "build"
    raise InputError(
        f"bundle {folder} cannot be built by itself: it contains weights, and not the structure of the model. Pass "
        f"build={hint}, a function that makes the untrained model from its info."
    )


def _fill(model: MultiExitModel, tensors: dict[str, Tensor]) -> None:
    """Give a model its weights, in the number format that they were saved in."""
    own = model.state_dict()
    tensors = {name: one.to(own[name].device) if name in own else one for name, one in tensors.items()}
    other_format = any(name in own and own[name].dtype != one.dtype for name, one in tensors.items())
    model.load_state_dict(tensors, assign=other_format)
