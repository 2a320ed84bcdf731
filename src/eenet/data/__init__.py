"""Labelled data sets, in three splits: train, calibration, test."""

from eenet.data.ag_news import load_ag_news
from eenet.data.arrays import load_image_arrays
from eenet.data.augment import Augment, random_crop_flip, random_crop_flip_cut, random_flip, random_resized_crop_flip
from eenet.data.camvid import load_camvid
from eenet.data.cifar10 import load_cifar10, load_cifar10_packed
from eenet.data.cifar100 import load_cifar100
from eenet.data.cityscapes import load_cityscapes
from eenet.data.dataset import ArrayDataset, DataSplits, LabelledDataset
from eenet.data.digits import load_digits
from eenet.data.files import ImageFiles, MaskFiles
from eenet.data.image_folder import load_image_folder
from eenet.data.imagenet import load_imagenet
from eenet.data.mask_folder import load_mask_folder
from eenet.data.sst2 import load_sst2
from eenet.data.text_files import load_text_file
from eenet.data.texts import TextDataset, Texts, masked, tokenised, trimmed
from eenet.data.tiny_imagenet import load_tiny_imagenet

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
    "Augment",
    "random_crop_flip",
    "random_crop_flip_cut",
    "random_flip",
    "random_resized_crop_flip",
]
