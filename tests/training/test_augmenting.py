"""Transforms of torchvision change training images: by the seed and the step alone, with masks, and resumed exactly."""

import dataclasses

import pytest
import torch
from tests.training import resumable
from tests.training.test_resume import interrupted_and_resumed

from eenet.errors import InputError, ShapeError
from eenet.experiments.data import ArrayDataset
from eenet.training import TrainSettings, fit_exits
from eenet.training.augmenting import augmented, is_transform
from eenet.training.batches import Batches, Processes
from eenet.training.samples import as_dataset
from eenet.training.settings import Schedule

v2 = pytest.importorskip("torchvision.transforms.v2")
FLIP = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(8, padding=2)])
SETTINGS = dataclasses.replace(resumable.SETTINGS, augment=FLIP)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_image_is_changed_by_itself_and_by_the_generator_alone() -> None:
    images = torch.arange(16, dtype=torch.uint8).repeat(200, 1, 16, 1)
    changed, _ = augmented(v2.RandomHorizontalFlip(), images, chance())
    mirrored = (changed != images).flatten(1).any(1)
    assert torch.equal(changed[mirrored], images[mirrored].flip(-1)) and 60 < mirrored.sum() < 140
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(augmented(v2.RandomHorizontalFlip(), images, chance())[0], changed)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(augmented(v2.RandomHorizontalFlip(), images, chance(1))[0], changed)


def test_masks_move_with_their_images_and_what_comes_from_outside_is_unlabelled() -> None:
    images = torch.randint(1, 200, (40, 1, 8, 8), dtype=torch.uint8)
    data = ArrayDataset(images, images[:, 0].clone(), mean=(0.0,), std=(1.0,))  # every pixel's class is its value
    inputs, targets = data.training_batch(torch.arange(40), FLIP, chance())
    pixels = (inputs[:, 0] * 255).round().long()
    outside = targets == -100
    assert torch.equal(pixels[~outside], targets[~outside]) and bool((pixels[outside] == 0).all())
    assert 0 < outside.float().mean() < 0.5 and not torch.equal(pixels, images[:, 0].long())


def test_batches_are_functions_of_the_step_and_made_without_a_thread() -> None:
    data = resumable.make_data()
    batches = Batches(data, Schedule(settings=SETTINGS, samples=len(data)), Processes(), torch.device("cpu"))
    for step, batch in enumerate(batches.ahead(40), start=40):
        torch.randn(3)  # whatever others draw meanwhile
        assert torch.equal(batch.inputs, batches.make(step).inputs)
    plain = data.inputs(torch.arange(3))
    assert not torch.equal(data.training_batch(torch.arange(3), FLIP, chance())[0], plain)


def test_interrupted_and_resumed_to_the_bit_with_dropout(tmp_path, monkeypatch) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=1.5)
    interrupted_and_resumed(settings, 9, tmp_path, monkeypatch)
    other = dataclasses.replace(settings, augment=v2.RandomCrop(8, padding=1))
    with pytest.raises(InputError, match="augment"):
        fit_exits(resumable.make_model(), resumable.make_data(), other, out=tmp_path, progress=False)


def test_its_settings_identify_a_training() -> None:
    def written(augment) -> str:
        return TrainSettings(epochs=1, augment=augment).to_dict()["augment"]

    assert written(FLIP) == written(v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(8, padding=2)]))
    assert written(FLIP) != written(v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(8, padding=1)]))
    assert "RandomHorizontalFlip(p=0.5)" in written(FLIP) and "0x" not in written(FLIP)


def test_arrays_of_ones_own_are_changed_too() -> None:
    data = as_dataset((torch.randn(6, 3, 8, 8), torch.arange(6)))
    changed, targets = data.training_batch(torch.arange(6), v2.RandomHorizontalFlip(p=1), chance())
    assert torch.equal(changed, data.inputs(slice(None)).flip(-1)) and targets.tolist() == list(range(6))


def test_what_changes_the_shape_or_returns_no_image_is_refused() -> None:
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ShapeError, match=r"augment CenterCrop makes \(1, 4, 4\) of images of shape \(1, 8, 8\)"):
        augmented(v2.CenterCrop(4), images, chance())
    with pytest.raises(InputError, match="augment ToPILImage returns Image"):
        augmented(v2.ToPILImage(), images, chance())
    assert is_transform(v2.RandomErasing()) and not is_transform(resumable.SETTINGS.augment)
