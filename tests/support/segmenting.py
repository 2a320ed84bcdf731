"""Maps for tests: a planted data set of coloured rectangles, a small model with dense exits, planted dense tables."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.models.model import MultiExitModel
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

CLASSES = 4
SIZE = (32, 48)
COLOURS = torch.tensor([[0.0, 0.0, 0.0], [0.8, 0.2, 0.0], [0.0, 0.8, 0.2], [0.2, 0.0, 0.8]])


class MaskedImages:
    """A data set of images and masks, 255 where nobody is asked: what training and recording need of one."""

    def __init__(self, images: Tensor, masks: Tensor) -> None:
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, rows: Tensor | slice) -> Tensor:
        return self.images[rows]

    def targets(self, rows: Tensor | slice) -> Tensor:
        masks = self.masks[rows].long()
        return torch.where(masks == 255, -100, masks)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self), batch_size):
            rows = slice(first, first + batch_size)
            yield self.inputs(rows), self.targets(rows)

    def select(self, rows: Tensor | slice) -> MaskedImages:
        return MaskedImages(self.images[rows], self.masks[rows])


def rectangles(num_samples: int, seed: int = 0) -> MaskedImages:
    """Images of up to four coloured rectangles, some of them noisy; their borders do not count."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE
    masks = torch.zeros(num_samples, height, width, dtype=torch.uint8)
    for mask in masks:
        for _ in range(int(torch.randint(1, 5, (1,), generator=generator))):
            top, left, kind = (int(torch.randint(n, (1,), generator=generator)) for n in (height - 10, width - 14, 3))
            mask[top : top + 10, left : left + 14] = 255
            mask[top + 1 : top + 9, left + 1 : left + 13] = kind + 1
    seen = COLOURS[torch.where(masks == 255, 0, masks).long()].permute(0, 3, 1, 2)
    noise = torch.rand(num_samples, 1, 1, 1, generator=generator) * 2.0
    return MaskedImages(seen + noise * torch.randn(seen.shape, generator=generator), masks)


def segmenter(seed: int = 0, width: int = 12) -> MultiExitModel:
    """A model of three stages at a quarter of the resolution, a 1 x 1 convolution behind each; untrained.

    The first exit sees patches of 4 x 4 pixels alone, later ones their neighbours too.
    """

    def stage(size: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, width, size, padding=size // 2), nn.BatchNorm2d(width), nn.ReLU())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        entry = nn.Sequential(nn.Conv2d(3, width, 4, stride=4), nn.ReLU())
        heads = [nn.Conv2d(width, CLASSES, 1) for _ in range(3)]
        return MultiExitModel([stage(1), stage(3), stage(3)], heads, start=entry).eval()


@cache
def trained_segmenter(steps: int = 100, seed: int = 0) -> MultiExitModel:
    """The same, trained for a second or two; once for all tests, which leave it as it is."""
    model, data = segmenter(seed).train(), rectangles(128, seed=100 + seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data), (32,), generator=generator)
        targets = data.targets(rows)
        loss = sum(
            F.cross_entropy(F.interpolate(logits, size=SIZE, mode="bilinear"), targets)
            for logits in model(data.inputs(rows))
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def dense_table(num_samples: int = 300, *, num_classes: int = 5, seed: int = 0) -> ExitTable:
    """A table as recording maps leaves it: summaries, utility near the mean confidence, no labels."""
    rng = np.random.default_rng(seed)
    ease = rng.random((num_samples, 1))
    gain = np.array([0.0, 0.15, 0.25, 0.3]) * (1 - ease) * 2
    worth = (0.45 + 0.4 * ease + 0.6 * gain).clip(0.3, 0.97)
    confidence = (worth + 0.04 * rng.standard_normal(worth.shape)).clip(0.3, 0.98)
    rest = -np.sort(-rng.random((*worth.shape, num_classes - 1)), axis=2)
    rest = rest / rest.sum(axis=2, keepdims=True) * (1 - confidence)[:, :, None]
    p = -np.sort(-np.concatenate([confidence[:, :, None], rest], axis=2), axis=2)
    odds = np.log(p[..., 0] / p[..., 1:].sum(axis=2))
    certainty = 1 + (p * np.log(np.maximum(p, 1e-30))).sum(axis=2) / np.log(num_classes)
    columns = np.stack([odds, p[..., 0] - p[..., 1], certainty], axis=2)
    return ExitTable(
        features=np.concatenate([columns, p], axis=2).astype(np.float32),
        feature_names=("max_prob", "margin", "certainty", *(f"p{i}" for i in range(num_classes))),
        utility=worth,
        costs=CostTable((1.0, 2.0, 3.0, 4.0), "ms"),
        split="dense",
    )
