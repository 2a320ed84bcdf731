"""What is refused before a training begins: a model, data and settings that do not go together."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_map

from eenet.data.dataset import LabelledDataset
from eenet.errors import InputError
from eenet.models.inputs import evaluating
from eenet.models.model import MultiExitModel
from eenet.training.phases import Phases
from eenet.training.processes import Processes
from eenet.training.settings import Schedule


def check_training(model: MultiExitModel, dataset: LabelledDataset, schedule: Schedule, processes: Processes) -> None:
    """Refuse what would fail only when the loop has begun.

    Args:
        model: answers one sample, in evaluation mode.
        dataset: the training samples.
        schedule: of the training.
        processes: those that share it.

    Raises:
        InputError: there are more processes than samples in a batch, more classes in the data than in the answers, or
            early heads that are to learn alone and cannot.
    """
    if schedule.batch_size < processes.count:
        raise InputError(
            f"batch_size {schedule.batch_size} is too small: {processes.count} processes share a batch. Pass a larger "
            "one, or start fewer processes."
        )
    if schedule.head_steps and not any(parameter.requires_grad for parameter in Phases(model).heads):
        raise InputError(
            f"heads_share {schedule.settings.heads_share:g} is not possible: no early head has weights of its own that "
            "may learn. Pass heads_share=0."
        )
    device = next(model.parameters()).device
    inputs = tree_map(lambda leaf: leaf.to(device), dataset.inputs(slice(0, 1)))
    with evaluating(model), torch.no_grad():
        logits = model(inputs)
    if logits[-1].dim() != 2:
        return  # maps hold 255 where there is no class, and all of them would have to be read
    labels = dataset.labels
    for k, answer in enumerate(logits):
        if int(labels.max()) >= answer.shape[1]:
            raise InputError(
                f"labels up to {int(labels.max())} do not fit: exit {k} tells {answer.shape[1]} classes apart, 0 to "
                f"{answer.shape[1] - 1}. Make the model for {int(labels.max()) + 1} classes, or correct the labels."
            )
