"""Rescaled gradients: by hand, against the sum of single exits, and that the answers stay what they are."""

import pytest
import torch
from torch import nn

from eenet.errors import InputError
from eenet.models import MultiExitModel, attach, cascaded, tiny_cnn
from eenet.training import TrainSettings, fit_exits, plain_gradients, rescaled_gradients
from eenet.training.gradients import scale_gradient


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
    from eenet.data import load_digits

    settings = TrainSettings(epochs=0.5, batch_size=32, heads_share=0.4, gradients=rescaled_gradients)
    history = fit_exits(tiny_cnn(width=4), load_digits().train, settings, progress=False)
    assert bool(history.losses.isfinite().all())
