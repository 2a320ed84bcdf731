"""Between the network and the model: who may ask, how large and how slow a request may be, what errors say."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from eenet.errors import EenetError, InputError, MissingExtraError
from eenet.serving.service import QueueFull, Stopped

_LOG = logging.getLogger("eenet")
_BODIES = 16  # of the largest size, that may be read at a time
_CLOSED = 499  # as others call it: the client went away, and nobody reads the answer


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may take of a server.

    Attributes:
        body_bytes: The largest body.
        client_timeout_s: How long a client may take to send one, or to begin one.
    """

    body_bytes: int = 16 << 20
    client_timeout_s: float = 30.0


class Door:
    """Lets requests in, and counts what their bodies take.

    Args:
        token: That every request must bring; None: none is needed.
        limits: Of requests.
    """

    def __init__(self, token: str | None, limits: Limits) -> None:
        self._token = None if token is None else token.encode()
        self.limits = limits
        self._held = 0

    async def check(self, request: Request) -> None:
        """Refuse a request without the token, in constant time.

        Raises:
            HTTPException: 401.
        """
        given = request.headers.get("authorization", "")
        kind, _, token = given.partition(" ")
        if self._token is not None and not (
            kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token)
        ):
            raise HTTPException(
                401,
                "token is missing or wrong: this server answers to those who have it. Send the header "
                "Authorization: Bearer TOKEN.",
                {"WWW-Authenticate": "Bearer"},
            )

    async def body(self, request: Request) -> bytes:
        """Return a body, of a size and within a time that are allowed.

        Raises:
            HTTPException: 408, 413, 415 or 503; the connection is closed, as the rest of the body is not read.
        """
        stated = request.headers.get("content-length", "0")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise _refused(415, "body is compressed: it is read as it is. Send it without Content-Encoding.")
        self._require_size(int(stated) if len(stated) < 16 else math.inf)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.client_timeout_s):
                async for chunk in request.stream():
                    self._hold(len(chunk))
                    size += len(chunk)
                    self._require_size(size)
                    parts.append(chunk)
        except TimeoutError as error:
            seconds = f"{self.limits.client_timeout_s:g} s"
            raise _refused(408, f"body did not come within {seconds}. Send it faster, or in smaller parts.") from error
        finally:
            self._held -= size
        return b"".join(parts)

    def _hold(self, size: int) -> None:
        """Count what bodies take while they are read: many slow clients together may not fill the memory."""
        if self._held + size > _BODIES * self.limits.body_bytes:
            raise _refused(503, "too many large bodies are being read. Try again.", {"Retry-After": "1"})
        self._held += size

    def _require_size(self, size: float) -> None:
        if size > (most := self.limits.body_bytes):
            raise _refused(
                413,
                f"body of {size:g} bytes or more is too large: {most} bytes are read. Send fewer samples at a time, or "
                "numbers as bytes.",
            )


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> HTTPException:
    return HTTPException(status, message, {"Connection": "close", **(headers or {})})


def error_response(_: Request, error: Exception) -> Response:
    """Return what an error is answered: its sentence, and whose fault it is."""
    headers: dict[str, str] = {}
    if isinstance(error, ClientDisconnect):
        return Response(status_code=_CLOSED)
    if isinstance(error, HTTPException):
        status, headers, message = error.status_code, dict(error.headers or {}), str(error.detail)
    elif isinstance(error, EenetError):
        status, message = status_of(error), str(error)
        if isinstance(error, QueueFull):
            headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    else:
        _LOG.error("a request failed unexpectedly", exc_info=error)
        status, message = 500, f"unexpected {type(error).__name__}: the log of the server has the details."
    return JSONResponse({"error": message}, status, headers)


def status_of(error: EenetError) -> int:
    """Return the status by which HTTP calls an error."""
    if isinstance(error, QueueFull):
        return 429
    if isinstance(error, Stopped):
        return 503
    if isinstance(error, MissingExtraError):
        return 501
    return 400 if isinstance(error, InputError) else 500
