"""Reading and writing artefacts: atomic, without pickle, refusing what is damaged.

Everything eenet saves goes through here: a full disk, or a kill while something is written, leaves the old file or
folder as it was. (Putting a new folder in the place of an old one takes two renames.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from eenet.errors import BundleError, InputError

MANIFEST = "manifest.json"
"""The file of a saved folder that names its format and lists the SHA-256 of all others under ``sha256``."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, whose parents are made, and move it there when the block succeeds.

    Works for files and for folders (create the folder inside the block; an existing folder is replaced). What was
    written is removed when the block fails.

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
        if target.exists() and target.is_dir() != draft.is_dir():
            kind = "folder" if target.is_dir() else "file"
            raise InputError(f"output {target} cannot be written: a {kind} of that name is in the way. Choose another.")
        replaced = scratch / "replaced"
        try:
            if draft.is_dir() and target.is_dir():
                os.replace(target, replaced)  # a non-empty folder cannot be replaced in one step
            os.replace(draft, target)
        except BaseException:  # interrupted between the two: the old one goes back
            if replaced.exists() and not target.exists():
                os.replace(replaced, target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_replaceable(folder: Path, what: str, names: Sequence[str]) -> None:
    """Refuse to replace a folder that holds anything which is no part of an earlier result: it would be deleted.

    ``what`` it may hold is for the message; ``names`` are patterns of the files that such a result consists of.
    Nothing, or an empty folder, will do.

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


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write ``value`` as readable JSON, atomically.

    Raises:
        ValueError: ``value`` contains NaN or infinity, which JSON cannot hold.
    """
    text = json.dumps(value, indent=2, allow_nan=False)
    with atomic_path(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str], what: str) -> Any:  # noqa: ANN401
    """Read a JSON file; ``what`` it is to the user ("policy", "costs") is for the message.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{what} {path} is missing: there is no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{what} {path} cannot be read: it is a folder. Name the JSON file itself.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
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


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as safetensors, atomically."""
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    with atomic_path(path) as draft:
        draft.write_bytes(content)  # not save_file: it writes a file that only its owner may read


def load_arrays(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """Read named arrays from a safetensors file.

    Raises:
        InputError: The file is missing, truncated or not safetensors.
    """
    with reading_tensors(path, what):
        return load_file(path)


@contextlib.contextmanager
def reading_tensors(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Say in one sentence why a safetensors file cannot be read.

    Raises:
        InputError: The file is missing, truncated or not safetensors.
    """
    if not Path(path).is_file():
        raise InputError(f"{what} {path} is missing: there is no such file. Check the path.")
    try:
        yield
    except (SafetensorError, ValueError, TypeError) as error:
        raise InputError(
            f"{what} {path} cannot be read: it is no complete safetensors file ({error}). Write it again."
        ) from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path inside, the manifest left out."""
    return {name: sha256(folder / name) for name in _files(folder)}


def check_free(folder: Path, what: str) -> None:
    """Refuse to replace a folder that contains anything but what its manifest lists: it would be deleted.

    Args:
        folder: What would be replaced; nothing, or an empty folder, will do.
        what: What it may contain: ``bundle`` or ``export``.

    Raises:
        InputError: It contains something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        manifest = read_object(folder / MANIFEST, f"{what} manifest")
    except InputError:
        manifest = {}
    listed = manifest.get("sha256")
    if manifest.get("format") != f"eenet {what}" or not isinstance(listed, dict):
        raise InputError(f"output {folder} is taken: it is a folder without a {what}. Choose another.")
    foreign = next((name for name in _files(folder) if name not in listed), None)
    if foreign is not None:
        raise InputError(
            f"output {folder} is taken: it contains {foreign}, which is no part of a saved {what} and would be "
            "deleted. Choose another folder."
        )


def read_manifest(folder: Path, what: str, version: int, needed: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the manifest of a saved folder, once the folder's files were compared with it.

    Args:
        folder: Where it stands.
        what: What the folder must be: ``bundle`` or ``export``.
        version: Of the format.
        needed: Files that must be listed; default: all that are there.

    Raises:
        BundleError: Folder or manifest are missing or of another format, or a file is missing, changed or not listed.
    """
    if not folder.is_dir():
        raise BundleError(f"{what} {folder} is missing: there is no such folder. Check the path.")
    try:
        manifest = read_object(folder / MANIFEST, f"{what} manifest")
    except InputError as error:
        raise BundleError(str(error)) from error
    listed = manifest.get("sha256")
    if manifest.get("format") != f"eenet {what}":
        raise BundleError(
            f"{what} {folder} cannot be read: its {MANIFEST} is of another format, {manifest.get('format')!r}. Open it "
            "as what it is, or write it anew."
        )
    if not isinstance(listed, dict):
        raise BundleError(f"{what} {folder} cannot be read: its {MANIFEST} lists no checksums. Write it anew.")
    if manifest.get("version") != version:
        raise BundleError(
            f"{what} {folder} is of version {manifest.get('version')!r}: this eenet reads version {version}. Write it "
            "anew."
        )
    present = _files(folder)
    for name in sorted({*listed, *(present if needed is None else needed)}):
        if name not in present:  # also what a manifest that points outside the folder comes to
            fault = "is missing"
        elif name not in listed:
            fault = "is not in the manifest"
        elif sha256(folder / name) != listed[name]:
            fault = "was changed or truncated: its checksum differs from the manifest"
        else:
            continue
        raise BundleError(f"{what} {folder} is damaged: file {name} {fault}. Copy it again, or write it anew.")
    return manifest


def _files(folder: Path) -> list[str]:
    """Return the files of a folder by their paths inside, the manifest left out."""
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return sorted(name for name in files if name != MANIFEST)
