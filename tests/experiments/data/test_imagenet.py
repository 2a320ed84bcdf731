"""ImageNet, Tiny-ImageNet and folders of one's own: which image is of which class, on which side.

Tiny-ImageNet in its two layouts.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from written_data import WNIDS, write_imagenet, write_tiny_imagenet, write_tiny_imagenet_packed

from eenet.errors import DataError
from eenet.experiments.data import load_image_folder, load_imagenet, load_tiny_imagenet
from eenet.experiments.data.files import ImageFiles


def classes_of(files: ImageFiles) -> list[int]:
    """The classes that the writer gave images, from the numbers in their names."""
    return [(int(path.stem.rpartition("_")[2]) - ("val" in path.stem)) % 3 for path in files.paths]


@pytest.mark.parametrize("flat", [False, True])
def test_train_and_val_images_have_the_class_of_their_folder(tmp_path: Path, flat: bool) -> None:
    splits = load_imagenet(write_imagenet(tmp_path, flat=flat), size=28)
    assert splits.classes == WNIDS
    for side, count in ((splits.train, 30), (splits.calibration, 15), (splits.test, 15)):
        assert len(side) == count and side.labels.tolist() == classes_of(side.images)
        assert side.inputs(slice(0, 4)).shape == (4, 3, 28, 28)
    held_out = {path.name for side in (splits.calibration, splits.test) for path in side.images.paths}
    assert len(held_out) == 30


def test_training_keeps_a_margin_for_crops(tmp_path: Path) -> None:
    splits = load_imagenet(write_imagenet(tmp_path), size=28)
    assert splits.train.images.shape == (30, 3, 32, 32) and splits.test.images.shape == (15, 3, 28, 28)
    whole, centre = splits.train.images, ImageFiles(splits.train.images.paths, (28, 28), short_side=32)
    assert torch.equal(whole[:2][:, :, 2:-2, 2:-2], centre[:2])


def test_refuses_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no ImageNet: imagenet with train and val was expected, found nothing"):
        load_imagenet(tmp_path)
    folder = write_imagenet(tmp_path, flat=True) / "imagenet"
    solution = (folder / "LOC_val_solution.csv").read_text()
    (folder / "LOC_val_solution.csv").write_text(solution.replace("ILSVRC2012_val_00000003", "other"))
    with pytest.raises(DataError, match=r"val_00000003\.JPEG has no class: .* gives it none"):
        _ = load_imagenet(tmp_path).test
    (folder / "LOC_val_solution.csv").unlink()
    with pytest.raises(DataError, match=r"neither a folder per class nor LOC_val_solution\.csv"):
        _ = load_imagenet(tmp_path).test


@pytest.mark.parametrize("inside", ["ILSVRC/Data/CLS-LOC", "imagenet"])
def test_the_classes_of_flat_images_are_found_at_the_top(tmp_path: Path, inside: str) -> None:
    made, root = write_imagenet(tmp_path / "made", flat=True) / "imagenet", tmp_path / "root"
    (root / inside).parent.mkdir(parents=True)
    made.rename(root / inside)
    (root / inside / "LOC_val_solution.csv").rename(root / "LOC_val_solution.csv")
    named = [root, root / inside] if inside.startswith("ILSVRC") else [root]
    for side in (load_imagenet(place).test for place in named):
        assert len(side) == 15 and side.labels.tolist() == classes_of(side.images)


def test_only_the_folders_that_were_named_are_looked_into(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path / "root", flat=True) / "imagenet"
    (folder / "val").rename(tmp_path / "val")
    (folder / "val").symlink_to(tmp_path / "val")
    assert len(load_imagenet(tmp_path / "root").test) == 15  # the list is beside the link
    (folder / "LOC_val_solution.csv").rename(tmp_path / "LOC_val_solution.csv")
    with pytest.raises(DataError, match=r"root/imagenet/val has neither a folder per class nor LOC_val_solution\.csv"):
        _ = load_imagenet(tmp_path / "root").test


def test_refuses_other_classes_and_empty_folders(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path) / "imagenet"
    (folder / "val" / WNIDS[0]).rename(folder / "val" / "n9")
    with pytest.raises(DataError, match="has other classes than train: n01440764 is in one of them only"):
        _ = load_imagenet(tmp_path).test
    (folder / "train" / "n0").mkdir()
    with pytest.raises(DataError, match=r"n0 has no images: files \.bmp .* were expected, found nothing"):
        _ = load_imagenet(tmp_path).train


def test_a_folder_per_class_is_shared_out(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path) / "imagenet" / "train"
    splits, other = load_image_folder(root, size=28), load_image_folder(root, size=28, seed=1)
    sides = [splits.train, splits.calibration, splits.test]
    assert [len(side) for side in sides] == [18, 6, 6]
    assert len({path for side in sides for path in side.images.paths}) == 30
    assert all(side.labels.tolist() == classes_of(side.images) for side in sides)
    assert splits.test.images.paths != other.test.images.paths
    assert splits.train.fingerprint() != other.train.fingerprint()


def test_refuses_a_folder_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 0 classes: a folder per class was expected, at least 2, found nothing"):
        load_image_folder(tmp_path)
    root = write_imagenet(tmp_path, train=6) / "imagenet" / "train"
    with pytest.raises(DataError, match="has 6 samples: three splits need at least 10"):
        load_image_folder(root)


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
    with pytest.raises(DataError, match=r"val_0\.JPEG has no class: .*val_annotations\.txt gives it n0"):
        _ = load_tiny_imagenet(folder).test


def test_the_packed_subset_is_read(data_root: Path) -> None:
    if not (data_root / "tiny_imagenet_subset").is_dir():
        pytest.skip("the data folder has no tiny_imagenet_subset")
    splits = load_tiny_imagenet(data_root)
    assert len(splits.classes) == 200 and splits.classes[0] == "goldfish, Carassius auratus"
    assert len(splits.calibration) == len(splits.test) == 5000
    labels = torch.cat([splits.calibration.labels, splits.test.labels])
    assert np.array_equal(labels.bincount(), np.full(200, 50))
