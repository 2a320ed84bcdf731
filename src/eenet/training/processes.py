"""Several processes that train one model together, each on its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from eenet.errors import MissingExtraError

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
    """Return the processes that a launcher started together, which its environment variables tell; else this one alone.

    Raises:
        MissingExtraError: there are several, and accelerate, which connects them, is not installed.
    """
    count = max(int(os.environ.get(name, "1")) for name in _COUNTS)
    if count == 1:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtraError(
            f"accelerate is missing: {count} processes are to train together, and it connects them. "
            'Run pip install "eenet[train]".'
        ) from error
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    state = PartialState(cpu=asked_for_cpu or not torch.cuda.is_available())
    return Processes(count=state.num_processes, rank=state.process_index, device=state.device)
