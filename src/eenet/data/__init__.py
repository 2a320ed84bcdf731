"""Data sets as arrays in memory, in three splits: train, calibration, test."""

from eenet.data.augment import Augment, random_crop_flip
from eenet.data.cifar10 import load_cifar10_packed
from eenet.data.dataset import ArrayDataset, DataSplits
from eenet.data.digits import load_digits

__all__ = ["ArrayDataset", "DataSplits", "load_digits", "load_cifar10_packed", "Augment", "random_crop_flip"]
