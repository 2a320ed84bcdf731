"""Ready-made models with exits."""

from eenet.models.zoo.resnet import cifar_resnet, load_cifar_resnet_weights
from eenet.models.zoo.tiny import tiny_cnn

__all__ = ["cifar_resnet", "load_cifar_resnet_weights", "tiny_cnn"]
