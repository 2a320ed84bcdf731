"""Fetching a data set from its authors' own page, where that is asked for."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import urllib.request
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import wrap_file

from eenet.core.files import atomic_path
from eenet.errors import DataError, RunError

__all__ = ["Archive", "fetch"]

_TIMEOUT = 60  # seconds without an answer


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A ``.tar.gz`` on a public page.

    Args:
        url: where it is.
        md5: its checksum, as its authors publish it.
        folder: name of the folder in it.
    """

    url: str
    md5: str
    folder: str


def fetch(archive: Archive, root: Path) -> Path:
    """Return the folder of an archive in ``root``, downloaded and unpacked unless it is there already.

    The folder appears complete or not at all.

    Args:
        archive: what to fetch.
        root: the folder to put it into; made if it is not there.

    Raises:
        RunError: the page does not answer, or the disk refuses.
        DataError: what came has another checksum, or holds something else.
    """
    target = Path(root) / archive.folder
    if target.is_dir():
        return target
    try:
        with atomic_path(target) as draft:
            packed = draft.with_name("packed")
            with (
                urllib.request.urlopen(archive.url, timeout=_TIMEOUT) as answer,
                _shown(answer, archive.folder) as shown,
                packed.open("wb") as file,
            ):
                shutil.copyfileobj(shown, file)
            _check(archive, packed)
            _unpack(packed, draft.parent)
    except (OSError, tarfile.TarError) as error:
        raise RunError(
            f"download of {archive.url} failed: {error}. Try again, or get the file by hand and unpack it in {root}."
        ) from error
    return target


def _shown(answer: Any, name: str) -> AbstractContextManager[BinaryIO]:  # noqa: ANN401
    """Return what comes in, with a progress bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    size = int(answer.headers.get("Content-Length") or 0)
    return wrap_file(answer, size, description=name, console=console, transient=True, disable=not console.is_terminal)


def _unpack(packed: Path, folder: Path) -> None:
    """Write an archive's plain files, those inside ``folder`` only; the filters of tarfile need Python 3.11.4."""
    with tarfile.open(packed) as opened:
        for member in opened:
            path = (folder / member.name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise tarfile.TarError(f"it would write {member.name} elsewhere")
            content = opened.extractfile(member) if member.isfile() else None  # neither folders nor links
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file)


def _check(archive: Archive, packed: Path) -> None:
    with packed.open("rb") as handle:
        found = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5:
        raise DataError(
            f"download of {archive.url} is not the published file: its MD5 is {found}, {archive.md5} was expected. "
            "Nothing was unpacked. Try again."
        )
