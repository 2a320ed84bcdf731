"""What holds of every model of the zoo."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.models.inputs import evaluating
from eenet.models.model import MultiExitModel
from eenet.running.engines import EagerEngine, Engine, OnnxEngine


def encoder(kind: str = "Bert", **settings: Any) -> Any:
    """Return a small encoder of transformers, its weights large enough for attention to matter."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
    if kind == "DistilBert":
        shape = {"dim": 16, "n_layers": 4, "n_heads": 4, "hidden_dim": 32}
    if kind == "Electra":
        shape["embedding_size"] = 16
    config = getattr(transformers, f"{kind}Config")(**shape, vocab_size=50, **settings)
    made = getattr(transformers, f"{kind}Model")(config).eval()
    for one in made.parameters():
        if one.dim() == 2:
            nn.init.normal_(one, std=0.3)
    return made


def scrambled(model: MultiExitModel) -> MultiExitModel:
    """Return the model with statistics in its batch norms that a trained net might have, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Check that logits differ by a small share of the largest."""
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)) <= tolerance


@torch.no_grad()
def check_shrinking(model: MultiExitModel, inputs: Tensor) -> None:
    """Check that samples that leave between stages change nothing for those that stay; states are left alone."""
    whole, rows = model(inputs), torch.arange(len(inputs))
    state = model.start(inputs)
    for k, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
        before = pytree.tree_map(torch.clone, state)
        after = stage(state)
        assert all(map(torch.equal, pytree.tree_leaves(state), pytree.tree_leaves(before)))
        close(head(after), whole[k][rows])
        kept = torch.arange(len(rows)).flip(0)[: max(1, len(rows) - 1)]  # one leaves, the others change places
        state, rows = model.select(after, kept), rows[kept]


@torch.no_grad()
def check_join(model: MultiExitModel, first: Tensor, second: Tensor) -> None:
    """Check that two batches may be joined between stages."""
    together = model(torch.cat([first, second]))
    states = [model.start(first), model.start(second)]
    for stage in model.stages[:-1]:
        states = [stage(state) for state in states]
    close(model.heads[-1](model.stages[-1](model.join(states))), together[-1])


def check_gradients(model: MultiExitModel, inputs: Tensor) -> None:
    """Check that every parameter learns from the sum over all exits."""
    model.train()
    sum(logits.square().mean() for logits in model(inputs)).backward()
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()] == []


def check_folded(model: MultiExitModel, inputs: Tensor) -> None:
    """Check that the eager engine's copy, batch norms folded and channels last, answers as the model does."""
    _check_engine(EagerEngine(model), model, inputs)


def check_onnx(model: MultiExitModel, inputs: Tensor) -> None:
    """Check that ONNX Runtime, a graph per stage, answers as the model does."""
    pytest.importorskip("onnxruntime")
    _check_engine(OnnxEngine(model, inputs), model, inputs)


def _check_engine(engine: Engine, model: MultiExitModel, inputs: Tensor) -> None:
    """Check an engine at every exit, one sample leaving after each."""
    with evaluating(model), torch.no_grad():
        wanted = model(inputs)
    with engine.session():
        state, first = engine.start(inputs), 0
        for k, logits in enumerate(wanted):
            state = engine.stage(k, state)
            close(torch.as_tensor(engine.head(k, state)[0]), logits[first:], 1e-4)
            if first < len(inputs) - 1:
                state = engine.select(state, np.arange(1, len(inputs) - first))
                first += 1
    close(torch.as_tensor(engine.full(inputs)), wanted[-1], 1e-4)


def parameters(model: nn.Module) -> int:
    """Return the number of weights that are learnt."""
    return sum(one.numel() for one in model.parameters())


def backbone_parameters(model: MultiExitModel) -> int:
    """Return those of the original model without exits."""
    return parameters(model.stages) + parameters(model.entry) + parameters(model.heads[-1])
