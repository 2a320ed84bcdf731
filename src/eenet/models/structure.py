"""What is written down about somebody else's model with exits, so that it can be built again from JSON alone.

Only classes of installed libraries are built: nothing is downloaded, and no code is taken from what is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eenet.errors import EenetError, InputError
from eenet.libraries import first_line, library
from eenet.models.attach import attach
from eenet.models.form import SameForm
from eenet.models.inputs import Inputs, unwrapped
from eenet.models.model import MultiExitModel

_KINDS = {"ForSequenceClassification": "AutoModelForSequenceClassification"}
_KINDS |= {"ForImageClassification": "AutoModelForImageClassification"}
_ATTENTION = ("eager", "sdpa")
_FOREIGN = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "custom_pipelines")
"""Values of a config that make transformers fetch or run something; those that begin with an underscore do, too."""


def structure_of(model: MultiExitModel) -> dict[str, Any] | None:
    """Return what `rebuild` makes a model of the same structure from, as JSON values; None where that is not possible.

    It is possible for models of transformers that classify sequences or images and for models of timm, with exits of
    `attach` whose heads are the default ones, all of them open. The model is built once, to see that its tensors have
    the same names and shapes.
    """
    if model.whole is None or model.reads is not None or not isinstance(model.entry, SameForm):
        return None
    form, whole = model.entry, model.whole
    original = unwrapped(whole.model)  # type: ignore[arg-type]
    source = _of_transformers(original) or _of_timm(original)
    if source is None:
        return None
    sizes = {name: [form.example.get(str(one), one) for one in size] for name, size in form.sizes.items()}
    axes = {name: {str(axis): one for axis, one in axes.items()} for name, axes in form.axes.items() if axes}
    found = {**source, "exits": list(whole.names), "inputs": sizes, "free": axes}  # type: ignore[arg-type]
    try:
        structure: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
        again = rebuild(structure)
    except (EenetError, TypeError, ValueError):
        return None
    return structure if _shapes(again) == _shapes(model) else None


def rebuild(structure: Mapping[str, Any]) -> MultiExitModel:
    """Return the model, with weights as initialised, from what `structure_of` returned.

    Raises:
        AttachError: The installed library makes a model that cannot be given such exits.
        InputError: A value is missing or wrong, or the library does not know the model.
        MissingExtraError: The library is not installed.
    """
    try:
        names = [str(name) for name in structure["exits"]]
        sizes = {str(name): tuple(map(int, size)) for name, size in structure["inputs"].items()}
        free = {str(name): {int(k): str(one) for k, one in axes.items()} for name, axes in structure["free"].items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _made(structure)
            inputs = _example(model, sizes)
        return attach(model, inputs, names, free=free)
    except EenetError:
        raise
    except Exception as error:  # libraries raise what they like, of sizes below 0 or beyond memory as well
        raise InputError(
            f"structure of the model cannot be used: {first_line(error)}. Pass build, a function that makes the model."
        ) from error


def _made(structure: Mapping[str, Any]) -> nn.Module:
    match structure["library"]:
        case "transformers":
            return _make_transformers(str(structure["kind"]), structure["config"], str(structure["attention"]))
        case "timm":
            return _make_timm(str(structure["name"]), structure["settings"])
        case other:
            raise InputError(
                f"structure of library {other!r} cannot be used: transformers and timm are known. Pass build, a "
                "function that makes the model."
            )


def _of_transformers(model: nn.Module) -> dict[str, Any] | None:
    config, name = getattr(model, "config", None), type(model).__name__
    kind = next((auto for end, auto in _KINDS.items() if name.endswith(end)), None)
    if kind is None or not type(model).__module__.startswith("transformers.models."):
        return None
    attention = getattr(config, "_attn_implementation", None)
    return {
        "library": "transformers",
        "kind": kind,
        "config": _harmless(config.to_dict()),  # type: ignore[union-attr]
        "attention": attention if attention in _ATTENTION else "eager",
    }


def _make_transformers(kind: str, config: Mapping[str, Any], attention: str) -> nn.Module:
    transformers = library("transformers")
    values = _harmless(config)
    if kind not in _KINDS.values() or attention not in _ATTENTION:
        raise ValueError(f"{kind!r} with attention {attention!r} is not known")
    made = transformers.AutoConfig.for_model(str(values.pop("model_type")), **values)
    model: nn.Module = getattr(transformers, kind).from_config(
        made, trust_remote_code=False, attn_implementation=attention
    )
    return model


def _harmless(value: Any) -> Any:  # noqa: ANN401 - of JSON
    """Return the values of a config without those that make transformers fetch or run something."""
    if isinstance(value, Mapping):
        kept = {key: one for key, one in value.items() if not str(key).startswith("_") and key not in _FOREIGN}
        return {key: _harmless(one) for key, one in kept.items()}
    return [_harmless(one) for one in value] if isinstance(value, list | tuple) else value


def _of_timm(model: nn.Module) -> dict[str, Any] | None:
    known: Any = getattr(model, "pretrained_cfg", None)
    if not type(model).__module__.startswith("timm.models.") or not isinstance(known, Mapping):
        return None
    first = next((one for one in model.modules() if isinstance(one, nn.Conv2d)), None)
    settings = {"num_classes": getattr(model, "num_classes", None), "in_chans": getattr(first, "in_channels", None)}
    return {"library": "timm", "name": known.get("architecture"), "settings": settings}


def _make_timm(name: str, settings: Mapping[str, Any]) -> nn.Module:
    timm = library("timm")
    if not re.fullmatch(r"\w+", name) or not timm.is_model(name):  # no name of a hub
        raise ValueError(f"timm knows no model {name!r}")
    chosen = {key: int(settings[key]) for key in ("num_classes", "in_chans")}
    model: nn.Module = timm.create_model(name, pretrained=False, **chosen)
    return model


def _example(model: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> Inputs:
    """Return two samples of what a model takes: words of its vocabulary, masks, else random numbers."""
    most = getattr(getattr(model, "config", None), "vocab_size", 2)

    def one(name: str, size: tuple[int, ...]) -> Tensor:
        if name == "input_ids":
            return torch.randint(0, most, (2, *size))
        if name == "attention_mask":
            mask = torch.ones(2, *size, dtype=torch.int64)
            mask[1, size[0] - size[0] // 4 :] = 0
            return mask
        if name == "token_type_ids":
            return torch.zeros(2, *size, dtype=torch.int64)
        return torch.randn(2, *size)

    made = {name: one(name, size) for name, size in sizes.items()}
    return made[""] if made.keys() == {""} else made


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in model.state_dict().items() if isinstance(one, Tensor)}
