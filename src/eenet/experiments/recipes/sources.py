"""Where somebody else's model and its weights come from: a library, a local folder, or a function of the user's own."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from eenet.errors import AttachError, InputError
from eenet.experiments.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from eenet.experiments.libraries import library, quiet
from eenet.experiments.zoo.parts import check_weights
from eenet.models.inputs import Inputs, evaluating
from eenet.models.taps import call
from eenet.models.weights import load_tensors

KINDS = "timm:NAME, torchvision:NAME, hf:FOLDER or package.module:function"
IMAGE = (3, 224, 224)
TOKENS = 128
IMAGENET: Normalisation = (IMAGENET_MEAN, IMAGENET_STD)
Found: TypeAlias = tuple[nn.Module, tuple[int, ...], Normalisation | None]
"""A model, the shape of one sample, and how images are prepared."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Somebody else's model, its weights as initialised (or as the local folder has them).

    Attributes:
        model: The model.
        example_inputs: Two samples of what it takes.
        shape: Of one sample; of a model that reads tokens, their number.
        num_classes: What it tells apart.
        normalisation: How its library prepares images, where that is known.
    """

    model: nn.Module
    example_inputs: Inputs
    shape: tuple[int, ...]
    num_classes: int
    normalisation: Normalisation | None = None

    @property
    def takes_images(self) -> bool:
        """Whether a sample has channels, height and width."""
        return isinstance(self.example_inputs, Tensor) and len(self.shape) == 3


def load_source(
    spec: str, *, shape: Sequence[int] | None = None, num_classes: int | None = None, seed: int = 0
) -> Source:
    """Return the model that a specification names. Nothing is ever downloaded.

    Args:
        spec: ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER`` (a local folder with a Hugging Face model that
            classifies sequences) or ``package.module:function`` (called without arguments, it returns a module; the
            current directory is searched too).
        shape: Of one sample: channels, height and width; or the number of tokens. Default: what timm says of its
            models, else 3 x 224 x 224, or 128 tokens.
        num_classes: Handed to timm and torchvision.
        seed: Of the weights and of the example inputs.

    Raises:
        InputError: There is no such model, or it does not take inputs of that shape.
        MissingExtraError: timm, torchvision or transformers is not installed.
    """
    kind, colon, name = spec.partition(":")
    if not colon or not kind or not name:
        raise InputError(f"model {spec!r} is of no known kind: a source and a name are needed. Write {KINDS}.")
    wanted = None if shape is None else tuple(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "hf":
            _only_here("num_classes", num_classes, spec)
            model, inputs, found = _transformers(Path(name), wanted)
            normalisation = None
        else:
            if kind not in ("timm", "torchvision"):
                _only_here("num_classes", num_classes, spec)
            make = {"timm": _timm, "torchvision": _torchvision}.get(kind, _factory)
            model, found, normalisation = make(name if make is not _factory else spec, wanted, num_classes)
            inputs = torch.randn(2, *found)
    return Source(
        model=model,
        example_inputs=inputs,
        shape=found,
        num_classes=_classes(model, inputs, found, spec),
        normalisation=normalisation,
    )


def _timm(name: str, shape: tuple[int, ...] | None, num_classes: int | None) -> Found:
    timm = library("timm", "vision")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if shape is not None and len(shape) == 3 and shape[0] != 3:
        settings["in_chans"] = shape[0]
    with _made(f"timm:{name}"):
        model: Any = timm.create_model(name, pretrained=False, **settings)
        cfg = getattr(model, "pretrained_cfg", {})
        usual = tuple(cfg.get("input_size", IMAGE))
        if shape is not None and shape[1:] != usual[1:] and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=shape[1:])
    mean, std = (tuple(float(value) for value in cfg.get(key, ())) for key in ("mean", "std"))
    return model, shape or usual, (mean, std) if mean and std else None


def _torchvision(name: str, shape: tuple[int, ...] | None, num_classes: int | None) -> Found:
    models = library("torchvision.models", "vision")
    known = models.list_models(module=models)  # those that classify; others fetch weights for their backbones
    if name not in known:
        raise _unknown("torchvision", name, known)
    settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if shape is not None and name.startswith("vit_"):
        settings["image_size"] = shape[-1]
    with _made(f"torchvision:{name}"):
        model: nn.Module = models.get_model(name, weights=None, **settings)
    return model, shape or IMAGE, IMAGENET


def _factory(spec: str, shape: tuple[int, ...] | None, num_classes: int | None) -> Found:
    place, _, name = spec.partition(":")
    with _current_directory(), _made(spec):
        found: Any = _imported(place, spec)
        for part in name.split("."):
            if not hasattr(found, part):
                near = [one for one in vars(found) if callable(getattr(found, one)) and not one.startswith("_")]
                raise _unknown(f"function of {place}", part, near)
            found = getattr(found, part)
        if isinstance(found, nn.Module) or not callable(found):
            raise InputError(
                f"model {spec!r} is no function: it is a {type(found).__name__}. Name a function without arguments "
                "that returns the module."
            )
        model: Any = found()
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {spec!r} returns no module: it returned {type(model).__name__}. Return a torch.nn.Module."
        )
    return model, shape or IMAGE, None


def _imported(place: str, spec: str) -> Any:  # noqa: ANN401
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise  # the module is there and misses another one
        raise InputError(
            f"model {spec!r} is not found: no module {error.name!r} in {os.getcwd()} or among the installed ones. Run "
            f"eenet in the folder of that module, or write {KINDS}."
        ) from error


def _transformers(folder: Path, shape: tuple[int, ...] | None) -> tuple[nn.Module, Inputs, tuple[int, ...]]:
    transformers = library("transformers", "text")
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model 'hf:{folder}' is not found: a folder on this machine with config.json is needed, nothing is "
            "downloaded. Save a model with save_pretrained there."
        )
    if shape is not None and len(shape) != 1:
        raise InputError(
            f"input {','.join(map(str, shape))} does not fit: hf:{folder} reads tokens. Pass their number, such as 128."
        )
    with quiet(transformers), _made(f"hf:{folder}"):
        model: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    config: Any = model.config
    length = shape[0] if shape else min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length - length // 4 :] = 0  # one of the two is shorter
    inputs = {"input_ids": torch.randint(0, config.vocab_size, (2, length)), "attention_mask": mask}
    return model, inputs, (length,)


def _classes(model: nn.Module, inputs: Inputs, shape: tuple[int, ...], spec: str) -> int:
    """Return how many classes a model tells apart, having run it once."""
    asked = ",".join(map(str, shape))
    try:
        with evaluating(model), torch.no_grad():
            answer = call(model, inputs)
    except AttachError:
        raise
    except Exception as error:
        raise InputError(
            f"input {asked} does not fit: {spec} fails on it ({first_line(error)}). Pass the shape of one sample, "
            "such as --input 3,224,224."
        ) from error
    if answer.dim() < 2 or len(answer) != 2:
        raise AttachError(
            f"model {spec!r} answers with shape {tuple(answer.shape)} for 2 samples: logits come batch first, then "
            "classes. Name a model that classifies."
        )
    return answer.shape[1]


def _unknown(kind: str, name: str, known: Sequence[str]) -> InputError:
    """Make the error for a name that a library does not know, with the near ones in it."""
    bare = name.partition(".")[0]
    near = difflib.get_close_matches(bare.lower(), known, n=5, cutoff=0.5)
    advice = f"Near it are {', '.join(near)}." if near else f"There are {', '.join([*known[:8], '...'])}."
    return InputError(f"{kind} {name!r} is unknown: there is none of that name. {advice}")


def _only_here(option: str, value: object, spec: str) -> None:
    if value is not None:
        raise InputError(f"{option} {value} cannot be handed on: {spec} takes none. Set it where the model is made.")


@contextmanager
def _made(spec: str) -> Iterator[None]:
    """Turn what a model's own code raises into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever the code of others raises
        raise InputError(f"model {spec!r} cannot be made: {first_line(error)}. Correct it and try again.") from error


@contextmanager
def _current_directory() -> Iterator[None]:
    """Let modules be imported from the current directory for the block."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def first_line(error: Exception) -> str:
    """Return what an error says, in one line that is not too long."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {text[:200].rstrip('.')}"


# --- weights ----------------------------------------------------------------------------------------------------------


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into a model: safetensors, or what ``torch.save`` wrote, read without running code from it."""
    state = load_tensors(path, "weights") if path.suffix == ".safetensors" else _torch_file(path)
    check_weights(model.state_dict(), state, path)
    model.load_state_dict(state)


def _torch_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"weights {str(path)!r} are missing: there is no such file. Check the path.")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"weights {str(path)!r} cannot be read: {first_line(error)}. Save the model's state_dict() again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"weights {str(path)!r} are no state dict: names and tensors are needed. Save model.state_dict()."
        )
    return state
