"""Models with exits: the multi-exit model, heads, and a small zoo."""

from eenet.models.attach import attach
from eenet.models.heads import HeadFactory, conv_head, grid_linear, pooled_linear, token_head
from eenet.models.model import MultiExitModel
from eenet.models.zoo import (
    cifar_resnet,
    densenet121,
    densenet_cifar,
    densenet_with_exits,
    load_cifar_resnet_weights,
    msdnet,
    msdnet_cifar,
    msdnet_imagenet,
    reading,
    tiny_cnn,
)

__all__ = [
    "attach",
    "MultiExitModel",
    "cifar_resnet",
    "densenet121",
    "densenet_cifar",
    "densenet_with_exits",
    "msdnet",
    "msdnet_cifar",
    "msdnet_imagenet",
    "tiny_cnn",
    "load_cifar_resnet_weights",
    "HeadFactory",
    "conv_head",
    "grid_linear",
    "pooled_linear",
    "token_head",
    "reading",
]
