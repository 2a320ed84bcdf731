"""Reading and writing artefacts: checked, without pickle, refusing what is damaged or claims more than it contains.

Tensors have a module of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from eenet.errors import BundleError, EenetError, InputError
from eenet.tables.atomic import atomic_path, steady

MANIFEST = "manifest.json"
"""The file of a saved folder that names its format and lists the SHA-256 of all others under ``sha256``."""

CHECKSUM = "checksum"
"""The key of a JSON object under which the SHA-256 of all its other values stands."""

_JSON_BYTES, _JSON_DEPTH, _JSON_DIGITS = 1 << 26, 64, 20  # more is no result of eenet
_BOMB_BYTES, _BOMB_RATIO = 1 << 30, 200  # an archive may unpack to more than this, or to more times its size, not both
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    TokenError,  # from the head of an array, which numpy reads as Python text
    SyntaxError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    NotImplementedError,
    RuntimeError,  # an encrypted archive; RecursionError
    MemoryError,
)
"""What reading a damaged file may raise."""


def fault(error: BaseException) -> str:
    """Return what is wrong with what a file contains, from the error that rebuilding it raised."""
    text = str(error).rstrip(".")
    if isinstance(error, EenetError):
        return text
    if isinstance(error, KeyError):
        return f"the key {text} is missing"
    return f"a value is of another form ({text})"


def write_json(path: str | os.PathLike[str], value: object, *, sealed: bool = False) -> None:
    """Write ``value`` as readable JSON, atomically; ``sealed``: it is an object, and gets a `CHECKSUM`.

    Raises:
        ValueError: ``value`` contains NaN or infinity, which JSON cannot hold.
    """
    stored: Any = value
    if sealed:
        stored = json.loads(json.dumps(value, allow_nan=False))
        stored.pop(CHECKSUM, None)
        stored[CHECKSUM] = _digest(stored)
    text = json.dumps(stored, indent=2, allow_nan=False)
    with atomic_path(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str], what: str, *, sealed: bool = False) -> Any:  # noqa: ANN401
    """Read a JSON file; ``what`` it is to the user ("policy", "costs") is for the message.

    ``sealed``: an object must have a checksum.

    Raises:
        InputError: The file is missing or is not JSON, or its checksum, which is left out of the result, is not that of
            its values; numbers that are infinite or have more than 20 digits, keys that stand twice in one object, and
            more than 64 levels are refused, too.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_JSON_BYTES + 1)
        if len(content) > _JSON_BYTES:
            raise ValueError(f"it is larger than {_JSON_BYTES >> 20} MiB")
        value = _strict_json(content.decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{what} {path} is missing: there is no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{what} {path} cannot be read: it is a folder. Name the JSON file itself.") from error
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}. Check the file.") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{what} {path} cannot be read: it is not JSON ({error}). Write it again.") from error
    if isinstance(value, dict) and (sealed or CHECKSUM in value) and value.pop(CHECKSUM, None) != _digest(value):
        purpose = "" if sealed else f" If you changed it on purpose, take out its key {CHECKSUM!r}."
        raise InputError(
            f"{what} {path} was changed or damaged since it was written: its checksum differs. Write it again.{purpose}"
        )
    return value


def _digest(value: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON values, however they are laid out."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _strict_json(text: str) -> Any:  # noqa: ANN401
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"key {Counter(keys).most_common(1)[0][0][:100]!r} stands twice")
        return dict(pairs)

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number[:_JSON_DIGITS]} is no finite number")
        return value

    def whole(number: str) -> int:
        if len(number) > _JSON_DIGITS:
            raise ValueError(f"an integer has {len(number)} digits")
        return int(number)

    value = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_int=whole, parse_constant=finite)
    level: list[Any] = [value]
    for _ in range(_JSON_DEPTH):
        inside = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for some in inside for one in some]
    if level:
        raise ValueError(f"it has more than {_JSON_DEPTH} levels")
    if "\\ud" in text.lower():  # halves of characters, which nothing can print
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_object(path: str | os.PathLike[str], what: str, *, sealed: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds one object; arguments and errors are those of `read_json`.

    Raises:
        InputError: It holds something else.
    """
    value = read_json(path, what, sealed=sealed)
    if not isinstance(value, dict):
        raise InputError(f"{what} {path} cannot be read: it holds no JSON object. Write it again.")
    return value


def read_arrays(
    path: str | os.PathLike[str],
    what: str,
    names: Iterable[str] | None = None,
    error: type[EenetError] = InputError,
) -> dict[str, np.ndarray]:
    """Read plain arrays by name: of an ``.npz`` file; of an ``.npy`` file one whose name is empty.

    The array of a large ``.npy`` file stays on disk until it is used; changing it changes no file. What a file says
    about its size is compared with what it contains before memory is taken.

    Args:
        path: The file.
        what: What it is to the user, for the message.
        names: Which arrays to read, where they are there; default: all.
        error: Class of the error.

    Raises:
        EenetError: The file is missing, damaged, contains Python objects, or claims to be larger than it is.
    """
    source = Path(path)
    if not source.is_file():
        raise error(f"{what} {path} is missing: there is no such file. Check the path.")
    where = ""
    try:
        with warnings.catch_warnings(), source.open("rb") as file:
            warnings.simplefilter("ignore")  # of damaged heads, which numpy reads as Python text
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                file.seek(0)
                _check_head(file, source.stat().st_size)
                # copy-on-write: pages stay shared with the file as long as nobody writes
                return {"": np.load(source, mmap_mode="c" if source.stat().st_size > 1 << 16 else None)}
            with zipfile.ZipFile(file) as archive:
                arrays, members = {}, _members(archive, file)
                for name in members if names is None else [name for name in names if name in members]:
                    where = f"array {name[:100]!r} "
                    arrays[name] = _member(archive, members[name])
        return arrays
    except DAMAGED as fault:
        reason = " ".join(str(fault).split()) or type(fault).__name__
        raise error(
            f"{what} {path} {where}cannot be read: it is no complete .npy or .npz file of plain arrays ({reason}). "
            "Write it again with numpy.save or numpy.savez."
        ) from fault


def _members(archive: zipfile.ZipFile, file: IO[bytes]) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays in an archive and its file by name."""
    file.seek(-12 - len(archive.comment), os.SEEK_END)
    count = int.from_bytes(file.read(2), "little")
    if count not in (len(archive.infolist()), 0xFFFF):  # the latter: it stands elsewhere
        raise ValueError(f"it lists {len(archive.infolist())} of {count} arrays")
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is packed in a way that numpy does not use")
        archive.open(info).close()  # the name at its place is that in the list: a damaged one would be missed
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(members) < len(infos):
        raise ValueError("an array stands in it twice")
    unpacked, size = sum(info.file_size for info in infos), os.fstat(file.fileno()).st_size
    if unpacked > max(_BOMB_BYTES, _BOMB_RATIO * size):
        raise ValueError(f"{size} bytes claim to unpack to {unpacked}")
    return members


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        _check_head(file, info.file_size)
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # at the end the checksum is compared
    return array


def _check_head(file: BufferedIOBase | IO[bytes], size: int) -> None:
    """Refuse an array whose head claims more, or less, than the ``size`` of its file in bytes."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it contains Python objects, which are never loaded")
    claimed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed != size - file.tell() or (not dtype.itemsize and math.prod(shape) > 1):
        raise ValueError(f"its head claims {claimed} bytes of shape {shape}, it contains {size - file.tell()}")


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal(folder: Path, what: str, version: int) -> None:
    """Write the manifest of a folder: what it is, and the checksums of its files."""
    manifest = {"format": f"eenet {what}", "version": version, "sha256": checksums(folder)}
    write_json(folder / MANIFEST, manifest, sealed=True)


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path inside, the manifest left out."""
    return {name: sha256(folder / name) for name in _files(folder)}


def check_free(folder: Path, what: str, names: Iterable[str] | None = None) -> None:
    """Refuse to replace a folder that contains anything but an earlier result: it would be deleted.

    Args:
        folder: What would be replaced; nothing, or an empty folder, will do.
        what: What it may contain, such as ``bundle``.
        names: The files that this may consist of; default: those that its manifest lists.

    Raises:
        InputError: It contains something else.
        OSError: A folder in it cannot be read.
    """
    foreign = _foreign(folder, what, names)
    if foreign is not None:
        raise InputError(
            f"output {folder} is taken: it contains {foreign}, which is no part of a {what} that eenet saved there, "
            "and would be deleted. Choose another folder."
        )


@steady
def _foreign(folder: Path, what: str, names: Iterable[str] | None) -> str | None:
    """Return the first file that is no part of an earlier result."""
    if not folder.is_dir():
        return None
    known = {*listed_files(folder, what)} if names is None else {*names}
    return next((name for name in _contents(folder) if name not in known), None)


def listed_files(folder: Path, what: str) -> list[str]:
    """Return the files that a folder's manifest lists, and the manifest; none where it is that of something else."""
    try:
        manifest = read_object(folder / MANIFEST, "manifest")
    except InputError:
        return []
    listed = manifest.get("sha256")
    return [MANIFEST, *listed] if manifest.get("format") == f"eenet {what}" and isinstance(listed, dict) else []


def _contents(folder: Path) -> Iterator[str]:
    """Yield the files of a folder, and the links in it, by their paths inside."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (Path(parent, name).relative_to(folder).as_posix() for name in sorted([*files, *links]))


def read_manifest(folder: Path, what: str, version: int, needed: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the manifest of a saved folder, and compare the folder's files with it.

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
    found, listed = (manifest.get("format"), manifest.get("version")), manifest.get("sha256")
    if found != (f"eenet {what}", version) or not isinstance(listed, dict):
        kind = " without checksums" if found == (f"eenet {what}", version) else ""
        raise BundleError(
            f"{what} {folder} cannot be read: its {MANIFEST} says format {found[0]!r} of version {found[1]!r}{kind}: "
            f"this eenet reads version {version} of 'eenet {what}'. Open it as what it is, or write it anew."
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
    return sorted(name for name in _contents(folder) if name != MANIFEST and (folder / name).is_file())
