"""Named arrays as safetensors files, each with its checksum inside."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from eenet.errors import InputError
from eenet.tables.atomic import atomic_path
from eenet.tables.files import DAMAGED

_DIGITS = 64  # of a checksum


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as safetensors with their checksum, atomically."""
    write_tensors(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def write_tensors(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a safetensors file, atomically; the SHA-256 of its tensors is put into its metadata."""
    with atomic_path(path) as draft, draft.open("wb") as file:
        file.writelines(_sealed(content))


def _sealed(content: bytes) -> tuple[bytes, memoryview]:
    """Return the head of a safetensors file, the SHA-256 of its tensors in it, and these."""
    length = int.from_bytes(content[:8], "little")
    data = memoryview(content)[8 + length :]
    head = json.loads(content[8 : 8 + length])
    checksum = hashlib.sha256(_described(head))
    checksum.update(data)
    text = json.dumps({"__metadata__": {"sha256": checksum.hexdigest()}, **head}).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text, data


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return named arrays as the bytes of a safetensors file with their checksum."""
    return b"".join(_sealed(save({name: np.ascontiguousarray(array) for name, array in arrays.items()})))


def from_bytes(content: bytes, what: str) -> dict[str, np.ndarray]:
    """Read what `to_bytes` returned.

    Raises:
        InputError: It is truncated or no safetensors, or was changed since.
    """
    try:
        _check_tensors(io.BytesIO(content), len(content), sealed=True)
        return load(content)
    except (SafetensorError, *DAMAGED) as error:
        raise InputError(
            f"{what} of {len(content)} bytes cannot be read: it is no complete safetensors file ({error}). Send it "
            "again."
        ) from error


def load_arrays(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """Read named arrays from a safetensors file.

    Raises:
        InputError: The file is missing, truncated or not safetensors, or was changed since eenet wrote it.
    """
    with reading_tensors(path, what):
        return load_file(path)


@contextlib.contextmanager
def reading_tensors(path: str | os.PathLike[str], what: str, *, sealed: bool = False) -> Iterator[None]:
    """Compare a safetensors file with its checksum, and say in one sentence why it cannot be read.

    ``sealed``: it must have one.

    Raises:
        InputError: The file is missing, truncated or not safetensors, or was changed since eenet wrote it.
    """
    if not Path(path).is_file():
        raise InputError(f"{what} {path} is missing: there is no such file. Check the path.")
    try:
        with Path(path).open("rb") as file:
            _check_tensors(file, Path(path).stat().st_size, sealed=sealed)
        yield
    except (SafetensorError, *DAMAGED) as error:
        raise InputError(
            f"{what} {path} cannot be read: it is no complete safetensors file ({error}). Write it again."
        ) from error


def _check_tensors(file: io.BufferedIOBase, size: int, *, sealed: bool) -> None:
    length = int.from_bytes(file.read(8), "little")
    if length > size:
        raise ValueError("its head is longer than the file")
    head = json.loads(file.read(length))
    about = head.pop("__metadata__", {})
    known = about.get("sha256")
    if known is None and not sealed and all(len(value) != _DIGITS for value in about.values()):  # a file of others
        return
    checksum = hashlib.sha256(_described(head))
    while block := file.read(1 << 20):
        checksum.update(block)
    if checksum.hexdigest() != known:
        raise ValueError("it was changed or damaged since it was written: its checksum differs")


def _described(head: dict[str, Any]) -> bytes:
    """Return names, types, shapes and places of tensors, with which a checksum begins."""
    return json.dumps(head, sort_keys=True).encode()
