"""The preparation of images: by hand, like Pillow's, and the same wherever it has been carried."""

import sys
from dataclasses import replace
from pathlib import Path

import exporting
import numpy as np
import pytest
import torch
from PIL import Image

from eenet.errors import DataError, InputError, ShapeError
from eenet.experiments.data import ArrayDataset, ImageFiles
from eenet.running.exporting import export
from eenet.running.exports import open_export
from eenet.running.preparation import Preparation

PLAIN = Preparation(mean=(0.5,), std=(0.25,), size=(8, 8))


@pytest.mark.parametrize("size", [(5, 7), (20, 30), (9, 40), (1, 1)])
def test_images_are_resized_as_pillow_does_it(size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).random((2, 3, 11, 17), dtype=np.float32)
    how = Preparation(mean=(0.0,) * 3, std=(1.0,) * 3, size=size, raw_size=(11, 17))
    height, width = size
    slow = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
        for plane in images.reshape(-1, 11, 17)
    ]
    np.testing.assert_allclose(how(images), np.stack(slow).reshape(2, 3, height, width), atol=1e-5)
    np.testing.assert_array_equal(how(images)[1:], how(images[1:]))  # whatever the batch


def test_resized_images_by_hand() -> None:
    how = Preparation(mean=(0.5,), std=(0.5,), size=(1, 4), raw_size=(2, 2))
    # the means of both rows are 0 and 1; new pixels lie at a quarter and three quarters of an old one
    np.testing.assert_allclose(how(np.uint8([[[[0, 255], [0, 255]]]])), [[[[-1, -0.5, 0.5, 1]]]])


def test_a_data_set_prepares_as_its_preparation_does(tmp_path: Path) -> None:
    for row in range(3):
        pixels = np.random.default_rng(row).integers(0, 256, (20, 31, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
    files = ImageFiles(sorted(tmp_path.iterdir()), (10, 12), short_side=14)
    data = ArrayDataset(files, torch.arange(3), size=(6, 9))
    how = data.preparation
    assert (how.size, how.raw_size, how.short_side) == ((6, 9), (10, 12), 14)
    raw = np.stack([how.read(path) for path in files.paths])
    np.testing.assert_array_equal(raw, files[:])
    np.testing.assert_array_equal(how(raw), data.inputs(slice(None)))
    assert data.select(slice(1, 2)).preparation == how
    assert data.resized((3, 3)).preparation == replace(how, size=(3, 3))


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"raw_size": (8, 8), "short_side": 7}, "size 8 x 8 pixels cannot be cut: the short side has 7"),
        ({"short_side": 0}, "the short side has 0"),
        ({"raw_size": (0, 8)}, r"size \(0, 8\) is no height and width"),
        ({"raw_size": (1 << 20, 1 << 20)}, r"size \(1048576, 1048576\) is too large"),
        ({"mean": (float("inf"),)}, r"mean \[inf\]"),
    ],
)
def test_what_cannot_be_prepared_with_is_refused(changes: dict[str, object], fact: str) -> None:
    with pytest.raises(InputError, match=fact):
        replace(PLAIN, **changes)


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    how = replace(PLAIN, raw_size=(4, 4))
    with pytest.raises(ShapeError, match=r"\(1, 1, 8, 8\) do not fit: .*\(sample, 1, 4, 4\)"):
        how(np.zeros((1, 1, 8, 8), np.uint8))
    two = Preparation(mean=(0.5,) * 2, std=(0.5,) * 2, size=(8, 8))
    with pytest.raises(InputError, match="images of 2 channels cannot be read from image files"):
        two.read(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"sent\.png is missing"):
        PLAIN.read(tmp_path / "sent.png")


def test_an_export_carries_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting.need("onnxruntime")
    monkeypatch.setattr(sys.modules[export.__module__], "stage_programs", lambda *_: exporting.programs())
    data = exporting.digits()
    how = Preparation(mean=data.mean, std=data.std, size=(8, 8), raw_size=(9, 10), short_side=12)
    made = export(exporting.model(), exporting.mixed(), data.inputs(slice(0, 5)), tmp_path / "out", preparation=how)
    opened = open_export(made.path)
    assert opened.manifest.preparation == how
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    raw = how.read(tmp_path / "a.png")[None]
    assert raw.shape == (1, 1, 9, 10)
    inputs, _ = opened.samples({"images": raw}, "a.npz")
    [batch] = opened.batches(inputs, 1)
    np.testing.assert_array_equal(batch["input"], how(raw))
    floats, _ = opened.samples({"": raw / np.float32(255)}, "a.npy")  # of this shape they can be raw images only
    np.testing.assert_allclose(floats["input"], how(raw), atol=1e-6)


def test_files_need_pillow_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match="PIL is not installed"):
        PLAIN.read(tmp_path / "a.png")
    assert PLAIN(np.zeros((1, 1, 8, 8), np.uint8)).max() == -2
