"""Models of torchvision, timm and transformers, end to end: exits attached, heads trained, run in ONNX Runtime."""

import sys
from pathlib import Path

import pytest
import torch
from foreign import FAMILIES, check_attached, check_programs
from torch import nn

from eenet.models.attach import attach

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import attachable  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:free sizes stay")  # the windows of `Tokens` need even lengths


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_gets_exits_learns_them_and_runs_elsewhere(name):
    model, inputs = FAMILIES[name]()
    attached = attach(model.eval(), inputs, exits=4).eval()
    check_attached(model, inputs, attached)
    page = (ROOT / "docs" / "results" / "attach.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    assert [cell.strip() for cell in line.strip("|").split("|")][:4] == list(
        attachable.described(name, attached, inputs)
    )[:4]
    heads = [parameter for head in attached.heads for parameter in head.parameters()]
    optimiser, losses = torch.optim.Adam(heads, lr=1e-3), []
    for _ in range(4):
        loss = sum(nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0])) for logits in attached(inputs)[:-1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    check_programs(attached, inputs)
