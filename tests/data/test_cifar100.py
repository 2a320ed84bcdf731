"""CIFAR-100 and the official layouts it shares with CIFAR-10."""

from pathlib import Path

import pytest
import torch
from written_data import pickled, write_cifar100

from eenet.data import load_cifar100
from eenet.errors import DataError


@pytest.mark.parametrize("binary", [False, True])
def test_fine_labels_are_read_and_test_images_halved(tmp_path: Path, binary: bool) -> None:
    splits = load_cifar100(write_cifar100(tmp_path, binary=binary), seed=3)
    assert splits.train.images.shape == (200, 3, 32, 32)
    assert splits.train.labels.tolist() == [*range(100)] * 2
    held_out = torch.cat([splits.calibration.labels, splits.test.labels])
    assert len(splits.calibration) == len(splits.test) == 100
    assert held_out.sort().values.tolist() == sorted([*range(100)] * 2)
    assert splits.classes[7] == "class_007"


def test_both_layouts_hold_the_same(tmp_path: Path) -> None:
    one, other = (load_cifar100(write_cifar100(tmp_path / str(binary), binary=binary)).test for binary in (False, True))
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_refuses_what_is_missing_or_damaged(tmp_path: Path) -> None:
    expected = r"cifar-100-python with train, test and meta \(or cifar-100-binary\) was expected, found nothing"
    with pytest.raises(DataError, match=f"has no CIFAR-100: {expected}"):
        load_cifar100(tmp_path)
    folder = write_cifar100(tmp_path, binary=True) / "cifar-100-binary"
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train\.bin is truncated: records of 3074 bytes were expected"):
        _ = load_cifar100(folder).train
    (folder / "fine_label_names.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="names 2 classes: 100 were expected"):
        load_cifar100(folder)


def test_refuses_batches_that_hold_something_else(tmp_path: Path) -> None:
    folder = write_cifar100(tmp_path) / "cifar-100-python"
    (folder / "train").write_bytes(pickled({b"data": [1], b"fine_labels": [1]}))
    with pytest.raises(DataError, match="train is not of CIFAR: the array data and the list fine_labels were expected"):
        _ = load_cifar100(tmp_path).train
    images = load_cifar100(tmp_path).test.images.flatten(1).numpy()
    (folder / "train").write_bytes(pickled({b"data": images, b"fine_labels": [1]}))
    with pytest.raises(DataError, match=r"1 images of 3072 bytes were expected, found \(100, 3072\)"):
        _ = load_cifar100(tmp_path).train
    (folder / "train").write_bytes(pickled({b"data": images, b"fine_labels": [100] * 100}))
    with pytest.raises(DataError, match="has the label 100 in row 0: classes are the whole numbers 0 to 99"):
        _ = load_cifar100(tmp_path).train
