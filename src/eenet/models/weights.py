"""Named tensors of models and checkpoints on disk, as safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safetensors.torch import load_file, save
from torch import Tensor

from eenet.tables.files import atomic_path, reading_tensors


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors, atomically."""
    # own contiguous copies: tied or strided tensors are refused otherwise
    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    with atomic_path(path) as draft:
        draft.write_bytes(content)  # not save_file: it writes a file that only its owner may read


def load_tensors(path: str | os.PathLike[str], what: str) -> dict[str, Tensor]:
    """Read named tensors from a safetensors file.

    Raises:
        InputError: The file is missing, truncated or not safetensors.
    """
    with reading_tensors(path, what):
        return load_file(path)
