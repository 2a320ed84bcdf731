"""Where somebody else's model and its weights come from: a library, a local folder, or a function of the user's own."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from eenet.errors import AttachError, InputError
from eenet.experiments.data.dataset import IMAGENET, Normalisation
from eenet.experiments.recipes.weights import load_weights
from eenet.imports import current_directory, imported
from eenet.libraries import first_line, library, pretrained
from eenet.models.attach import attach
from eenet.models.capacities import Capacities
from eenet.models.inputs import Inputs, evaluating
from eenet.models.model import MultiExitModel
from eenet.models.taps import call

KINDS = "timm:NAME, torchvision:NAME, hf:FOLDER or package.module:function"
IMAGE = (3, 224, 224)
TOKENS = 128
Found: TypeAlias = tuple[nn.Module, tuple[int, ...], Normalisation | None]
"""A model, the shape of one sample, and how images are prepared."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Somebody else's model, its weights as initialised (or as the local folder has them).

    Attributes:
        model: The model.
        example_inputs: Two samples of what it takes.
        shape: Of one sample; of a model that reads tokens, their number.
        num_classes: How many classes it has.
        normalisation: How its library prepares images, where that is known.
        answers: What it answers about: a ``sample``, a ``token`` or a ``pixel``.
    """

    model: nn.Module
    example_inputs: Inputs
    shape: tuple[int, ...]
    num_classes: int
    normalisation: Normalisation | None = None
    answers: str = "sample"

    @property
    def takes(self) -> str:
        """What a sample is: an ``image`` with channels, height and width, a ``text`` of tokens, or else ``numbers``."""
        if not isinstance(self.example_inputs, Tensor):
            return "text"
        return "image" if len(self.shape) == 3 else "numbers"


def load_source(
    spec: str, *, shape: Sequence[int] | None = None, num_classes: int | None = None, seed: int = 0
) -> Source:
    """Return the model that a specification names. Nothing is ever downloaded.

    Args:
        spec: ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER`` (a local folder with a Hugging Face model that
            classifies sequences) or ``package.module:function`` (called without arguments, it returns a module; the
            current directory is searched too).
        shape: Of one sample: channels, height and width; or the number of tokens. Default: what timm has for its
            models, else 3 x 224 x 224, or 128 tokens.
        num_classes: Passed to timm, torchvision and transformers; of the latter's weights, those for another number of
            classes are left out.
        seed: Of the weights and of the example inputs.

    Raises:
        InputError: There is no such model, or it does not take inputs of that shape.
        MissingExtraError: timm, torchvision or transformers is not installed.
    """
    kind, colon, name = spec.partition(":")
    if not colon or not kind or not name:
        raise _unusable(spec, "is of no known kind: a source and a name are needed", f"Write {KINDS}.")
    if kind not in ("timm", "torchvision", "hf") and num_classes is not None:
        raise InputError(
            f"num_classes {num_classes} cannot be passed on: {spec} takes none. Set it where the model is made."
        )
    wanted = None if shape is None else tuple(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "hf":
            model, inputs, found = _transformers(Path(name), wanted, num_classes)
            normalisation = None
        else:
            make = {"timm": _timm, "torchvision": _torchvision}.get(kind, _factory)
            model, found, normalisation = make(spec, wanted, num_classes)
            with _running(spec, found):
                inputs = torch.randn(2, *found)
    answers, classes = _answer(model, inputs, found, spec)
    return Source(
        model=model,
        example_inputs=inputs,
        shape=found,
        num_classes=classes,
        normalisation=normalisation,
        answers=answers,
    )


def attach_source(
    source: Source, exits: int | Sequence[str] | Capacities = 4, *, weights: Path | None = None, seed: int = 0
) -> MultiExitModel:
    """Return a source's model with exits, its weights loaded first.

    Args:
        source: As `load_source` returns it.
        exits: How many, the names of the modules to tap, or capacities of devices; see `attach`.
        weights: A file of weights, as `load_weights` takes it.
        seed: Of the heads.

    Raises:
        AttachError: The model cannot be given such exits.
        InputError: The weights do not fit.
    """
    if weights is not None:
        load_weights(source.model, weights)
    return attach(source.model, source.example_inputs, exits, seed=seed)


def _timm(spec: str, shape: tuple[int, ...] | None, num_classes: int | None) -> Found:
    timm, name = library("timm"), spec.partition(":")[2]
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if shape is not None and len(shape) == 3 and shape[0] != 3:
        settings["in_chans"] = shape[0]
    with _made(spec):
        model: Any = timm.create_model(name, pretrained=False, **settings)
        cfg = getattr(model, "pretrained_cfg", {})
        usual = tuple(cfg.get("input_size", IMAGE))
        if shape is not None and shape[1:] != usual[1:] and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=shape[1:])
    mean, std = (tuple(float(value) for value in cfg.get(key, ())) for key in ("mean", "std"))
    return model, shape or usual, (mean, std) if mean and std else None


def _torchvision(spec: str, shape: tuple[int, ...] | None, num_classes: int | None) -> Found:
    models, name = library("torchvision.models"), spec.partition(":")[2]
    known = models.list_models(module=models)  # those that classify; others fetch weights for their backbones
    if name not in known:
        raise _unknown("torchvision", name, known)
    settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if shape is not None and name.startswith("vit_"):
        settings["image_size"] = shape[-1]
    with _made(spec):
        model: nn.Module = models.get_model(name, weights=None, **settings)
    return model, shape or IMAGE, IMAGENET


def _factory(spec: str, shape: tuple[int, ...] | None, num_classes: int | None) -> Found:
    with current_directory(), _made(spec):
        found = imported(spec, "model", f"Run eenet in the folder of that module, or write {KINDS}.")
        if isinstance(found, nn.Module) or not callable(found):
            advice = "Name a function without arguments that returns the module."
            raise _unusable(spec, f"is no function: it is a {type(found).__name__}", advice)
        model: Any = found()
    if not isinstance(model, nn.Module):
        raise _unusable(spec, f"returns no module: it returned {type(model).__name__}", "Return a torch.nn.Module.")
    return model, shape or IMAGE, None


def _transformers(
    folder: Path, shape: tuple[int, ...] | None, num_classes: int | None
) -> tuple[nn.Module, Inputs, tuple[int, ...]]:
    if shape is not None and len(shape) != 1:
        raise InputError(
            f"input {','.join(map(str, shape))} does not fit: hf:{folder} reads tokens. Pass their number, such as 128."
        )
    chosen: dict[str, Any] = {} if num_classes is None else {"num_labels": num_classes, "ignore_mismatched_sizes": True}
    with _made(f"hf:{folder}"):
        found: tuple[nn.Module, dict[str, Any]] = pretrained(
            "AutoModelForSequenceClassification", folder, "model", output_loading_info=True, **chosen
        )
    model, loaded = found
    config: Any = model.config
    if (problem := getattr(config, "problem_type", None)) not in (None, "single_label_classification"):
        raise _unusable(f"hf:{folder}", f"was made for {problem}: exits answer with one class", "Name another model.")
    new = sorted({*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])})
    if new:
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        warnings.warn(
            f"model hf:{folder} has no weights for {', '.join(new[:3])}{more}: they begin at random. Train the model.",
            stacklevel=3,
        )
    length = shape[0] if shape else min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)
    with _running(f"hf:{folder}", (length,)):
        tokens, mask = torch.randint(0, config.vocab_size, (2, length)), torch.ones(2, length, dtype=torch.long)
    tokens[1, length - length // 4 :] = config.pad_token_id or 0  # one of the two is shorter
    mask[1, length - length // 4 :] = 0
    return model, {"input_ids": tokens, "attention_mask": mask}, (length,)


def known_classes(model: Any) -> tuple[str, ...] | None:  # noqa: ANN401
    """Return the names that a model or config of transformers has for its classes, None where it only numbers them."""
    named: dict[int, str] = getattr(getattr(model, "config", model), "id2label", None) or {}
    names = tuple(str(named[number]) for number in sorted(named))
    return None if all(re.fullmatch(r"LABEL_[0-9]+", name) for name in names) else names


def _answer(model: nn.Module, inputs: Inputs, shape: tuple[int, ...], spec: str) -> tuple[str, int]:
    """Return what a model, which is run once, answers about, and the number of its classes."""
    with _running(spec, shape), evaluating(model), torch.no_grad():
        answer = call(model, inputs)
    kinds = {2: ("sample", 1), 3: ("token", 2), 4: ("pixel", 1)}
    what, axis = kinds.get(answer.dim(), ("", 0))
    if not what or len(answer) != 2 or answer.shape[axis] < 2:
        raise AttachError(
            f"model {spec!r} answers with shape {tuple(answer.shape)} for 2 samples: logits come batch first, then "
            "classes, at least 2. Name a model that classifies."
        )
    return what, answer.shape[axis]


def _unknown(kind: str, name: str, known: Sequence[str]) -> InputError:
    """Return the error for a name that a library does not know, with similar ones in it."""
    bare = name.partition(".")[0]
    near = difflib.get_close_matches(bare.lower(), known, n=5, cutoff=0.5)
    advice = f"Near it are {', '.join(near)}." if near else f"There are {', '.join([*known[:8], '...'])}."
    return InputError(f"{kind} {name!r} is unknown: there is none of that name. {advice}")


def _unusable(spec: str, fact: str, advice: str) -> InputError:
    return InputError(f"model {spec!r} {fact}. {advice}")


@contextmanager
def _made(spec: str) -> Iterator[None]:
    """Turn what a model's own code raises into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever the code of others raises
        raise _unusable(spec, f"cannot be made: {first_line(error)}", "Correct it and try again.") from error


@contextmanager
def _running(spec: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn what fails when a model is run on inputs of a shape into one sentence."""
    try:
        yield
    except AttachError:
        raise
    except Exception as error:  # whatever the code of others raises
        raise InputError(
            f"input {','.join(map(str, shape))} does not fit: {spec} fails on it ({first_line(error)}). Pass the shape "
            "of one sample, such as --input 3,224,224, or its number of tokens."
        ) from error
