"""Losses by hand and against the formulas written as loops."""

import math

import pytest
import torch

from eenet.errors import ShapeError
from eenet.training import distillation_loss, exit_loss, exit_losses, increasing_weights, uniform_weights


def test_weights_by_hand() -> None:
    assert increasing_weights(3) == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    assert uniform_weights(4) == (0.25,) * 4


@pytest.mark.parametrize("weighting", [increasing_weights, uniform_weights])
def test_weights_sum_to_one(weighting) -> None:
    assert sum(weighting(7)) == pytest.approx(1)


def test_exit_loss_by_hand() -> None:
    even, sure = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    labels = torch.tensor([0])
    assert exit_losses([even, sure], labels).tolist() == pytest.approx([math.log(2), math.log(4 / 3)])
    assert exit_loss([even, sure], labels, (0.25, 2.0)).item() == pytest.approx(
        0.25 * math.log(2) + 2 * math.log(4 / 3)
    )


def test_distillation_is_the_formula() -> None:
    logits, temperature = [torch.randn(4, 5) for _ in range(3)], 2.0
    total = 0.0
    for pupil in logits[:-1]:
        for n in range(4):
            p, q = (logits[-1][n] / temperature).softmax(0), (pupil[n] / temperature).softmax(0)
            total += sum((p[c] * (p[c] / q[c]).log()).item() for c in range(5))
    wanted = temperature**2 * total / (4 * 2)
    assert distillation_loss(logits, temperature).item() == pytest.approx(wanted, rel=1e-5)


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
    with pytest.raises(ShapeError, match="weights 1 do not fit: there are 2 exits"):
        exit_loss([torch.zeros(1, 2)] * 2, torch.tensor([0]), (1.0,))
    with pytest.raises(ShapeError, match="1 exits are too few"):
        distillation_loss([torch.zeros(1, 2)])
