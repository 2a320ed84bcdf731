"""The settings of a training and what follows from them by arithmetic alone: weights, steps, learning rates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from types import CodeType
from typing import Any, Literal, get_args

from torch import nn

from eenet.errors import InputError
from eenet.training.dataset import Augment
from eenet.training.losses import (
    Forward,
    SampleWeighting,
    Weighting,
    increasing_weights,
    paper_weights,
    plain_gradients,
    uniform_weights,
)
from eenet.training.schedule import LearningRate, Optimiser, Phase, adamw, cosine_decay, sgd

_COMPARABLE = (bool, int, float, str, bytes, tuple, list, type(None))  # closed-over values that identify it
Precision = Literal["float32", "bfloat16"]
_RANGES: tuple[tuple[Callable[[float], bool], str, tuple[str, ...]], ...] = (
    (
        lambda value: 0 < value < math.inf,
        "above 0 and finite. Pass a positive number",
        ("epochs", "batch_size", "accumulate", "lr", "head_lr", "temperature", "checkpoint_seconds"),
    ),
    (
        lambda value: 0 <= value < math.inf,
        "0 or more, and finite. Pass 0 to go without",
        ("weight_decay", "distillation"),
    ),
    (
        lambda value: 0 <= value <= 1,
        "a share. Pass a number from 0 to 1",
        ("heads_share", "warmup", "momentum", "ema", "distillation_from"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a multi-exit model is trained.

    A training has two phases. During the first `heads_share` of the steps the backbone is frozen and only the early
    heads learn, at `head_lr`. Then everything learns: the rates, set anew before every step, rise from 0 over the first
    `warmup` of the phase and fall as `schedule` says; the early heads keep `head_lr` as their peak, the backbone has
    `lr`.

    Args:
        epochs: passes over the training data; need not be whole.
        batch_size: samples per step, of all parts and processes together; what does not fill a batch is left out of an
            epoch.
        accumulate: parts in which a process runs its batch, to save memory: the step is the same up to rounding, but
            for what looks at a part as a whole: batch norm, and `sample_weighting`.
        precision: ``bfloat16`` runs the model in it where that is safe (autocast); weights and losses stay float32.
        lr: peak learning rate of the backbone and the original output.
        head_lr: peak learning rate of the early heads; `lr` when not given.
        heads_share: share of the steps that train the early heads alone.
        warmup: share of the joint phase during which the rates rise.
        schedule: how the rates fall after that, a factor from the share of the steps that is done.
        optimiser: what moves the weights: `sgd` with Nesterov momentum, or `adamw`.
        momentum: of the optimiser.
        weight_decay: of the optimiser, on weights of two or more axes only.
        ema: the final weights are a running average that keeps at most this share of itself at a step, say 0.999; 0
            for the weights of the last step.
        gradients: how the model is run, which decides what its stages learn from each exit.
        weighting: the weight of each exit's loss, from the number of exits.
        sample_weighting: the weight of each sample's loss at each exit; all 1 when not given.
        balanced: learn as if all classes were equally frequent: the logarithm of a class's share of the training data
            is added to its logits in the losses, so that the logits themselves need not know it (logit adjustment).
        distillation: factor alpha on the self-distillation loss.
        temperature: T of the self-distillation loss.
        distillation_summed: whether that loss is summed over the early exits, as in the paper, and not averaged.
        distillation_from: share of the steps after which self-distillation is on.
        augment: changes raw training images: a function of images and a generator, or a transform of torchvision that
            keeps their shape; none when not given.
        seed: decides data order, augmentation and dropout, each a function of (seed, epoch, step).
        checkpoint_seconds: time between checkpoints, in s; a checkpoint also follows every epoch.

    Raises:
        InputError: a value outside its range.

    Source of `balanced`: A. K. Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, equation 10.
    """

    epochs: float
    batch_size: int = 128
    accumulate: int = 1
    precision: Precision = "float32"
    lr: float = 0.04
    head_lr: float | None = None
    heads_share: float = 0.0
    warmup: float = 0.1
    schedule: LearningRate = cosine_decay
    optimiser: Optimiser = sgd
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.0
    gradients: Forward = plain_gradients
    weighting: Weighting = increasing_weights
    sample_weighting: SampleWeighting | None = None
    balanced: bool = False
    distillation: float = 0.01
    temperature: float = 3.0
    distillation_summed: bool = False
    distillation_from: float = 0.75
    augment: Augment | None = None
    seed: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for allowed, must, names in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not allowed(value):
                    raise InputError(f"{name} {value:g} is not possible: it must be {must}.")
        for name, what in (("ema", "average"), ("momentum", "direction")):
            if getattr(self, name) == 1:
                raise InputError(f"{name} 1 is not possible: the {what} would never move. Pass less, such as 0.9.")
        if self.accumulate > self.batch_size:
            raise InputError(
                f"accumulate {self.accumulate} is not possible: a batch has {self.batch_size} samples. Pass at most as "
                "many parts."
            )
        if self.precision not in get_args(Precision):
            raise InputError(
                f"precision {self.precision!r} is not known: there are {', '.join(get_args(Precision))}. Pass one."
            )

    def __repr__(self) -> str:
        """Return the settings that are not the default."""
        changed = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return f"TrainSettings({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values, functions by their names."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def attached_settings(*, texts: bool = False, **chosen: Any) -> TrainSettings:  # noqa: ANN401 - of `TrainSettings`
    """Return how exits attached to somebody's model are trained, unless something else is chosen; on texts by AdamW."""
    usual: dict[str, Any] = {"epochs": 5.0, "batch_size": 32, "lr": 0.02, "head_lr": 0.05, "weighting": uniform_weights}
    if texts:
        usual |= {"optimiser": adamw, "lr": 5e-5, "head_lr": 1e-3, "weight_decay": 0.01}
    return TrainSettings(**usual | chosen)


def paper_loss(settings: TrainSettings, *, alpha: float = 0.01, temperature: float = 3.0) -> TrainSettings:
    """Return the same settings with the paper's loss, for runs at parity with it.

    ``L = sum_k gamma_k CE_k + alpha sum_{k<K} tau^2 KL(y_K || y_k)`` with ``gamma_k = k / (K (K + 1))``, from the first
    step on. Beside our own loss, exits weigh half as much, and the pull to the last exit grows with their number.

    Args:
        settings: all else.
        alpha: factor on the divergences.
        temperature: tau, which softens both distributions.

    Source:
        EENet (WACV 2024), section 3.1. It does not give the values of ``alpha`` and ``tau``.
    """
    return replace(
        settings,
        weighting=paper_weights,
        distillation=alpha,
        temperature=temperature,
        distillation_summed=True,
        distillation_from=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What each step of a training does, for one size of training data.

    Args:
        settings: the training's settings.
        samples: number of training samples.
    """

    settings: TrainSettings
    samples: int

    @property
    def batch_size(self) -> int:
        """Samples per step; all of them where there are fewer than the settings ask for."""
        return min(self.settings.batch_size, self.samples)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the data."""
        return self.samples // self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole training, at least one."""
        return max(1, round(self.settings.epochs * self.steps_per_epoch))

    @property
    def head_steps(self) -> int:
        """Steps that train the early heads alone."""
        return round(self.settings.heads_share * self.steps)

    def phase(self, step: int) -> Phase:
        """Return whether a step trains the early heads alone or everything."""
        return "heads" if step < self.head_steps else "joint"

    def distils(self, step: int) -> bool:
        """Return whether self-distillation is on at a step."""
        return self.settings.distillation > 0 and step >= self.settings.distillation_from * self.steps

    def learning_rates(self, step: int) -> tuple[float, float]:
        """Return the learning rates of (backbone, early heads) at a step."""
        settings = self.settings
        head_peak = settings.lr if settings.head_lr is None else settings.head_lr
        if self.phase(step) == "heads":
            return 0.0, head_peak
        done = (step - self.head_steps + 0.5) / (self.steps - self.head_steps)
        if done < settings.warmup:
            factor = done / settings.warmup
        else:
            factor = settings.schedule((done - settings.warmup) / (1 - settings.warmup))
        return settings.lr * factor, head_peak * factor


def _plain(value: object) -> Any:  # noqa: ANN401
    """Return a setting as a JSON value, the same in every process: a function by its name and what it was given."""
    if isinstance(value, partial):
        return f"{_plain(value.func)}({_given(value.args, value.keywords)})"
    if not isinstance(value, Callable):  # type: ignore[arg-type]
        return value
    if isinstance(value, nn.Module):  # a transform: it prints its settings
        return f"{type(value).__module__}.{' '.join(repr(value).split())}"
    if hasattr(value, "__qualname__"):
        name = f"{value.__module__}.{value.__qualname__}"
        return name + (f"#{_digest(value)}" if "<" in name and hasattr(value, "__code__") else "")
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}({_given((), getattr(value, '__dict__', {}))})"


def _digest(function: Any) -> str:  # noqa: ANN401
    """Return a short digest of what a lambda or a nested function does, which its name does not tell."""
    inside = [cell.cell_contents for cell in function.__closure__ or ()]
    given = [*inside, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    known = [
        _written(value) if isinstance(value, _COMPARABLE) or callable(value) else type(value).__name__
        for value in given
    ]
    return hashlib.sha256(f"{_behaviour(function.__code__)} {known}".encode()).hexdigest()[:8]


def _behaviour(code: CodeType) -> str:
    """Return what a function's code does, without where it stands."""
    values = [_behaviour(value) if isinstance(value, CodeType) else _constant(value) for value in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {values}"


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)  # sets have no order


def _given(positional: Iterable[object], named: Mapping[str, object]) -> str:
    """Return arguments as they are written in a call."""
    return ", ".join([*map(_written, positional), *(f"{name}={_written(value)}" for name, value in named.items())])


def _written(value: object) -> str:
    if isinstance(value, tuple | list):
        inside = ", ".join(map(_written, value)) + ("," if isinstance(value, tuple) and len(value) == 1 else "")
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    return str(_plain(value)) if callable(value) else repr(value)
