"""The training loop for models with exits: seeded, resumable, two phases, in one process or several."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from eenet.errors import InputError, RunError
from eenet.log import logger
from eenet.models.model import MultiExitModel
from eenet.models.processor import warn_of_emulation
from eenet.models.weights import save_tensors
from eenet.tables.atomic import holding
from eenet.tables.files import write_json
from eenet.training.batches import Batch, Batches, joined_processes, seed_of
from eenet.training.checkpoint import claim_folder, restore_checkpoint, write_checkpoint
from eenet.training.checks import check_training
from eenet.training.dataset import LabelledDataset
from eenet.training.losses import exit_losses, exit_weights, learnable, log_shares, total_loss
from eenet.training.samples import as_dataset
from eenet.training.schedule import Average, Phases
from eenet.training.settings import Schedule, TrainSettings

FINAL_WEIGHTS, HISTORY = "model.safetensors", "history.json"
LogFunction: TypeAlias = Callable[[dict[str, float], int], object]
"""From named values and the number of a step, 0-based, to whatever."""


@runtime_checkable
class Log(Protocol):
    """What a training is logged to: a run of Weights and Biases, or anything else with this one method."""

    def log(self, values: dict[str, float], step: int, /) -> object:
        """Take the values of a step, 0-based.

        They are ``loss/exit_0``, ...: the cross-entropy of every exit on the batch, before the step; and ``lr`` and
        ``head_lr``: the learning rates of the backbone and of the early heads.
        """


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
    dataset: Any,  # noqa: ANN401 - anything that holds samples and labels
    settings: TrainSettings,
    *,
    out: Path | None = None,
    progress: bool = True,
    log: Log | LogFunction | None = None,
) -> History:
    """Train a multi-exit model in place and return how it went.

    With a folder ``out``, the training resumes from the checkpoint there and writes one every
    ``settings.checkpoint_seconds``, at each epoch's end and on Ctrl-C; the end leaves ``model.safetensors`` and
    ``history.json``. A training that was killed and resumed, with the same number of threads, ends with the same
    weights to the bit as one that was not. The model is left in evaluation mode.

    Started by ``accelerate launch`` in several processes, each runs its share of every batch (and draws the chance of
    augmentation and dropout for it) and gradients are summed: the steps are those of one process up to rounding, but
    for that chance and for batch norm, whose statistics are those of a share; the first process's are kept. All
    processes must see the folder ``out``.

    Args:
        model: the model; its weights are the start of the training.
        dataset: the training samples: a `LabelledDataset`, a `DataLoader`, a torch data set, two arrays, or an iterable
            of batches, see `eenet.training.samples.as_dataset`.
        settings: how to train.
        out: folder for checkpoints and the result; nothing is written when not given.
        progress: show a progress bar on stderr.
        log: gets the losses of the exits and the learning rates after every step, see `Log`; of several processes only
            that of the first is called. Steps that a resumed training had done before are not repeated.

    Raises:
        InputError: ``out`` holds checkpoints of another training, or another process trains there; or model, data and
            settings do not go together: inputs that the model does not take, or by other names than those it was
            attached with; labels that are no classes of the model, or none at all; batches too small for a batch norm.
        MissingExtraError: several processes were started and accelerate is not installed.
        RunError: the training diverged: a loss is no number.
        KeyboardInterrupt: after Ctrl-C, once the step was finished and the checkpoint written.

    Example:
        >>> from eenet.experiments.data import load_digits
        >>> from eenet.experiments.zoo import tiny_cnn
        >>> settings = TrainSettings(epochs=0.2, batch_size=32)
        >>> fit_exits(tiny_cnn(), load_digits().train, settings, progress=False).losses.shape
        torch.Size([5, 3])
    """
    dataset = as_dataset(dataset)
    schedule, processes = Schedule(settings=settings, samples=len(dataset)), joined_processes()
    if processes.device is not None:
        model.to(processes.device)
    if settings.precision == "bfloat16":
        warn_of_emulation("precision", next(model.parameters()).device)
    classes = check_training(model, dataset, schedule, processes)
    processes.copy_from_first(model.state_dict().values())
    batches = Batches(dataset, schedule, processes, next(model.parameters()).device, classes)
    write = None if log is None or processes.rank else _writer(log)
    trainer = _Trainer(model, batches, None if out is None else Path(out), write)
    with ExitStack() as stack:
        if out is not None and processes.rank == 0:
            stack.enter_context(holding(Path(out), "training folder"))
        stack.callback(trainer.phases.leave)
        trainer.resume()
        trainer.run(progress and processes.rank == 0)
        history = History(losses=trainer.losses, steps_per_epoch=schedule.steps_per_epoch)
        if out is not None and processes.rank == 0:
            write_json(Path(out) / HISTORY, history.to_dict())
            save_tensors(Path(out) / FINAL_WEIGHTS, model.state_dict())  # last: a folder with these is done
    return history


class _Trainer:
    """The moving parts of one training."""

    def __init__(
        self, model: MultiExitModel, batches: Batches, out: Path | None, write: LogFunction | None = None
    ) -> None:
        self.model, self.batches, self.out, self.write = model, batches, out, write
        self.schedule, self.processes, self.device = batches.schedule, batches.processes, batches.device
        self.settings = self.schedule.settings
        self.phases = Phases(model)
        self.optimizer = self.phases.optimizer(
            self.settings.optimiser, self.settings.momentum, self.settings.weight_decay
        )
        self.average = Average(model, self.settings.ema) if self.settings.ema else None
        self.weights = exit_weights(self.settings.weighting, model.num_exits).to(self.device)
        self.labels = batches.dataset.labels.long().to(self.device) if self.settings.balanced else None
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
        if self.processes.rank == 0:
            claim_folder(self.out, _identity(self.model, self.batches.dataset, self.settings))
        losses = restore_checkpoint(self.out, self.model, self.optimizer, self.average)
        self.done = [] if losses is None else list(losses)
        if self.done:
            logger.info("training in %s goes on after step %d", self.out, len(self.done))

    def save(self) -> None:
        """Write a checkpoint."""
        if self.out is not None and self.processes.rank == 0:
            write_checkpoint(self.out, self.model, self.optimizer, self.average, self.losses)
        self.saved_at = time.monotonic()

    def run(self, progress: bool) -> None:
        """Do the steps that are left, and leave the final weights in the model."""
        schedule = self.schedule
        with (
            interruption() as interrupted,
            progress_bar(schedule.steps, len(self.done), progress) as show,
            torch.random.fork_rng(devices=[]),
            closing(self.batches.ahead(len(self.done))) as batches,
        ):
            for batch in batches:
                losses = self.learn(len(self.done), batch)
                stop = torch.tensor([float(interrupted.is_set())], device=self.device)
                self.move(len(self.done), [losses, stop])
                self.done.append(_sane(losses.cpu(), len(self.done), self.schedule))
                show(self.done[-1])
                self.report(len(self.done) - 1)
                first = len(self.done) == 1  # shows at once whether this training can be kept
                finished = len(self.done) == schedule.steps or len(self.done) % schedule.steps_per_epoch == 0
                if first or finished or stop or time.monotonic() - self.saved_at > self.settings.checkpoint_seconds:
                    self.save()
                if stop:
                    raise KeyboardInterrupt
        if self.average is not None:
            self.average.settle()
        self.processes.copy_from_first(self.model.buffers())

    def report(self, step: int) -> None:
        """Log what a step brought."""
        if self.write is not None:
            values = {f"loss/exit_{k}": loss for k, loss in enumerate(self.done[step].tolist())}
            rates = dict(zip(("lr", "head_lr"), self.schedule.learning_rates(step), strict=True))
            self.write(values | rates, step)

    def learn(self, step: int, batch: Batch) -> Float[Tensor, " exit"]:
        """Leave the gradients of a batch on the parameters; return this process's part of every exit's mean loss."""
        settings = self.settings
        self.phases.enter(self.schedule.phase(step))
        torch.manual_seed(seed_of(settings.seed, "model", step, *self.processes.mark))
        self.optimizer.zero_grad()
        learnt = learnable(batch.targets).float()
        self.processes.add([learnt])
        learnt.clamp_min_(1)
        done = torch.zeros_like(self.weights)
        for inputs, targets in batch.parts(settings.accumulate):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                outputs = settings.gradients(self.model, inputs)
            logits = [exit_logits.float() for exit_logits in outputs]
            if self.labels is not None:
                logits = [exit_logits + log_shares(self.labels, exit_logits.shape[1]) for exit_logits in logits]
            losses = exit_losses(logits, targets) * (learnable(targets) / learnt)
            done += losses.detach()
            if settings.sample_weighting is not None:
                sample_weights = settings.sample_weighting([one.detach() for one in logits], targets)
                losses = exit_losses(logits, targets, sample_weights) * (learnable(targets) / learnt)
            loss = total_loss(
                losses,
                self.weights,
                logits,
                distillation=len(targets) / batch.samples * settings.distillation if self.schedule.distils(step) else 0,
                temperature=settings.temperature,
                summed=settings.distillation_summed,
            )
            loss.backward()  # type: ignore[no-untyped-call]
        return done

    def move(self, step: int, messages: list[Tensor]) -> None:
        """Do a step of the optimiser along the gradients of all processes; their messages are summed, too."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        self.processes.add([*gradients, *messages])
        backbone_rate, head_rate = self.schedule.learning_rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = head_rate if group["early_heads"] else backbone_rate
        self.optimizer.step()
        if self.average is not None:
            self.average.follow(step)


def _writer(log: object) -> LogFunction:
    """Return the function that values are logged by."""
    found = getattr(log, "log", log)
    if not callable(found):
        raise InputError(
            f"log of type {type(log).__name__} cannot be used: it is no function of values and a step, and has no "
            "method log. Pass one."
        )
    write: LogFunction = found
    return write


def _sane(losses: Float[Tensor, " exit"], step: int, schedule: Schedule) -> Float[Tensor, " exit"]:
    """Return the losses of a step, refusing to go on from weights that have become useless."""
    if not losses.isfinite().all():
        k = int((~losses.isfinite()).nonzero()[0])
        rates = " and ".join(f"{rate:.3g}" for rate in dict.fromkeys(schedule.learning_rates(step)))
        raise RunError(
            f"loss {losses[k]:g} of exit {k} at step {step} is no number: the training diverged at a learning rate of "
            f"{rates}. Pass a smaller lr or head_lr, or a longer warmup."
        )
    return losses


def _identity(model: MultiExitModel, dataset: LabelledDataset, settings: TrainSettings) -> dict[str, Any]:
    """Return what must be the same for a training to be resumed."""
    shapes = "".join(f"{name}{tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    identity = {key: value for key, value in settings.to_dict().items() if key != "checkpoint_seconds"}
    return identity | {
        "exits": model.num_exits,
        "weights": list(settings.weighting(model.num_exits)),
        "samples": len(dataset),
        "data": dataset.fingerprint(),
        "model": hashlib.sha256(shapes.encode()).hexdigest()[:16],
    }


# --- terminal ---------------------------------------------------------------------------------------------------------


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so that a step in progress can finish first; a second Ctrl-C interrupts at once.

    Outside the main thread, where signals cannot be caught, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress_bar(total: int, done: int, wanted: bool) -> Iterator[Callable[[Float[Tensor, " exit"]], None]]:
    """Yield a function that advances a progress bar on stderr by one step and shows the losses of the exits."""
    counts = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}")
    columns = TextColumn("train"), *counts, TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not wanted, refresh_per_second=2) as bar:
        task = bar.add_task("train", total=total, completed=done, loss="")

        def advance(losses: Float[Tensor, " exit"]) -> None:
            if wanted:
                bar.update(task, advance=1, loss="loss " + " ".join(f"{loss:.2f}" for loss in losses.tolist()))

        yield advance
