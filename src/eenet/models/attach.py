"""Giving exits to somebody else's model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import AttachError, ShapeError
from eenet.models.heads import HeadFactory, TokenHead
from eenet.models.inputs import Inputs, evaluating, plain, renew
from eenet.models.model import MultiExitModel
from eenet.models.splitting import check_samples_apart, cut
from eenet.models.taps import Whole, chosen_blocks, require_modules
from eenet.models.tracing import recorded
from eenet.tables.arrays import batch_size

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


class SameSize(nn.Module):
    """Passes the inputs on to the stages, which are cut for inputs of one size: that of ``inputs``."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.sizes = _sizes(inputs)

    def forward(self, inputs: Inputs) -> Inputs:
        """Return the inputs; a `ShapeError` where they are of another size."""
        if (sizes := _sizes(inputs)) != self.sizes:
            raise ShapeError(
                f"inputs of size {sizes} per sample do not fit: exits were attached with example inputs of size "
                f"{self.sizes}, and the stages are cut for these. Resize or pad them, or attach with inputs of theirs."
            )
        return inputs


def _sizes(inputs: Inputs) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape[1:]) for leaf in pytree.tree_leaves(inputs)]


class TapHead(nn.Module):
    """A head that reads the tapped tensor, which comes alone or first in a tuple of what travels between stages."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the logits."""
        return self.head(state if isinstance(state, Tensor) else state[0])


def attach(
    model: nn.Module,
    example_inputs: Inputs,
    exits: int | Sequence[str] = 4,
    heads: HeadFactory | None = None,
    *,
    seed: int = 0,
) -> MultiExitModel:
    """Return a model with exits that shares the weights of somebody else's model.

    Called, it runs the original model, which may train, and reads the outputs of the tapped modules; the last exit is
    the original output to the bit. Its stages are cut from a recording of the model in evaluation mode and serve
    inference, for samples of the size of the examples: samples can be dropped between them. That samples do not
    influence each other is checked on random inputs, operator by operator.

    Args:
        model: Any module; its output is the logits, or has them as ``.logits``, or begins with them.
        example_inputs: A tensor or a mapping of keyword tensors (a BatchEncoding too), batch first, at least 2 samples.
        exits: How many, the original output included, at about equal cost; or the names of the modules to tap.
        heads: From the shape of a tapped tensor and the number of classes to a module; default: a pooled linear head.
        seed: Of the heads' weights and of the inputs of the check.

    Raises:
        AttachError: The model cannot be cut, with the reason and the module; or a module to tap is unknown.
        ShapeError: The inputs hold fewer than 2 samples, or exits are fewer than 2.

    Example:
        >>> import torch
        >>> backbone = torch.nn.Sequential(
        ...     *(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(4)), torch.nn.Linear(8, 3)
        ... )
        >>> model = attach(backbone, torch.zeros(2, 8), exits=3)
        >>> [tuple(logits.shape) for logits in model(torch.zeros(5, 8))]
        [(5, 3), (5, 3), (5, 3)]
    """
    example = _copied(plain(example_inputs))  # the model may change its inputs in place
    count = batch_size(example)
    if count < 2:
        raise ShapeError(
            f"example_inputs of {count} sample are not enough: the check that samples do not influence each other "
            "needs several. Pass at least 2."
        )
    if isinstance(exits, int) and exits < 2:
        raise ShapeError(f"exits {exits} are not enough: the original output is one of them. Ask for at least 2.")
    names = chosen_blocks(model, _copied(example), exits) if isinstance(exits, int) else require_modules(model, exits)
    recording = recorded(model, _copied(example), names)
    check_samples_apart(recording, _copied(example), seed)
    stages = cut(recording)
    whole = Whole(model, names)
    with evaluating(model), torch.no_grad():
        outputs = whole(_copied(example))
    if outputs[-1].dim() < 2 or outputs[-1].shape[0] != count:
        raise AttachError(
            f"model answers with shape {tuple(outputs[-1].shape)} for {count} samples: logits come batch first, then "
            "classes. Wrap it in a module that returns such logits."
        )
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        early = _heads(whole, example, outputs, heads)
    attached = MultiExitModel(stages, [*early, nn.Identity()], start=SameSize(example), whole=whole)
    with evaluating(attached), torch.no_grad():
        _check_heads(attached, outputs)
        _check_stages(attached, _copied(example), outputs)
        _check_followed(attached, whole, example)
    return attached


def _copied(inputs: Inputs) -> Inputs:
    return pytree.tree_map(lambda leaf: leaf.clone(), inputs)


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
        """Return the logits."""
        places = [axis for axis in range(1, features.dim()) if axis != self.axis % features.dim()]
        pooled = features.mean(dim=places) if places else features
        return self.classify(self.norm(pooled))


class DenseHead(nn.Module):
    """Classifies every position and resizes the result to the size of the model's answer."""

    def __init__(self, features: int, num_classes: int, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)
        self.classify = nn.Conv2d(features, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of every position."""
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
            axis = _feature_axis(whole.model.get_submodule(name), tap.shape) if answer.dim() == 2 else None
            if axis is None:
                raise ShapeError(
                    f"features of shape {tuple(tap.shape)} after module {name!r} have no usual head for an answer of "
                    f"shape {tuple(answer.shape)}. Pass heads of your own."
                )
            heads.append(PooledHead(tap.shape[axis], answer.shape[1], axis))
    return heads


def _feature_axis(module: nn.Module, shape: Sequence[int]) -> int | None:
    """Return the axis of a tapped tensor that contains the features of a position, None where that is not known.

    The last layer of the tapped module with weights decides: a convolution and its norms have them in axis 1, a linear
    layer and its norms in the axis of their size, first or last. Without such a layer, images are assumed to be square
    and features not.
    """
    if len(shape) == 2:
        return 1
    for layer in reversed(list(module.modules())):
        if isinstance(layer, _CHANNELS_FIRST) and any(True for _ in layer.parameters(recurse=False)):
            return 1
        size = getattr(layer, "out_features", None) or (getattr(layer, "normalized_shape", None) or (None,))[-1]
        axes = [axis for axis in (1, len(shape) - 1) if shape[axis] == size]
        if axes:
            return axes[-1] if len(axes) == 1 or len(shape) == 3 else None
    if len(shape) == 3:
        return None
    first, last = len(set(shape[2:])) == 1, len(set(shape[1:-1])) == 1
    return None if first == last else 1 if first else len(shape) - 1


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
