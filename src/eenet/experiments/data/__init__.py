"""Labelled data sets, in three splits: train, calibration, test.

Loaders of published data sets take ``root``, the folder that holds the data set's own folder, or that folder itself.
Where samples are chosen at random, ``seed`` alone decides. Files are looked for at once and read when a split is first
asked for; what is missing or damaged raises a `DataError` that names it.
"""

from eenet.experiments.data.arrays import load_digits, load_image_arrays
from eenet.experiments.data.augment import random_crop_flip, random_crop_flip_cut, random_flip, random_resized_crop_flip
from eenet.experiments.data.cifar import load_cifar10, load_cifar10_packed, load_cifar100
from eenet.experiments.data.clutter import load_cluttered_digits
from eenet.experiments.data.dataset import ArrayDataset, DataSplits
from eenet.experiments.data.files import ImageFiles, MaskFiles
from eenet.experiments.data.imagenet import load_image_folder, load_imagenet, load_tiny_imagenet
from eenet.experiments.data.scenes import load_camvid, load_cityscapes, load_mask_folder
from eenet.experiments.data.text_sets import load_ag_news, load_sst2
from eenet.experiments.data.texts import (
    TextDataset,
    Texts,
    load_text_file,
    masked,
    tokenised,
    trimmed,
)
from eenet.running.texts import load_tokenizer
from eenet.training.dataset import Augment, LabelledDataset

__all__ = [
    "LabelledDataset",
    "ArrayDataset",
    "ImageFiles",
    "MaskFiles",
    "TextDataset",
    "Texts",
    "tokenised",
    "trimmed",
    "masked",
    "DataSplits",
    "load_digits",
    "load_cluttered_digits",
    "load_cifar10",
    "load_cifar10_packed",
    "load_cifar100",
    "load_imagenet",
    "load_tiny_imagenet",
    "load_cityscapes",
    "load_camvid",
    "load_sst2",
    "load_ag_news",
    "load_image_arrays",
    "load_image_folder",
    "load_mask_folder",
    "load_text_file",
    "load_tokenizer",
    "Augment",
    "random_crop_flip",
    "random_crop_flip_cut",
    "random_flip",
    "random_resized_crop_flip",
]
