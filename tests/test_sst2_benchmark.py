"""The parts of the text benchmark that need neither its data nor published weights."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from eenet.models.model import MultiExitModel

WIDTH, LAYERS = 16, 3


@pytest.fixture
def sst2(benchmark) -> ModuleType:
    return benchmark("sst2")


@pytest.fixture
def model(sst2: ModuleType) -> MultiExitModel:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=32, vocab_size=50
    )
    return sst2.with_exits(transformers.BertModel(config, add_pooling_layer=False), seed=0).eval()


def sentences() -> Tensor:
    return torch.tensor([[3, 7, 9, 4, 8], [5, 6, 0, 0, 0], [2, 2, 2, 0, 0]])


def test_weights_have_the_names_of_published_runs(model: MultiExitModel) -> None:
    names = set(model.state_dict())
    assert "stages.0.0.embeddings.word_embeddings.weight" in names
    assert {"stages.0.1.layer.attention.self.query.weight", "stages.2.layer.output.LayerNorm.bias"} <= names
    assert {f"heads.{k}.classify.{part}" for k in range(LAYERS) for part in ("weight", "bias")} <= names


def test_the_seed_draws_the_heads(sst2: ModuleType, model: MultiExitModel) -> None:
    torch.manual_seed(0)
    for head in model.heads:
        assert torch.equal(head.classify.weight, nn.Linear(WIDTH, sst2.CLASSES).weight)


def test_word_embeddings_are_left_as_published(model: MultiExitModel) -> None:
    sum(logits.sum() for logits in model(sentences())).backward()
    untouched = {name.rsplit(".", 2)[0] for name, one in model.named_parameters() if one.grad is None}
    assert untouched == {"stages.0.0.embeddings"}
