"""Recipes of the paper's image experiments: ``small`` for two cores, ``paper`` with the paper's settings.

Source: F. Ilhan et al., *Adaptive deep neural network inference optimization with EENet*, WACV 2024, section on the
experimental setup, and the configuration of its public code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from eenet.data.augment import random_crop_flip, random_crop_flip_cut, random_flip, random_resized_crop_flip
from eenet.data.camvid import load_camvid
from eenet.data.cifar10 import load_cifar10
from eenet.data.cifar100 import load_cifar100
from eenet.data.cityscapes import load_cityscapes
from eenet.data.dataset import DataSplits
from eenet.data.imagenet import load_imagenet
from eenet.data.tiny_imagenet import load_tiny_imagenet
from eenet.errors import DataError
from eenet.models.branchheads import branch_head
from eenet.models.heads import conv_head, mixed_linear, residual_head
from eenet.models.model import MultiExitModel
from eenet.models.zoo.densenet import densenet121
from eenet.models.zoo.hrnet import hrnet_segmenter
from eenet.models.zoo.msdnet import msdnet, msdnet_imagenet
from eenet.models.zoo.resnet import cifar_resnet, load_cifar_resnet_weights
from eenet.recipes.recipe import Recipe
from eenet.training.losses import uniform_weights
from eenet.training.rates import step_decay
from eenet.training.settings import TrainSettings

__all__ = ["CIFAR_WEIGHTS", "PAPER_CIFAR", "PUBLIC_HEAD", "RECIPES"]

CIFAR_WEIGHTS = Path("weights", "cifar10_resnet", "resnet56.safetensors")
PAPER_CIFAR = TrainSettings(
    epochs=150,
    batch_size=128,
    lr=0.1,
    warmup=0.0,
    schedule=partial(step_decay, milestones=(1 / 3, 2 / 3)),
    augment=random_crop_flip,
)
PUBLIC_HEAD = conv_head((1, 1, 1))  # three convolutions, as in the paper's public code


def small_head(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return the head that pays at a place of ResNet56: a small net behind the first blocks, next to nothing later.

    Args:
        shape: shape of the features, ``(sample, channel, height, width)``.
        num_classes: number of classes C.
    """
    if shape[1] < 32:
        return residual_head(64)(shape, num_classes)
    return (conv_head((2,)) if shape[1] < 64 else mixed_linear())(shape, num_classes)


def pretrained_resnet(model: MultiExitModel, root: Path) -> None:
    """Load published ResNet56 weights, trained on the true CIFAR-10, into the backbone.

    Raises:
        DataError: They are not in the data root, or do not fit.
    """
    path = root / CIFAR_WEIGHTS
    if not path.is_file():
        raise DataError(
            f"data root {root} has no weights of ResNet56: {path} was expected and not found. Convert those of "
            "github.com/akamaster/pytorch_resnet_cifar10 as the page on the paper's experiments shows."
        )
    load_cifar_resnet_weights(model, path)


def read_by(load: Callable[..., DataSplits], **settings: object) -> Callable[[Path | None, int], DataSplits]:
    """Return what a recipe calls for its data: a loader, given the data root and the seed.

    Args:
        load: of a data set, from (data root, seed).
        settings: what else it takes.
    """

    def data(root: Path | None, seed: int) -> DataSplits:
        return load(Path() if root is None else root, seed=seed, **settings)

    return data


def camvid_data(root: Path | None, seed: int, *, size: tuple[int, int]) -> DataSplits:
    """Return CamVid at some size; its sides are fixed."""
    return load_camvid(Path() if root is None else root, size=size)


FROM_SCRATCH = TrainSettings(
    epochs=10,
    batch_size=128,
    lr=0.1,
    heads_share=0.03,
    ema=0.998,
    weighting=uniform_weights,
    distillation=0.1,
    distillation_from=0.1,
    augment=random_crop_flip,
)
FINE_TUNING = replace(  # the published weights know the train images by heart: holes in them leave something to learn
    FROM_SCRATCH, epochs=15, head_lr=0.15, augment=partial(random_crop_flip_cut, hole=8)
)
SEGMENTATION = TrainSettings(
    epochs=25,
    batch_size=8,
    lr=0.05,
    ema=0.99,
    weighting=uniform_weights,
    augment=random_flip,
)

_RECIPES = (
    Recipe(
        name="cifar10-resnet56-3",
        summary="ResNet56 with 3 exits on CIFAR-10, fine-tuned from published weights",
        make=partial(cifar_resnet, 56, exits=(3, 19), heads=small_head),
        data=read_by(load_cifar10),
        settings=FINE_TUNING,
        pretrained=pretrained_resnet,
        needs_root=True,
        fetch=partial(load_cifar10, download=True),
    ),
    Recipe(
        name="cifar10-resnet56-6",
        summary="ResNet56 with 6 exits on CIFAR-10, fine-tuned from published weights",
        make=partial(cifar_resnet, 56, exits=(3, 13, 17, 20, 23), heads=small_head),
        data=read_by(load_cifar10),
        settings=FINE_TUNING,
        pretrained=pretrained_resnet,
        needs_root=True,
        fetch=partial(load_cifar10, download=True),
    ),
    Recipe(
        name="cifar10-resnet56-3-paper",
        summary="ResNet56 with 3 exits on CIFAR-10, from scratch",
        make=partial(cifar_resnet, 56, exits=(9, 18), heads=PUBLIC_HEAD),
        data=read_by(load_cifar10),
        settings=PAPER_CIFAR,
        needs_root=True,
        fetch=partial(load_cifar10, download=True),
    ),
    Recipe(
        name="cifar10-resnet56-6-paper",
        summary="ResNet56 with 6 exits on CIFAR-10, from scratch",
        make=partial(cifar_resnet, 56, exits=(4, 9, 13, 18, 22), heads=PUBLIC_HEAD),
        data=read_by(load_cifar10),
        settings=PAPER_CIFAR,
        needs_root=True,
        fetch=partial(load_cifar10, download=True),
    ),
    Recipe(
        name="cifar100-densenet121",
        summary="DenseNet121 (CIFAR stem) with 4 exits on CIFAR-100, from scratch, a fifth of the paper's epochs",
        make=partial(densenet121, 100, stem="cifar", growth=12),
        data=read_by(load_cifar100),
        settings=replace(FROM_SCRATCH, epochs=30),
        needs_root=True,
        fetch=partial(load_cifar100, download=True),
    ),
    Recipe(
        name="cifar100-densenet121-paper",
        summary="DenseNet121 (CIFAR stem) with 4 exits on CIFAR-100, from scratch",
        make=partial(densenet121, 100, stem="cifar", growth=12),
        data=read_by(load_cifar100),
        settings=PAPER_CIFAR,
        needs_root=True,
        fetch=partial(load_cifar100, download=True),
    ),
    Recipe(
        name="imagenet-msdnet35",
        summary="MSDNet of 35 layers with 5 exits on ImageNet, from scratch, a twentieth of the paper's epochs",
        make=msdnet_imagenet,
        data=read_by(load_imagenet),
        settings=TrainSettings(epochs=10, batch_size=64, lr=0.1, weight_decay=1e-4, augment=random_resized_crop_flip),
        needs_root=True,
    ),
    Recipe(
        name="imagenet-msdnet35-paper",
        summary="MSDNet of 35 layers with 5 exits on ImageNet, from scratch",
        make=msdnet_imagenet,
        data=read_by(load_imagenet),
        settings=TrainSettings(
            epochs=200,
            batch_size=64,
            lr=0.1,
            weight_decay=1e-4,
            warmup=0.0,
            schedule=partial(step_decay, milestones=(0.375, 0.75)),
            augment=random_resized_crop_flip,
        ),
        needs_root=True,
    ),
    Recipe(
        name="tinyimagenet-msdnet",
        summary="MSDNet of 3 scales and 11 layers with 5 exits on Tiny-ImageNet, from scratch",
        make=partial(msdnet, 200, layers=(3, 2, 2, 2, 2), channels=16, growth=8, factors=(1, 2, 4)),
        data=read_by(load_tiny_imagenet),
        settings=FROM_SCRATCH,
        needs_root=True,
    ),
    Recipe(
        name="tinyimagenet-msdnet-paper",
        summary="MSDNet of 4 scales and 35 layers with 5 exits on Tiny-ImageNet, from scratch",
        make=partial(msdnet, 200, layers=(7,) * 5, channels=32, growth=16, factors=(1, 2, 4, 4)),
        data=read_by(load_tiny_imagenet),
        settings=replace(PAPER_CIFAR, epochs=200, schedule=partial(step_decay, milestones=(0.375, 0.75))),
        needs_root=True,
    ),
    Recipe(
        name="camvid-hrnet",
        summary="HRNet-W18-small-v2, narrowed to 12 channels, with 4 exits on CamVid at 240x320, from scratch",
        make=partial(
            hrnet_segmenter,
            "hrnet_w18_small_v2",
            11,
            width=12,
            opening=16,
            exits=(2, 3, 4),  # at 28, 41 and 52 percent of the cost
            heads=branch_head(32),
        ),
        data=partial(camvid_data, size=(240, 320)),
        settings=replace(SEGMENTATION, epochs=40, lr=0.1, distillation=0.6, distillation_from=0.1),
        needs_root=True,
    ),
    Recipe(
        name="camvid-hrnet-paper",
        summary="HRNet-W48 with 4 exits on CamVid at 360x480, from scratch",
        make=partial(hrnet_segmenter, "hrnet_w48", 11),
        data=partial(camvid_data, size=(360, 480)),
        settings=replace(SEGMENTATION, epochs=480, lr=0.01),
        needs_root=True,
    ),
    Recipe(
        name="cityscapes-hrnet",
        summary="HRNet-W18-small with 4 exits on Cityscapes at 256x512, from scratch",
        make=partial(hrnet_segmenter, "hrnet_w18_small", 19),
        data=read_by(load_cityscapes, size=(256, 512)),
        settings=replace(SEGMENTATION, epochs=30),
        needs_root=True,
    ),
    Recipe(
        name="cityscapes-hrnet-paper",
        summary="HRNet-W48 with 4 exits on Cityscapes at 1024x2048, from scratch",
        make=partial(hrnet_segmenter, "hrnet_w48", 19),
        data=read_by(load_cityscapes, size=(1024, 2048)),
        settings=replace(SEGMENTATION, epochs=484, batch_size=12, lr=0.01, augment=random_resized_crop_flip),
        needs_root=True,
    ),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
