"""Augmentations against their slow twins, and as functions of their generator alone."""

import torch

from eenet.experiments.data import random_crop_flip, random_crop_flip_cut, random_flip, random_resized_crop_flip


def cropped(images: torch.Tensor, seed: int, pad: int = 4) -> torch.Tensor:
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
    changed = cropped(images, 0, pad=1)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    found = set()
    for image, result in zip(images, changed, strict=True):
        matches = [i for i, form in enumerate(windows(image, 1)) if torch.equal(form, result)]
        assert matches
        found.update(matches)
    assert len(found) > 10
    assert torch.equal(cropped(images, 1), cropped(images, 1)) and not torch.equal(
        cropped(images, 1), cropped(images, 2)
    )


def test_about_half_is_mirrored() -> None:
    ramp = torch.arange(16.0).expand(2000, 1, 1, 16)
    changed = cropped(ramp, 0, pad=0)
    assert 0.45 < (changed[:, 0, 0, 0] == 15).float().mean() < 0.55


def test_a_square_is_cut_out_of_what_a_crop_leaves() -> None:
    images, seed = torch.randint(1, 256, (300, 2, 9, 11), dtype=torch.uint8), 0
    changed = random_crop_flip_cut(images, torch.Generator().manual_seed(seed), pad=1, hole=4)
    sizes = set()
    for before, after in zip(cropped(images, seed, pad=1), changed, strict=True):
        gone = (before != after).any(0)
        assert torch.equal(after, before.masked_fill(gone, 0))
        rows, columns = gone.any(1).nonzero().flatten(), gone.any(0).nonzero().flatten()
        assert torch.equal(gone | (before == 0).all(0), torch.outer(gone.any(1), gone.any(0)) | (before == 0).all(0))
        sizes.add((int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1))
    assert max(sizes) == (4, 4) and min(min(size) for size in sizes) < 4  # at the rim less of it is inside


def test_flips_mirror_half_and_nothing_else() -> None:
    images = torch.randint(0, 256, (400, 2, 3, 5), dtype=torch.uint8)
    changed = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (changed != images).flatten(1).any(1)
    assert torch.equal(changed[mirrored], images[mirrored].flip(-1))
    assert 150 < mirrored.sum() < 250
    assert torch.equal(changed, random_flip(images, torch.Generator().manual_seed(0)))


def test_resized_crops_are_parts_of_the_image_by_the_same_pixels() -> None:
    height, width = 12, 20
    places = torch.stack(
        torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )  # its own row, column
    changed = random_resized_crop_flip(places.expand(500, -1, -1, -1), torch.Generator().manual_seed(0), 0.25)
    rows, columns = changed[:, 0], changed[:, 1]
    assert (rows == rows[:, :, :1]).all() and (columns == columns[:, :1]).all()
    down, right = rows[:, :, 0].diff(dim=1), columns[:, 0].diff(dim=1)
    mirrored = right.sum(1) < 0
    assert ((down == 0) | (down == 1)).all() and ((right.abs() == 0) | (right.abs() == 1)).all()
    assert 200 < mirrored.sum() < 300 and (right[mirrored] <= 0).all() and (right[~mirrored] >= 0).all()
    high, wide = (down.sum(1) + 1) / height, (right.sum(1).abs() + 1) / width
    area = high * wide
    assert 0.17 < area.min() < 0.35 and area.max() > 0.9 and 0.5 < area.mean() < 0.75
    assert (high / wide).log().abs().max() < 0.6 and rows.min() == 0 and rows.max() == height - 1


def test_a_crop_of_everything_changes_nothing_but_the_side() -> None:
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    square = random_resized_crop_flip(images, torch.Generator().manual_seed(1), smallest=1.0)
    assert square.shape == images.shape and square.dtype == images.dtype
