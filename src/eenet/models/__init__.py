"""Models with exits: the multi-exit model, heads, and a small zoo."""

from eenet.models.attach import attach
from eenet.models.branchheads import BranchHeadFactory, branch_head
from eenet.models.cascade import cascaded
from eenet.models.heads import (
    HeadFactory,
    attention_linear,
    conv_head,
    grid_linear,
    mixed_linear,
    pooled_linear,
    residual_head,
    token_head,
)
from eenet.models.model import MultiExitModel
from eenet.models.zoo import (
    bert_classifier,
    cifar_resnet,
    densenet121,
    densenet_cifar,
    densenet_with_exits,
    hrnet_segmenter,
    hrnet_with_exits,
    load_cifar_resnet_weights,
    mean_of_words,
    msdnet,
    msdnet_cifar,
    msdnet_imagenet,
    reading,
    tiny_cnn,
)

__all__ = [
    "attach",
    "MultiExitModel",
    "cascaded",
    "cifar_resnet",
    "densenet121",
    "densenet_cifar",
    "densenet_with_exits",
    "hrnet_segmenter",
    "hrnet_with_exits",
    "msdnet",
    "msdnet_cifar",
    "msdnet_imagenet",
    "bert_classifier",
    "tiny_cnn",
    "load_cifar_resnet_weights",
    "BranchHeadFactory",
    "HeadFactory",
    "branch_head",
    "attention_linear",
    "conv_head",
    "grid_linear",
    "mixed_linear",
    "pooled_linear",
    "residual_head",
    "token_head",
    "mean_of_words",
    "reading",
]
