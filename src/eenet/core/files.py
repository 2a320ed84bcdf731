"""Reading and writing artefacts: atomic, without pickle, refusing what is damaged.

Everything eenet saves goes through here, so a kill or a full disk leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from eenet.errors import InputError

__all__ = [
    "atomic_path",
    "check_replaceable",
    "load_tensors",
    "read_json",
    "read_object",
    "save_tensors",
    "sha256",
    "write_json",
]


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move it there when the block succeeds.

    Works for files and for folders (create the folder inside the block; an existing folder is replaced).

    Args:
        path: Where the finished file or folder shall stand; missing parents are made.

    Yields:
        A path in the same folder that does not exist yet. It is removed when the block fails.

    Raises:
        InputError: A parent of ``path`` is a file, or ``path`` and what was written differ in kind.
        OSError: The file system refuses (no space, no permission).
    """
    target = Path(path).absolute()  # "." has a name and a parent, too
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"output {target} cannot be written: {target.parent} is not a folder. Choose another."
        ) from error
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        draft = scratch / target.name
        yield draft
        _replace(draft, target, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_replaceable(folder: Path, what: str, names: Sequence[str]) -> None:
    """Refuse to replace a folder that holds anything which is no part of an earlier result: it would be deleted.

    Args:
        folder: What would be replaced; nothing, or an empty folder, will do.
        what: What it may hold, for the message.
        names: Patterns of the files that such a result consists of.

    Raises:
        InputError: It holds something else.
    """
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = next((name for name in held if not any(fnmatch(name, pattern) for pattern in names)), None)
    if foreign is not None:
        raise InputError(
            f"output {folder} is taken: it holds {foreign}, which is no part of a {what} and would be deleted. Choose "
            "another folder."
        )


def _replace(draft: Path, target: Path, scratch: Path) -> None:
    """Move a finished file or folder to its place."""
    if target.exists() and target.is_dir() != draft.is_dir():
        kind = "folder" if target.is_dir() else "file"
        raise InputError(f"output {target} cannot be written: a {kind} of that name is in the way. Choose another.")
    if draft.is_dir() and target.is_dir():
        os.replace(target, scratch / "replaced")  # a non-empty folder cannot be replaced in one step
    os.replace(draft, target)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write ``value`` as readable JSON, atomically.

    Raises:
        ValueError: ``value`` contains NaN or infinity, which JSON cannot hold.
    """
    text = json.dumps(value, indent=2, allow_nan=False)
    with atomic_path(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str], what: str) -> Any:  # noqa: ANN401
    """Read a JSON file.

    Args:
        path: The file.
        what: What it is to the user ("policy", "costs"), for the message.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{what} {path} is missing: there is no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{what} {path} cannot be read: it is a folder. Name the JSON file itself.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{what} {path} cannot be read: it is not JSON ({error}). Write it again.") from error


def read_object(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a JSON file that holds one object; arguments and errors are those of `read_json`.

    Raises:
        InputError: It holds something else.
    """
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise InputError(f"{what} {path} cannot be read: it holds no JSON object. Write it again.")
    return value


def save_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
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
    if not Path(path).is_file():
        raise InputError(f"{what} {path} is missing: there is no such file. Check the path.")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(
            f"{what} {path} cannot be read: it is no complete safetensors file ({error}). Write it again."
        ) from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
