"""Models with exits: the multi-exit model, heads, and a small zoo."""

from eenet.models.attach import attach
from eenet.models.cascade import cascaded
from eenet.models.heads import (
    HeadFactory,
    attention_linear,
    conv_head,
    grid_linear,
    mixed_linear,
    pooled_linear,
    token_head,
)
from eenet.models.model import MultiExitModel
from eenet.models.zoo import cifar_resnet, load_cifar_resnet_weights, tiny_cnn

__all__ = [
    "attach",
    "MultiExitModel",
    "cascaded",
    "cifar_resnet",
    "tiny_cnn",
    "load_cifar_resnet_weights",
    "HeadFactory",
    "attention_linear",
    "conv_head",
    "grid_linear",
    "mixed_linear",
    "pooled_linear",
    "token_head",
]
