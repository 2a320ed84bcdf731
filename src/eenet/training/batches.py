"""The batches of a training: each a function of the seed and the step alone, prepared while the step before runs."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_map

from eenet.core.inputs import Inputs
from eenet.data.dataset import LabelledDataset
from eenet.training.processes import Processes
from eenet.training.settings import Schedule


class Batch(NamedTuple):
    """What one process learns from in one step.

    Attributes:
        inputs: prepared for the model, augmented.
        targets: the true classes, of samples or of pixels.
        samples: how many all processes together learn from.
    """

    inputs: Inputs
    targets: Int[Tensor, "sample ..."]
    samples: int

    def parts(self, count: int) -> Generator[tuple[Inputs, Tensor], None, None]:
        """Yield the (inputs, targets) in up to ``count`` parts of nearly one size."""
        rows = torch.arange(len(self.targets)).tensor_split(count)
        for part in (slice(int(some[0]), int(some[-1]) + 1) for some in rows if len(some)):
            yield tree_map(lambda leaf, part=part: leaf[part], self.inputs), self.targets[part]


class Batches:
    """Makes the batches of a training.

    Args:
        dataset: the training samples.
        schedule: says how large batches are and how many there are.
        processes: those that share every batch.
        device: where the batches are wanted.
    """

    def __init__(
        self, dataset: LabelledDataset, schedule: Schedule, processes: Processes, device: torch.device
    ) -> None:
        self.dataset, self.schedule, self.processes, self.device = dataset, schedule, processes, device
        self.order: tuple[int, Tensor] | None = None

    def make(self, step: int) -> Batch:
        """Return the batch of a step, this process's share of it."""
        settings = self.schedule.settings
        epoch, place = divmod(step, self.schedule.steps_per_epoch)
        if self.order is None or self.order[0] != epoch:
            shuffled = torch.randperm(len(self.dataset), generator=generator(settings.seed, "order", epoch))
            self.order = epoch, shuffled
        size = self.schedule.batch_size
        rows = self.order[1][place * size : (place + 1) * size]
        chance = generator(settings.seed, "augment", step, *self.processes.mark)
        inputs, targets = self.dataset.training_batch(self.processes.share(rows), settings.augment, chance)
        if self.device.type != "cpu":
            inputs, targets = tree_map(lambda leaf: leaf.to(self.device), (inputs, targets))
        return Batch(inputs, targets, len(rows))

    def ahead(self, first: int) -> Generator[Batch, None, None]:
        """Yield the batches from a step on; while one is used, a thread makes the next."""
        if first >= self.schedule.steps:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="eenet-batches") as pool:
            coming = pool.submit(self.make, first)
            for step in range(first, self.schedule.steps):
                batch = coming.result()
                if step + 1 < self.schedule.steps:
                    coming = pool.submit(self.make, step + 1)
                yield batch


def seed_of(*parts: object) -> int:
    """Return a seed that is a function of some values."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])


def generator(*parts: object) -> torch.Generator:
    """Return a source of chance that is a function of some values."""
    return torch.Generator().manual_seed(seed_of(*parts))
