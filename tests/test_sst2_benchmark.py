"""The parts of the text benchmark that need neither its data nor published weights."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eenet.data.texts import TextDataset
from eenet.inference.flops import measure_flops
from eenet.models.model import MultiExitModel

WIDTH, INNER, HEADS, LAYERS, WORDS = 16, 32, 4, 3, 50


@pytest.fixture(scope="module")
def sst2() -> ModuleType:
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("sst2")
    finally:
        sys.path.remove(folder)


def small_bert() -> SimpleNamespace:
    """A BERT of small size, with modules named as those of transformers."""

    def output(size: int) -> nn.Module:
        part = nn.Module()
        part.dense, part.LayerNorm = nn.Linear(size, WIDTH), nn.LayerNorm(WIDTH)
        return part

    def layer() -> nn.Module:
        part = nn.Module()
        part.attention = nn.Module()
        part.attention.self = nn.Module()
        for name in ("query", "key", "value"):
            setattr(part.attention.self, name, nn.Linear(WIDTH, WIDTH))
        part.attention.output = output(WIDTH)
        part.intermediate = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU())
        part.output = output(INNER)
        return part

    torch.manual_seed(0)
    return SimpleNamespace(
        embeddings=nn.Embedding(WORDS, WIDTH),
        encoder=SimpleNamespace(layer=[layer() for _ in range(LAYERS)]),
        config=SimpleNamespace(num_attention_heads=HEADS, hidden_size=WIDTH),
    )


@pytest.fixture
def model(sst2: ModuleType) -> MultiExitModel:
    return sst2.with_exits(small_bert(), seed=0).eval()


def sentences() -> Tensor:
    return torch.tensor([[3, 7, 9, 4, 8], [5, 6, 0, 0, 0], [2, 2, 2, 0, 0]])


def one_sentence(model: MultiExitModel, tokens: Tensor) -> list[Tensor]:
    """The slow twin: one sentence without padding, one attention head at a time."""
    hidden, logits = model.stages[0][0].embeddings(tokens), []
    for k, stage in enumerate(model.stages):
        layer = (stage[1] if k == 0 else stage).layer
        attention, size = layer.attention, WIDTH // HEADS
        query, key, value = (getattr(attention.self, name)(hidden) for name in ("query", "key", "value"))
        mixed = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            weights = (query[:, part] @ key[:, part].T / size**0.5).softmax(dim=1)
            mixed.append(weights @ value[:, part])
        hidden = attention.output.LayerNorm(attention.output.dense(torch.cat(mixed, dim=1)) + hidden)
        hidden = layer.output.LayerNorm(layer.output.dense(layer.intermediate(hidden)) + hidden)
        classify = model.heads[k].classify
        logits.append(F.linear(hidden.mean(dim=0), classify.weight, classify.bias))
    return logits


@torch.no_grad()
def test_a_padded_batch_is_each_sentence_by_itself(model: MultiExitModel) -> None:
    together = torch.stack(model(sentences()), dim=1)
    for row, tokens in enumerate(sentences()):
        apart = torch.stack(one_sentence(model, tokens[tokens != 0]))
        torch.testing.assert_close(together[row], apart, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_samples_that_leave_change_nothing_for_those_that_stay(model: MultiExitModel) -> None:
    state = model.stages[0](model.start(sentences()))
    kept = torch.tensor([2, 0])
    stayed = model.heads[1](model.stages[1](model.select(state, kept)))
    torch.testing.assert_close(stayed, model(sentences())[1][kept], rtol=1e-5, atol=1e-5)


def test_every_operation_of_a_stage_is_counted(model: MultiExitModel) -> None:
    report = measure_flops(model, sentences()[:1])
    tokens = sentences().shape[1]
    linear = 2 * tokens * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    assert report.stages == (linear + 4 * tokens * tokens * WIDTH,) * LAYERS
    assert report.uncounted == ()


def test_word_embeddings_are_left_as_published(model: MultiExitModel) -> None:
    sum(logits.sum() for logits in model(sentences())).backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert untouched == ["stages.0.0.embeddings.weight"]


@torch.no_grad()
def test_tables_hold_the_embedding_each_head_reads(sst2: ModuleType, model: MultiExitModel, tmp_path: Path) -> None:
    data = TextDataset(sentences(), torch.tensor([0, 1, 1]))
    costs = sst2.typical_costs(model, data)
    table = sst2.recorded(model, data, tmp_path, "test", costs)
    assert table.features.shape == (3, LAYERS, WIDTH)
    assert table.features.dtype == torch.float16
    for k, head in enumerate(model.heads):
        torch.testing.assert_close(
            head.classify(table.features[:, k].float()), table.logits[:, k], rtol=1e-2, atol=1e-2
        )
