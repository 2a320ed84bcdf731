"""Files decoded on demand: as torchvision prepares them, row by row, and bad ones named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from written_data import picture, png, save

from eenet.errors import DataError, InputError
from eenet.experiments.data import ArrayDataset, ImageFiles, MaskFiles


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    sizes = [(40, 60), (61, 33), (32, 32), (20, 90)]
    for row, (height, width) in enumerate(sizes):
        save(tmp_path / f"{row}.png", picture(row, height, width, row))
    return sorted(tmp_path.glob("*.png"))


@pytest.mark.parametrize("short", [32, 37])
def test_images_are_cropped_as_torchvision_does(paths: list[Path], short: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    slow = transforms.Compose([transforms.Resize(short), transforms.CenterCrop((28, 30)), transforms.PILToTensor()])
    expected = torch.stack([slow(Image.open(path)) for path in paths])
    files = ImageFiles(paths, (28, 30), short_side=short)
    assert torch.equal(files[:], expected)
    assert files.shape == expected.shape and files.dtype == expected.dtype == torch.uint8


def test_rows_are_those_asked_for_and_selections_stay_on_disk(paths: list[Path]) -> None:
    files = ImageFiles(paths, (8, 8))
    whole = files[slice(None)]
    assert torch.equal(files[torch.tensor([3, 0, 3])], whole[[3, 0, 3]])
    assert torch.equal(files.select(torch.tensor([2, 1]))[1:], whole[1:2])
    assert torch.equal(files.select(slice(1, 3))[:], whole[1:3])
    assert torch.equal(files[torch.tensor([True, False, True, False])], whole[[0, 2]])
    assert torch.equal(files[torch.tensor([-1])], whole[-1:]) and torch.equal(files[3:0:-2], whole[[3, 1]])
    with pytest.raises(IndexError):
        files.select(torch.tensor([True, False]))  # no mask of four files
    assert files[4:].shape == (0, 3, 8, 8)
    assert len(files.select(slice(0, 2))) == 2 and len(files) == 4
    assert files.names == [f"{paths[0].parent.name}/{row}.png" for row in range(4)]


@pytest.mark.parametrize(
    ("name", "kind"), [("deep.png", np.uint16), ("deep.tiff", np.uint16), ("deep.tiff", np.int32), ("deep.tiff", "f4")]
)
def test_refuses_images_of_more_than_8_bits(name: str, kind: type | str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.fromarray(np.full((8, 8), 1000, kind)).save(path)
    with pytest.raises(DataError, match=rf"{name} has pixels of mode [IF].*: 8 bits per channel of grey"):
        ImageFiles([path], (8, 8))[:]


def test_images_are_stretched_without_a_short_side_and_grey_becomes_colour(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.array([[0, 100], [200, 40]], dtype=np.uint8))
    image = ImageFiles([tmp_path / "a.png"], (2, 2))[:]
    assert image.tolist() == [[[[0, 100], [200, 40]]] * 3]
    assert ImageFiles([tmp_path / "a.png"], (5, 3))[:].shape == (1, 3, 5, 3)


def test_masks_take_the_nearest_pixel_and_the_number_of_their_class(tmp_path: Path) -> None:
    mask = np.repeat(np.repeat(np.array([[7, 0], [255, 8]], dtype=np.uint8), 3, axis=0), 3, axis=1)
    save(tmp_path / "a.png", mask)
    palette = Image.fromarray(mask)
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "b.png")
    files = MaskFiles(sorted(tmp_path.iterdir()), (2, 2), numbers={7: 0, 8: 1, 0: 255, 255: 255})
    assert files[:].tolist() == [[[0, 255], [255, 1]]] * 2
    assert files.shape == (2, 2, 2) and files[:].dtype == torch.uint8


def test_bad_files_are_named(paths: list[Path]) -> None:
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    with pytest.raises(DataError, match=r"1\.png is damaged: it cannot be decoded"):
        ImageFiles(paths, (8, 8))[:]
    paths[1].write_text("no image")
    with pytest.raises(DataError, match=r"1\.png is damaged or no image"):
        ImageFiles(paths, (8, 8))[:]
    paths[1].unlink()
    with pytest.raises(DataError, match=r"1\.png is missing"):
        ImageFiles(paths, (8, 8))[:]
    with pytest.raises(DataError, match="paths are empty"):
        ImageFiles([], (8, 8))
    with pytest.raises(InputError, match="size 8 x 16 pixels cannot be cut: the short side has 12"):
        ImageFiles(paths, (8, 16), short_side=12)


def test_refuses_masks_that_are_none(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.png is no mask: it is a PNG of kind 'RGB'"):
        MaskFiles(paths, (8, 8), numbers={0: 0})[:]
    save(tmp_path / "m.png", np.array([[0, 1], [9, 255]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"m\.png contains the number 9: classes have the numbers 0 to 1, 255 where"):
        MaskFiles([tmp_path / "m.png"], (2, 2), numbers={0: 0, 1: 1, 255: 255})[:]


def test_masks_of_few_bits_and_of_many_are_read_as_written(tmp_path: Path) -> None:
    numbers = np.array([[0, 1], [3, 2]], dtype=np.uint8)
    palette = Image.fromarray(numbers)
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    for number, one in enumerate((Image.fromarray(numbers), palette, Image.fromarray(numbers.astype(np.uint16)))):
        one.save(tmp_path / f"{number}.png")
    palette.save(tmp_path / "3.png", bits=2)
    files = MaskFiles(sorted(tmp_path.iterdir()), (2, 2), numbers={0: 0, 1: 1, 2: 2, 3: 3, 255: 255})
    assert files[:].tolist() == [numbers.tolist()] * 4
    Image.fromarray(numbers > 0).save(tmp_path / "one.png")
    assert MaskFiles([tmp_path / "one.png"], (2, 2), numbers={0: 0, 1: 1})[:].tolist() == [[[0, 1], [1, 1]]]


@pytest.mark.parametrize(("depth", "row"), [(2, b"\0\x1b"), (4, b"\0\x01\x23")])
def test_grey_masks_of_2_and_4_bits_are_read_as_written(tmp_path: Path, depth: int, row: bytes) -> None:
    written = png(tmp_path / "a.png", (1, 4), depth, 0, row)
    assert MaskFiles([written], (1, 4), numbers=dict.fromkeys(range(4), 7) | {2: 8})[:].tolist() == [[[7, 7, 8, 7]]]


def test_masks_that_cannot_be_numbers_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", np.zeros((8, 8), dtype=np.uint8))
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is no mask: it is a JPEG of kind 'L'"):
        MaskFiles([tmp_path / "a.png"], (8, 8), numbers={0: 0})[:]
    Image.fromarray(np.full((2, 2), 256, np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png contains the number 256: classes have the numbers 0 to 1"):
        MaskFiles([tmp_path / "b.png"], (2, 2), numbers={0: 0, 1: 1, 255: 255})[:]


def test_masks_are_turned_as_their_exif_data_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert MaskFiles([tmp_path / "a.png"], (3, 1), numbers={0: 0, 1: 1, 2: 2})[:].tolist() == [[[0], [1], [2]]]


def test_a_mask_of_another_size_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    for row in range(3):
        save(tmp_path / "images" / f"{row}.jpg", picture(row, 10, 20, row))
        save(tmp_path / "masks" / f"{row}.png", np.zeros((20, 10) if row == 1 else (10, 20), dtype=np.uint8))
    images, masks = (sorted((tmp_path / name).iterdir()) for name in ("images", "masks"))
    data = ArrayDataset(ImageFiles(images, (8, 8)), MaskFiles(masks, (8, 8), numbers={0: 0}))
    assert data.targets(slice(0, 1)).shape == (1, 8, 8)
    for ask in (data.targets, lambda rows: data.training_batch(rows, None, torch.Generator())):
        with pytest.raises(DataError, match=r"1\.png has 20 x 10 pixels, its image .*1\.jpg has 10 x 20"):
            ask(torch.tensor([0, 1]))
