"""BERT and its kin (Devlin et al., 2019) as text classifiers with exits; the weights belong to a model of transformers.

Between stages travel the vectors of the words and a mask that says which words are real. No layer multiplies padding:
what works on single words gets the real ones only, and attention is as wide as the longest text that is left, so a
batch gets cheaper as long texts leave it.

Source: J. Devlin, M. Chang, K. Lee, K. Toutanova, *BERT: pre-training of deep bidirectional transformers for language
understanding*, NAACL 2019.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eenet.errors import AttachError
from eenet.experiments.zoo.parts import divided
from eenet.libraries import pretrained
from eenet.models.heads import HeadFactory
from eenet.models.inputs import evaluating
from eenet.models.model import MultiExitModel

Words: TypeAlias = dict[str, Tensor]
"""``hidden``, a vector for each word ``[sample, token, feature]``, and ``mask``, which of them are real."""


class Embed(nn.Module):
    """Turns token numbers into the first state, given the embeddings of transformers and the number of padding."""

    def __init__(self, embeddings: nn.Module, padding: int) -> None:
        super().__init__()
        self.embeddings, self.padding = embeddings, padding

    def forward(self, tokens: Int[Tensor, "sample token"]) -> Words:
        return {"hidden": self.embeddings(tokens), "mask": tokens != self.padding}


class Layer(nn.Module, ABC):
    """A transformer layer that works on the real words of a batch; the vectors of padding have no meaning.

    Args:
        layer: of transformers, which owns the weights.
        heads: number of attention heads.
    """

    place: ClassVar[str]
    """Where an encoder has its layers."""
    parts: ClassVar[tuple[str, ...]]
    """Modules of a layer: those that make query, key and value, the dropout of attention weights, all others."""

    def __init__(self, layer: Any, heads: int) -> None:  # noqa: ANN401
        super().__init__()
        self.layer, self.heads = layer, heads

    def forward(self, state: Words) -> Words:
        rows, dropout = Rows(state["mask"]), self.layer.get_submodule(self.parts[3])
        words = rows.taken(state["hidden"])
        query, key, value = (self._split(rows.spread(self.layer.get_submodule(name)(words))) for name in self.parts[:3])
        mixed = F.scaled_dot_product_attention(
            query, key, value, rows.mask[:, None, None, :], dropout_p=float(dropout.p) if self.training else 0.0
        )
        words = self.after_attention(rows.gathered(mixed.transpose(1, 2).flatten(2)), words)
        return {"hidden": rows.put_back(words), "mask": state["mask"]}

    def _split(self, texts: Float[Tensor, "sample token f"]) -> Float[Tensor, "sample head token part"]:
        return texts.reshape(*texts.shape[:2], self.heads, -1).transpose(1, 2)

    @abstractmethod
    def after_attention(self, mixed: Tensor, words: Tensor) -> Tensor:
        """Return the words after the layer, from what attention mixed for each of them and the words before it."""


class BertLayer(Layer):
    """A layer of BERT and RoBERTa."""

    place = "encoder.layer"
    parts = (
        *("attention.self.query", "attention.self.key", "attention.self.value", "attention.self.dropout"),
        *("attention.output", "intermediate", "output"),
    )

    def after_attention(self, mixed: Tensor, words: Tensor) -> Tensor:
        words = self.layer.attention.output(mixed, words)
        after: Tensor = self.layer.output(self.layer.intermediate(words), words)
        return after


class DistilBertLayer(Layer):
    """A layer of DistilBERT."""

    place = "transformer.layer"
    parts = (
        *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.dropout"),
        *("attention.out_lin", "sa_layer_norm", "ffn", "output_layer_norm"),
    )

    def after_attention(self, mixed: Tensor, words: Tensor) -> Tensor:
        words = self.layer.sa_layer_norm(self.layer.attention.out_lin(mixed) + words)
        after: Tensor = self.layer.output_layer_norm(self.layer.ffn(words) + words)
        return after


class Rows:
    """How the words of a batch lie one after the other: the real ones alone, of texts cut to the longest of them.

    Where there is no padding, all words stay where they are. So they do in a compiled or exported graph: its sizes must
    not depend on the texts.

    Args:
        mask: which words are real.
    """

    def __init__(self, mask: Bool[Tensor, "sample token"]) -> None:
        self.mask, self.shape = mask, mask.shape
        self.real: Tensor | None = None  # where the real words are among all
        self.cut = self.inner = self.place = None  # in a row: the words of cut texts; of those, the real; of all texts
        if torch.compiler.is_compiling():
            return
        real = mask.flatten().nonzero()[:, 0]
        if len(real) in (0, mask.numel()):
            return
        place = (mask.flatten().cumsum(0) - 1).clamp_min(0).view(mask.shape)
        width = int(real.remainder(mask.shape[1]).max()) + 1
        self.mask, self.real, self.place = mask[:, :width], real, place.flatten()
        self.cut, self.inner = place[:, :width].flatten(), self.mask.flatten().nonzero()[:, 0]

    def taken(self, hidden: Tensor) -> Tensor:
        """Return the words of all texts in a row."""
        return _picked(hidden.flatten(0, 1), self.real)

    def spread(self, words: Tensor) -> Tensor:
        """Return words in a row as texts, as wide as the mask."""
        return _picked(words, self.cut).reshape(*self.mask.shape, -1)

    def gathered(self, texts: Tensor) -> Tensor:
        """Return words of texts, as wide as the mask, in a row again."""
        return _picked(texts.flatten(0, 1), self.inner)

    def put_back(self, words: Tensor) -> Tensor:
        """Return words in a row as texts of their first width, so that batches can be joined between stages."""
        return _picked(words, self.place).reshape(*self.shape, -1)


def _picked(words: Tensor, rows: Tensor | None) -> Tensor:
    return words if rows is None else words.index_select(0, rows)


class MeanHead(nn.Module):
    """Classifies a text by the mean of its real words."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(features, num_classes)

    def forward(self, state: Words) -> Float[Tensor, "sample class"]:
        weights = state["mask"].to(state["hidden"].dtype)
        total = (state["hidden"] * weights[:, :, None]).sum(dim=1)
        logits: Tensor = self.classify(total / weights.sum(dim=1, keepdim=True).clamp_min(1))
        return logits


def mean_of_words(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return a head that reads the mean of a text's real words; ``shape`` is ``(sample, token, feature)``."""
    return MeanHead(shape[2], num_classes)


def bert_classifier(
    encoder: nn.Module | str | os.PathLike[str],
    num_classes: int,
    *,
    exits: int | Sequence[int] = 4,
    heads: HeadFactory | None = None,
) -> MultiExitModel:
    """Return a text classifier with exits that shares the weights of a Hugging Face encoder.

    It takes token numbers ``[sample, token]``, padded with the encoder's own padding number (0 where it names none),
    and its answer for each text does not depend on the others. Encoders built like BERT, RoBERTa and DistilBERT are run
    as described above; others get their exits from `eenet.attach`. On BERT base, without early heads, it has the
    published 110 million parameters less the 0.6 of the pooler, and takes 11.2 billion multiply-accumulates for 128
    words, half of the 22.5 billion operations published.

    Args:
        encoder: a ``BertModel``, ``RobertaModel``, ``DistilBertModel`` or one built alike, without a classifier; or a
            folder with one, as ``save_pretrained`` leaves it. Nothing is downloaded.
        num_classes: number of classes C.
        exits: numbers of layers after which an early exit sits, the last layer being the last exit; or how many exits
            there are, it included, at even distances.
        heads: makes all heads, from ``(sample, token, feature)`` to a module that reads the state; default:
            `mean_of_words`. ``reading("hidden", token_head)`` classifies by the first word, as BERT's pooler does.

    Raises:
        AttachError: the encoder is built in another way.
        InputError: exits outside the encoder, or a folder without one.

    Source of the counts: J. Devlin et al., *BERT*, NAACL 2019, section 3; X. Jiao et al., *TinyBERT*, EMNLP Findings
    2020, table 1.
    """
    found: Any = encoder
    if not isinstance(encoder, nn.Module):
        found = pretrained("AutoModel", Path(encoder), "encoder", use_safetensors=True)
    layers = _layers(found)
    padding = found.config.pad_token_id or 0
    start = Embed(found.embeddings, padding)
    _check_same(found, start, layers, padding)
    first, *others = divided(layers, exits, "layer")
    stages = [nn.Sequential(start, *first), *(row[0] if len(row) == 1 else nn.Sequential(*row) for row in others)]
    make_head, device = heads or mean_of_words, next(found.parameters()).device
    all_heads = [make_head((2, 8, found.config.hidden_size), num_classes).to(device) for _ in stages]
    return MultiExitModel(stages, all_heads)


def _layers(encoder: Any) -> list[Layer]:  # noqa: ANN401
    """Return the layers of an encoder, if it is built as one of those known here."""
    names = {name for name, _ in encoder.named_modules()}
    for kind in (BertLayer, DistilBertLayer):
        if {"embeddings", *(f"{kind.place}.0.{part}" for part in kind.parts)} <= names:
            return [kind(layer, encoder.config.num_attention_heads) for layer in encoder.get_submodule(kind.place)]
    raise _other(encoder, "its layers have other parts")


@torch.no_grad()
def _check_same(encoder: Any, start: Embed, layers: Sequence[Layer], padding: int) -> None:  # noqa: ANN401
    """Refuse an encoder of which these layers make something else, for whatever reason, on two texts."""
    tokens = torch.arange(1, 17, device=next(encoder.parameters()).device).remainder(encoder.config.vocab_size)
    tokens = tokens.where(tokens != padding, (padding + 1) % encoder.config.vocab_size).view(2, 8)
    tokens[1, 5:] = padding
    state: Words
    with evaluating(nn.ModuleList([encoder, *layers])):
        wanted = encoder(input_ids=tokens, attention_mask=(tokens != padding).long()).last_hidden_state
        state = start(tokens)
        for layer in layers:
            state = layer(state)
    error = (state["hidden"] - wanted)[state["mask"]].abs().max() / wanted.abs().max()
    if not error <= 1e-4:
        raise _other(encoder, f"run layer by layer its output differs by {float(error):.2g} of the largest value")


def _other(encoder: nn.Module, reason: str) -> AttachError:
    return AttachError(
        f"encoder {type(encoder).__name__} is not built like BERT: {reason}. Use eenet.attach on a classifier made "
        "with it."
    )
