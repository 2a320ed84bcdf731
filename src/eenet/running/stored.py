"""How images or texts become inputs, kept in a folder: JSON values, and beside them a tokenizer under checksums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from eenet.errors import InputError
from eenet.running.manifest import decoded
from eenet.running.preparation import Preparation
from eenet.running.texts import TextPreparation, load_tokenizer
from eenet.tables.atomic import atomic_path
from eenet.tables.checks import number
from eenet.tables.files import checksums

CLASSES, PREPARATION = "class_names", "preparation"
"""The keys of what is kept."""
TOKENIZER = "tokenizer"
"""Folder of the tokenizer in the folder."""
Prepares: TypeAlias = Preparation | TextPreparation
"""How image files, or texts, become what a model takes."""


def store_preparation(preparation: Prepares | None, folder: Path) -> dict[str, Any] | None:
    """Return a preparation as JSON values; a tokenizer is written into ``folder``, its checksums are among them."""
    if preparation is None:
        return None
    if isinstance(preparation, Preparation):
        return {"images": asdict(preparation)}
    with atomic_path(folder / TOKENIZER) as draft:
        preparation.tokenizer.save_pretrained(draft)
        files = checksums(draft)
    kept = {name: getattr(preparation, name) for name in ("max_tokens", "named", "width", "least")}
    return {"texts": kept | {TOKENIZER: files}}


def stored_classes(stored: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes that a folder keeps, None where it keeps none."""
    found = stored.get(CLASSES)
    return tuple(map(str, found)) if isinstance(found, list) and found else None


def stored_preparation(stored: Mapping[str, Any], folder: Path, what: str = "run") -> Prepares | None:
    """Return the preparation that a folder keeps, None where it keeps none.

    Args:
        stored: Its JSON values.
        folder: Where it is.
        what: The folder is to the user, for messages.

    Raises:
        InputError: It is damaged, or the tokenizer is not the one that was stored.
        MissingExtraError: It is one of texts, and transformers is not installed.
    """
    try:
        match stored.get(PREPARATION):
            case None:
                return None
            case {"images": dict() as values}:
                # tuples are lists in JSON
                image: Preparation = decoded(Preparation, values, PREPARATION)
                return image
            case {"texts": dict() as values}:
                return _restored(values, folder, what)
            case other:
                raise ValueError(f"{other!r} is no preparation")
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{what} {folder} does not say how its inputs are made: its preparation is damaged ({error}). Make it "
            "again, in another folder."
        ) from error


def _restored(values: Mapping[str, Any], folder: Path, what: str) -> TextPreparation:
    place = folder / TOKENIZER
    if not place.is_dir() or checksums(place) != values[TOKENIZER]:
        raise InputError(
            f"tokenizer {place} is missing or was changed since the {what} was made: texts would be cut otherwise. Put "
            f"the {what} folder back as it was."
        )
    width = values["width"]
    return TextPreparation(
        tokenizer=load_tokenizer(place),
        max_tokens=int(number(values["max_tokens"], "max_tokens", 1, whole=True)),
        named=bool(values["named"]),
        width=None if width is None else int(number(width, "width", 1, whole=True)),
        least=int(number(values["least"], "least", 1, whole=True)),
    )
