"""Named tensors of models and checkpoints on disk, as safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safetensors.torch import load_file, save
from torch import Tensor

from eenet.tables.tensors import reading_tensors, write_tensors


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors with their checksum, atomically."""
    # own contiguous copies: tied or strided tensors are refused otherwise
    write_tensors(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}))


def load_tensors(path: str | os.PathLike[str], what: str, *, sealed: bool = False) -> dict[str, Tensor]:
    """Read named tensors from a safetensors file; ``sealed``: one with a checksum.

    Raises:
        InputError: The file is missing, truncated or not safetensors, or was changed since eenet wrote it.
    """
    with reading_tensors(path, what, sealed=sealed):
        return load_file(path)
