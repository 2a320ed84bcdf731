"""Text classifiers against transformers' own encoders, one text at a time; their counts; padding that costs nothing."""

from pathlib import Path

import pytest
import torch
import zoo
from torch import Tensor, nn

from eenet.errors import AttachError, InputError
from eenet.experiments.zoo import bert_classifier, reading
from eenet.models import token_head
from eenet.running.measuring import measure_flops

transformers = pytest.importorskip("transformers")

WIDTH, INNER, LAYERS = 16, 32, 4
encoder = zoo.encoder


def texts(padding: int = 0) -> Tensor:
    """Three texts of 5, 2 and 3 words in a batch as wide as 6."""
    rows = [[3, 7, 9, 4, 8], [5, 6], [2, 2, 2]]
    return torch.tensor([row + [padding] * (6 - len(row)) for row in rows])


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra", "DistilBert"])
@torch.no_grad()
def test_a_batch_is_each_text_by_itself(kind: str) -> None:
    net = encoder(kind)
    model = bert_classifier(net, 5, exits=LAYERS).eval()
    padding = net.config.pad_token_id
    together = torch.stack(model(texts(padding)), dim=1)
    for row, tokens in enumerate(texts(padding)):
        words = tokens[tokens != padding][None]
        states = net(input_ids=words, output_hidden_states=True).hidden_states[1:]
        apart = torch.cat([head.classify(state.mean(dim=1)) for head, state in zip(model.heads, states, strict=True)])
        torch.testing.assert_close(together[row], apart, rtol=1e-4, atol=1e-5)


def test_attention_is_as_wide_as_the_longest_text_that_is_left() -> None:
    model = bert_classifier(encoder(), 5, exits=2).eval()
    widths = []

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        widths.append(args[0].shape)

    query = model.stages[1][0].layer.attention.self.query
    query.register_forward_pre_hook(watch)
    with torch.no_grad():
        state = model.stages[0](model.start(texts()))
        model.stages[1](state)
        left = model.select(state, torch.tensor([1, 2]))
        model.stages[1](left)
    assert widths == [(10, WIDTH), (5, WIDTH)]  # real words only
    assert left["hidden"].shape == (2, 6, WIDTH)  # as wide as before, to be joined with others
    flops = {}
    for name, inputs in (("padded", texts()[1:]), ("cut", texts()[1:, :3])):
        flops[name] = measure_flops(model, inputs).stages
    assert flops["padded"] == flops["cut"]


def test_every_operation_of_a_stage_is_counted() -> None:
    model = bert_classifier(encoder(), 5, exits=LAYERS)
    report = measure_flops(model, texts()[:1, :5])
    linear = 2 * 5 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    assert report.stages == (linear + 4 * 5 * 5 * WIDTH,) * LAYERS
    assert report.uncounted == ()


def test_dropout_is_that_of_the_encoder() -> None:
    model, inputs = bert_classifier(encoder(), 5), texts()
    assert torch.equal(model.eval()(inputs)[-1], model(inputs)[-1])
    model.train()
    assert not torch.equal(model(inputs)[-1], model(inputs)[-1])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(model(inputs)[-1], model.eval()(inputs)[-1])


def test_heads_may_read_the_first_word() -> None:
    model = bert_classifier(encoder(), 5, heads=reading("hidden", token_head)).eval()
    assert [tuple(logits.shape) for logits in model(texts())] == [(3, 5)] * 4
    torch.testing.assert_close(model(texts())[-1][1:2], model(texts()[1:2, :2])[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        ({}, 109_482_240),  # bert-base-uncased, whose authors say 110 M
        ({"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}, 22_713_216),  # all-MiniLM-L6-v2
    ],
)
def test_parameters_are_the_published_ones(settings: dict[str, int], published: int) -> None:
    net = transformers.BertModel(transformers.BertConfig(num_attention_heads=12, **settings))
    model = bert_classifier(net, 2)
    assert zoo.parameters(model.stages) + zoo.parameters(net.pooler) == published
    assert zoo.parameters(model.heads[0]) == 2 * net.config.hidden_size + 2


def test_operations_of_bert_base_are_the_published_ones() -> None:
    """22.5 billion for 128 words: X. Jiao et al., TinyBERT, 2020, table 1."""
    net = transformers.BertModel(transformers.BertConfig())
    report = measure_flops(bert_classifier(net, 2), torch.ones(1, 128, dtype=torch.long))
    assert report.reference / 1e9 == pytest.approx(22.5, rel=0.01)
    assert [round(cost / report.reference, 2) for cost in report.cumulative] == [0.25, 0.5, 0.75, 1.0]


def test_a_folder_is_read(tmp_path: Path) -> None:
    net = encoder()
    net.save_pretrained(tmp_path / "net")
    model = bert_classifier(tmp_path / "net", 5).eval()
    with torch.no_grad():
        wanted = net(input_ids=texts()[:1, :5]).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(model(texts())[-1][:1], model.heads[-1].classify(wanted), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"nothing is downloaded"):
        bert_classifier("bert-base-uncased", 2)
    (tmp_path / "net" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        bert_classifier(tmp_path / "net", 2)


def test_encoders_of_other_kinds_are_refused() -> None:
    other = zoo.encoder("Albert", embedding_size=8)
    with pytest.raises(AttachError, match="AlbertModel is not built like BERT: its layers have other parts"):
        bert_classifier(other, 5)
    odd = encoder()
    odd.encoder.layer[1].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(AttachError, match="run layer by layer its output differs by"):
        bert_classifier(odd, 5)
