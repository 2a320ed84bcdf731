"""Giving exits to somebody else's model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eenet.errors import AttachError, ShapeError
from eenet.models.equivariance import check_samples_apart
from eenet.models.heads import HeadFactory
from eenet.models.inputs import Inputs, batch_size, evaluating
from eenet.models.model import MultiExitModel
from eenet.models.splitting import cut
from eenet.models.tapheads import usual_head
from eenet.models.taps import Whole, chosen_blocks, require_modules
from eenet.models.tracing import recorded

__all__ = ["attach"]


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
    inference: samples can be dropped between them. That samples do not influence each other is checked on random
    inputs, operator by operator.

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
    names = chosen_blocks(model, example_inputs, exits) if isinstance(exits, int) else require_modules(model, exits)
    recording = recorded(model, example_inputs, names)
    check_samples_apart(recording, example_inputs, seed)
    stages = cut(recording)
    whole = Whole(model, names)
    with evaluating(model), torch.no_grad():
        shown = whole(example_inputs)
    if shown[-1].dim() < 2 or shown[-1].shape[0] != count:
        raise AttachError(
            f"model answers with shape {tuple(shown[-1].shape)} for {count} samples: logits come batch first, then "
            "classes. Wrap it in a module that returns such logits."
        )
    with evaluating(model):
        build = heads or usual_head(whole, example_inputs, shown[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        early = [TapHead(build(tuple(tap.shape), shown[-1].shape[1])) for tap in shown[:-1]]
    device = shown[-1].device
    attached = MultiExitModel(stages, [*(head.to(device) for head in early), nn.Identity()], whole=whole)
    _check_stages(attached, example_inputs, shown)
    return attached


def _check_stages(model: MultiExitModel, inputs: Inputs, shown: Sequence[Tensor]) -> None:
    """Refuse stages that do not lead to what the model showed at its taps and at its end, samples being dropped."""
    rows = torch.arange(len(shown[-1]), device=shown[-1].device)
    with torch.no_grad():
        state = model.start(inputs)
        for k, (stage, wanted) in enumerate(zip(model.stages, shown, strict=True)):
            state = stage(state)
            tapped = state if isinstance(state, Tensor) else state[0]
            worst = float((tapped - wanted[rows]).abs().max()) / max(1e-12, float(wanted.abs().max()))
            if not worst <= 1e-4:
                raise AttachError(
                    f"model cannot be cut: run stage by stage it differs by {worst:.2g} of the largest number at exit "
                    f"{k}. Tap other modules."
                )
            if k < model.num_exits - 1 and len(rows) > 1:
                keep = torch.arange(len(rows) - 1, device=rows.device)
                state, rows = model.select(state, keep), rows[keep]
