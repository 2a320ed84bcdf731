"""CIFAR-10: read as written in every layout, refused when damaged, and the published net reaches what it should."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from written_data import write_cifar10

from eenet.data import cifar10, load_cifar10, load_cifar10_packed
from eenet.errors import DataError
from eenet.recipes import RECIPES

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
    monkeypatch.setattr(cifar10, "ROWS", {"train": TRAIN, "test": TEST})
    (tmp_path / "cifar10_jpeg_packed").mkdir()
    for part, rows in cifar10.ROWS.items():
        pack(tmp_path / "cifar10_jpeg_packed" / f"{part}_jpeg.npz", rows)
    return tmp_path


def test_images_and_labels_are_read_as_written(root: Path) -> None:
    colours = pack(root / "cifar10_jpeg_packed" / "train_jpeg.npz", TRAIN)
    train = load_cifar10_packed(root).train
    assert train.images.shape == (TRAIN, 3, 32, 32) and train.images.dtype == torch.uint8
    difference = train.images[:, :, 0, 0].int() - torch.from_numpy(colours).int()
    assert difference.abs().max() <= 4  # JPEG
    assert train.labels.tolist() == list(range(TRAIN))


def test_the_test_images_are_halved_by_the_seed(root: Path) -> None:
    splits, other = load_cifar10_packed(root, seed=0), load_cifar10_packed(root, seed=1)
    calibration, test = splits.calibration.labels.tolist(), splits.test.labels.tolist()
    assert len(calibration) == len(test) == TEST // 2
    assert sorted(calibration + test) == list(range(TEST))
    assert other.calibration.labels.tolist() != calibration


def test_refuses_a_missing_folder_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_jpeg.npz was expected and not found"):
        load_cifar10_packed(tmp_path)


def test_refuses_a_truncated_file(root: Path) -> None:
    path = root / "cifar10_jpeg_packed" / "test_jpeg.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"test_jpeg.npz cannot be read: an .npz archive .* was expected"):
        _ = load_cifar10_packed(root).test


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
    with pytest.raises(DataError, match="image 0 cannot be decoded"):
        _ = load_cifar10_packed(root).test


@pytest.mark.parametrize("binary", [False, True])
def test_official_layouts_are_read(tmp_path: Path, binary: bool) -> None:
    root = write_cifar10(tmp_path, binary=binary)
    splits = load_cifar10(root)
    assert splits.train.images.shape == (40, 3, 32, 32) and splits.train.labels.tolist() == [*range(10)] * 4
    assert len(splits.calibration) == len(splits.test) == 20
    inside = load_cifar10(next(root.iterdir()))
    assert torch.equal(inside.test.images, splits.test.images)


def test_official_layouts_hold_the_same_and_go_first(root: Path) -> None:
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
        DataError, match=r"cifar-10-batches-py with data_batch_1 to 5 .* was expected, found data_batch_1"
    ):
        load_cifar10(tmp_path)


def test_the_published_net_reads_real_images(data_root: Path) -> None:
    recipe = RECIPES["cifar10_resnet56_3"]
    model, some = recipe.build().eval(), recipe.load_data(data_root).test.select(slice(0, 200))
    recipe.pretrained(model, data_root)
    with torch.inference_mode():
        right = torch.cat([model(inputs)[-1].argmax(1) == labels for inputs, labels in some.batches(100)])
    assert right.float().mean() > 0.75  # 83 % on all of them
