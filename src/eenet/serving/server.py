"""The process of a server: it listens, closes slow connections, and ends without losing what it accepted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from eenet.errors import InputError
from eenet.serving.service import Service

_LOG = logging.getLogger("eenet")
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_MOST_CONNECTIONS, _BACKLOG = 4096, 2048
_LARGEST_HEAD = 1 << 16  # bytes before the body of a request


class _Connection(HttpToolsProtocol):
    """A connection that is closed where the head of a request does not end: the parser would take any size."""

    _head = 0

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        waits = self.cycle is before and (before is None or before.response_complete)
        self._head = self._head + len(data) if waits else 0
        if self._head > _LARGEST_HEAD:
            self.transport.close()


class Server(uvicorn.Server):
    """Serves an application until a signal comes: then it is not ready, finishes what was accepted, and ends.

    A second signal ends it at once.

    Args:
        app: What answers.
        service: Runs the model.
        listener: Where it listens, see `listen`; closed with it.
        client_timeout_s: How long a client may take to begin a request, or to read an answer.
        drain_s: How long accepted requests may take after a signal.
    """

    def __init__(
        self,
        app: FastAPI,
        service: Service,
        listener: socket.socket,
        *,
        client_timeout_s: float = 30.0,
        drain_s: float = 30.0,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_keep_alive=max(1, round(client_timeout_s)),
                timeout_graceful_shutdown=max(1, round(drain_s)),
            )
        )
        self._service, self._listener = service, listener
        self._timeout, self._drain_s = client_timeout_s, drain_s
        self._waits: dict[Any, tuple[tuple[object, bool], float]] = {}
        self._stopping: asyncio.Task[None] | None = None
        self.interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals begin the end, rather than end the process after it: that would not be exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        kept = {one: found for one in _SIGNALS if (found := signal.getsignal(one)) != signal.SIG_IGN}  # as by nohup
        for one in kept:
            signal.signal(one, lambda *_: loop.call_soon_threadsafe(self.stop))
        try:
            yield
        finally:
            for one, before in kept.items():
                signal.signal(one, before)

    def stop(self) -> None:
        """Begin to end; called again, end at once."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        else:
            self.interrupted = self.force_exit = self.should_exit = True

    async def _stop(self) -> None:
        """Take no more requests, and finish those that were accepted while connections are still answered."""
        done = await asyncio.to_thread(self._service.drain, self._drain_s)
        if not done:
            _LOG.warning("requests that were accepted took more than %g s and were given up", self._drain_s)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Close connections whose client is too slow, in sending the head of a request or in reading an answer."""
        if counter % 10 == 0:
            self._close_slow(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def _close_slow(self, now: float) -> None:
        found: dict[Any, tuple[tuple[object, bool], float]] = {}
        for connection in cast("set[Any]", self.server_state.connections):
            cycle = connection.cycle  # of the last request whose head has come
            answering = cycle is not None and not cycle.response_complete
            if answering and not cycle.response_started:
                continue  # it waits for the model, not for the client
            doing = (cycle, answering)
            before, since = self._waits.get(connection, (doing, now))
            found[connection] = (doing, since if before == doing else now)
        self._waits = found
        for connection, ((_, answering), since) in found.items():
            if now - since > self._timeout:
                if answering:  # what is left to send would be waited for
                    connection.transport.abort()
                else:
                    connection.transport.close()

    def serve_until_stopped(self) -> None:
        """Serve until a signal comes and all is done.

        Raises:
            KeyboardInterrupt: A second signal came before that.
        """
        self.run(sockets=[self._listener])
        if self.interrupted:
            raise KeyboardInterrupt


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        InputError: The address is not one of this machine, or is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InputError(
            f"address {host}:{port} cannot be used: {error.strerror or error}. Pass another --port, or the --host of "
            "this machine."
        ) from error
