"""Servers that listen on a port of this machine: in a thread of the test, or a process of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from eenet.serving import Service
from eenet.serving.app import make_app
from eenet.serving.door import Limits
from eenet.serving.protocol import LENGTH_HEADER, write_request
from eenet.serving.served import Served
from eenet.serving.server import Server, listen

SOURCE = Path(__file__).parents[2] / "src"


@contextmanager
def listening(
    served: Served, *, token: str | None = None, limits: Limits | None = None, **settings: Any
) -> Iterator[tuple[str, Service]]:
    """Serve a model in a thread; yields the address and the service."""
    limits = limits or Limits()
    with listen("127.0.0.1", 0) as listener, Service(served.model, **settings) as service:
        app = make_app(served, service, token=token, limits=limits)
        server = Server(app, service, listener, client_timeout_s=limits.client_timeout_s, drain_s=5)
        thread = threading.Thread(target=server.serve_until_stopped)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join()


class ServerProcess:
    """`eenet serve` as a process, once it is ready; `url` is its address.

    Args:
        words: Of the command.
        port: Where it listens; default: a free one.
        announce: Read the port from what it says; else one is chosen here.
        python: The interpreter.
        source: Where eenet is; None: installed.
    """

    def __init__(
        self,
        *words: object,
        port: object = 0,
        announce: bool = True,
        python: str = sys.executable,
        source: Path | None = SOURCE,
    ) -> None:
        if not announce:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        environment = {**os.environ, **({} if source is None else {"PYTHONPATH": str(source)})}
        command = [python, "-m", "eenet", "serve", *map(str, words), "--port", str(port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stderr is not None
        self.url = f"http://127.0.0.1:{port}"
        if announce:
            said = self.process.stderr.readline()
            found = re.search(r"at (http://\S+)", said)
            if found is None:
                raise AssertionError(said + self.process.communicate()[1])
            self.url = found[1]
            threading.Thread(target=self.process.stderr.read, daemon=True).start()
        with httpx.Client(base_url=self.url) as client:
            while not _is_ready(client):
                assert self.process.poll() is None
                time.sleep(0.05)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/v2/health/ready").status_code == 200
    except httpx.ConnectError:
        return False


def sent(inputs: dict[str, np.ndarray], *, binary: bool = False, **asked: Any) -> dict[str, Any]:
    """Return the arguments of httpx for a request."""
    content, length = write_request(inputs, binary=binary, **asked)
    return {"content": content, "headers": {} if length is None else {LENGTH_HEADER: str(length)}}


def read(answer: httpx.Response) -> dict[str, np.ndarray]:
    """Return the outputs of an answer in JSON or as bytes."""
    import json

    kinds = {"INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
    assert answer.status_code == 200, answer.text
    length = answer.headers.get(LENGTH_HEADER)
    header = json.loads(answer.content[: None if length is None else int(length)])
    place, found = int(length or 0), {}
    for one in header["outputs"]:
        if "data" in one:
            values = np.array(one["data"], dtype=kinds[one["datatype"]])
        else:
            size = one["parameters"]["binary_data_size"]
            values = np.frombuffer(answer.content[place : place + size], kinds[one["datatype"]])
            place += size
        found[one["name"]] = values.reshape(one["shape"])
    assert place in (0, len(answer.content))
    return found
