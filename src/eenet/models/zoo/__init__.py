"""Ready-made models with exits."""

from eenet.models.zoo.bert import bert_classifier, mean_of_words
from eenet.models.zoo.densenet import densenet121, densenet_cifar, densenet_with_exits
from eenet.models.zoo.hrnet import hrnet_segmenter, hrnet_with_exits
from eenet.models.zoo.msdnet import msdnet, msdnet_cifar, msdnet_imagenet
from eenet.models.zoo.parts import reading
from eenet.models.zoo.resnet import cifar_resnet, load_cifar_resnet_weights
from eenet.models.zoo.tiny import tiny_cnn

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
