"""What is checked before a training begins, so that it does not fail in its first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from eenet.errors import EenetError, InputError, ShapeError
from eenet.models.form import SameForm
from eenet.models.inputs import IGNORED, Inputs, evaluating
from eenet.models.model import MultiExitModel
from eenet.tables.display import samples
from eenet.training.batches import Processes
from eenet.training.dataset import LabelledDataset
from eenet.training.losses import check_targets, require_classes
from eenet.training.schedule import Phases
from eenet.training.settings import Schedule


def check_training(model: MultiExitModel, dataset: LabelledDataset, schedule: Schedule, processes: Processes) -> int:
    """Refuse what would fail only when the loop has begun; return the number of classes.

    Raises:
        InputError: The settings do not fit the model, or the data neither: inputs that the model does not take, labels
            that it has no class for, or none at all; the first such row is named.
    """
    if schedule.batch_size < processes.count:
        raise InputError(
            f"batch_size {schedule.batch_size} is too small: {processes.count} processes share a batch. Pass a larger "
            "one, or start fewer processes."
        )
    phases = Phases(model)
    if schedule.head_steps and not any(parameter.requires_grad for parameter in phases.heads):
        raise InputError(
            f"heads_share {schedule.settings.heads_share:g} is not possible: no early head has weights of its own that "
            "may learn. Pass heads_share=0."
        )
    device = next(model.parameters()).device
    inputs = tree_map(lambda leaf: leaf.to(device), dataset.inputs(slice(0, 1)))
    if isinstance(model.entry, SameForm):
        model.entry.check_names(inputs)
    parts = phases.early.values() if schedule.head_steps == schedule.steps else [model]
    learning = {module for part in parts for module in part.modules()} - set(phases.frozen)
    with _single_values(model, learning) as single:
        logits = _tried(model, inputs)
    classes = _classes(logits)
    kinds = (logits[-1].dim(), dataset.targets(slice(0, 1)).dim())
    if kinds not in ((2, 1), (4, 3)):
        raise ShapeError(
            f"labels of {kinds[1]} axes do not fit logits of {kinds[0]}: [sample] belongs to [sample, class], [sample, "
            "height, width] to [sample, class, height, width]. Pass such labels."
        )
    smallest = max(1, schedule.batch_size // processes.count // schedule.settings.accumulate)
    if single and smallest == 1:
        raise InputError(
            f"batch_size {schedule.settings.batch_size} is too small: the batch norm {single[0]!r} needs at least 2 "
            "samples in every part of a batch to learn from. Pass a larger one, or less accumulate."
        )
    if logits[-1].dim() == 2:  # else maps: they are checked batch by batch, as all of them would have to be read here
        labels = dataset.labels
        check_targets(labels, classes, range(len(labels)))
        if bool((labels == IGNORED).all()):
            raise InputError(
                f"labels are {IGNORED} for all {samples(len(labels))}: there is nothing to learn. Pass labels."
            )
    return classes


def _tried(model: MultiExitModel, inputs: Inputs) -> list[Tensor]:
    """Return what the exits answer to some inputs, in evaluation mode."""
    try:
        with evaluating(model), torch.no_grad():
            return model(inputs)  # type: ignore[no-any-return]
    except EenetError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        found = [f"{tuple(leaf.shape)} ({str(leaf.dtype).removeprefix('torch.')})" for leaf in tree_leaves(inputs)]
        raise InputError(
            f"dataset does not fit the model, which fails on inputs of shape {', '.join(found)} "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Pass what the model takes."
        ) from error


def _classes(logits: Sequence[Tensor]) -> int:
    """Return the number of classes that all exits answer with."""
    require_classes(logits)
    found = [one.shape[1] for one in logits]
    if len(set(found)) > 1:
        raise ShapeError(
            f"heads answer with {', '.join(map(str, found))} classes, exit by exit: a training needs one number. Make "
            "all heads for the same classes."
        )
    return found[0]


@contextmanager
def _single_values(model: nn.Module, learning: Set[nn.Module]) -> Iterator[list[str]]:
    """Yield a list of the batch norms, among some modules, that see one value per channel while the block runs."""
    found: list[str] = []

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].numel() == args[0].shape[1]:
            found.append(name)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module in learning:
                hooks.enter_context(module.register_forward_pre_hook(partial(note, name)))
        yield found
