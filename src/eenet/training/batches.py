"""The batches of a training, and the processes that share them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_map

from eenet.errors import require
from eenet.models.inputs import Inputs
from eenet.training.augmenting import is_transform
from eenet.training.dataset import LabelledDataset
from eenet.training.losses import check_finite, check_targets
from eenet.training.settings import Schedule

# --- processes --------------------------------------------------------------------------------------------------------

_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun, accelerate; MPI


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Those that train together, and which of them this one is.

    Gradients are summed here rather than by ``DistributedDataParallel``, which sees only what goes through its own
    ``forward``: not the heads' phase, not a forward function of one's own.

    Args:
        count: how many there are.
        rank: which one this is, from 0 on.
        device: where this one computes; None: where the model is.
    """

    count: int = 1
    rank: int = 0
    device: torch.device | None = None

    @property
    def mark(self) -> tuple[int, ...]:
        """What tells the chance of this process from that of the others; nothing for the first."""
        return (self.rank,) if self.rank else ()

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows of a batch; the parts differ by at most one row."""
        return rows.tensor_split(self.count)[self.rank]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one number format by their sums over all processes, in one message."""
        if self.count == 1:
            return
        message = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(message)
        for tensor, part in zip(tensors, torch.split(message, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    @torch.no_grad()
    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of process 0."""
        if self.count == 1:
            return
        for tensor in tensors:
            message = tensor.contiguous()
            dist.broadcast(message, src=0)
            tensor.copy_(message)


def joined_processes() -> Processes:
    """Return the processes that a launcher started together, which its environment variables tell; else this one."""
    count = max(int(os.environ.get(name, "1")) for name in _COUNTS)
    if count == 1:
        return Processes()
    require("accelerate", reason=f"{count} processes are to train together, and it connects them")
    from accelerate import PartialState

    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    state = PartialState(cpu=asked_for_cpu or not torch.cuda.is_available())
    return Processes(count=state.num_processes, rank=state.process_index, device=state.device)


# --- batches ----------------------------------------------------------------------------------------------------------


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
    """Makes the batches of a training, as large and as many as its schedule says, on a device.

    Maps of classes are checked against the number of classes, where that is given.
    """

    def __init__(
        self,
        dataset: LabelledDataset,
        schedule: Schedule,
        processes: Processes,
        device: torch.device,
        num_classes: int | None = None,
    ) -> None:
        self.dataset, self.schedule, self.processes, self.device = dataset, schedule, processes, device
        self.num_classes = num_classes
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
        own = self.processes.share(rows)
        inputs, targets = self.dataset.training_batch(own, settings.augment, chance)
        check_finite(inputs, own.tolist())
        if targets.dim() > 1 and self.num_classes is not None:
            check_targets(targets, self.num_classes, own.tolist())
        if self.device.type != "cpu":
            inputs, targets = tree_map(lambda leaf: leaf.to(self.device), (inputs, targets))
        return Batch(inputs, targets, len(rows))

    def ahead(self, first: int) -> Generator[Batch, None, None]:
        """Yield the batches from a step on; while one is used, a thread makes the next.

        Transforms of torchvision draw from the global generator, as the model does: there is no thread for them.
        """
        if is_transform(self.schedule.settings.augment):
            yield from map(self.make, range(first, self.schedule.steps))
            return
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
