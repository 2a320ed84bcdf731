"""Arrays, splits and digits: what is prepared, what is loaded, and that the sides never overlap."""

from pathlib import Path

import pytest
import torch
from written_data import picture, save

from eenet.errors import DataError, InputError
from eenet.experiments.data import ArrayDataset, DataSplits, ImageFiles, MaskFiles, TextDataset, load_digits
from eenet.experiments.data.dataset import as_images


def small(dtype: torch.dtype = torch.uint8) -> ArrayDataset:
    images = torch.arange(2 * 2 * 3 * 3).view(2, 2, 3, 3).to(dtype)
    return ArrayDataset(images, torch.tensor([1, 0]), mean=(0.5, 0.25), std=(0.5, 2.0))


def test_prepare_by_hand() -> None:
    data = ArrayDataset(
        torch.tensor([[[[0, 51]], [[255, 102]]]], dtype=torch.uint8), torch.tensor([0]), mean=(0.0, 1.0), std=(0.1, 2.0)
    )
    prepared = data.inputs(slice(None))
    torch.testing.assert_close(prepared, torch.tensor([[[[0.0, 2.0]], [[0.0, -0.3]]]]))
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous(memory_format=torch.channels_last)


def test_floating_images_are_on_the_scale_already() -> None:
    data = ArrayDataset(torch.full((1, 1, 2, 2), 0.75), torch.tensor([0]), mean=(0.5,), std=(0.5,))
    assert torch.equal(data.inputs(slice(None)), torch.full((1, 1, 2, 2), 0.5))


def test_items_batches_and_selections_agree() -> None:
    data = small()
    whole = data.inputs(slice(None))
    image, label = data[1]
    assert torch.equal(image, whole[1]) and label == 0
    assert torch.equal(torch.cat([inputs for inputs, _ in data.batches(1)]), whole)
    assert torch.equal(data.select(torch.tensor([1])).inputs(slice(None)), whole[1:])
    assert len(data) == 2


def test_training_batches_are_changed_by_the_generator_alone() -> None:
    def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images + torch.randint(0, 9, (), generator=generator).to(images.dtype)

    data, rows = small(), torch.tensor([1, 0])
    images, targets = data.training_batch(rows, None, torch.Generator())
    assert torch.equal(images, data.inputs(rows)) and targets.tolist() == [0, 1]
    first, second = (data.training_batch(rows, shift, torch.Generator().manual_seed(1))[0] for _ in range(2))
    drawn = torch.randint(0, 9, (), generator=torch.Generator().manual_seed(1)).item()
    assert drawn and torch.equal(first, second)
    torch.testing.assert_close(first, data.prepare(data.images[rows] + drawn))


def test_a_fingerprint_tells_labels_apart() -> None:
    data = small()
    assert data.fingerprint() == small().fingerprint() != data.select(torch.tensor([1, 0])).fingerprint()


def test_a_fingerprint_tells_images_and_what_is_done_to_them_apart() -> None:
    data = small()
    scale = {"mean": data.mean, "std": data.std}
    others = (
        ArrayDataset(255 - data.images, data.labels, **scale),
        ArrayDataset(data.images.view(2, 2, 9, 1), data.labels, **scale),
        ArrayDataset(data.images, data.labels, mean=(0.1, 0.25), std=data.std),
        ArrayDataset(data.images, data.labels, mean=data.mean, std=(0.1, 2.0)),
        data.resized((2, 2)),
    )
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 6
    assert data.resized((3, 3)).fingerprint() == data.fingerprint()  # their own size


def test_a_fingerprint_of_files_knows_names_and_reading_and_opens_none() -> None:
    def made(image: str = "a/images/0.png", *, size: int = 4, short: int | None = None, number: int = 1) -> str:
        images = ImageFiles([Path(image)], (size, size), short_side=short)
        masks = MaskFiles([Path("a/masks/0.png")], (size, size), numbers={1: number})
        return ArrayDataset(images, masks, mean=(0.5,) * 3, std=(0.5,) * 3).fingerprint()

    assert made() == made("moved/elsewhere/images/0.png")
    assert len({made(), made("a/images/1.png"), made(size=5), made(short=6), made(number=0)}) == 5


def test_refuses_arrays_that_do_not_fit() -> None:
    images, labels = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(DataError, match="images of shape"):
        ArrayDataset(images[0], labels, mean=(0.0,), std=(1.0,))
    with pytest.raises(DataError, match="at least 1 sample"):
        ArrayDataset(images[:0], labels[:0], mean=(0.0,), std=(1.0,))
    with pytest.raises(DataError, match="there are 2 images"):
        ArrayDataset(images, labels[:1], mean=(0.0,), std=(1.0,))
    with pytest.raises(DataError, match="1 channels"):
        ArrayDataset(images, labels, mean=(0.0, 0.0), std=(1.0, 1.0))


def test_splits_are_loaded_once_and_when_asked_for() -> None:
    asked: list[str] = []

    def load(split: str) -> ArrayDataset:
        asked.append(split)
        return small()

    splits = DataSplits(load=load, classes=("a", "b"))
    assert asked == []
    assert splits.get("val") is splits.calibration is splits.get("calibration")
    assert asked == ["calibration"]
    with pytest.raises(InputError, match="split 'dev' is not known"):
        splits.get("dev")


def test_digits_are_shared_out_without_overlap() -> None:
    splits = load_digits(seed=1)
    sides = [splits.train, splits.calibration, splits.test]
    assert [len(side) for side in sides] == [797, 500, 500]
    pixels = torch.cat([side.images for side in sides]).flatten(1)
    assert len(pixels.unique(dim=0)) == 1797
    assert splits.train.images.shape[1:] == (1, 8, 8) and 0 <= pixels.min() <= pixels.max() == 1
    assert splits.train.labels.unique().tolist() == list(range(10))
    assert abs(splits.train.inputs(slice(None)).mean()) < 0.1


def test_the_seed_decides_the_sides() -> None:
    first, same, other = load_digits(seed=0).test, load_digits(seed=0).test, load_digits(seed=1).test
    assert torch.equal(first.images, same.images)
    assert not torch.equal(first.labels, other.labels)


def test_images_of_another_size_are_resized_when_prepared() -> None:
    images = torch.tensor([[[[0, 0, 255, 255], [0, 0, 255, 255]]]], dtype=torch.uint8)
    data = ArrayDataset(images, torch.tensor([0]), mean=(0.0,), std=(1.0,)).resized((2, 8))
    prepared = data.select(slice(0, 1)).inputs(slice(None))
    torch.testing.assert_close(prepared[0, 0, 0], torch.tensor([0, 0, 0, 0.25, 0.75, 1, 1, 1]))
    assert data.images.data_ptr() == images.data_ptr()


def test_masks_by_hand() -> None:
    images = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    masks = torch.tensor([[[0, 1], [255, 2]], [[2, 2], [0, 255]]], dtype=torch.uint8)
    data = ArrayDataset(images, masks, mean=(0.0,), std=(1 / 255,))
    assert data.targets(slice(0, 1)).tolist() == [[[0, 1], [-100, 2]]]
    rows, generator = torch.tensor([1, 0]), torch.Generator()
    inputs, targets = data.training_batch(rows, lambda images, _: images.flip(-1), generator)
    torch.testing.assert_close(inputs, torch.tensor([[[[5.0, 4], [7, 6]]], [[[1, 0], [3, 2]]]]))
    assert targets.tolist() == [[[2, 2], [-100, 0]], [[1, 0], [2, -100]]]
    _, shifted = data.training_batch(rows, lambda images, _: images * 0, generator)  # zeros come in from outside
    assert (shifted == -100).all()
    inputs, targets = data.training_batch(rows, None, generator)
    assert torch.equal(inputs, data.inputs(rows)) and torch.equal(targets, data.targets(rows))
    with pytest.raises(DataError, match="or a uint8 mask of its size"):
        ArrayDataset(images, masks.long(), mean=(0.0,), std=(1.0,))


def test_images_stay_files_until_asked_for(tmp_path: Path) -> None:
    for row in range(3):
        save(tmp_path / f"{row}.png", picture(row, 4, 5, row))
    paths = sorted(tmp_path.iterdir())
    settings = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    files = ArrayDataset(ImageFiles(paths, (4, 5)), torch.arange(3), **settings)
    memory = ArrayDataset(ImageFiles(paths, (4, 5))[:], torch.arange(3), **settings)
    chosen = torch.tensor([2, 0])
    assert isinstance(files.select(chosen).images, ImageFiles)
    assert torch.equal(files.select(chosen).inputs(slice(None)), memory.inputs(chosen))
    mask = torch.tensor([True, False, True])
    assert torch.equal(files.select(mask).inputs(slice(None)), memory.select(mask).inputs(slice(None)))
    assert [targets.tolist() for _, targets in files.batches(2)] == [[0, 1], [2]]
    assert files.fingerprint() != memory.fingerprint()
    assert as_images(files) is files


def test_texts_are_no_images() -> None:
    texts = TextDataset(torch.ones(2, 3, dtype=torch.int32), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="data are no images"):
        as_images(texts)
