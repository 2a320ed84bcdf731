"""What a run folder keeps of its data: the names of the classes, and how an image or a text becomes an input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eenet.experiments.data.dataset import DataSplits
from eenet.running.preparation import Preparation
from eenet.running.stored import CLASSES, PREPARATION, Prepares, store_preparation
from eenet.running.texts import TextPreparation


def preparation_of(splits: DataSplits) -> Prepares | None:
    """Return how the held-out samples of a data set were made from images or texts; None where it is not known."""
    found = getattr(splits.test, "preparation", None)
    return found if isinstance(found, Preparation | TextPreparation) else None


def store(splits: DataSplits, folder: Path) -> dict[str, Any]:
    """Return, as JSON values, what running a model on new samples needs to know of its data.

    A tokenizer is written into ``folder``; its checksums are among the values.
    """
    return {CLASSES: list(splits.classes), PREPARATION: store_preparation(preparation_of(splits), folder)}
