"""Cityscapes, CamVid and folders of masks: the class of every pixel, with its image whatever happens to it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from written_data import picture, save, scene, write_camvid, write_cityscapes

from eenet.errors import DataError, InputError
from eenet.experiments.data import (
    load_camvid,
    load_cityscapes,
    load_mask_folder,
    random_crop_flip,
    random_resized_crop_flip,
)
from eenet.experiments.data.dataset import as_images


def test_label_ids_of_cityscapes_become_the_judged_classes(tmp_path: Path) -> None:
    splits = load_cityscapes(write_cityscapes(tmp_path), size=(64, 128))
    assert [len(side) for side in (splits.train, splits.calibration, splits.test)] == [8, 4, 4]
    known = {0: -100, 7: 0, 8: 1, 11: 2, 23: 10, 24: 11, 26: 13}
    targets = splits.train.targets(slice(None))
    assert targets.shape == (8, 64, 128) and targets.dtype == torch.int64
    for path, target in zip(as_images(splits.train).images.paths, targets, strict=True):
        seed = int(path.name.split("_")[1])
        expected = scene([*known], (64, 128), seed)[1].astype(int)
        assert target.tolist() == np.vectorize(known.get)(expected).tolist()
    assert len(splits.classes) == 19 and splits.classes[13] == "car"


def test_camvid_has_sides_of_its_own_and_leaves_number_11_out(tmp_path: Path) -> None:
    splits = load_camvid(write_camvid(tmp_path, train=20), size=(24, 32))
    assert [len(side) for side in (splits.train, splits.calibration, splits.test)] == [20, 8, 8]
    targets = splits.train.targets(slice(None))
    assert targets.shape == (20, 24, 32) and set(targets.unique().tolist()) <= {-100, *range(11)}
    masks = sorted((tmp_path / "camvid" / "trainannot").iterdir())
    ignored = [row for row, path in enumerate(masks) if (np.asarray(Image.open(path)) == 11).any()]
    assert ignored == (targets == -100).flatten(1).any(1).nonzero().flatten().tolist() != []


@pytest.mark.parametrize("augment", [random_crop_flip, random_resized_crop_flip])
def test_masks_move_with_their_images(tmp_path: Path, augment: object) -> None:
    data = load_camvid(write_camvid(tmp_path, train=30), size=(48, 64)).train
    rows, generator = torch.arange(30), torch.Generator().manual_seed(0)
    inputs, targets = data.training_batch(rows, augment, generator)
    # twin: images alone, with the same chance; every colour is near that of the class that the mask says
    alone = data.prepare(augment(data.images[rows], torch.Generator().manual_seed(0)))
    assert torch.equal(inputs, alone)
    pixels = (inputs * torch.tensor(data.std).view(1, 3, 1, 1) + torch.tensor(data.mean).view(1, 3, 1, 1)) * 255
    for label in range(11):
        shown = pixels.permute(0, 2, 3, 1)[targets == label]
        if len(shown):
            colour = torch.from_numpy(picture(label, 40, 40, 5)).float().flatten(0, 1).mean(0)
            assert (shown.mean(0) - colour).abs().max() < 4
    shifted_in = (pixels.sum(1) < 1) & (targets != -100)
    assert not shifted_in.any()
    assert not torch.equal(targets, data.targets(rows))


def test_samples_with_masks_have_no_single_label(tmp_path: Path) -> None:
    data = load_camvid(write_camvid(tmp_path), size=(24, 32)).train
    with pytest.raises(InputError, match="labels are not there: these images have a class per pixel"):
        _ = data.labels
    image, target = data[2]
    assert image.shape == (3, 24, 32) and torch.equal(target, data.targets(slice(2, 3))[0])
    assert data.fingerprint() != data.select(slice(1, None)).fingerprint()
    assert data.resized((12, 16)).inputs(slice(0, 2)).shape == (2, 3, 12, 16)


def test_refuses_folders_that_lack_something(tmp_path: Path) -> None:
    expected = "cityscapes with leftImg8bit/train and leftImg8bit/val and gtFine was expected, found nothing"
    with pytest.raises(DataError, match=f"has no Cityscapes: {expected}"):
        load_cityscapes(tmp_path)
    folder = write_cityscapes(tmp_path) / "cityscapes"
    (folder / "gtFine" / "train" / "aachen" / "aachen_000004_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"aachen_000004_000019_gtFine_labelIds\.png is missing: every image needs"):
        _ = load_cityscapes(tmp_path).train
    write_camvid(tmp_path)
    (tmp_path / "camvid" / "valannot").rename(tmp_path / "camvid" / "other")
    with pytest.raises(DataError, match="has no CamVid: camvid with train and trainannot and val and valannot"):
        load_camvid(tmp_path)


def write_masks(root: Path, count: int = 20) -> Path:
    for row in range(count):
        pixels, mask = scene([0, 1, 255], (16, 20), row)
        save(root / "images" / f"{row:02}.jpg", pixels)
        save(root / "masks" / f"{row:02}.png", mask)
    (root / "classes.txt").write_text("sky\nstreet lamp\n")
    return root


def test_images_and_masks_of_ones_own_are_shared_out(tmp_path: Path) -> None:
    splits = load_mask_folder(write_masks(tmp_path), size=(16, 20))
    sides = [splits.train, splits.calibration, splits.test]
    assert [len(side) for side in sides] == [12, 4, 4] and splits.classes == ("sky", "street lamp")
    assert len({path for side in sides for path in as_images(side).images.paths}) == 20
    assert set(splits.train.targets(slice(None)).unique().tolist()) == {-100, 0, 1}


def test_empty_lines_name_no_class(tmp_path: Path) -> None:
    for number in range(10):
        save(tmp_path / "images" / f"{number}.png", picture(number, 8, 8, number))
        save(tmp_path / "masks" / f"{number}.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "classes.txt").write_text("road\n\nsky\n\n", encoding="utf-8")
    assert load_mask_folder(tmp_path, size=(8, 8)).classes == ("road", "sky")
    (tmp_path / "classes.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.txt names no class: a name per line was expected"):
        load_mask_folder(tmp_path, size=(8, 8))


def test_refuses_masks_of_unknown_classes_and_missing_ones(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    (root / "classes.txt").write_text("sky\n")
    with pytest.raises(DataError, match=r"holds the number 1: classes have the numbers 0 to 0"):
        load_mask_folder(root, size=(16, 20)).train.targets(slice(None))
    (root / "masks" / "07.png").unlink()
    with pytest.raises(DataError, match=r"07\.png is missing: every image needs its mask"):
        load_mask_folder(root)
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"has no images with masks: images and masks and classes\.txt was expected"):
        load_mask_folder(root)


def test_real_camvid_is_read(data_root: Path) -> None:
    if not (data_root / "camvid").is_dir():
        pytest.skip("the data folder has no camvid")
    splits = load_camvid(data_root)
    assert [len(side) for side in (splits.train, splits.calibration, splits.test)] == [367, 101, 233]
    inputs, targets = next(splits.calibration.batches(4))
    assert inputs.shape == (4, 3, 360, 480) and targets.shape == (4, 360, 480)
    assert set(targets.unique().tolist()) <= {-100, *range(11)}
