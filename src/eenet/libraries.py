"""Libraries that come with an extra: imported where they are needed, and kept from printing."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eenet.errors import InputError, require


def library(name: str, reason: str = "the model comes from it") -> Any:  # noqa: ANN401
    """Return a module of a library that is not installed with eenet itself, such as ``torchvision.models``.

    Raises:
        MissingExtraError: It is not installed; the message gives the ``reason`` why it is needed.
    """
    require(name, reason=reason)
    return importlib.import_module(name)


def pretrained(kind: str, folder: Path, what: str, error: type[InputError] = InputError, **options: Any) -> Any:  # noqa: ANN401
    """Return what a class of transformers, such as ``AutoModel``, reads from a folder on this machine.

    Args:
        kind: the class.
        folder: as ``save_pretrained`` leaves it; nothing is downloaded.
        what: the folder is to the user, for messages.
        error: that is raised.
        **options: of ``from_pretrained``.

    Raises:
        InputError: the folder is missing or cannot be read.
        MissingExtraError: transformers is not installed.
    """
    transformers = library("transformers", f"the {what} is read by it")
    advice = "Pass a folder that save_pretrained has written."
    if not folder.is_dir():
        raise error(
            f"{what} {folder} is not found: a folder on this machine is needed, nothing is downloaded. {advice}"
        )
    try:
        with _quiet(transformers):
            return getattr(transformers, kind).from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, **options
            )
    except Exception as cause:  # whatever transformers, and libraries that it uses, raise on what is missing or damaged
        raise error(f"{what} {folder} cannot be read: {first_line(cause)}. {advice}") from cause


def first_line(error: Exception) -> str:
    """Return the kind and the message of an error in one short line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {text[:200].rstrip('.')}"


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:  # noqa: ANN401
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
