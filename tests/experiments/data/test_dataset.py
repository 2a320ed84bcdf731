"""Arrays, splits and digits: what is prepared, what is loaded, and that the splits never overlap."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from written_data import picture, save

from eenet.errors import DataError, InputError, MissingExtraError
from eenet.experiments.data import ArrayDataset, DataSplits, ImageFiles, MaskFiles, TextDataset, load_digits
from eenet.experiments.data.dataset import as_images, halved, share_of, shared, shuffled


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
    data = ArrayDataset(torch.full((1, 1, 2, 2), 0.75), torch.tensor([0]), mean=(0.5,), std=(0.5,))
    assert torch.equal(data.inputs(slice(None)), torch.full((1, 1, 2, 2), 0.5))  # on the scale already


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
    added = torch.randint(0, 9, (), generator=torch.Generator().manual_seed(1)).item()
    assert added and torch.equal(first, second)
    torch.testing.assert_close(first, data.prepare(data.images[rows] + added))


def test_a_fingerprint_differs_with_labels_images_and_their_preparation() -> None:
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
    assert data.fingerprint() == small().fingerprint() != data.select(torch.tensor([1, 0])).fingerprint()
    assert data.resized((3, 3)).fingerprint() == data.fingerprint()  # their own size
    scaled = data.resized((3, 3), ((0.1, 0.25), data.std))
    assert scaled.fingerprint() == others[2].fingerprint() and scaled.images is data.images


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


SPLITS = ("train", "calibration", "test")


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_every_class_is_in_every_split(counts: list[int], seed: int) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed + 1))]
    parts = {split: share_of(split, labels, seed) for split in SPLITS}
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(len(labels)))
    for number, count in enumerate(counts):
        shares = [int((labels[rows] == number).sum()) for rows in parts.values()]
        assert count < 3 or min(shares) >= 1
    if min(counts) >= 10:  # proportions are those of the splits, in all and in every class
        held_out = round(0.8 * len(labels)) - round(0.6 * len(labels)), len(labels) - round(0.8 * len(labels))
        assert (len(parts["calibration"]), len(parts["test"])) == held_out
        for number, count in enumerate(counts):
            shares = [int((labels[rows] == number).sum()) / count for rows in parts.values()]
            assert max(abs(share - wanted) for share, wanted in zip(shares, (0.6, 0.2, 0.2), strict=True)) <= 3 / count


def test_splits_by_hand() -> None:
    labels = torch.tensor([0] * 95 + [1] * 5)
    for seed in range(20):
        parts = [labels[share_of(split, labels, seed)] for split in SPLITS]
        assert [part.bincount().tolist() for part in parts] == [[57, 3], [19, 1], [19, 1]]
    assert torch.equal(share_of("test", labels, 3), share_of("test", labels, 3))
    assert not torch.equal(share_of("test", labels, 3), share_of("test", labels, 4))
    assert len(share_of("test", 100, 0)) == 20  # as where every sample has several classes


@pytest.mark.filterwarnings("ignore:the .* set has no samples")
def test_halves_lack_no_class() -> None:
    def read(part: str) -> ArrayDataset:
        return ArrayDataset(torch.arange(len(labels)).view(-1, 1, 1, 1) / 100, labels, mean=(0.0,), std=(1.0,))

    for labels in (torch.arange(20) % 10, torch.tensor([0, 1, 1, 2, 2, 2, 3]), torch.arange(200) % 2):
        for seed in range(10):
            splits = halved(read, ("any",), seed)
            parts = [splits.calibration, splits.test]
            assert [len(part) for part in parts] == [len(labels) // 2, (len(labels) + 1) // 2]
            assert torch.cat([part.images for part in parts]).flatten().sort().values.mul(100).round().tolist() == list(
                range(len(labels))
            )
            repeated = (labels.bincount() > 1).nonzero()[:, 0].tolist()
            assert all(set(repeated) <= set(part.labels.tolist()) for part in parts)
    plain = shuffled(200, seed)[:100].sort().values  # as long as no class is missing, at random among all
    assert torch.equal(splits.calibration.images.flatten().mul(100).round().long(), plain)


def test_classes_that_are_rare_are_said(tmp_path: Path) -> None:
    def read(rows: torch.Tensor, split: str) -> ArrayDataset:
        return ArrayDataset(torch.zeros(len(rows), 3, 2, 2), labels[rows])

    labels = torch.tensor([0] * 12 + [1, 2, 2])
    with pytest.warns(
        UserWarning, match=r"fewer than 3 samples of the classes 'b' \(1\), 'c' \(2\), 'd' \(0\): each is"
    ):
        splits = shared(read, labels, tuple("abcd"), 0, place=tmp_path)
    assert set(splits.train.labels.tolist()) == {0, 1, 2}  # the rarest are learnt first
    with pytest.raises(DataError, match="has 9 samples: three splits need at least 10"):
        shared(read, labels[:9], ("a",), 0, place=tmp_path)


def test_classes_without_held_out_samples_are_said() -> None:
    def read(part: str) -> ArrayDataset:
        return ArrayDataset(torch.zeros(len(labels), 3, 2, 2), labels)

    labels = torch.tensor([0] * 4 + [1] * 4 + [2])
    splits = halved(read, tuple("abcd"), 0)
    said = []
    for name in ("calibration", "test"):
        with pytest.warns(UserWarning, match=rf"the {name} set has no samples of [12] of 4 classes, .*'d'") as caught:
            splits.get(name)
        said.append("'c'" in str(caught[0].message))
    assert sorted(said) == [False, True]  # the only sample of it is in one half
    labels = torch.tensor([0, 0, 1, 1])
    assert len(halved(read, ("a", "b"), 0).test) == 2


def test_digits_are_shared_out_without_overlap() -> None:
    splits = load_digits(seed=1)
    parts = [splits.train, splits.calibration, splits.test]
    assert [len(part) for part in parts] == [797, 500, 500]
    pixels = torch.cat([part.images for part in parts]).flatten(1)
    assert len(pixels.unique(dim=0)) == 1797
    assert splits.train.images.shape[1:] == (1, 8, 8) and 0 <= pixels.min() <= pixels.max() == 1
    assert splits.train.labels.unique().tolist() == list(range(10))
    assert abs(splits.train.inputs(slice(None)).mean()) < 0.1
    same, other = load_digits(seed=1).test, load_digits(seed=0).test
    assert torch.equal(same.images, splits.test.images) and not torch.equal(same.labels, other.labels)


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
    with pytest.raises(DataError, match="data are no images"):
        as_images(TextDataset(torch.ones(2, 3, dtype=torch.int32), torch.tensor([0, 1])))


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_digits(seed=2)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r'sklearn is not installed: .*pip install "eenet\[sklearn\]"'):
        _ = splits.train
