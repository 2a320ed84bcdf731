"""Models as others write them, each with a batch of three: small ones of our own, and families from libraries."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eenet.models import MultiExitModel, attach
from eenet.models.inputs import evaluating
from eenet.running.engines import OnnxEngine
from eenet.running.engines.programs import stage_programs


def blocks(count: int, width: int) -> nn.Sequential:
    """Return blocks in a row."""
    return nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(count)))


class Residual(nn.Module):
    """Two convolutions with batch norms, the input added in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        y += x
        return y.relu_()


class Convolutional(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(8) for _ in range(5))
        self.classify = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(x.mean(dim=(2, 3)))


class Gated(nn.Module):
    """Keeps its state in a dictionary and takes keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(5))
        self.classify = nn.Linear(8, 4)

    def step(self, state: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """Return the next state."""
        h = state["h"] + state["g"] * self.steps[index](state["h"])
        return {"h": h, "g": 0.9 * state["g"], "c": state["c"] + h.sum(dim=1, keepdim=True)}

    def forward(self, x: Tensor, gate: Tensor) -> dict[str, Tensor]:
        state = {"h": x, "g": gate, "c": torch.zeros(x.shape[0], 1)}
        for index in range(len(self.steps)):
            state = self.step(state, index)
        return {"logits": self.classify(state["h"]) + state["c"]}


class Windowed(nn.Module):
    """A transformer layer on two windows per sample, which lie in the batch axis meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, activation="gelu")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        windows = x.reshape(2 * x.shape[0], x.shape[1] // 2, 16)
        return self.layer(windows, src_key_padding_mask=mask).reshape(x.shape)


class Tokens(nn.Module):
    """A small text model; positions are made anew in each call, the mask of all windows once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(Windowed() for _ in range(4))
        self.classify = nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids) + 0.1 * torch.arange(input_ids.shape[1])[None, :, None]
        mask = torch.zeros(attention_mask.shape).masked_fill(attention_mask == 0, -1e4)
        mask = mask.reshape(2 * x.shape[0], x.shape[1] // 2)
        for layer in self.layers:
            x = layer(x, mask)
        return self.classify(x[:, 0])


def _seeded(make: Callable[[], nn.Module], inputs: Callable[[], object]) -> Callable[[], tuple[nn.Module, object]]:
    def build() -> tuple[nn.Module, object]:
        torch.manual_seed(0)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():  # zeros at the start would equal anything
                nn.init.normal_(module.weight, std=0.1)
        return model, inputs()

    return build


def _images(size: int = 64) -> Tensor:
    return torch.randn(3, 3, size, size)


def _ids() -> dict[str, Tensor]:
    mask = torch.ones(3, 16, dtype=torch.long)
    mask[1:, 12:] = 0
    return {"input_ids": torch.randint(5, 50, (3, 16)), "attention_mask": mask}


def _torchvision(name: str, **settings: int) -> Callable[[], nn.Module]:
    return lambda: getattr(pytest.importorskip("torchvision.models"), name)(num_classes=10, **settings)


def _timm(name: str, **settings: int) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=10, **settings)


def _transformers(model: str, config: str, **settings: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = pytest.importorskip("transformers")
        return getattr(library, model)(getattr(library, config)(**settings))

    return make


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
    "num_labels": 4,
}
_DISTIL = {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50, "num_labels": 4}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "type_vocab_size": 0}
_SWIN = {"embed_dim": 16, "depths": [2, 2, 4], "num_heads": [2, 4, 8], "window_size": 4, "image_size": 64}
_VIT = {key: value for key, value in _SMALL.items() if key != "vocab_size"} | {"image_size": 64}


def _pixels() -> dict[str, Tensor]:
    return {"pixel_values": _images()}


FAMILIES: dict[str, Callable[[], tuple[nn.Module, object]]] = {
    "plain": _seeded(lambda: nn.Sequential(*blocks(6, 8), nn.Linear(8, 4)), lambda: torch.randn(3, 8)),
    "gated": _seeded(Gated, lambda: {"x": torch.randn(3, 8), "gate": torch.rand(3, 1)}),
    "conv": _seeded(Convolutional, lambda: _images(8)),
    "tokens": _seeded(Tokens, _ids),
    "torchvision resnet18": _seeded(_torchvision("resnet18"), _images),
    "torchvision densenet121": _seeded(_torchvision("densenet121"), _images),
    "torchvision mobilenet_v3_small": _seeded(_torchvision("mobilenet_v3_small"), _images),
    "torchvision convnext_tiny": _seeded(_torchvision("convnext_tiny"), _images),
    "torchvision vit_b_16": _seeded(_torchvision("vit_b_16", image_size=64), _images),
    "torchvision swin_t": _seeded(_torchvision("swin_t"), _images),
    "timm vit_tiny_patch16_224": _seeded(_timm("vit_tiny_patch16_224", img_size=64), _images),
    "timm efficientnet_lite0": _seeded(_timm("efficientnet_lite0"), _images),
    "timm hrnet_w18_small": _seeded(_timm("hrnet_w18_small"), _images),
    "timm mobilenetv4_conv_small": _seeded(_timm("mobilenetv4_conv_small"), _images),
    "timm mixer_s32_224": _seeded(_timm("mixer_s32_224", img_size=64), _images),
    "transformers BERT": _seeded(_transformers("BertForSequenceClassification", "BertConfig", **_SMALL), _ids),
    "transformers DistilBERT": _seeded(
        _transformers("DistilBertForSequenceClassification", "DistilBertConfig", **_DISTIL), _ids
    ),
    "transformers RoBERTa": _seeded(_transformers("RobertaForSequenceClassification", "RobertaConfig", **_SMALL), _ids),
    "transformers ModernBERT": _seeded(
        _transformers("ModernBertForSequenceClassification", "ModernBertConfig", **_SMALL, pad_token_id=0), _ids
    ),
    "transformers DeBERTa-v2": _seeded(
        _transformers("DebertaV2ForSequenceClassification", "DebertaV2Config", **_SMALL, **_DEBERTA), _ids
    ),
    "transformers ViT": _seeded(_transformers("ViTForImageClassification", "ViTConfig", **_VIT), _pixels),
    "transformers Swin": _seeded(
        _transformers("SwinForImageClassification", "SwinConfig", **_SWIN, num_labels=4), _pixels
    ),
}


@functools.cache
def _attached(name: str) -> tuple[MultiExitModel, object]:
    model, inputs = FAMILIES[name]()
    return attach(model.eval(), inputs, exits=3).eval(), inputs


def attached_copy(name: str) -> tuple[nn.Module, object, MultiExitModel]:
    """Return a model of a family, its inputs, and itself with three exits, for tests of what comes after attaching.

    The model is recorded once and copied: recording takes most of the time.
    """
    attached, inputs = copy.deepcopy(_attached(name))
    return attached.whole.model, inputs, attached


_MINI = _SMALL | {"hidden_size": 24, "num_attention_heads": 12, "intermediate_size": 96, "num_hidden_layers": 6}
TEXTS: dict[str, Callable[[], tuple[nn.Module, object]]] = {
    "DistilBERT": FAMILIES["transformers DistilBERT"],
    "RoBERTa": FAMILIES["transformers RoBERTa"],
    "BERT": FAMILIES["transformers BERT"],
    "MiniLM": _seeded(_transformers("BertForSequenceClassification", "BertConfig", **_MINI), _ids),
    "DeBERTa": _seeded(
        _transformers(
            "DebertaForSequenceClassification",
            "DebertaConfig",
            **_SMALL,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
        ),
        _ids,
    ),
    "DeBERTa-v2": FAMILIES["transformers DeBERTa-v2"],
}
"""Encoders of texts, which take any number of tokens."""


class Reader(nn.Module):
    """A small encoder of texts of at most 40 tokens, without a mask; a first token of its own joins the others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(50, 16), nn.Embedding(41, 16)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))
        self.classify = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        count, length = ids.shape
        x = torch.cat((self.first.expand(count, -1, -1), self.embed(ids)), dim=1)
        x = x + self.places(torch.arange(length + 1))
        for layer in self.layers:
            x = layer(x) / length**0.5
        return self.classify(x[:, 1:].reshape(count * length, 16).tanh().reshape(count, length, 16).mean(1) + x[:, 0])


def of_length(inputs, length):
    """Return texts of another number of tokens: cut, or begun again."""
    if isinstance(inputs, dict):
        return {name: of_length(leaf, length) for name, leaf in inputs.items()}
    return inputs[:, torch.arange(length) % inputs.shape[1]]


def rows_of(inputs, rows):
    """Return some samples of a batch."""
    return {key: value[rows] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def original(model, inputs):
    """Return the logits of a model as its authors wrote it."""
    answer = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return answer if isinstance(answer, Tensor) else answer["logits"]


def run_dropping(model, inputs):
    """Return the logits of every exit, one sample leaving after each stage; and which samples they are of."""
    state, left, found = model.start(inputs), torch.arange(3), []
    for k, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
        state = stage(state)
        found.append((left, head(state)))
        if len(left) > 1 and k < model.num_exits - 1:
            keep = torch.arange(1, len(left))
            state, left = model.select(state, keep), left[keep]
    return found


def check_attached(model, inputs, attached):
    """Check that the last exit is the original output, and that the stages lead to the same, samples leaving."""
    with torch.no_grad(), evaluating(model):
        answer = original(model, inputs)
        every = attached(inputs)
        dropping = run_dropping(attached, inputs)
    assert torch.equal(every[-1], answer)
    assert answer.any()  # else everything would equal it
    for (left, logits), wanted in zip(dropping, every, strict=True):
        scale = float(wanted.abs().max()) + 1e-6
        assert torch.allclose(logits, wanted[left], atol=1e-4 * scale, rtol=1e-4)
    assert {id(p) for p in model.parameters()} <= {id(p) for p in attached.parameters()}  # shared, not copied


def said(engine, inputs):
    """Return what every exit of an engine says, nobody leaving: an array of shape [sample, exit, ...]."""
    with engine.session():
        state, found = engine.start(inputs), []
        for k in range(engine.num_exits):
            state = engine.stage(k, state)
            found.append(np.asarray(engine.head(k, state)[0]))
    return np.stack(found, axis=1)


def check_onnx(model, inputs):
    """Check that ONNX Runtime says what the model says at every exit, for one sample, three and twelve."""
    pytest.importorskip("onnxruntime")
    check_engine(OnnxEngine(model, inputs), model, inputs)


def check_engine(engine, model, inputs):
    """Check that an engine says what the model says at every exit, for one sample, three and twelve."""
    for batch in (inputs, rows_of(inputs, slice(1, 2)), rows_of(inputs, torch.arange(3).repeat(4))):
        with torch.no_grad():
            wanted = torch.stack(model(batch), dim=1).numpy()
        scale = np.maximum(abs(wanted).max(axis=(0, 2), keepdims=True), 1e-6)
        assert float((abs(said(engine, batch) - wanted) / scale).max()) <= 1e-4
        assert np.allclose(engine.full(batch), wanted[:, -1], atol=1e-4 * float(scale.max()))


def check_programs(model, inputs):
    """Check that a model's stages, exported one by one, say what the model says, for three samples and for twelve."""
    runtime = pytest.importorskip("onnxruntime")
    sessions = [runtime.InferenceSession(program) for program in stage_programs(model, inputs)]
    for batch in (inputs, rows_of(inputs, torch.arange(3).repeat(4))):
        state = [leaf.numpy() for leaf in (batch.values() if isinstance(batch, dict) else [batch])]
        with torch.no_grad():
            wanted = [logits.numpy() for logits in model(batch)]
        for session, logits in zip(sessions, wanted, strict=True):
            names = [one.name for one in session.get_inputs()]
            found, *state = session.run(None, {name: state[int(name.removeprefix("state_"))] for name in names})
            assert abs(found - logits).max() <= 1e-4 * abs(logits).max()
