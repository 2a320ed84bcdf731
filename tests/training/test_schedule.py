"""The average of weights by hand, and that it ends up in the model."""

import dataclasses

import pytest
import torch
from tests.training import resumable
from torch import nn

from eenet.training import fit_exits
from eenet.training.schedule import Average


def test_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = Average(model, decay=0.15)
    model.weight.data.fill_(2.0)
    average.follow(0)  # keeps 1/10
    assert average.weights["weight"].item() == pytest.approx(1.9)
    model.weight.data.fill_(4.0)
    average.follow(1)  # would keep 2/11, but no more than the decay
    assert average.weights["weight"].item() == pytest.approx(0.15 * 1.9 + 0.85 * 4)
    average.settle()
    assert model.weight.item() == pytest.approx(0.15 * 1.9 + 0.85 * 4)


def test_the_final_weights_are_the_average_of_those_of_every_step() -> None:
    settings = dataclasses.replace(resumable.SETTINGS, epochs=0.5, heads_share=0.0, warmup=0.0)
    seen: list[dict[str, torch.Tensor]] = []

    def note(model, inputs):
        seen.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return model(inputs)

    plain = resumable.make_model()
    fit_exits(plain, resumable.make_data(), dataclasses.replace(settings, gradients=note), progress=False)
    model = resumable.make_model()
    fit_exits(model, resumable.make_data(), dataclasses.replace(settings, ema=0.7), progress=False)
    after = [*seen[1:], dict(plain.named_parameters())]
    for name, found in model.named_parameters():
        average = seen[0][name]
        for step, weights in enumerate(after):
            kept = min(0.7, (1 + step) / (10 + step))
            average = kept * average + (1 - kept) * weights[name]
        torch.testing.assert_close(found, average)
    for (name, ours), (_, theirs) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
