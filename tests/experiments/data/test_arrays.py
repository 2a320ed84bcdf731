"""Images of one's own: split by the seed, prepared by their own statistics, refused where they cannot be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eenet.errors import DataError
from eenet.experiments.data.arrays import load_image_arrays


def arrays(count: int = 50, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(count, 2, 4, 5), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)  # tells them apart
    return {"images": images, "labels": np.arange(count) % 3} | changes


def write(path: Path, **changes: Any) -> Path:
    np.savez(path / "mine.npz", **{key: value for key, value in arrays(**changes).items() if value is not None})
    return path / "mine.npz"


def test_every_image_is_on_one_side_with_its_label(tmp_path: Path) -> None:
    splits = load_image_arrays(write(tmp_path), seed=3)
    sides = [splits.train, splits.calibration, splits.test]
    assert [len(side) for side in sides] == [30, 10, 10]
    seen = torch.cat([side.images[:, 0, 0, 0] for side in sides]).long()
    assert sorted(seen.tolist()) == list(range(50))
    assert torch.equal(torch.cat([side.labels for side in sides]), seen % 3)
    assert splits.classes == ("0", "1", "2")
    other = load_image_arrays(write(tmp_path), seed=4).train.images
    assert not torch.equal(other, splits.train.images)


def test_images_are_prepared_by_what_the_training_side_is_like(tmp_path: Path) -> None:
    splits = load_image_arrays(write(tmp_path))
    prepared = splits.train.inputs(slice(None))
    assert torch.allclose(prepared.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(prepared.std(dim=(0, 2, 3)), torch.ones(2), atol=1e-4)
    assert (splits.test.mean, splits.test.std) == (splits.train.mean, splits.train.std)
    known = load_image_arrays(write(tmp_path), normalisation=((0.5, 0.4), (0.2, 0.1)))
    assert (known.test.mean, known.test.std) == ((0.5, 0.4), (0.2, 0.1))
    grey = load_image_arrays(write(tmp_path), normalisation=((0.5,), (0.2,)))  # of other channels: not used
    assert grey.test.mean == splits.test.mean


def test_names_of_classes_are_kept(tmp_path: Path) -> None:
    assert load_image_arrays(write(tmp_path, classes=np.array(["a", "b", "c"]))).classes == tuple("abc")
    assert load_image_arrays(write(tmp_path, classes=np.array([b"a", b"b", b"c"]))).classes == tuple("abc")
    with pytest.warns(UserWarning, match=r"'d' \(0\)"):
        assert load_image_arrays(write(tmp_path, classes=np.array(["a", "b", "c", "d"]))).classes == tuple("abcd")


def test_arrays_of_another_byte_order_are_read(tmp_path: Path) -> None:
    images = arrays()["images"] / 255
    plain, swapped = (load_image_arrays(write(tmp_path, images=images.astype(kind))) for kind in ("<f4", ">f4"))
    assert torch.equal(plain.test.images, swapped.test.images)


BAD = {
    "no labels": ({"labels": None}, "lacks labels"),
    "no images": ({"images": None}, "lacks images"),
    "three axes": ({"images": np.zeros((50, 4, 4), np.uint8)}, "shape"),
    "whole numbers": ({"images": np.zeros((50, 1, 4, 4), np.int64)}, "int64"),
    "scale": ({"images": np.full((50, 1, 4, 4), 16, np.float32)}, "outside 0 to 1 in image 0"),
    "nan": ({"images": np.full((50, 1, 4, 4), np.nan, np.float32)}, "outside 0 to 1"),
    "few labels": ({"labels": np.zeros(49, np.int64)}, "labels of shape"),
    "negative": ({"labels": np.arange(50) % 3 - (np.arange(50) == 6)}, "label -1 in row 6: classes are counted from 0"),
    "floats": ({"labels": np.zeros(50)}, "labels of shape"),
    "few images": ({"images": np.zeros((9, 1, 4, 4), np.uint8), "labels": np.zeros(9, np.int64)}, "9 samples"),
    "no sample": ({"images": np.zeros((0, 1, 4, 4), np.uint8), "labels": np.zeros(0, np.int64)}, "shape"),
    "gaps": ({"labels": np.where(np.arange(50) < 9, 10**15, 0)}, "labels up to 1000000000000000 and 50 images"),
    "unsigned": ({"labels": np.where(np.arange(50) < 9, 2**64 - 1, 0).astype(np.uint64)}, "labels up to 184467"),
    "few names": ({"classes": np.array(["a", "b"])}, "names 2 classes"),
    "objects": ({"labels": np.array([{}] * 50, dtype=object)}, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_refused(case: str, tmp_path: Path) -> None:
    changes, said = BAD[case]
    with pytest.raises(DataError, match=said):
        load_image_arrays(write(tmp_path, **changes))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    for part in (whole[: len(whole) // 2], b"", b"no archive", (tmp_path / "single.npy").read_bytes()):
        path.write_bytes(part)
        with pytest.raises(DataError, match=r"cannot be read|lacks images and labels"):
            load_image_arrays(path)
    with pytest.raises(DataError, match="is missing"):
        load_image_arrays(tmp_path / "none.npz")
