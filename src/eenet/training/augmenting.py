"""Random changes of training images: functions with a generator, and the transforms of torchvision, which have none."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor, nn

from eenet.errors import InputError, ShapeError
from eenet.training.dataset import Augment


def is_transform(augment: object) -> bool:
    """Return whether this changes one image at a time by the global generator of PyTorch: a transform of torchvision.

    Any other `torch.nn.Module` is taken for one, too.
    """
    return isinstance(augment, nn.Module) or type(augment).__module__.startswith("torchvision.transforms")


def augmented(
    augment: Augment,
    images: Shaped[Tensor, "sample channel height width"],
    generator: torch.Generator,
    masks: UInt8[Tensor, "sample height width"] | None = None,
) -> tuple[Shaped[Tensor, "sample channel height width"], UInt8[Tensor, "sample height width"] | None]:
    """Return images changed at random, and their masks changed alike; the generator is the only source of chance.

    A function gets all images of a batch at once, a mask as a further channel of its image: it must move pixels only. A
    transform of torchvision gets one image after the other, with a mask as ``tv_tensors.Mask``; the global generator of
    PyTorch is seeded for it, and restored afterwards. So it must not run while another thread draws from that.

    Args:
        augment: A function of images and a generator, or a transform of torchvision.
        images: Raw ones.
        generator: As said.
        masks: Numbers per pixel, of which 0 is what is shifted in from outside.

    Raises:
        InputError: A transform returns something else than an image.
        ShapeError: It changes the shape of images.
    """
    if not is_transform(augment):
        if masks is None:
            return augment(images, generator), None
        changed = augment(torch.cat([images, masks[:, None].to(images.dtype)], dim=1), generator)
        return changed[:, :-1], changed[:, -1].to(torch.uint8)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pairs = [_one(augment, image, None if masks is None else masks[i]) for i, image in enumerate(images)]
    return torch.stack([image for image, _ in pairs]), None if masks is None else torch.stack([m for _, m in pairs])


def _one(transform: Any, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Return an image, and its mask (else nothing in it), as a transform changes them."""
    if mask is None:
        found, other = transform(image), image.new_empty(0)
    else:
        from torchvision import tv_tensors

        found, other = transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        found, other = found.as_subclass(Tensor), other.as_subclass(Tensor)
    if not isinstance(found, Tensor):
        raise InputError(
            f"augment {type(transform).__name__} returns {type(found).__name__} for an image: a tensor is needed. Take "
            "out what makes something else of images."
        )
    if found.shape != image.shape or (mask is not None and other.shape != mask.shape):
        raise ShapeError(
            f"augment {type(transform).__name__} makes {tuple(found.shape)} of images of shape {tuple(image.shape)}: "
            "all must keep their shape. Crop and resize to that size."
        )
    return found, other
