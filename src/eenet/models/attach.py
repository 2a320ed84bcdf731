"""Giving exits to somebody else's model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import AttachError, ShapeError
from eenet.models.equivariance import check_samples_apart
from eenet.models.heads import HeadFactory
from eenet.models.inputs import Inputs, batch_size, evaluating, renew
from eenet.models.model import MultiExitModel
from eenet.models.splitting import cut
from eenet.models.tapheads import classes_of, usual_heads
from eenet.models.taps import Whole, chosen_blocks, require_modules
from eenet.models.tracing import recorded

__all__ = ["attach"]


class SameSize(nn.Module):
    """Hands the inputs on to the stages, which are cut for inputs of one size.

    Args:
        inputs: Of that size.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.sizes = [tuple(leaf.shape[1:]) for leaf in pytree.tree_leaves(inputs)]

    def forward(self, inputs: Inputs) -> Inputs:
        """Return the inputs.

        Raises:
            ShapeError: They are of another size.
        """
        sizes = [tuple(leaf.shape[1:]) for leaf in pytree.tree_leaves(inputs)]
        if sizes != self.sizes:
            raise ShapeError(
                f"inputs of size {sizes} per sample do not fit: exits were attached with example inputs of size "
                f"{self.sizes}, and the stages are cut for these. Resize or pad them, or attach with inputs of theirs."
            )
        return inputs


class TapHead(nn.Module):
    """A head that reads the tapped tensor, alone or in front of what else travels between stages.

    Args:
        head: From the tapped tensor to logits.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(state if isinstance(state, Tensor) else state[0])
        return logits


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
        example_inputs: A tensor or a dictionary of keyword tensors, batch first, at least 2 samples.
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
    count = batch_size(example_inputs)
    if count < 2:
        raise ShapeError(f"example_inputs of {count} sample are too few: samples must be told apart. Pass at least 2.")
    if isinstance(exits, int) and exits < 2:
        raise ShapeError(f"exits {exits} are too few: the original output is one of them. Ask for at least 2.")
    example = _copied(example_inputs)  # the model may change its inputs in place
    names = chosen_blocks(model, _copied(example), exits) if isinstance(exits, int) else require_modules(model, exits)
    recording = recorded(model, _copied(example), names)
    check_samples_apart(recording, _copied(example), seed)
    stages = cut(recording)
    whole = Whole(model, names)
    with evaluating(model), torch.no_grad():
        shown = whole(_copied(example))
    if shown[-1].dim() < 2 or shown[-1].shape[0] != count:
        raise AttachError(
            f"model answers with shape {tuple(shown[-1].shape)} for {count} samples: logits come batch first, then "
            "classes. Wrap it in a module that returns such logits."
        )
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        early = _heads(whole, example, shown, heads)
    attached = MultiExitModel(stages, [*early, nn.Identity()], start=SameSize(example), whole=whole)
    with evaluating(attached), torch.no_grad():
        _check_heads(attached, shown)
        _check_stages(attached, _copied(example), shown)
        _check_followed(attached, whole, example)
    return attached


def _copied(inputs: Inputs) -> Inputs:
    copied: Inputs = pytree.tree_map(lambda leaf: leaf.clone(), inputs)
    return copied


def _heads(whole: Whole, inputs: Inputs, shown: Sequence[Tensor], make: HeadFactory | None) -> list[nn.Module]:
    """Return the early heads, where and of which type the tapped tensors are."""
    *taps, answer = shown
    if make is None:
        made = usual_heads(whole, inputs, shown)
    else:
        made = [make(tuple(tap.shape), classes_of(answer)) for tap in taps]
    return [
        TapHead(head).to(tap.device, tap.dtype if tap.is_floating_point() else None)
        for head, tap in zip(made, taps, strict=True)
    ]


def _check_heads(model: MultiExitModel, shown: Sequence[Tensor]) -> None:
    """Refuse heads that do not answer as the model does."""
    *taps, answer = shown
    for k, tap in enumerate(taps):
        try:
            logits = model.heads[k](tap)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise AttachError(
                f"head of exit {k} fails on features of shape {tuple(tap.shape)} ({str(error).splitlines()[0]}). Pass "
                "heads that take them."
            ) from error
        if logits.dim() != answer.dim() or (len(logits), classes_of(logits)) != (len(answer), classes_of(answer)):
            raise AttachError(
                f"head of exit {k} answers with shape {tuple(logits.shape)}, the model with {tuple(answer.shape)}: "
                "samples and classes must be the same. Pass heads that answer as the model does."
            )


def _check_followed(attached: MultiExitModel, whole: Whole, inputs: Inputs) -> None:
    """Refuse stages that hold on to something worked out from the weights, which training would leave behind."""
    weights = [parameter for parameter in whole.parameters() if parameter.is_floating_point()]
    kept = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.mul_(0.8)
        renew(whole)
        _check_stages(attached, _copied(inputs), whole(_copied(inputs)), ", once its weights have changed")
    finally:
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
        renew(whole)


def _check_stages(model: MultiExitModel, inputs: Inputs, shown: Sequence[Tensor], when: str = "") -> None:
    """Refuse stages that do not lead to what the model showed at its taps and at its end, samples being dropped."""
    rows = torch.arange(len(shown[-1]), device=shown[-1].device)
    state = model.start(inputs)
    for k, (stage, wanted) in enumerate(zip(model.stages, shown, strict=True)):
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
