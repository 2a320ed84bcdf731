"""Names of classes: those that look alike are one name."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_UNSEEN = {0x034F, 0x115F, 0x1160, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)}  # fillers and selectors of variants


def tidy(text: str) -> str:
    """Return a text as it looks: composed (NFC), without characters that are not seen, with single spaces."""
    return " ".join("".join(c for c in unicodedata.normalize("NFC", text) if not _is_unseen(c)).split())


def is_blank(text: str) -> bool:
    """Return whether nothing of a text is seen."""
    return all(c.isspace() or _is_unseen(c) for c in text)


def key(name: str) -> str:
    """Return what names have in common that look alike, or differ in upper and lower case only."""
    return unicodedata.normalize("NFC", tidy(name).casefold())


def twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two names that look alike, or differ in upper and lower case only; None: all are distinct."""
    known: dict[str, str] = {}
    for name in names:
        if (same := key(name)) in known:
            return known[same], name
        known[same] = name
    return None


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or ord(character) in _UNSEEN
