"""CIFAR: read as written in every layout, refused when damaged; downloads checked, whole or not at all."""

import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from written_data import pickled, write_cifar10, write_cifar100

from eenet.errors import DataError, RunError
from eenet.experiments.data import cifar, load_cifar10, load_cifar10_packed, load_cifar100
from eenet.experiments.data.cifar import Archive, fetch
from eenet.experiments.recipes import RECIPES

TRAIN, TEST = 6, 10


def pack(path: Path, rows: int, size: int = 32, **changes: np.ndarray) -> np.ndarray:
    """Write an archive of one-coloured images and return the colours."""
    colours = np.random.default_rng(rows).integers(0, 256, (rows, 3), dtype=np.uint8)
    files = []
    for colour in colours:
        buffer = io.BytesIO()
        Image.fromarray(np.tile(colour, (size, size, 1))).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    arrays = {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets, "labels": np.arange(rows) % 10}
    np.savez(path, **(arrays | changes))
    return colours


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cifar, "ROWS", {"train": TRAIN, "test": TEST})
    (tmp_path / "cifar10_jpeg_packed").mkdir()
    for part, rows in cifar.ROWS.items():
        pack(tmp_path / "cifar10_jpeg_packed" / f"{part}_jpeg.npz", rows)
    return tmp_path


def test_images_and_labels_are_read_as_written(root: Path) -> None:
    colours = pack(root / "cifar10_jpeg_packed" / "train_jpeg.npz", TRAIN)
    train = load_cifar10_packed(root).train
    assert train.images.shape == (TRAIN, 3, 32, 32) and train.images.dtype == torch.uint8
    difference = train.images[:, :, 0, 0].int() - torch.from_numpy(colours).int()
    assert difference.abs().max() <= 4  # JPEG
    assert train.labels.tolist() == list(range(TRAIN))


@pytest.mark.filterwarnings("ignore:the .* set has no samples")
def test_the_test_images_are_halved_by_the_seed(root: Path) -> None:
    splits, other = load_cifar10_packed(root, seed=0), load_cifar10_packed(root, seed=1)
    calibration, test = splits.calibration.labels.tolist(), splits.test.labels.tolist()
    assert len(calibration) == len(test) == TEST // 2
    assert sorted(calibration + test) == list(range(TEST))
    assert other.calibration.labels.tolist() != calibration


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": np.arange(3)}, "10 images were expected, found 10 images and 3 labels"),
        ({"offsets": np.arange(4)}, "10 images were expected, found 3 images"),
        ({"jpeg": np.zeros(7, np.uint8)}, r"bytes of JPEG, found 7"),
        ({"jpeg": np.array(["no"], dtype=object)}, "cannot be read"),
    ],
)
def test_refuses_an_archive_that_holds_something_else(root: Path, changes: dict[str, np.ndarray], said: str) -> None:
    pack(root / "cifar10_jpeg_packed" / "test_jpeg.npz", TEST, **changes)
    with pytest.raises(DataError, match=said):
        _ = load_cifar10_packed(root).test


def test_refuses_images_of_another_size_and_damaged_ones(root: Path) -> None:
    path = root / "cifar10_jpeg_packed" / "test_jpeg.npz"
    pack(path, TEST, size=16)
    with pytest.raises(DataError, match=r"image 0 has shape \(16, 16, 3\), expected \(32, 32, 3\)"):
        _ = load_cifar10_packed(root).test
    pack(path, TEST)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["jpeg"] = arrays["jpeg"].copy()
    arrays["jpeg"][: arrays["offsets"][1]] = 0
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"image 0 in .* is damaged or no image: it cannot be decoded"):
        _ = load_cifar10_packed(root).test
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"test_jpeg.npz cannot be read: it is no complete .npy or .npz file"):
        _ = load_cifar10_packed(root).test


@pytest.mark.parametrize(
    ("write", "load", "classes"), [(write_cifar10, load_cifar10, 10), (write_cifar100, load_cifar100, 100)]
)
def test_official_layouts_contain_the_same(write: Any, load: Any, classes: int, tmp_path: Path) -> None:
    (pickled, inside), (binary, _) = (
        (load(root, seed=3), load(next(root.iterdir()), seed=3))
        for root in (write(tmp_path / str(binary), binary=binary) for binary in (False, True))
    )
    for split in ("train", "calibration", "test"):
        one, other = pickled.get(split), binary.get(split)
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, inside.get(split).images) and one.images.shape[1:] == (3, 32, 32)
    assert pickled.train.labels.tolist() == [*range(classes)] * (len(pickled.train) // classes)
    held_out = torch.cat([pickled.calibration.labels, pickled.test.labels])
    assert len(pickled.calibration) == len(pickled.test)
    assert held_out.bincount().tolist() == [len(held_out) // classes] * classes
    assert pickled.classes == binary.classes and len(pickled.classes) == classes


def test_official_layouts_go_first(root: Path) -> None:
    assert len(load_cifar10(root).train) == TRAIN
    binary = load_cifar10(write_cifar10(root, binary=True)).train
    (root / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"")
    pickled = load_cifar10(write_cifar10(root)).train
    assert torch.equal(binary.images, pickled.images) and torch.equal(binary.labels, pickled.labels)
    assert len(load_cifar10(root).test) == 20


def test_says_what_was_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").touch()
    with pytest.raises(
        DataError, match=r"cifar-10-batches-py with data_batch_1, .*test_batch .* was expected, found data_batch_1"
    ):
        load_cifar10(tmp_path)


def test_the_published_net_reads_real_images(data_root: Path) -> None:
    recipe = RECIPES["cifar10_resnet56_3"]
    model, some = recipe.build().eval(), recipe.load_data(data_root).test.select(slice(0, 200))
    recipe.pretrained(model, data_root)
    with torch.inference_mode():
        right = torch.cat([model(inputs)[-1].argmax(1) == labels for inputs, labels in some.batches(100)])
    assert right.float().mean() > 0.75  # 83 % on all of them


def test_refuses_what_is_missing_or_damaged(tmp_path: Path) -> None:
    expected = r"cifar-100-python with train, test, meta \(or cifar-100-binary with .*\) was expected, found nothing"
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


def packed(folder: Path) -> Archive:
    """Pack a folder and return where it is."""
    path = folder.parent / "packed.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return Archive(url=path.as_uri(), md5=hashlib.md5(path.read_bytes()).hexdigest(), folder=folder.name)


def test_missing_data_are_fetched_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = {"CIFAR10_ARCHIVE": (write_cifar10, load_cifar10), "CIFAR100_ARCHIVE": (write_cifar100, load_cifar100)}
    folders = {name: getattr(cifar, name).folder for name in archives}
    for name, (write, load) in archives.items():
        source = write(tmp_path / folders[name] / "source", binary=True) / folders[name]
        monkeypatch.setattr(cifar, name, packed(source))
        root = tmp_path / "root"
        with pytest.raises(DataError, match="was expected, found"):
            load(root)
        assert len(load(root, download=True).train) == len(load(source).train)
        assert len(load(root).test) == len(load(source).test)
    assert {path.name for path in root.iterdir()} == set(folders.values())
    recipe = RECIPES["cifar10-resnet56-6-paper"]
    recipe.download(tmp_path / "other")
    assert len(recipe.load_data(tmp_path / "other").train) == len(load_cifar10(root).train)
    assert fetch(Archive(url="file:///no/such/file", md5="", folder="other"), tmp_path) == tmp_path / "other"  # there


def test_nothing_is_left_of_a_file_that_is_another(tmp_path: Path) -> None:
    archive = packed(write_cifar10(tmp_path / "source", binary=True) / cifar.CIFAR10_ARCHIVE.folder)
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"is not the published file: its MD5 is .*, 0 was expected"):
        fetch(dataclasses.replace(archive, md5="0"), root)
    with pytest.raises(
        RunError, match=r"download of file:///no/such/file failed: .* Try again, or get the file by hand"
    ):
        fetch(dataclasses.replace(archive, url="file:///no/such/file"), root)
    assert [*root.iterdir()] == []


def test_archives_with_links_or_that_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    path = tmp_path / "bad.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "a", "../outside")
    bad = Archive(url=path.as_uri(), md5=hashlib.md5(path.read_bytes()).hexdigest(), folder="data")
    with pytest.raises(RunError, match=r"failed: it would write \.\./outside elsewhere"):
        fetch(bad, tmp_path / "root")
    assert not (tmp_path / "root" / "outside").exists() and not (tmp_path / "outside").exists()
    source = tmp_path / "data"
    source.mkdir()
    (source / "plain").write_text("x")
    (source / "link").symlink_to("/etc/passwd")
    assert [path.name for path in fetch(packed(source), tmp_path / "new").iterdir()] == ["plain"]
