"""The training loop for models with exits: seeded, resumable, two phases."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eenet.core.files import save_tensors, write_json
from eenet.core.inputs import Inputs
from eenet.data.dataset import LabelledDataset
from eenet.models.model import MultiExitModel
from eenet.training.checkpoint import capture, claim_folder, read_checkpoint, restore, write_checkpoint
from eenet.training.console import interruption, progress_bar
from eenet.training.losses import distillation_loss, exit_losses
from eenet.training.settings import Phase, Schedule, TrainSettings

FINAL_WEIGHTS, HISTORY = "model.safetensors", "history.json"


@dataclass(frozen=True, kw_only=True)
class History:
    """How a training went.

    Args:
        losses: cross-entropy of every exit at each step, on the (augmented) training batch before the step.
        steps_per_epoch: steps in one pass over the data.
    """

    losses: Float[Tensor, "step exit"]
    steps_per_epoch: int

    @property
    def epoch_losses(self) -> list[list[float]]:
        """Mean loss of every exit in each epoch, the last one possibly not whole."""
        return [part.mean(dim=0).tolist() for part in torch.split(self.losses, self.steps_per_epoch)]

    def to_dict(self) -> dict[str, Any]:
        """Return the history as JSON values."""
        return {"steps": len(self.losses), "steps_per_epoch": self.steps_per_epoch, "epoch_losses": self.epoch_losses}


def fit_exits(
    model: MultiExitModel,
    dataset: LabelledDataset,
    settings: TrainSettings,
    *,
    out: Path | None = None,
    progress: bool = True,
) -> History:
    """Train a multi-exit model in place and return how it went.

    With a folder ``out``, the training resumes from the checkpoint there and writes one every
    ``settings.checkpoint_seconds``, at each epoch's end and on Ctrl-C; the end leaves ``model.safetensors`` and
    ``history.json``. A training that was killed and resumed, with the same number of threads, ends with the same
    weights to the bit as one that was not. The model is left in evaluation mode.

    Args:
        model: the model; its weights are the start of the training.
        dataset: the training samples.
        settings: how to train.
        out: folder for checkpoints and the result; nothing is written when not given.
        progress: show a progress bar on stderr.

    Raises:
        InputError: ``out`` holds checkpoints of another training.
        KeyboardInterrupt: after Ctrl-C, once the step was finished and the checkpoint written.

    Example:
        >>> from eenet.data import load_digits
        >>> from eenet.models import tiny_cnn
        >>> settings = TrainSettings(epochs=0.2, batch_size=32)
        >>> fit_exits(tiny_cnn(), load_digits().train, settings, progress=False).losses.shape
        torch.Size([5, 3])
    """
    trainer = _Trainer(
        model, dataset, Schedule(settings=settings, samples=len(dataset)), None if out is None else Path(out)
    )
    trainer.resume()
    try:
        trainer.run(progress)
    finally:
        model.eval()
    history = History(losses=trainer.losses, steps_per_epoch=trainer.schedule.steps_per_epoch)
    if out is not None:
        save_tensors(Path(out) / FINAL_WEIGHTS, model.state_dict())
        write_json(Path(out) / HISTORY, history.to_dict())
    return history


class _Trainer:
    """The moving parts of one training."""

    def __init__(self, model: MultiExitModel, dataset: LabelledDataset, schedule: Schedule, out: Path | None) -> None:
        self.model, self.dataset, self.schedule, self.out = model, dataset, schedule, out
        self.settings = schedule.settings
        self.weights = torch.tensor(self.settings.weighting(model.num_exits))
        self.optimizer = _optimizer(model, self.settings)
        self.done: list[Tensor] = []
        self.saved_at = time.monotonic()

    @property
    def losses(self) -> Float[Tensor, "step exit"]:
        """Losses of the steps done."""
        return torch.stack(self.done) if self.done else torch.empty(0, self.model.num_exits)

    def resume(self) -> None:
        """Continue from the folder's checkpoint where there is one."""
        if self.out is None:
            return
        claim_folder(self.out, _identity(self.model, self.dataset, self.settings))
        checkpoint = read_checkpoint(self.out)
        if checkpoint is not None:
            restore(checkpoint, self.model, self.optimizer)
            self.done = list(checkpoint.losses)

    def save(self) -> None:
        """Write a checkpoint."""
        if self.out is not None:
            write_checkpoint(self.out, capture(self.model, self.optimizer, self.losses))
        self.saved_at = time.monotonic()

    def run(self, progress: bool) -> None:
        """Do the steps that are left."""
        schedule = self.schedule
        with (
            interruption() as interrupted,
            progress_bar(schedule.steps, len(self.done), progress) as show,
            torch.random.fork_rng(devices=[]),
        ):
            while len(self.done) < schedule.steps:
                self.done.append(self.step(len(self.done)))
                show(self.done[-1])
                finished = len(self.done) == schedule.steps or len(self.done) % schedule.steps_per_epoch == 0
                if (
                    finished
                    or interrupted.is_set()
                    or time.monotonic() - self.saved_at > self.settings.checkpoint_seconds
                ):
                    self.save()
                if interrupted.is_set():
                    raise KeyboardInterrupt

    def step(self, step: int) -> Float[Tensor, " exit"]:
        """Do one step and return every exit's loss on its batch."""
        phase = self.schedule.phase(step)
        _set_phase(self.model, phase)
        backbone_rate, head_rate = self.schedule.learning_rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = head_rate if group["early_heads"] else backbone_rate
        inputs, labels = self.batch(step)
        torch.manual_seed(_seed(self.settings.seed, "model", step))
        logits = self.model(inputs) if phase == "joint" else _frozen_forward(self.model, inputs)
        losses = exit_losses(logits, labels)
        loss = (losses * self.weights).sum()
        if self.schedule.distils(step):
            loss = loss + self.settings.distillation * distillation_loss(logits, self.settings.temperature)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return losses.detach()

    def batch(self, step: int) -> tuple[Inputs, Tensor]:
        """Return the (prepared inputs, labels) of a step, a function of the seed and the step alone."""
        epoch, place = divmod(step, self.schedule.steps_per_epoch)
        order = torch.randperm(len(self.dataset), generator=_generator(self.settings.seed, "order", epoch))
        size = self.schedule.batch_size
        rows = order[place * size : (place + 1) * size]
        generator = _generator(self.settings.seed, "augment", step)
        return self.dataset.training_batch(rows, self.settings.augment, generator)


def _optimizer(model: MultiExitModel, settings: TrainSettings) -> torch.optim.Optimizer:
    sides = {
        False: list(nn.ModuleList(_backbone(model)).parameters()),  # what parts share, once
        True: list(model.heads[:-1].parameters()),
    }
    groups = [
        {
            "params": [p for p in parameters if (p.ndim > 1) == decayed],
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "early_heads": early,
        }
        for early, parameters in sides.items()
        for decayed in (True, False)
    ]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


def _backbone(model: MultiExitModel) -> list[nn.Module]:
    parts = [model.entry, model.stages, model.heads[-1]]
    return parts if model.whole is None else [model.whole, *parts]


def _set_phase(model: MultiExitModel, phase: Phase) -> None:
    model.train()
    for part in _backbone(model):
        part.train(phase == "joint")


def _frozen_forward(model: MultiExitModel, inputs: Inputs) -> list[Tensor]:
    """Return the logits of every exit, with gradients for the early heads only."""
    if model.whole is not None:
        with torch.no_grad():
            *shown, answer = model.whole(inputs)
            last = model.heads[-1](answer)
        return [*(head(one) for head, one in zip(model.heads, shown, strict=False)), last]
    states = []
    with torch.no_grad():
        state = model.start(inputs)
        for stage in model.stages:
            state = stage(state)
            states.append(state)
        last = model.heads[-1](state)
    return [*(head(state) for head, state in zip(model.heads, states[:-1], strict=False)), last]


def _identity(model: MultiExitModel, dataset: LabelledDataset, settings: TrainSettings) -> dict[str, Any]:
    """Return what must be the same for a training to be resumed."""
    shapes = "".join(f"{name}{tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    identity = {key: value for key, value in settings.to_dict().items() if key != "checkpoint_seconds"}
    return identity | {
        "exits": model.num_exits,
        "samples": len(dataset),
        "labels": dataset.fingerprint(),
        "model": _digest(shapes.encode()),
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*parts))
