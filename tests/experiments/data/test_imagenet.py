"""ImageNet, Tiny-ImageNet and folders of one's own: the class and the split of every image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from written_data import WNIDS, picture, save, write_imagenet, write_tiny_imagenet, write_tiny_imagenet_packed

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
    for part, count in ((splits.train, 30), (splits.calibration, 15), (splits.test, 15)):
        assert len(part) == count and part.labels.tolist() == classes_of(part.images)
        assert part.inputs(slice(0, 4)).shape == (4, 3, 28, 28)
    held_out = {path.name for part in (splits.calibration, splits.test) for path in part.images.paths}
    assert len(held_out) == 30
    # training keeps a margin for crops
    assert splits.train.images.shape == (30, 3, 32, 32) and splits.test.images.shape == (15, 3, 28, 28)
    centre = ImageFiles(splits.train.images.paths, (28, 28), short_side=32)
    assert torch.equal(splits.train.images[:2][:, :, 2:-2, 2:-2], centre[:2])


def test_refuses_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no ImageNet: imagenet with train, val was expected, found nothing"):
        load_imagenet(tmp_path)
    folder = write_imagenet(tmp_path, flat=True) / "imagenet"
    solution = (folder / "LOC_val_solution.csv").read_text()
    (folder / "LOC_val_solution.csv").write_text(solution.replace("ILSVRC2012_val_00000003", "other"))
    with pytest.raises(DataError, match=r"val_00000003\.JPEG has no class: .* gives it none"):
        _ = load_imagenet(tmp_path).test
    (folder / "LOC_val_solution.csv").unlink()
    with pytest.raises(DataError, match=r"neither a folder per class nor LOC_val_solution\.csv"):
        _ = load_imagenet(tmp_path).test


@pytest.mark.parametrize("inpart", ["ILSVRC/Data/CLS-LOC", "imagenet"])
def test_the_classes_of_flat_images_are_found_at_the_top(tmp_path: Path, inpart: str) -> None:
    made, root = write_imagenet(tmp_path / "made", flat=True) / "imagenet", tmp_path / "root"
    (root / inpart).parent.mkdir(parents=True)
    made.rename(root / inpart)
    (root / inpart / "LOC_val_solution.csv").rename(root / "LOC_val_solution.csv")
    named = [root, root / inpart] if inpart.startswith("ILSVRC") else [root]
    for part in (load_imagenet(place).test for place in named):
        assert len(part) == 15 and part.labels.tolist() == classes_of(part.images)


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
    parts = [splits.train, splits.calibration, splits.test]
    assert [len(part) for part in parts] == [18, 6, 6]
    assert len({path for part in parts for path in part.images.paths}) == 30
    assert all(part.labels.tolist() == classes_of(part.images) for part in parts)
    assert splits.test.images.paths != other.test.images.paths
    assert splits.train.fingerprint() != other.train.fingerprint()
    with pytest.raises(DataError, match="has 6 samples: three splits need at least 10"):
        load_image_folder(write_imagenet(tmp_path / "small", train=6) / "imagenet" / "train")
    with pytest.raises(DataError, match="has 0 classes: a folder per class was expected, at least 2, found "):
        load_image_folder(tmp_path / "imagenet" / "train" / WNIDS[0])


def write_classes(root: Path, *names: str, suffix: str = ".png", count: int = 8) -> Path:
    for label, name in enumerate(names):
        for row in range(count):
            save(root / name / f"{row}{suffix}", picture(label, 16, 24, row))
    return root


def found(root: Path) -> tuple[tuple[str, ...], int]:
    splits = load_image_folder(root, size=14)
    return splits.classes, sum(
        len(part.inputs(slice(None))) for part in (splits.train, splits.calibration, splits.test)
    )


def test_what_tools_leave_beside_images_is_passed_over(tmp_path: Path) -> None:
    root = write_classes(tmp_path, "cat", "dog")
    save(root / ".ipynb_checkpoints" / "0-checkpoint.png", picture(0, 16, 16, 0))
    save(root / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png", picture(0, 16, 16, 0))
    (root / "cat" / "._0.png").write_bytes(b"\0\5\x16\7Mac OS X")
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / "__MACOSX" / "cat" / "._0.png").touch()
    (root / "dog" / "Thumbs.db").touch()
    assert found(root) == (("cat", "dog"), 16)


def test_every_format_and_deeper_folders_are_read(tmp_path: Path) -> None:
    root = write_classes(tmp_path, "cat", "dog")
    write_classes(root, "cat", suffix=".tif")
    write_classes(root, "dog/series 2", suffix=".gif")
    assert found(root) == (("cat", "dog"), 32)


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    root = write_classes(tmp_path, "cat", "dog")
    for row in range(30):
        (root / "dog" / f"{row}.heic").touch()
        save(root / f"{row}.png", picture(0, 16, 16, row))
    (root / "notes.txt").touch()
    (root / "cat" / ".DS_Store").touch()
    with pytest.warns(UserWarning) as said:
        assert found(root) == (("cat", "dog"), 16)
    [warning] = said
    for fact in (f"data folder {root} ", "30 images outside the folders of classes", "30 .heic", "1 .txt", "1 hidden"):
        assert fact in str(warning.message)


@pytest.mark.parametrize("pair", [("café", "cafe\u0301"), ("cat", "cat\u200b"), ("a b", "a  b"), ("Cat", "cat")])
def test_folders_that_look_alike_are_no_two_classes(tmp_path: Path, pair: tuple[str, str]) -> None:
    root = write_classes(tmp_path, "dog", *pair)
    if len(list(root.iterdir())) < 3:
        pytest.skip("the file system takes both names for one")
    with pytest.raises(DataError, match=r"has the folders .* look alike"):
        load_image_folder(root)


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    root = write_classes(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog")
    with pytest.raises(DataError, match=r"has the folders train, val: these are parts of a data set, not classes"):
        load_image_folder(root)
    assert found(root / "train") == (("cat", "dog"), 16)
    assert load_imagenet(root, size=14).classes == ("cat", "dog")
    assert found(write_classes(tmp_path / "more", "bus", "train")) == (("bus", "train"), 16)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_classes_may_begin_with_a_mark(tmp_path: Path, encoding: str) -> None:
    folder = write_tiny_imagenet(tmp_path) / "tiny-imagenet-200"
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        (folder / name).write_text((folder / name).read_text(), encoding=encoding)
    splits = load_tiny_imagenet(tmp_path)
    assert splits.classes[1].startswith("thing 1") and len(splits.train) == 30 and len(splits.test) == 15
    (folder / "wnids.txt").write_bytes(b"n0\xe9\n")
    with pytest.raises(DataError, match=r"wnids\.txt cannot be read: it is no text in UTF-8"):
        load_tiny_imagenet(tmp_path)


def test_both_layouts_contain_the_same_and_val_images_are_halved(tmp_path: Path) -> None:
    official, packed = (
        load_tiny_imagenet(write(tmp_path / name))
        for name, write in (("a", write_tiny_imagenet), ("b", write_tiny_imagenet_packed))
    )
    assert torch.equal(official.test.labels, packed.test.labels)
    assert torch.equal(official.test.images[:], packed.test.images)
    for splits in (official, packed):
        assert [len(splits.get(name)) for name in ("train", "calibration", "test")] == [30, 15, 15]
        assert splits.classes[1].startswith("thing 1")
        labels = torch.cat([splits.calibration.labels, splits.test.labels])
        assert labels.bincount().tolist() == [10, 10, 10]
        assert splits.test.images[:].shape == (15, 3, 64, 64)


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
        for part in (splits.calibration, splits.test):
            part.inputs(slice(None))
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
