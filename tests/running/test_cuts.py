"""What travels between tiers, beside the input itself."""

import json

import numpy as np
import pytest
import torch
from tests.running.conftest import replaying
from torch import nn

from eenet.errors import InputError, ShapeError
from eenet.models.model import MultiExitModel
from eenet.policies import ScorePolicy
from eenet.running.cuts import tier_report
from eenet.running.tiers import Tier
from eenet.tables import CostTable


class Wide(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, x):
        return x[:, :1] * torch.linspace(0, 1, self.columns)


def test_bytes_by_hand():
    torch.manual_seed(0)
    # inputs of 100 floats; states of 1000, of 20, of 2 floats
    stages, heads = [Wide(1000), Wide(20), Wide(2)], [nn.Linear(size, 3) for size in (1000, 20, 2)]
    model = MultiExitModel(stages, heads).eval()
    policy, inputs = ScorePolicy("max_prob", [np.inf, np.inf, -np.inf]), torch.rand(50, 100) + 1
    cuts = tier_report(model, policy, inputs, CostTable((10, 20, 40), "MFLOPs"))
    assert [(cut.exit, cut.going_on, cut.input_bytes) for cut in cuts] == [(0, 1, 400), (1, 1, 400)]
    for cut, floats in zip(cuts, (1000, 20), strict=True):
        overhead = cut.state_bytes["lossless"] - 4 * floats
        assert 16 < overhead < 40  # id, place, and the head of the file divided by 50
        assert cut.state_bytes["float16"] == pytest.approx(2 * floats + overhead, abs=2)
        assert cut.state_bytes["int8"] == pytest.approx(floats + 16 + overhead, abs=4)
    assert [cut.sends for cut in cuts] == [None, "lossless"]
    assert [cut.again for cut in cuts] == [10, 20]
    assert cuts[0].flips["lossless"] == cuts[1].flips["lossless"] == 0
    assert "after exit 0 does not pay" in cuts[0].verdict and "10 MFLOPs per sample again" in cuts[0].verdict
    assert "after exit 1 pays:" in cuts[1].verdict and "100.0% of the samples go on" in cuts[1].verdict
    assert json.loads(json.dumps(cuts[0].to_dict()))["verdict"] == cuts[0].verdict
    larger = tier_report(model, policy, inputs, input_bytes=1200)[0]
    assert larger.sends == "int8"
    assert "only if compressed" in larger.verdict and "of 50 samples flip" in larger.verdict


def test_the_state_has_the_size_that_is_said(logits):
    model, policy = replaying(logits), ScorePolicy("max_prob", [1.0, 1.0, 1.0, -np.inf])
    rows = torch.arange(len(logits))[:, None]
    for cut in tier_report(model, policy, rows):
        result = Tier(model, policy, last=cut.exit)(rows)
        assert cut.going_on == len(result.staying) / len(rows)
        assert cut.state_bytes["lossless"] == len(result.state) / len(result.staying)
        assert cut.again is cut.unit is None


def test_nobody_goes_on(logits):
    policy = ScorePolicy("max_prob", [-np.inf] * 4)
    cut = tier_report(replaying(logits), policy, torch.arange(9)[:, None])[0]
    assert (cut.going_on, dict(cut.state_bytes), cut.sends) == (0, {}, None)
    assert "sends nothing" in cut.verdict


def test_what_does_not_fit_is_refused(logits):
    policy = ScorePolicy("max_prob", [-np.inf] * 4)
    with pytest.raises(InputError, match="input_bytes 0"):
        tier_report(replaying(logits), policy, torch.arange(9)[:, None], input_bytes=0)
    with pytest.raises(ShapeError, match="2 exits"):
        tier_report(replaying(logits), policy, torch.arange(9)[:, None], CostTable((1, 2), "ms"))
