"""random_crop_flip against its slow twin, and as a function of its generator alone."""

import torch

from eenet.data import random_crop_flip


def draw(images: torch.Tensor, seed: int, pad: int = 4) -> torch.Tensor:
    return random_crop_flip(images, torch.Generator().manual_seed(seed), pad)


def windows(image: torch.Tensor, pad: int) -> list[torch.Tensor]:
    """Every shifted and mirrored form of an image, one pixel at a time."""
    height, width = image.shape[1:]
    forms = []
    for down in range(-pad, pad + 1):
        for right in range(-pad, pad + 1):
            shifted = torch.zeros_like(image)
            for y in range(height):
                for x in range(width):
                    if 0 <= y + down < height and 0 <= x + right < width:
                        shifted[:, y, x] = image[:, y + down, x + right]
            forms += [shifted, shifted.flip(-1)]
    return forms


def test_every_result_is_a_shifted_and_mirrored_image() -> None:
    images = torch.randint(1, 256, (40, 2, 4, 5), dtype=torch.uint8)
    changed = draw(images, 0, pad=1)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    found = set()
    for image, result in zip(images, changed, strict=True):
        matches = [i for i, form in enumerate(windows(image, 1)) if torch.equal(form, result)]
        assert matches
        found.update(matches)
    assert len(found) > 10


def test_the_generator_is_the_only_chance() -> None:
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(draw(images, 1), draw(images, 1))
    assert not torch.equal(draw(images, 1), draw(images, 2))


def test_about_half_is_mirrored() -> None:
    ramp = torch.arange(16.0).expand(2000, 1, 1, 16)
    changed = draw(ramp, 0, pad=0)
    assert 0.45 < (changed[:, 0, 0, 0] == 15).float().mean() < 0.55
