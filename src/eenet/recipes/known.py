"""The recipes that come with eenet, under the names users call them by."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from eenet.data.augment import random_crop_flip
from eenet.data.cifar10 import load_cifar10
from eenet.data.dataset import DataSplits
from eenet.data.digits import load_digits
from eenet.models.heads import conv_head
from eenet.models.zoo.resnet import cifar_resnet
from eenet.models.zoo.tiny import tiny_cnn
from eenet.recipes import text, vision
from eenet.recipes.recipe import Recipe
from eenet.recipes.vision import pretrained_resnet, read_by
from eenet.training.losses import uniform_weights
from eenet.training.settings import TrainSettings

__all__ = ["RECIPES"]


def _digits_data(root: Path | None, seed: int) -> DataSplits:
    return load_digits(seed=seed)


def _cifar10_settings(head_lr: float) -> TrainSettings:
    return TrainSettings(
        epochs=1.0,
        batch_size=64,
        lr=0.03,
        head_lr=head_lr,
        heads_share=0.06,
        weighting=uniform_weights,
        augment=random_crop_flip,
    )


digits_tiny = Recipe(
    name="digits_tiny",
    summary="3 exits on the embedded 8x8 digits; trains in seconds",
    make=partial(tiny_cnn, exits=3, width=48),
    data=_digits_data,
    settings=TrainSettings(epochs=8, batch_size=32, lr=0.1, weighting=uniform_weights),
)

cifar10_resnet56_3 = Recipe(
    name="cifar10_resnet56_3",
    summary="ResNet56 with 3 exits on CIFAR-10, a short training from published weights, for comparing policies",
    make=partial(cifar_resnet, 56, exits=(9, 18), heads=conv_head((2, 2, 1, 2))),
    data=read_by(load_cifar10),
    settings=_cifar10_settings(head_lr=0.15),
    pretrained=pretrained_resnet,
    needs_root=True,
    fetch=partial(load_cifar10, download=True),
)

cifar10_resnet56_6 = Recipe(
    name="cifar10_resnet56_6",
    summary="ResNet56 with 6 exits on CIFAR-10, a short training from published weights, for comparing policies",
    make=partial(cifar_resnet, 56, exits=(4, 9, 13, 18, 22), heads=conv_head((2, 2))),
    data=read_by(load_cifar10),
    settings=_cifar10_settings(head_lr=0.3),
    pretrained=pretrained_resnet,
    needs_root=True,
    fetch=partial(load_cifar10, download=True),
)

RECIPES = {recipe.name: recipe for recipe in (digits_tiny, cifar10_resnet56_3, cifar10_resnet56_6)}
RECIPES |= vision.RECIPES | text.RECIPES
