"""Ready-made models with exits; `MissingExtraError` names what to install where a library that they need is missing."""

from eenet.experiments.zoo.bert import bert_classifier, mean_of_words
from eenet.experiments.zoo.densenet import densenet121, densenet_cifar, densenet_with_exits
from eenet.experiments.zoo.hrnet import hrnet_segmenter, hrnet_with_exits
from eenet.experiments.zoo.msdnet import msdnet, msdnet_cifar, msdnet_imagenet
from eenet.experiments.zoo.parts import reading
from eenet.experiments.zoo.resnet import cifar_resnet, load_cifar_resnet_weights
from eenet.experiments.zoo.tiny import tiny_cnn

__all__ = [
    "bert_classifier",
    "cifar_resnet",
    "densenet121",
    "densenet_cifar",
    "densenet_with_exits",
    "hrnet_segmenter",
    "hrnet_with_exits",
    "load_cifar_resnet_weights",
    "mean_of_words",
    "msdnet",
    "msdnet_cifar",
    "msdnet_imagenet",
    "reading",
    "tiny_cnn",
]
