"""The parts of the text benchmark that need neither its data nor published weights."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from eenet.models.model import MultiExitModel

WIDTH, LAYERS = 16, 3


@pytest.fixture(scope="module")
def sst2() -> ModuleType:
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("sst2")
    finally:
        sys.path.remove(folder)


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


def test_quotes_and_line_ends_are_read_as_they_stand(sst2: ModuleType, tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_bytes(b'label\tsentence\n1\t" A "good" film \r\n0\tbad\n')
    part = sst2.read_texts(tmp_path)["train"]
    assert part == sst2.Texts(('" a "good" film', "bad"), (1, 0))


def test_phrases_with_the_words_of_a_held_out_sentence_are_dropped(sst2: ModuleType) -> None:
    train = sst2.Texts(("bad .", "not bad", "so  bad !"), (0, 1, 0))
    held_out = sst2.Texts(("bad ?", "so bad"), (0, 0))
    assert train.without(set(held_out.words)) == sst2.Texts(("not bad",), (1,))


def test_inputs_are_cut_to_the_longest_sentence_among_them(sst2: ModuleType) -> None:
    data = sst2.Sentences(sentences(), torch.tensor([0, 1, 1]))
    assert [tuple(inputs.shape) for inputs, _ in data.batches(2)] == [(2, 5), (1, 3)]
    assert data.select(torch.tensor([1])).inputs(slice(0, 1)).tolist() == [[5, 6]]


def test_missing_data_is_said_in_one_line(sst2: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(sst2.DataError, match=r"lacks SST-2: there is no train\.tsv"):
        sst2.read_texts(tmp_path)


@torch.no_grad()
def test_tables_hold_the_embedding_each_head_reads(sst2: ModuleType, model: MultiExitModel, tmp_path: Path) -> None:
    data = sst2.Sentences(sentences(), torch.tensor([0, 1, 1]))
    costs = sst2.typical_costs(model, data)
    table = sst2.recorded(model, data, tmp_path, "test", costs)
    assert table.features.shape == (3, LAYERS, WIDTH)
    assert table.features.dtype == torch.float16
    for k, head in enumerate(model.heads):
        torch.testing.assert_close(
            head.classify(table.features[:, k].float()), table.logits[:, k], rtol=1e-2, atol=1e-2
        )
