"""Recipes on images: the paper's experiments (``small`` for two cores, ``paper`` with its settings), and short ones.

Source: F. Ilhan et al., *Adaptive deep neural network inference optimization with EENet*, WACV 2024, section on the
experimental setup, and the configuration of its public code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from eenet.errors import DataError
from eenet.experiments.data.arrays import load_digits
from eenet.experiments.data.augment import random_crop_flip, random_crop_flip_cut, random_flip, random_resized_crop_flip
from eenet.experiments.data.cifar import load_cifar10, load_cifar100
from eenet.experiments.data.clutter import load_cluttered_digits
from eenet.experiments.data.dataset import DataSplits
from eenet.experiments.data.imagenet import load_imagenet, load_tiny_imagenet
from eenet.experiments.data.scenes import load_camvid, load_cityscapes
from eenet.experiments.recipes.recipe import Recipe
from eenet.experiments.zoo.densenet import densenet121
from eenet.experiments.zoo.hrnet import hrnet_segmenter
from eenet.experiments.zoo.msdnet import msdnet, msdnet_imagenet
from eenet.experiments.zoo.resnet import cifar_resnet, load_cifar_resnet_weights
from eenet.experiments.zoo.tiny import tiny_cnn, tiny_resnet
from eenet.models.heads import HeadFactory, branch_head, conv_head, mixed_linear, residual_head
from eenet.models.model import MultiExitModel
from eenet.training.losses import uniform_weights
from eenet.training.schedule import step_decay
from eenet.training.settings import TrainSettings, paper_loss

CIFAR_WEIGHTS = Path("weights", "cifar10_resnet", "resnet56.safetensors")
PAPER_CIFAR = paper_loss(
    TrainSettings(
        epochs=150,
        batch_size=128,
        lr=0.1,
        warmup=0.0,
        schedule=partial(step_decay, milestones=(1 / 3, 2 / 3)),
        augment=random_crop_flip,
    )
)
PAPER_HRNET = (2, 6)  # after its second and third stage: 1.6, 17 and 66 million parameters, as in the paper's table 3
PUBLIC_HEAD = conv_head((1, 1, 1))  # three convolutions, as in the paper's public code


def small_head(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return the best head at a place of ResNet56: a small net after the first blocks, next to nothing later."""
    if shape[1] < 32:
        return residual_head(64)(shape, num_classes)
    return (conv_head((2,)) if shape[1] < 64 else mixed_linear())(shape, num_classes)


def pretrained_resnet(model: MultiExitModel, root: Path) -> None:
    """Load published ResNet56 weights, trained on the true CIFAR-10, into the backbone."""
    path = root / CIFAR_WEIGHTS
    if not path.is_file():
        raise DataError(
            f"data root {root} has no weights of ResNet56: {path} was expected and not found. Convert those of "
            "github.com/akamaster/pytorch_resnet_cifar10 as the page on the paper's experiments shows."
        )
    load_cifar_resnet_weights(model, path)


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
SEGMENTATION = TrainSettings(epochs=25, batch_size=8, lr=0.05, ema=0.99, weighting=uniform_weights, augment=random_flip)
_MADE = (load_digits, load_cluttered_digits)  # need no files
SHORT = TrainSettings(  # from published weights, for comparing policies
    epochs=1.0,
    batch_size=64,
    precision="bfloat16",
    lr=0.03,
    head_lr=0.15,
    heads_share=0.06,
    weighting=uniform_weights,
    augment=random_crop_flip,
)


def _recipe(
    name: str,
    summary: str,
    make: Callable[[], MultiExitModel],
    load: Callable[..., DataSplits],
    settings: TrainSettings,
    *,
    size: tuple[int, int] | None = None,
    pretrained: bool = False,
) -> Recipe:
    """Return a recipe on images; those of CIFAR can be downloaded, those of scenes are brought to a size."""

    def data(root: Path | None, seed: int) -> DataSplits:
        # the splits of CamVid are fixed
        chosen: dict[str, Any] = {"seed": seed} if "seed" in inspect.signature(load).parameters else {}
        chosen |= {} if size is None else {"size": size}
        return load(**chosen) if load in _MADE else load(root or Path(), **chosen)

    return Recipe(
        name=name,
        summary=summary,
        make=make,
        data=data,
        settings=settings,
        pretrained=pretrained_resnet if pretrained else None,
        needs_root=load not in _MADE,
        fetch=partial(load, download=True) if load in (load_cifar10, load_cifar100) else None,
    )


def _resnet(name: str, how: str, exits: tuple[int, ...], heads: HeadFactory, settings: TrainSettings) -> Recipe:
    """Return a recipe of ResNet56 on CIFAR-10; all but those of the paper begin with published weights."""
    summary = f"ResNet56 with {len(exits) + 1} exits on CIFAR-10, {how}"
    make = partial(cifar_resnet, 56, exits=exits, heads=heads)
    return _recipe(name, summary, make, load_cifar10, settings, pretrained=not name.endswith("-paper"))


_densenet = partial(densenet121, 100, stem="cifar", growth=12)
_LONG = partial(step_decay, milestones=(0.375, 0.75))
_IMAGENET = TrainSettings(epochs=10, batch_size=64, lr=0.1, weight_decay=1e-4, augment=random_resized_crop_flip)

_SCENES = "HRNet-W18-small-v2 with a narrow opening and 3 exits on CamVid at 240x320, from scratch"
# exits at 3.7 and 15 percent of the operations: the paper's shares of the latency
_NARROW_HRNET = partial(hrnet_segmenter, "hrnet_w18_small_v2", 11, opening=8, exits=(1, 2), heads=branch_head(16))
_LONG_SCENES = replace(SEGMENTATION, epochs=25, lr=0.1, distillation=0.6, distillation_from=0.1, precision="bfloat16")
_SHORTLY = "a short training from published weights, for comparing policies"
_TUNED = "fine-tuned from published weights"
_THREE, _SIX = (9, 18), (4, 9, 13, 18, 22)

_RECIPES = (
    _recipe(
        "digits_tiny",
        "3 exits on the embedded 8x8 digits; trains in seconds",
        partial(tiny_cnn, exits=3, width=48),
        load_digits,
        TrainSettings(epochs=8, batch_size=32, lr=0.1, weighting=uniform_weights),
    ),
    _recipe(
        "digits_clutter",
        "a small ResNet with 3 exits on pictures, made by code, of one large digit among small ones",
        tiny_resnet,
        load_cluttered_digits,
        TrainSettings(epochs=5, batch_size=64, lr=0.1, distillation=0.1, weighting=uniform_weights),
    ),
    _resnet("cifar10_resnet56_3", _SHORTLY, _THREE, conv_head((2, 2, 1, 2)), SHORT),
    _resnet("cifar10_resnet56_6", _SHORTLY, _SIX, conv_head((2, 2)), replace(SHORT, head_lr=0.3)),
    _resnet("cifar10-resnet56-3", _TUNED, (3, 12), small_head, replace(FINE_TUNING, epochs=8, precision="bfloat16")),
    _resnet("cifar10-resnet56-6", _TUNED, (3, 13, 17, 20, 23), small_head, FINE_TUNING),
    _resnet("cifar10-resnet56-3-paper", "from scratch", _THREE, PUBLIC_HEAD, PAPER_CIFAR),
    _resnet("cifar10-resnet56-6-paper", "from scratch", _SIX, PUBLIC_HEAD, PAPER_CIFAR),
    _recipe(
        "cifar100-densenet121",
        "DenseNet121 (CIFAR stem) with 4 exits on CIFAR-100, from scratch, a fifth of the paper's epochs",
        _densenet,
        load_cifar100,
        replace(FROM_SCRATCH, epochs=30),
    ),
    _recipe(
        "cifar100-densenet121-paper",
        "DenseNet121 (CIFAR stem) with 4 exits on CIFAR-100, from scratch",
        _densenet,
        load_cifar100,
        PAPER_CIFAR,
    ),
    _recipe(
        "imagenet-msdnet35",
        "MSDNet of 35 layers with 5 exits on ImageNet, from scratch, a twentieth of the paper's epochs",
        msdnet_imagenet,
        load_imagenet,
        _IMAGENET,
    ),
    _recipe(
        "imagenet-msdnet35-paper",
        "MSDNet of 35 layers with 5 exits on ImageNet, from scratch",
        msdnet_imagenet,
        load_imagenet,
        paper_loss(replace(_IMAGENET, epochs=200, warmup=0.0, schedule=_LONG)),
    ),
    _recipe(
        "tinyimagenet-msdnet",
        "MSDNet of 3 scales and 11 layers with 5 exits on Tiny-ImageNet, from scratch",
        partial(msdnet, 200, layers=(3, 2, 2, 2, 2), channels=16, growth=8, factors=(1, 2, 4)),
        load_tiny_imagenet,
        FROM_SCRATCH,
    ),
    _recipe(
        "tinyimagenet-msdnet-paper",
        "MSDNet of 4 scales and 35 layers with 5 exits on Tiny-ImageNet, from scratch",
        partial(msdnet, 200, layers=(7,) * 5, channels=32, growth=16, factors=(1, 2, 4, 4)),
        load_tiny_imagenet,
        replace(PAPER_CIFAR, epochs=200, schedule=_LONG),
    ),
    _recipe("camvid-hrnet", _SCENES, _NARROW_HRNET, load_camvid, _LONG_SCENES, size=(240, 320)),
    _recipe(
        "camvid-hrnet-streets",
        f"{_SCENES}, calibrated on many streets",
        _NARROW_HRNET,
        partial(load_camvid, streets=True),
        _LONG_SCENES,
        size=(240, 320),
    ),
    _recipe(
        "camvid-hrnet-paper",
        "HRNet-W48 with 3 exits on CamVid at 360x480, from scratch",
        partial(hrnet_segmenter, "hrnet_w48", 11, exits=PAPER_HRNET),
        load_camvid,
        paper_loss(replace(SEGMENTATION, epochs=480, lr=0.01)),
        size=(360, 480),
    ),
    _recipe(
        "cityscapes-hrnet",
        "HRNet-W18-small-v2 with a narrow opening and 3 exits on Cityscapes at 256x512, from scratch",
        partial(hrnet_segmenter, "hrnet_w18_small_v2", 19, opening=8, exits=(1, 2), heads=branch_head(16)),
        load_cityscapes,
        replace(SEGMENTATION, epochs=30),
        size=(256, 512),
    ),
    _recipe(
        "cityscapes-hrnet-paper",
        "HRNet-W48 with 3 exits on Cityscapes at 1024x2048, from scratch",
        partial(hrnet_segmenter, "hrnet_w48", 19, exits=PAPER_HRNET),
        load_cityscapes,
        paper_loss(replace(SEGMENTATION, epochs=484, batch_size=12, lr=0.01, augment=random_resized_crop_flip)),
        size=(1024, 2048),
    ),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
