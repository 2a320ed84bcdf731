"""Libraries that come with an extra: imported where they are needed, and kept from printing."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eenet.errors import MissingExtraError


def library(name: str, extra: str) -> Any:  # noqa: ANN401
    """Return a module of a library that is not installed with eenet itself.

    Args:
        name: Of the module, for example ``torchvision.models``.
        extra: What brings it: ``vision`` or ``text``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f'{name.partition(".")[0]} is not installed: the model comes from it. Run pip install "eenet[{extra}]".'
        ) from error


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:  # noqa: ANN401
    """Silence the messages of transformers and its progress bars."""
    logs = transformers.utils.logging
    logger, bars = logging.getLogger("transformers"), logs.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            logs.enable_progress_bar()
