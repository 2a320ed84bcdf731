"""What a run folder keeps of its data: the names of the classes, and how an image or a text becomes an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from eenet.errors import InputError
from eenet.experiments.data.dataset import DataSplits
from eenet.experiments.data.texts import load_tokenizer
from eenet.running.manifest import decoded
from eenet.running.preparation import Preparation
from eenet.running.texts import TextPreparation
from eenet.tables.atomic import atomic_path
from eenet.tables.checks import number
from eenet.tables.files import checksums

CLASSES, PREPARATION = "class_names", "preparation"
"""Their keys in ``recipe.json``."""
TOKENIZER = "tokenizer"
"""Folder of the tokenizer in a run folder."""
Prepares: TypeAlias = Preparation | TextPreparation
"""How image files, or texts, become what a model takes."""


def preparation_of(splits: DataSplits) -> Prepares | None:
    """Return how the held-out samples of a data set were made from images or texts; None where it is not known."""
    found = getattr(splits.test, "preparation", None)
    return found if isinstance(found, Preparation | TextPreparation) else None


def store(splits: DataSplits, folder: Path) -> dict[str, Any]:
    """Return, as JSON values, what running a model on new samples needs to know of its data.

    A tokenizer is written into ``folder``; its checksums are among the values.
    """
    found = preparation_of(splits)
    stored = None if found is None else _image(found) if isinstance(found, Preparation) else _text(found, folder)
    return {CLASSES: list(splits.classes), PREPARATION: stored}


def _image(found: Preparation) -> dict[str, Any]:
    return {"images": asdict(found)}


def _text(found: TextPreparation, folder: Path) -> dict[str, Any]:
    with atomic_path(folder / TOKENIZER) as draft:
        found.tokenizer.save_pretrained(draft)
        files = checksums(draft)
    kept = {name: getattr(found, name) for name in ("max_tokens", "named", "width", "least")}
    return {"texts": kept | {TOKENIZER: files}}


def stored_classes(described: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes that a run folder keeps, None where it keeps none."""
    found = described.get(CLASSES)
    return tuple(map(str, found)) if isinstance(found, list) and found else None


def stored_preparation(described: Mapping[str, Any], folder: Path) -> Prepares | None:
    """Return the preparation that a run folder keeps, None where it keeps none.

    Raises:
        InputError: It is damaged, or the tokenizer is not the one that was stored.
        MissingExtraError: It is one of texts, and transformers is not installed.
    """
    try:
        match described.get(PREPARATION):
            case None:
                return None
            case {"images": dict() as values}:
                # tuples are lists in JSON
                image: Preparation = decoded(Preparation, values, PREPARATION)
                return image
            case {"texts": dict() as values}:
                return _restored(values, folder)
            case other:
                raise ValueError(f"{other!r} is no preparation")
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"run {folder} does not say how its inputs are made: its preparation is damaged ({error}). Train again, "
            "into another folder."
        ) from error


def _restored(values: Mapping[str, Any], folder: Path) -> TextPreparation:
    place = folder / TOKENIZER
    if not place.is_dir() or checksums(place) != values[TOKENIZER]:
        raise InputError(
            f"tokenizer {place} is missing or was changed since the run was made: texts would be cut otherwise. Put "
            "the run folder back as it was."
        )
    width = values["width"]
    return TextPreparation(
        tokenizer=load_tokenizer(place),
        max_tokens=int(number(values["max_tokens"], "max_tokens", 1, whole=True)),
        named=bool(values["named"]),
        width=None if width is None else int(number(width, "width", 1, whole=True)),
        least=int(number(values["least"], "least", 1, whole=True)),
    )
