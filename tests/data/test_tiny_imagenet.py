"""Tiny-ImageNet in its two layouts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from written_data import write_tiny_imagenet, write_tiny_imagenet_packed

from eenet.data import load_tiny_imagenet
from eenet.errors import DataError


@pytest.mark.parametrize("write", [write_tiny_imagenet, write_tiny_imagenet_packed])
def test_val_images_are_halved(tmp_path: Path, write: object) -> None:
    splits = load_tiny_imagenet(write(tmp_path))
    assert [len(side) for side in (splits.train, splits.calibration, splits.test)] == [30, 15, 15]
    assert splits.classes[1].startswith("thing 1")
    labels = torch.cat([splits.calibration.labels, splits.test.labels])
    assert labels.bincount().tolist() == [10, 10, 10]
    assert splits.test.images[:].shape == (15, 3, 64, 64)


def test_both_layouts_hold_the_same(tmp_path: Path) -> None:
    official, packed = (
        load_tiny_imagenet(write(tmp_path / name)).test
        for name, write in (("a", write_tiny_imagenet), ("b", write_tiny_imagenet_packed))
    )
    assert torch.equal(official.labels, packed.labels)
    assert torch.equal(official.images[:], packed.images)


@pytest.mark.parametrize("label", [-3, 3, 1.5])
def test_refuses_packed_labels_of_unknown_classes(tmp_path: Path, label: float) -> None:
    folder = write_tiny_imagenet_packed(tmp_path) / "tiny_imagenet_subset"
    with np.load(folder / "train.npz") as archive:
        arrays = dict(archive)
    arrays["labels"] = [0, 1, label, *arrays["labels"][3:].tolist()]
    np.savez(folder / "train.npz", **arrays)
    with pytest.raises(DataError, match=r"train\.npz has the label .* in row .: classes are the whole numbers 0 to 2"):
        _ = load_tiny_imagenet(tmp_path).train


def test_refuses_what_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no Tiny-ImageNet: tiny-imagenet-200 with wnids.txt, train, val/val_annot"
    ):
        load_tiny_imagenet(tmp_path)
    folder = write_tiny_imagenet(tmp_path) / "tiny-imagenet-200"
    (folder / "val" / "images" / "val_3.JPEG").unlink()
    splits = load_tiny_imagenet(folder)
    with pytest.raises(DataError, match=r"val_3\.JPEG is missing"):
        for side in (splits.calibration, splits.test):
            side.inputs(slice(None))
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn0\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"has the row 'val_0\.JPEG n0 0 0 1 1': a file and one of the classes"):
        _ = load_tiny_imagenet(folder).test


def test_the_packed_subset_is_read(data_root: Path) -> None:
    if not (data_root / "tiny_imagenet_subset").is_dir():
        pytest.skip("the data folder has no tiny_imagenet_subset")
    splits = load_tiny_imagenet(data_root)
    assert len(splits.classes) == 200 and splits.classes[0] == "goldfish, Carassius auratus"
    assert len(splits.calibration) == len(splits.test) == 5000
    labels = torch.cat([splits.calibration.labels, splits.test.labels])
    assert np.array_equal(labels.bincount(), np.full(200, 50))
