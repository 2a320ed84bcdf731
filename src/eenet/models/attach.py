"""Giving exits to somebody else's model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import AttachError, ShapeError
from eenet.models.capacities import Capacities
from eenet.models.form import Axes, Free, SameForm, fault_next_to, free_axes
from eenet.models.heads import HeadFactory, TokenHead
from eenet.models.inputs import Inputs, evaluating, plain, renew, unwrapped
from eenet.models.model import MultiExitModel
from eenet.models.splitting import check_samples_apart, cut
from eenet.models.taps import Run, Whole, call, chosen_blocks, limits_by_tables, require_modules
from eenet.models.tracing import recorded
from eenet.tables.arrays import batch_size

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_MOST_TRIES = 16  # layers that are looked at to find the axis of the features


class TapHead(nn.Module):
    """A head that reads the tapped tensor, which comes alone or first in a tuple of what travels between stages."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: Tensor | tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.head(state if isinstance(state, Tensor) else state[0])
        return logits


def attach(
    model: nn.Module,
    example_inputs: Inputs,
    exits: int | Sequence[str] | Capacities = 4,
    heads: HeadFactory | None = None,
    *,
    answer: str | int | None = None,
    free: Free | None = None,
    seed: int = 0,
) -> MultiExitModel:
    """Return a model with exits that shares the weights of somebody else's model.

    Called, it runs the original model, which may train, and reads the outputs of the tapped modules; the last exit is
    the original output to the bit. Its stages are cut from a recording of the model in evaluation mode and serve
    inference: samples can be dropped between them. That samples do not influence each other is checked on random
    inputs, operator by operator. Samples have the size of the examples, but texts may be of any length that the model
    takes, as may every axis that is named as free; where the model can be recorded for one size only, a warning says
    so.

    Args:
        model: Any module; its output is the logits, or has them as ``.logits``, or is several tensors of their shape.
            What ``torch.compile`` and ``DataParallel`` wrap around it is taken off.
        example_inputs: A tensor or a mapping of keyword tensors (a BatchEncoding too), batch first, at least 2 samples.
        exits: How many, the original output included, at about equal cost; or the names of the modules to tap; or the
            `capacities` of the devices that hold the first stages.
        heads: From the shape of a tapped tensor and the number of classes to a module; default: a pooled linear head.
        answer: Which part of the model's output the logits are, by name or place, where that is not clear.
        free: Axes of any size, by the input, their number and a name, ``{"x": {2: "time"}}``; of a tensor by itself
            ``{2: "time"}``. Axes of one name have one size. Default: the tokens of texts, that is of inputs named as
            tokenizers do, and of whole numbers ``[sample, token]``; ``{}`` for none.
        seed: Of the heads' weights and of the inputs of the check.

    Raises:
        AttachError: The model cannot be cut, with the reason and the module; or a module to tap is unknown.
        ShapeError: The inputs hold fewer than 2 samples, exits are fewer than 2, or a free axis is not there.

    Example:
        >>> import torch
        >>> backbone = torch.nn.Sequential(
        ...     *(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(4)), torch.nn.Linear(8, 3)
        ... )
        >>> model = attach(backbone, torch.zeros(2, 8), exits=3)
        >>> [tuple(logits.shape) for logits in model(torch.zeros(5, 8))]
        [(5, 3), (5, 3), (5, 3)]
    """
    model, example = unwrapped(model), _copied(plain(example_inputs))  # the model may change its inputs in place
    _require_modules(model)
    if (count := batch_size(example)) < 2:
        raise ShapeError(
            f"example_inputs of {count} sample are not enough: the check that samples do not influence each other "
            "needs several. Pass at least 2."
        )
    if isinstance(exits, int) and exits < 2:
        raise ShapeError(f"exits {exits} are not enough: the original output is one of them. Ask for at least 2.")
    axes, run = free_axes(example, free), partial(call, answer=answer)
    _check_runs(model, run, _copied(example))
    names = _names(model, example, exits, run, heads)
    whole = Whole(model, names, run)
    parts, fault = _cut_freely(whole, example, axes, seed)
    with evaluating(model), torch.no_grad():
        outputs = whole(_copied(example))
    _check_answer(outputs[-1], count)
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        early = _heads(whole, example, outputs, heads)
    attached = _assembled(parts, early, whole)
    with evaluating(attached), torch.no_grad():
        _check_heads(attached, outputs)
        if fault is None and (fault := _fault_elsewhere(attached, whole, parts[1], example)):
            attached = _assembled(_cut(whole, example, {}, seed), early, whole)
        _check_stages(attached, _copied(example), outputs)
        _check_followed(attached, whole, example)
    if fault:
        sizes = ", ".join(f"{one} at {size}" for one, size in SameForm(example, axes).example.items())
        warnings.warn(
            f"free sizes stay those of the example, {sizes}: {fault}. Pad inputs to these, or attach once for every "
            "size; free={} asks for none.",
            stacklevel=2,
        )
    return attached


def _names(
    model: nn.Module, example: Inputs, exits: int | Sequence[str] | Capacities, run: Run, heads: HeadFactory | None
) -> list[str]:
    """Return the modules to tap."""
    if isinstance(exits, Capacities):
        return exits.ends(model, _copied(example), run, partial(_heads, make=heads))
    return (
        chosen_blocks(model, _copied(example), exits, run) if isinstance(exits, int) else require_modules(model, exits)
    )


_Parts: TypeAlias = tuple[list[nn.Module], SameForm]


def _cut_freely(whole: Whole, example: Inputs, axes: Axes, seed: int) -> tuple[_Parts, str | None]:
    """Return the stages and what they take, and why no size is free although some should be."""
    fault = fault_next_to(whole, example, axes)
    if fault is None:
        try:
            return _cut(whole, example, axes, seed), None
        except AttachError as error:
            if not axes:
                raise
            fault = str(error).split(". ")[0]
    return _cut(whole, example, {}, seed), fault


def _cut(whole: Whole, example: Inputs, axes: Axes, seed: int) -> _Parts:
    recording = recorded(whole, _copied(example), axes)
    check_samples_apart(recording, _copied(example), seed)
    limits = {name: limits_by_tables(whole, example, axes, name, known) for name, known in recording.limits.items()}
    return cut(recording), SameForm(example, axes, limits)


def _assembled(parts: _Parts, early: Sequence[nn.Module], whole: Whole) -> MultiExitModel:
    stages, form = parts
    return MultiExitModel(stages, [*early, nn.Identity()], start=form, whole=whole)


def _fault_elsewhere(attached: MultiExitModel, whole: Whole, form: SameForm, example: Inputs) -> str | None:
    """Return why the model is not what it was at other free sizes than the example's, None where it is."""
    for inputs in form.others(_copied(example)):
        sizes = ", ".join(f"{name} {size}" for name, size in form.lengths(inputs).items())
        try:
            outputs = whole(_copied(inputs))
            _check_heads(attached, outputs)
            _check_stages(attached, inputs, outputs)
        except (AttachError, RuntimeError, ValueError, TypeError, IndexError) as error:
            return f"at {sizes}, {str(error).split('. ')[0]}"
    return None


def _check_answer(answer: Tensor, count: int) -> None:
    """Refuse an answer that is no logits of every sample."""
    if answer.dim() < 2 or answer.shape[0] != count:
        raise AttachError(
            f"model answers with shape {tuple(answer.shape)} for {count} samples: logits come batch first, then "
            "classes. Wrap it in a module that returns such logits."
        )


def _require_modules(model: nn.Module) -> None:
    """Refuse a model whose modules are no longer run one by one, or that has exits."""
    if isinstance(model, MultiExitModel):
        raise AttachError("model has exits already. Pass the model without them, such as model.whole.model.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise AttachError("model is TorchScript, which cannot be recorded. Pass the module that it was made from.")
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            where = f"in module {name!r}" if name else "in place"
            raise AttachError(
                f"model is compiled {where}: what compiled code does inside cannot be tapped. Attach exits "
                "before compiling, and run the result with CompiledEngine."
            )


def _check_runs(model: nn.Module, run: Run, inputs: Inputs) -> None:
    """Refuse inputs that the model does not take."""
    try:
        with evaluating(model), torch.no_grad():
            run(model, inputs)
    except AttachError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise AttachError(
            f"model fails on example_inputs ({type(error).__name__}: {str(error).splitlines()[0]}). Pass what it "
            "takes: a tensor, or a mapping from the names of its arguments to tensors."
        ) from error


def _copied(inputs: Inputs) -> Inputs:
    copies: Inputs = pytree.tree_map(lambda leaf: leaf.clone(), inputs)
    return copies


def _heads(whole: Whole, inputs: Inputs, outputs: Sequence[Tensor], make: HeadFactory | None) -> list[nn.Module]:
    """Return the early heads, on the device and in the number format of the tapped tensors."""
    *taps, answer = outputs
    classes = _classes_of(answer)
    made = [make(tuple(tap.shape), classes) for tap in taps] if make else _usual_heads(whole, inputs, outputs)
    return [
        TapHead(head).to(tap.device, tap.dtype if tap.is_floating_point() else None)
        for head, tap in zip(made, taps, strict=True)
    ]


def _check_heads(model: MultiExitModel, outputs: Sequence[Tensor]) -> None:
    """Refuse heads that do not answer as the model does."""
    *taps, answer = outputs
    for k, tap in enumerate(taps):
        try:
            logits = model.heads[k](tap)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise AttachError(
                f"head of exit {k} fails on features of shape {tuple(tap.shape)} ({str(error).splitlines()[0]}). Pass "
                "heads that take them."
            ) from error
        if logits.dim() != answer.dim() or (len(logits), _classes_of(logits)) != (len(answer), _classes_of(answer)):
            raise AttachError(
                f"head of exit {k} answers with shape {tuple(logits.shape)}, the model with {tuple(answer.shape)}: "
                "samples and classes must be the same. Pass heads that answer as the model does."
            )


def _check_followed(attached: MultiExitModel, whole: Whole, inputs: Inputs) -> None:
    """Refuse stages that contain numbers computed from the weights: training would not change them."""
    weights = [parameter for parameter in whole.parameters() if parameter.is_floating_point()]
    before = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.mul_(0.8)
        renew(whole)
        _check_stages(attached, _copied(inputs), whole(_copied(inputs)), ", once its weights have changed")
    finally:
        for weight, value in zip(weights, before, strict=True):
            weight.copy_(value)
        renew(whole)


def _check_stages(model: MultiExitModel, inputs: Inputs, outputs: Sequence[Tensor], when: str = "") -> None:
    """Refuse stages that do not compute what the model returned at its taps and at its end, samples being dropped."""
    rows = torch.arange(len(outputs[-1]), device=outputs[-1].device)
    state = model.start(inputs)
    for k, (stage, wanted) in enumerate(zip(model.stages, outputs, strict=True)):
        state = stage(state)
        tapped = state if isinstance(state, Tensor) else state[0]
        worst = float((tapped - wanted[rows]).abs().max()) / max(1e-12, float(wanted.abs().max()))
        if not worst <= (1e-4 if wanted.dtype in (torch.float32, torch.float64) else 5e-2):
            raise AttachError(
                f"model cannot be cut: run stage by stage it differs by {worst:.2g} of the largest number at exit "
                f"{k}{when}. Tap other modules."
            )
        if k < model.num_exits - 1 and len(rows) > 1:
            keep = torch.arange(len(rows) - 1, device=rows.device)
            state, rows = model.select(state, keep), rows[keep]


# --- the usual heads --------------------------------------------------------------------------------------------------


class PooledHead(nn.Module):
    """Normalises the features, which lie along one axis, takes the mean over all positions, and classifies."""

    def __init__(self, features: int, num_classes: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.norm = nn.LayerNorm(features)
        self.classify = nn.Linear(features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        places = [axis for axis in range(1, features.dim()) if axis != self.axis % features.dim()]
        pooled = features.mean(dim=places) if places else features
        logits: Tensor = self.classify(self.norm(pooled))
        return logits


class DenseHead(nn.Module):
    """Classifies every position and resizes the result to the size of the model's answer."""

    def __init__(self, features: int, num_classes: int, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)
        self.classify = nn.Conv2d(features, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        return F.interpolate(self.classify(features), size=self.size, mode="bilinear", align_corners=False)


def _classes_of(answer: Tensor) -> int:
    """Return the number of classes of an answer: its last axis where each token has an answer, else the second."""
    return answer.shape[-1 if answer.dim() == 3 else 1]


def _usual_heads(whole: Whole, inputs: Inputs, outputs: Sequence[Tensor]) -> list[nn.Module]:
    """Return a head for every tap of a model, which is in evaluation mode; ``outputs`` are its taps and its answer.

    One answer per sample: images and patches are averaged; of texts one token is read, as padding would distort the
    mean: the first, or the last where attention is causal. One answer per token: a linear layer. One per pixel: a 1x1
    convolution, resized.
    """
    *taps, answer = outputs
    text = any(isinstance(leaf, Tensor) and not leaf.is_floating_point() for leaf in pytree.tree_leaves(inputs))
    position = -1 if text and answer.dim() == 2 and _is_causal(whole, inputs) else 0
    heads: list[nn.Module] = []
    for name, tap in zip(whole.names, taps, strict=True):
        if answer.dim() == 4 and tap.dim() == 4:
            heads.append(DenseHead(tap.shape[1], answer.shape[1], answer.shape[2:]))
        elif answer.dim() == 3 and tap.dim() == 3:
            heads.append(nn.Linear(tap.shape[2], answer.shape[2]))
        elif answer.dim() == 2 and tap.dim() == 3 and text:
            heads.append(TokenHead(tap.shape[2], answer.shape[1], position))
        else:
            axis = _feature_axis(whole, len(heads), tap, inputs) if answer.dim() == 2 else None
            if axis is None:
                raise ShapeError(
                    f"features of shape {tuple(tap.shape)} after module {name!r} have no usual head for an answer of "
                    f"shape {tuple(answer.shape)}: which axis has the features is not clear. Pass heads of your own."
                )
            heads.append(PooledHead(tap.shape[axis], answer.shape[1], axis))
    return heads


@torch.no_grad()
def _feature_axis(whole: Whole, index: int, tap: Tensor, inputs: Inputs) -> int | None:
    """Return the axis of a tapped tensor that contains the features of a position, None where that is not clear.

    It is found by trying: one output feature of a layer before the tap is changed, and the axis along which only one
    place of the tapped tensor changes is that of the features. The nearest layers are tried first.
    """
    if tap.dim() == 2:
        return 1
    for layer in _layers_before(whole.model, whole.names[index]):
        weight = layer.weight if layer.bias is None else layer.bias
        before = weight[0].clone()
        try:
            weight[0] += 1
            renew(whole)
            changed = (whole(_copied(inputs))[index] != tap).nonzero()
        finally:
            weight[0] = before
            renew(whole)
        axes = [axis for axis in range(1, tap.dim()) if tap.shape[axis] > 1 and len(changed[:, axis].unique()) == 1]
        if len(axes) == 1:
            return axes[0]
    return None


def _layers_before(model: nn.Module, name: str) -> list[Any]:
    """Return the layers with weights inside a module and before it, the last one first, not too many."""
    modules = dict(model.named_modules())
    names = list(modules)
    last = max(place for place, inner in enumerate(names) if inner == name or inner.startswith(f"{name}."))
    found = [modules[inner] for inner in reversed(names[: last + 1]) if isinstance(modules[inner], _LAYERS)]
    return [layer for layer in found if next(layer.parameters(recurse=False), None) is not None][:_MOST_TRIES]


@torch.no_grad()
def _is_causal(model: nn.Module, inputs: Inputs) -> bool:
    """Return whether the features of the first token stay the same whatever tokens follow it."""

    def others(leaf: Tensor) -> Tensor:
        if leaf.is_floating_point() or leaf.dim() != 2 or int(leaf.max()) < 2:  # no token ids
            return leaf
        return torch.cat((leaf[:, :1], int(leaf.max()) - leaf[:, 1:]), dim=1)

    changed = pytree.tree_map_only(Tensor, others, inputs)
    pairs = zip(pytree.tree_leaves(inputs), pytree.tree_leaves(changed), strict=True)
    if all(torch.equal(leaf, other) for leaf, other in pairs):
        return False  # nothing could be changed
    taps = [(a, b) for a, b in zip(model(inputs), model(changed), strict=True) if a.dim() == b.dim() == 3]
    return bool(taps) and all(torch.allclose(a[:, 0], b[:, 0], rtol=1e-3, atol=1e-5) for a, b in taps)
