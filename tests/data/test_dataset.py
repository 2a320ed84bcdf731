"""Arrays, splits and digits: what is prepared, what is loaded, and that the sides never overlap."""

import pytest
import torch

from eenet.data import ArrayDataset, DataSplits, load_digits
from eenet.errors import DataError, InputError


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
