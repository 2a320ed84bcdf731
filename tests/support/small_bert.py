"""A BERT of three layers with three exits on texts of two kinds, its tokenizer, and policies that were fitted to it."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import said
from replaying import quantile_policy
from written_data import write_tokenizer

from eenet.models import MultiExitModel, attach
from eenet.policies import Dial
from eenet.running.bundle import Bundle
from eenet.running.engines import EagerEngine
from eenet.running.texts import TextPreparation, load_tokenizer
from eenet.tables.costs import CostTable

CLASSES = ("numbers", "words")
COSTS = CostTable((1.0, 2.0, 3.0), "ms", 2.5)


@functools.cache
def _tokenizer() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(write_tokenizer(Path(folder) / "tokenizer"))


def small_preparation() -> TextPreparation:
    """Return how texts become what `small_bert` takes."""
    return TextPreparation(tokenizer=_tokenizer(), max_tokens=12, named=True)


def small_texts(count: int = 64, seed: int = 0) -> list[tuple[str, int]]:
    """Return texts of numbers, class 0, and of words, class 1."""
    rng, words = np.random.default_rng(seed), ("title", "of", "in", "train", "dev", "test")
    made = []
    for row in range(count):
        size = 2 + row % 6
        some = rng.integers(0, 200, size).astype(str) if row % 2 == 0 else rng.choice(words, size)
        made.append((" ".join(some.tolist()), row % 2))
    return made


@functools.cache
def _bert() -> MultiExitModel:
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(_tokenizer()),
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
            num_labels=2,
        )
        model = transformers.BertForSequenceClassification(config)
        example = small_preparation()(["title of", "in train dev"])
        inputs = {name: torch.from_numpy(one) for name, one in example.items()}
        return attach(model, inputs, exits=3).eval()


def small_bert() -> MultiExitModel:
    """Return a copy of the model, as it was made."""
    return copy.deepcopy(_bert())


def small_bundle(model: MultiExitModel | None = None) -> Bundle:
    """Return a bundle of a model, the one of `small_bert` by default, with a dial, classes and a preparation."""
    model, how = model or small_bert(), small_preparation()
    logits = said(EagerEngine(model, optimise=False), how([text for text, _ in small_texts()]))
    a, b = quantile_policy(logits, "max_prob", 0.2), quantile_policy(logits, "max_prob", 0.6)
    dial = Dial.of_candidates([(1.5, 0.6, b), (2.5, 0.8, a)], COSTS, seed=4)
    return Bundle(model=model, policy=a, costs=COSTS, dial=dial, classes=CLASSES, preparation=how)
