"""Losses by hand and against the formulas written as loops.

Weights by the expected exit: mean 1, easy samples early, by hand, on any logits.

Rescaled gradients: by hand, against the sum of single exits, and that the answers stay what they are.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from eenet.errors import InputError, ShapeError
from eenet.experiments.zoo import tiny_cnn
from eenet.models import MultiExitModel, attach, cascaded
from eenet.training import (
    TrainSettings,
    distillation_loss,
    exit_losses,
    expected_exit_weights,
    fit_exits,
    increasing_weights,
    paper_loss,
    plain_gradients,
    rescaled_gradients,
    uniform_weights,
)
from eenet.training.losses import scale_gradient


def test_weights_by_hand() -> None:
    assert increasing_weights(3) == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    assert uniform_weights(4) == (0.25,) * 4


@pytest.mark.parametrize("weighting", [increasing_weights, uniform_weights])
def test_weights_sum_to_one(weighting) -> None:
    assert sum(weighting(7)) == pytest.approx(1)


def test_exit_losses_by_hand() -> None:
    even, sure = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    labels = torch.tensor([0])
    assert exit_losses([even, sure], labels).tolist() == pytest.approx([math.log(2), math.log(4 / 3)])


def test_distillation_is_the_formula() -> None:
    logits, temperature = [torch.randn(4, 5) for _ in range(3)], 2.0
    total = 0.0
    for pupil in logits[:-1]:
        for n in range(4):
            p, q = (logits[-1][n] / temperature).softmax(0), (pupil[n] / temperature).softmax(0)
            total += sum((p[c] * (p[c] / q[c]).log()).item() for c in range(5))
    wanted = temperature**2 * total / (4 * 2)
    assert distillation_loss(logits, temperature).item() == pytest.approx(wanted, rel=1e-5)


def test_the_papers_loss_is_the_formula() -> None:
    logits, labels, (alpha, tau), exits = (
        [torch.randn(4, 5) for _ in range(3)],
        torch.tensor([0, 4, 2, 2]),
        (0.7, 2.0),
        3,
    )
    total = 0.0
    for k, one in enumerate(logits, 1):
        total += k / (exits * (exits + 1)) * -sum(one[n].log_softmax(0)[labels[n]].item() for n in range(4)) / 4
        if k < exits:
            for n in range(4):
                p, q = (logits[-1][n] / tau).softmax(0), (one[n] / tau).softmax(0)
                total += alpha * tau**2 * (p * (p / q).log()).sum().item() / 4
    settings = paper_loss(TrainSettings(epochs=1, weighting=uniform_weights), alpha=alpha, temperature=tau)
    weights = torch.tensor(settings.weighting(exits))
    pull = distillation_loss(logits, settings.temperature, summed=settings.distillation_summed)
    found = (exit_losses(logits, labels) * weights).sum() + settings.distillation * pull
    assert found.item() == pytest.approx(total, rel=1e-5)
    assert settings.distillation_from == 0.0


def test_distillation_is_zero_for_equal_exits_and_teaches_the_early_ones_only() -> None:
    same = torch.randn(3, 4)
    assert distillation_loss([same, same]).item() == pytest.approx(0, abs=1e-6)
    pupil, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    distillation_loss([pupil, teacher]).backward()
    assert pupil.grad is not None and teacher.grad is None


def test_dense_logits_are_brought_to_the_targets_and_ignored_pixels_teach_nothing() -> None:
    coarse, targets = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    targets[0, :3] = -100
    fine = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=False)
    total, pixels = 0.0, 0
    for n in range(2):
        for i in range(8):
            for j in range(8):
                if targets[n, i, j] >= 0:
                    total -= fine[n, :, i, j].log_softmax(0)[targets[n, i, j]].item()
                    pixels += 1
    found = exit_losses([coarse, fine], targets)
    assert found.tolist() == pytest.approx([total / pixels] * 2, rel=1e-5)


def test_a_batch_with_nothing_to_learn_has_no_loss() -> None:
    targets = torch.full((1, 4, 4), -100)
    assert exit_losses([torch.randn(1, 3, 2, 2)], targets).tolist() == [0]


def test_sample_weights_multiply_each_samples_loss() -> None:
    weights, targets = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 2])
    logits = [torch.randn(2, 3) for _ in range(2)]
    each = torch.stack([torch.nn.functional.cross_entropy(z, targets, reduction="none") for z in logits], dim=1)
    torch.testing.assert_close(exit_losses(logits, targets, weights), (each * weights).mean(dim=0))
    dense = [z[:, :, None, None].expand(-1, -1, 2, 3) for z in logits]
    pixels = targets[:, None, None].expand(-1, 2, 3)
    torch.testing.assert_close(exit_losses(dense, pixels, weights), exit_losses(logits, targets, weights))


def test_dense_distillation_is_the_mean_over_the_teachers_pixels() -> None:
    pupil, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 4, 4)
    fine = torch.nn.functional.interpolate(pupil, size=(4, 4), mode="bilinear", align_corners=False)
    as_samples = [z.permute(0, 2, 3, 1).reshape(-1, 3) for z in (fine, teacher)]
    torch.testing.assert_close(distillation_loss([pupil, teacher]), distillation_loss(as_samples))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match="1 exits are too few"):
        distillation_loss([torch.zeros(1, 2)])


TARGETS = torch.zeros(4, dtype=torch.int64)


def with_confidence(*tops: float) -> torch.Tensor:
    """Logits of two classes whose larger probability is as given."""
    top = torch.tensor(tops)
    return torch.stack((top.log(), (1 - top).log()), dim=1)


def test_by_hand_with_gates_as_sharp_as_a_threshold() -> None:
    sure = with_confidence(0.6, 0.9, 0.7, 0.8)  # the surer half leaves at the first of two exits
    weights = expected_exit_weights([sure, sure], TARGETS, share=1.0, softness=1e-6)
    assert weights[:, 0].tolist() == pytest.approx([0, 2, 0, 2])
    assert weights[:, 1].tolist() == pytest.approx([2, 0, 2, 0])


@given(st.integers(2, 5), st.integers(2, 40), st.floats(0, 1), st.integers(0, 99))
def test_mean_one_at_every_exit_whatever_the_logits(exits: int, samples: int, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    logits = [3 * torch.randn(samples, 4) for _ in range(exits)]
    weights = expected_exit_weights(logits, torch.zeros(samples, dtype=torch.int64), share=share)
    torch.testing.assert_close(weights.mean(dim=0), torch.ones(exits), rtol=1e-4, atol=1e-4)
    assert bool((weights >= 0).all())


def test_sure_samples_weigh_more_at_the_first_exit_and_less_at_the_last() -> None:
    logits = with_confidence(0.55, 0.6, 0.7, 0.8, 0.9, 0.99)
    weights = expected_exit_weights([logits] * 3, torch.zeros(6, dtype=torch.int64))
    assert bool((weights[:, 0].diff() > 0).all()) and bool((weights[:, 2].diff() < 0).all())


def test_share_zero_is_uniform() -> None:
    logits = [torch.randn(4, 3) for _ in range(3)]
    assert torch.equal(expected_exit_weights(logits, TARGETS, share=0.0), torch.ones(4, 3))


def test_dense_logits_count_by_their_mean_confidence() -> None:
    flat = [torch.randn(4, 3) for _ in range(2)]
    dense = [z[:, :, None, None].expand(-1, -1, 2, 5) for z in flat]
    torch.testing.assert_close(expected_exit_weights(dense, TARGETS), expected_exit_weights(flat, TARGETS))


class Scale(nn.Module):
    """Multiplies by a learnt number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_by_hand() -> None:
    model = MultiExitModel([Scale(1.0) for _ in range(3)], [Scale(1.0) for _ in range(3)])
    sum(exit_logits.sum() for exit_logits in rescaled_gradients(model, torch.ones(1, 1))).backward()
    # plainly the stages would get 3, 2 and 1: as many as exits behind them
    assert [stage.factor.grad.item() for stage in model.stages] == pytest.approx([1, 1, 1])
    assert [head.factor.grad.item() for head in model.heads] == pytest.approx([1, 1, 1])


def test_a_stage_learns_the_mean_of_what_the_exits_behind_it_say() -> None:
    model, inputs = tiny_cnn(exits=4).eval(), torch.randn(3, 1, 8, 8)
    for k in range(4):
        stage = list(model.stages[k].parameters())
        alone = [
            torch.autograd.grad(z.square().sum(), stage, allow_unused=True, retain_graph=True)
            for z in plain_gradients(model, inputs)
        ]
        wanted = [sum(exits) / (4 - k) for exits in zip(*alone[k:], strict=True)]
        found = torch.autograd.grad(sum(z.square().sum() for z in rescaled_gradients(model, inputs)), stage)
        torch.testing.assert_close(list(found), wanted)


def test_the_answers_are_the_same_to_the_bit() -> None:
    model, inputs = cascaded(tiny_cnn(exits=3), 10).eval(), torch.randn(3, 1, 8, 8)
    for ours, plain in zip(rescaled_gradients(model, inputs), plain_gradients(model, inputs), strict=True):
        assert torch.equal(ours, plain)


def test_what_carries_no_gradient_is_passed_on() -> None:
    state = {"x": torch.ones(2, requires_grad=True), "mask": torch.ones(2, dtype=torch.bool), "size": 3}
    scaled = scale_gradient(state, 0.5)
    assert scaled["mask"] is state["mask"] and scaled["size"] == 3
    scaled["x"].sum().backward()
    assert state["x"].grad.tolist() == [0.5, 0.5]


def test_refused_for_a_model_that_runs_in_one_go() -> None:
    backbone = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)), nn.Linear(8, 3))
    model = attach(backbone, torch.zeros(2, 8), exits=3)
    with pytest.raises(InputError, match="rescaled_gradients cannot be used on attached exits"):
        rescaled_gradients(model, torch.zeros(2, 8))


def test_a_training_uses_them_in_both_phases() -> None:
    from eenet.experiments.data import load_digits

    settings = TrainSettings(epochs=0.5, batch_size=32, heads_share=0.4, gradients=rescaled_gradients)
    history = fit_exits(tiny_cnn(width=4), load_digits().train, settings, progress=False)
    assert bool(history.losses.isfinite().all())
