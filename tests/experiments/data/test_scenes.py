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
    assert [len(part) for part in (splits.train, splits.calibration, splits.test)] == [8, 4, 4]
    known = {0: -100, 7: 0, 8: 1, 11: 2, 23: 10, 24: 11, 26: 13}
    targets = splits.train.targets(slice(None))
    assert targets.shape == (8, 64, 128) and targets.dtype == torch.int64
    for path, target in zip(as_images(splits.train).images.paths, targets, strict=True):
        seed = int(path.name.split("_")[1])
        expected = scene([*known], (64, 128), seed)[1].astype(int)
        assert target.tolist() == np.vectorize(known.get)(expected).tolist()
    assert len(splits.classes) == 19 and splits.classes[13] == "car"


def test_camvid_has_splits_of_its_own_and_leaves_number_11_out(tmp_path: Path) -> None:
    splits = load_camvid(write_camvid(tmp_path, train=20), size=(24, 32))
    assert [len(part) for part in (splits.train, splits.calibration, splits.test)] == [20, 8, 8]
    targets = splits.train.targets(slice(None))
    assert targets.shape == (20, 24, 32) and set(targets.unique().tolist()) <= {-100, *range(11)}
    masks = sorted((tmp_path / "camvid" / "trainannot").iterdir())
    ignored = [row for row, path in enumerate(masks) if (np.asarray(Image.open(path)) == 11).any()]
    assert ignored == (targets == -100).flatten(1).any(1).nonzero().flatten().tolist() != []


def test_camvid_says_its_streets_and_holds_some_out(tmp_path: Path) -> None:
    root = write_camvid(tmp_path, train=8)
    for kind in ("train", "trainannot"):  # four streets of the train images, two images each
        for row, path in enumerate(sorted((root / "camvid" / kind).iterdir())):
            path.rename(path.with_name(f"0006R0_f{600 * (row // 2) + row:05}.png"))
    published, many = load_camvid(root, size=(24, 32)), load_camvid(root, size=(24, 32), streets=True)
    assert published.train.groups.tolist() == [f"0006R0/{i // 2}" for i in range(8)]
    assert published.calibration.groups.tolist() == ["0001TP/0"] * 8
    assert published.train.select(slice(2, 4)).groups.tolist() == ["0006R0/1"] * 2
    assert many.train.groups.tolist() == published.train.groups.tolist()[:6]
    assert many.calibration.groups.tolist() == ["0006R0/3"] * 2 + ["0001TP/0"] * 8
    assert many.test.groups.tolist() == published.test.groups.tolist()
    assert torch.equal(many.calibration.targets(slice(0, 2)), published.train.targets(slice(6, 8)))
    (root / "camvid" / "test" / "0001TP_000000.png").rename(root / "camvid" / "test" / "street.png")
    with pytest.raises(DataError, match="does not say its drive and frame"):
        _ = load_camvid(root, size=(24, 32)).test


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
        found = pixels.permute(0, 2, 3, 1)[targets == label]
        if len(found):
            colour = torch.from_numpy(picture(label, 40, 40, 5)).float().flatten(0, 1).mean(0)
            assert (found.mean(0) - colour).abs().max() < 4
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
    expected = "cityscapes with leftImg8bit/train, leftImg8bit/val, gtFine was expected, found nothing"
    with pytest.raises(DataError, match=f"has no Cityscapes: {expected}"):
        load_cityscapes(tmp_path)
    folder = write_cityscapes(tmp_path) / "cityscapes"
    (folder / "gtFine" / "train" / "aachen" / "aachen_000004_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"aachen_000004_000019_gtFine_labelIds\.png is missing: every image needs"):
        _ = load_cityscapes(tmp_path).train
    write_camvid(tmp_path)
    (tmp_path / "camvid" / "valannot").rename(tmp_path / "camvid" / "other")
    with pytest.raises(DataError, match="has no CamVid: camvid with train, trainannot, val, valannot"):
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
    parts = [splits.train, splits.calibration, splits.test]
    assert [len(part) for part in parts] == [12, 4, 4] and splits.classes == ("sky", "street lamp")
    assert len({path for part in parts for path in as_images(part).images.paths}) == 20
    assert set(splits.train.targets(slice(None)).unique().tolist()) == {-100, 0, 1}
    (tmp_path / "classes.txt").write_text("sky\n\nstreet lamp\n\n")
    assert load_mask_folder(tmp_path).classes == splits.classes
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(DataError, match=r"classes\.txt names 0 classes: 2 to 255 are needed"):
        load_mask_folder(tmp_path)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_photos_are_turned_and_masks_fit_them(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {3: lambda seen: seen[::-1, ::-1], 6: np.rot90, 8: lambda seen: np.rot90(seen, 3)}[orientation]
    for row in range(10):
        mask = np.zeros((20, 30), np.uint8)
        mask[:, : 10 + row] = 1
        save(tmp_path / "masks" / f"{row}.png", mask)
        (tmp_path / "images").mkdir(exist_ok=True)
        photo = np.ascontiguousarray(stored((mask * 255)[..., None].repeat(3, axis=2)))
        Image.fromarray(photo).save(tmp_path / "images" / f"{row}.jpg", exif=exif, quality=95)
    (tmp_path / "classes.txt").write_text("dark\nbright\n", encoding="utf-8-sig")
    splits = load_mask_folder(tmp_path, size=(20, 30))
    assert splits.classes == ("dark", "bright")
    bright = splits.train.inputs(slice(None))[:, 0] > 0
    assert (bright == (splits.train.targets(slice(None)) == 1)).float().mean() > 0.99


def test_masks_of_another_size_than_their_photo_are_refused(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    for size in ((20, 16), (8, 10)):
        save(root / "masks" / "05.png", np.zeros(size, dtype=np.uint8))
        with pytest.raises(
            DataError, match=rf"05\.png has {size[0]} x {size[1]} pixels, its image .*05\.jpg has 16 x 20"
        ):
            load_mask_folder(root)


def test_classes_that_are_in_no_mask_are_said(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    (root / "classes.txt").write_text("sky\nlamp\ntree\n")
    with pytest.warns(
        UserWarning, match="it has tree in none of 20 masks, and 255, which marks pixels without a class"
    ):
        assert load_mask_folder(root).classes == ("sky", "lamp", "tree")
    for path in (root / "masks").iterdir():
        save(path, np.where(np.asarray(Image.open(path)) == 0, 0, 255).astype(np.uint8))
    with pytest.raises(
        DataError, match="masks of fewer than 2 classes: it has lamp, tree in none of 20 masks, and 255"
    ):
        load_mask_folder(root)


def test_photos_in_deeper_folders_have_their_masks_there(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    for name in ("images", "masks"):
        (root / name / "more").mkdir()
        for path in sorted((root / name).glob("1*")):
            path.rename(path.parent / "more" / path.name)
    (root / "images" / "._00.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    splits = load_mask_folder(root, size=(16, 20))
    parts = [splits.train, splits.calibration, splits.test]
    assert len({path for part in parts for path in as_images(part).images.paths}) == 20


def test_refuses_masks_of_unknown_classes_and_missing_ones(tmp_path: Path) -> None:
    root = write_masks(tmp_path)
    for names, count in (
        ("sky\n", 1),
        ("sky\nsky\n", 2),
        ("sky\nSky\u200b\n", 2),
        ("\n".join(map(str, range(256))), 256),
    ):
        (root / "classes.txt").write_text(names)
        with pytest.raises(DataError, match=rf"classes\.txt names {count} classes: 2 to 255 are needed"):
            load_mask_folder(root)
    (root / "classes.txt").write_text("sky\nlamp\n")
    save(root / "masks" / "03.png", np.full((16, 20), 2, np.uint8))
    with pytest.raises(DataError, match=r"03\.png contains the number 2: classes have the numbers 0 to 1"):
        load_mask_folder(root, size=(16, 20))
    (root / "masks" / "07.png").unlink()
    with pytest.raises(DataError, match=r"07\.png is missing: every image needs its mask"):
        load_mask_folder(root)
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"has no images with masks: images, masks, classes\.txt was expected"):
        load_mask_folder(root)


def test_real_camvid_is_read(data_root: Path) -> None:
    if not (data_root / "camvid").is_dir():
        pytest.skip("the data folder has no camvid")
    splits = load_camvid(data_root)
    assert [len(part) for part in (splits.train, splits.calibration, splits.test)] == [367, 101, 233]
    streets = [set(part.groups) for part in (splits.train, splits.calibration, splits.test)]
    assert [len(one) for one in streets] == [23, 1, 13]
    many = load_camvid(data_root, streets=True)
    assert [len(part) for part in (many.train, many.calibration, many.test)] == [275, 193, 233]
    assert not set(many.train.groups) & set(many.calibration.groups)
    assert {street.split("/")[0] for street in many.calibration.groups} == {"0001TP", "0006R0", "0016E5"}
    inputs, targets = next(splits.calibration.batches(4))
    assert inputs.shape == (4, 3, 360, 480) and targets.shape == (4, 360, 480)
    assert set(targets.unique().tolist()) <= {-100, *range(11)}
