"""Settings and the schedule that follows from them."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from eenet.errors import InputError
from eenet.experiments.data import Augment, random_crop_flip, random_flip
from eenet.training import TrainSettings, expected_exit_weights, rescaled_gradients, step_decay, uniform_weights
from eenet.training.settings import Schedule


def schedule(samples: int = 100, **settings) -> Schedule:
    return Schedule(settings=TrainSettings(**({"epochs": 4, "batch_size": 10} | settings)), samples=samples)


def test_steps_by_hand() -> None:
    plan = schedule(samples=105, heads_share=0.25)
    assert (plan.steps_per_epoch, plan.steps, plan.head_steps) == (10, 40, 10)
    assert [plan.phase(step) for step in (0, 9, 10, 39)] == ["heads", "heads", "joint", "joint"]
    assert [plan.distils(step) for step in (0, 29, 30, 39)] == [False, False, True, True]


def test_small_data_make_one_batch_and_epochs_need_not_be_whole() -> None:
    assert schedule(samples=7).batch_size == 7
    assert schedule(epochs=1.5).steps == 15
    assert schedule(epochs=0.01).steps == 1


def test_learning_rates_rise_then_fall_to_nearly_nothing() -> None:
    plan = schedule(samples=1000, lr=0.1, head_lr=0.4, heads_share=0.1, warmup=0.2)
    rates = [plan.learning_rates(step) for step in range(plan.steps)]
    assert rates[:40] == [(0.0, 0.4)] * 40
    backbone = [rate for rate, _ in rates[40:]]
    peak = backbone.index(max(backbone))
    assert max(backbone) == pytest.approx(0.1, rel=1e-3)
    assert peak == pytest.approx(0.2 * len(backbone), abs=1)
    assert all(a < b for a, b in itertools.pairwise(backbone[:peak]))
    assert all(a > b for a, b in itertools.pairwise(backbone[peak:]))
    assert backbone[-1] < 1e-5
    assert all(head == pytest.approx(4 * rate) for rate, head in rates[40:])


def test_rates_fall_in_steps_after_the_warm_up() -> None:
    plan = schedule(samples=1000, lr=0.1, warmup=0.2, schedule=partial(step_decay, milestones=(0.5,), factor=0.2))
    backbone = [rate for rate, _ in (plan.learning_rates(step) for step in range(plan.steps))]
    assert backbone[80:240] == pytest.approx([0.1] * 160)  # 400 steps, 80 of them warm up
    assert backbone[240:] == pytest.approx([0.02] * 160)


@pytest.mark.parametrize("shares", [{"warmup": 0.0}, {"warmup": 1.0}, {"heads_share": 1.0}, {"heads_share": 0.0}])
def test_the_ends_of_every_share_are_possible(shares: dict[str, float]) -> None:
    plan = schedule(**shares)
    assert all(0 <= rate <= 0.04 for step in range(plan.steps) for rate in plan.learning_rates(step))


def test_settings_are_frozen_and_described_by_plain_values() -> None:
    settings = TrainSettings(epochs=1, weighting=uniform_weights, augment=random_crop_flip)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.epochs = 2
    described = settings.to_dict()
    assert described["weighting"] == "eenet.training.losses.uniform_weights"
    assert described["augment"] == "eenet.experiments.data.augment.random_crop_flip"
    assert described["epochs"] == 1
    assert described["schedule"] == "eenet.training.schedule.cosine_decay"


def test_functions_with_arguments_are_described_with_them() -> None:
    settings = TrainSettings(
        epochs=1,
        schedule=partial(step_decay, milestones=(0.3, 0.9)),
        gradients=rescaled_gradients,
        sample_weighting=partial(expected_exit_weights, share=0.25),
    )
    described = settings.to_dict()
    assert described["schedule"] == "eenet.training.schedule.step_decay(milestones=(0.3, 0.9))"
    assert described["gradients"] == "eenet.training.losses.rescaled_gradients"
    assert described["sample_weighting"] == "eenet.training.losses.expected_exit_weights(share=0.25)"


class Cropped:
    """An augmentation that is an object."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return random_crop_flip(images, generator, pad=self.pad)


def chained(images: Tensor, generator: torch.Generator, steps: Sequence[Augment]) -> Tensor:
    for step in steps:
        images = step(images, generator)
    return images


def weighted(factor: float) -> Callable[[int], tuple[float, ...]]:
    return lambda num_exits: (factor,) * num_exits


def test_functions_without_a_name_are_described_by_what_they_do() -> None:
    def told(weighting: Callable[[int], tuple[float, ...]]) -> str:
        return TrainSettings(epochs=1, weighting=weighting).to_dict()["weighting"]

    assert told(weighted(1.0)) == told(weighted(1.0)) != told(weighted(2.0))
    assert told(lambda k: (1.0,) * k) == told(lambda k: (1.0,) * k) != told(lambda k: (3.0,) * k)
    assert told(lambda k, by=1.0: (by,) * k) != told(lambda k, by=2.0: (by,) * k)


def test_objects_and_functions_given_to_functions_have_no_addresses() -> None:
    steps = (partial(random_crop_flip, pad=2), random_flip, Cropped(3))
    described = TrainSettings(epochs=1, augment=partial(chained, steps=steps)).to_dict()["augment"]
    here, theirs = __name__, "eenet.experiments.data.augment"
    inside = f"({theirs}.random_crop_flip(pad=2), {theirs}.random_flip, {here}.Cropped(pad=3))"
    assert described == f"{here}.chained(steps={inside})"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("heads_share", 1.5),
        ("warmup", -0.1),
        ("ema", 1.5),
        ("ema", 1),
        ("momentum", 1),
        ("accumulate", 0),
        ("epochs", math.inf),
        ("head_lr", -1.0),
        ("weight_decay", -1e-4),
        ("distillation", -0.1),
    ],
)
def test_refuses_values_outside_their_range(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} .* is not possible"):
        TrainSettings(**({"epochs": 1} | {name: value}))


def test_refuses_what_cannot_be_done() -> None:
    with pytest.raises(InputError, match="ema 1 is not possible"):
        TrainSettings(epochs=1, ema=1.0)
    with pytest.raises(InputError, match="accumulate 9 is not possible: a batch has 8 samples"):
        TrainSettings(epochs=1, batch_size=8, accumulate=9)
