"""Finding data sets in folders, and saying what was expected and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eenet.data.files import IMAGE_SUFFIXES
from eenet.errors import DataError

__all__ = ["content", "data_folder", "find_folder", "images_in", "missing"]

_SHOWN = 6


def find_folder(root: Path, names: Sequence[str], needed: Sequence[str]) -> Path | None:
    """Return the first of ``root/name`` and ``root`` itself that holds everything needed; None if none does."""
    folders = [*(Path(root) / name for name in names), Path(root)]
    return next((folder for folder in folders if all((folder / part).exists() for part in needed)), None)


def data_folder(root: Path, names: Sequence[str], needed: Sequence[str], what: str) -> Path:
    """Return the folder of a data set.

    Args:
        root: the folder named by the user.
        names: what the data set's folder may be called in it; it may also be ``root`` itself.
        needed: files or folders that must be in it.
        what: the data set's name, for the message.

    Raises:
        DataError: there is no such folder; it says what was expected and what was found.
    """
    folder = find_folder(root, names, needed)
    if folder is None:
        raise missing(root, names, " and ".join(needed), what)
    return folder


def missing(root: Path, names: Sequence[str], expected: str, what: str) -> DataError:
    """Make the error for a data set that is not there."""
    near = next((Path(root) / name for name in names if (Path(root) / name).is_dir()), Path(root))
    inside, held = (f"{names[0]} with ", names[0]) if names else ("", "them")
    return DataError(
        f"data root {root} has no {what}: {inside}{expected} was expected, found {content(near)} in {near}. Pass the "
        f"folder that holds {held}."
    )


def content(folder: Path) -> str:
    """Return what a folder holds, in a few words."""
    if not folder.is_dir():
        return "no folder"
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def images_in(folder: Path) -> list[Path]:
    """Return the image files in a folder by name; those in folders in it are not looked for.

    Raises:
        DataError: there are none.
    """
    found = (
        sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
    )
    if not found:
        raise DataError(
            f"data folder {folder} has no images: files {' '.join(IMAGE_SUFFIXES)} were expected, found "
            f"{content(folder)}. Put them there."
        )
    return found
