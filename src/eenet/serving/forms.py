"""What people send: pictures and texts, in a form or by themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from eenet.errors import InputError
from eenet.imports import known

_MOST = 64  # files and fields of a form
_FIELDS = ("file", "text", "budget", "max_exit", "top_k")


@dataclass(kw_only=True)
class Form:
    """What was sent.

    Attributes:
        files: Pictures, each with what the sender calls it.
        texts: Texts.
        budget: Of these samples; None: that of the server.
        max_exit: The last exit that may be used.
        top_k: How many classes are wanted for each.
    """

    files: list[tuple[str, bytes]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    budget: str | None = None
    max_exit: int | None = None
    top_k: int = 1

    @property
    def names(self) -> list[str]:
        """What the samples are called in the answer."""
        return [name for name, _ in self.files] + self.texts


async def read_form(body: bytes, headers: Headers) -> Form:
    """Return what a body has in it: a form, a picture or a text. Nothing is written to disk.

    Args:
        body: As it came.
        headers: Of the request; their ``Content-Type`` says what the body is.

    Raises:
        InputError: It is something else, a form with other fields, or malformed.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/"):
        return Form(files=[("picture", body)])
    if kind == "text/plain":
        return Form(texts=[_decoded(body)])
    if kind == "application/x-www-form-urlencoded":
        try:
            fields = parse_qsl(_decoded(body), keep_blank_values=True, max_num_fields=_MOST, errors="strict")
        except ValueError as error:
            raise InputError(f"form cannot be read: {error}. Send at most {_MOST} fields, in UTF-8.") from error
        return _form([(name, value, None) for name, value in fields])
    if kind != "multipart/form-data":
        raise InputError(
            f"body of type {kind[:80]!r} is not read: a form with 'file' or 'text' is, a picture as image/..., or a "
            "text as text/plain. Send one of these."
        )
    return _form(await _parts(body, headers))


async def _parts(body: bytes, headers: Headers) -> list[tuple[str, str | bytes, str | None]]:
    """Return the parts of a form: the field, the content, and the file's name where it is one."""
    parser = MultiPartParser(headers, _stream(body), max_files=_MOST, max_fields=_MOST, max_part_size=len(body))
    parser.spool_max_size = len(body) + 1  # in memory
    try:
        found = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:
        raise InputError(f"form cannot be read: {error}. Send multipart/form-data.") from error
    parts: list[tuple[str, str | bytes, str | None]] = []
    for name, value in found.multi_items():
        if isinstance(value, UploadFile):
            parts.append((name, await value.read(), value.filename or "file"))
        else:
            parts.append((name, value, None))
    await found.close()
    return parts


async def _stream(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _form(parts: Sequence[tuple[str, str | bytes, str | None]]) -> Form:
    form = Form()
    for name, value, file in parts:
        known("field", name[:40], _FIELDS)
        if (file is not None) != (name == "file"):
            raise InputError(f"field {name!r} is {'no file' if file is None else 'a file'}. Send pictures as 'file'.")
        if isinstance(value, bytes):
            form.files.append((file or "file", value))
        elif name == "text":
            form.texts.append(value)
        elif name == "budget":
            form.budget = value
        else:
            setattr(form, name, _whole(name, value))
    return form


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InputError(f"{name} {text[:40]!r} is no whole number. Send one.")
    return max(int(text), 1) if name == "top_k" else int(text)


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"text is not in UTF-8: {error.reason} at byte {error.start}. Encode it so.") from error
