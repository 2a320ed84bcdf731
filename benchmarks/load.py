"""A server in a process and on a core of its own, and clients that send at given times, whatever the server does."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eenet import AdaptiveModel, Policy
from eenet.running.engines.base import Engine, ExitOutput, State
from eenet.serving import Service
from eenet.serving.protocol import LENGTH_HEADER, write_request

NAME = "model"
CONNECTIONS = 256
GIVE_UP_S = 20.0


class Whole(Engine):
    """The original model without exits, as an engine of one stage."""

    def __init__(self, inner: Engine) -> None:
        self.inner, self.num_exits = inner, 1
        self.name, self.dtype, self.device, self.threads = inner.name, inner.dtype, inner.device, inner.threads

    def start(self, inputs: Any) -> State:  # noqa: ANN401
        return inputs

    def stage(self, index: int, state: State) -> State:
        return self.inner.full(state)

    def head(self, index: int, state: State) -> ExitOutput:
        return np.asarray(state), None

    def select(self, state: State, rows: np.ndarray) -> State:
        return state[rows]

    def join(self, states: Sequence[State]) -> State:
        return np.concatenate(states)


class Everybody(Policy):
    """All leave at the only exit there is."""

    num_exits, answers_newest = 1, True

    def leaves(self, seen: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
        return np.ones(len(seen), dtype=np.bool_)

    def answers(self, seen: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
        return seen[:, -1]


@dataclass(frozen=True)
class Address:
    """Where a server listens, and its process."""

    port: int
    pid: int


@contextmanager
def server(model: AdaptiveModel, core: int | None, budget: str | None = None, **settings: Any) -> Iterator[Address]:  # noqa: ANN401
    """Run a server in a process of its own, on one core; settings are those of `Service`."""
    from eenet.serving.server import listen

    listener = listen("127.0.0.1", 0)
    context = multiprocessing.get_context("fork")  # the model is there already
    process = context.Process(target=_serve, args=(model, core, listener, budget, settings), daemon=True)
    process.start()
    port = listener.getsockname()[1]
    listener.close()
    try:
        asyncio.run(_until_ready(port))
        yield Address(port, process.pid or 0)
    finally:
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join(GIVE_UP_S)
        if process.is_alive():
            process.kill()


def _serve(model: AdaptiveModel, core: int | None, listener: Any, budget: str | None, settings: Any) -> None:  # noqa: ANN401
    from eenet.serving.app import make_app
    from eenet.serving.served import Served
    from eenet.serving.server import Server

    if core is not None:
        os.sched_setaffinity(0, {core})
    sys.setswitchinterval(0.0005)
    with Service(model, **settings) as service:
        if budget is not None:
            service.set_budget(budget)
        Server(make_app(Served(name=NAME, model=model), service), service, listener).serve_until_stopped()


async def _until_ready(port: int) -> None:
    until = time.monotonic() + GIVE_UP_S
    while time.monotonic() < until:
        try:
            line = Line(port)
            status, _, _ = await line.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            line.close()
            if status == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.05)
    raise TimeoutError("the server is not ready")


class Line:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self.port, self._reader, self._writer = port, None, None

    async def ask(self, message: bytes) -> tuple[int, bytes, int | None]:
        """Return status, body and the length of its JSON."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writer.write(message)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (one.partition(": ") for one in head[1:] if one)}
        body = await self._reader.readexactly(int(fields["content-length"]))
        length = fields.get(LENGTH_HEADER.lower())
        if fields.get("connection", "").lower() == "close":
            self.close()
        return int(head[0].split()[1]), body, None if length is None else int(length)

    def close(self) -> None:
        """Close it."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def message(inputs: dict[str, np.ndarray], *, binary: bool, **parameters: Any) -> bytes:  # noqa: ANN401
    """Return a request for label and exit, as it goes over the line."""
    body, length = write_request(inputs, parameters=parameters, outputs=["label", "exit"], binary=binary)
    kind = "application/json" if length is None else f"application/octet-stream\r\n{LENGTH_HEADER}: {length}"
    return post(f"/v2/models/{NAME}/infer", body, kind)


def post(path: str, body: bytes, kind: str = "application/json", method: str = "POST") -> bytes:
    """Return a message with a body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass(frozen=True)
class Shots:
    """What became of requests, in the order they were to be sent.

    Attributes:
        row: Which sample each asked about.
        latency: Seconds from when it was to be sent to its answer; infinite where there was none.
        status: Of HTTP; 0: none.
        label: Answered; -1: none.
        exit: Where it left.
        seconds: Up to the last time of sending.
    """

    row: np.ndarray
    latency: np.ndarray
    status: np.ndarray
    label: np.ndarray
    exit: np.ndarray
    seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.row) / self.seconds

    def within(self, slo_s: float) -> float:
        """Return answers within the target, a second."""
        return float((self.latency <= slo_s).sum()) / self.seconds

    def quantile_ms(self, share: float, exit_index: int | None = None) -> float | None:
        """Return a quantile of the latencies of answered requests, in milliseconds."""
        chosen = np.isfinite(self.latency) & (True if exit_index is None else self.exit == exit_index)
        return 1e3 * float(np.quantile(self.latency[chosen], share)) if chosen.any() else None


def poisson(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Return times of sending at a mean rate, in seconds."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(int(rate * seconds), 1))
    return np.cumsum(gaps)


def bursts(rate: float, seconds: float, size: int) -> np.ndarray:
    """Return times of sending in bursts at a mean rate."""
    return np.repeat(np.arange(0, seconds, size / rate), size)


def send(address: Address, messages: Sequence[bytes], times: np.ndarray, asides: Sequence[bytes] = ()) -> Shots:
    """Send messages in turn at given times, over 256 connections at most; others evenly in between."""
    return asyncio.run(_sent(address, messages, times, asides))


async def _sent(address: Address, messages: Sequence[bytes], times: np.ndarray, asides: Sequence[bytes]) -> Shots:
    idle: asyncio.LifoQueue[Line] = asyncio.LifoQueue()
    lines = [Line(address.port) for _ in range(CONNECTIONS)]
    for line in reversed(lines):
        idle.put_nowait(line)
    found: list[tuple[float, int, bytes, int | None]] = [(np.inf, 0, b"", None)] * len(times)
    began = time.perf_counter() + 0.01

    async def one(i: int) -> None:
        line = await idle.get()
        try:
            status, body, length = await line.ask(messages[i % len(messages)])
            found[i] = (time.perf_counter() - began - times[i], status, body, length)
        except (OSError, asyncio.IncompleteReadError):
            line.close()
        finally:
            idle.put_nowait(line)

    async def turn() -> None:
        line = Line(address.port)
        for aside in asides:
            status, body, _ = await line.ask(aside)
            if status != 200:
                raise RuntimeError(body)
            await asyncio.sleep(float(times[-1]) / len(asides))
        line.close()

    tasks = [asyncio.create_task(turn())] if asides else []
    for i, at in enumerate(times.tolist()):
        wait = began + at - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(i)))
    _, late = await asyncio.wait(tasks, timeout=GIVE_UP_S)
    for task in late:
        task.cancel()
    for line in lines:
        line.close()
    return _shots(found, len(messages), max(float(times[-1]), 1e-3))


def _shots(found: Sequence[tuple[float, int, bytes, int | None]], rows: int, seconds: float) -> Shots:
    labels, exits = zip(*(_answer(status, body, length) for _, status, body, length in found), strict=True)
    status = np.array([one[1] for one in found])
    return Shots(
        row=np.arange(len(found)) % rows,
        latency=np.where(status == 200, [one[0] for one in found], np.inf),
        status=status,
        label=np.array(labels),
        exit=np.array(exits),
        seconds=seconds,
    )


def _answer(status: int, body: bytes, length: int | None) -> tuple[int, int]:
    if status != 200:
        return -1, -1
    outputs = json.loads(body if length is None else body[:length])["outputs"]
    if length is None:
        values = {one["name"]: one["data"][0] for one in outputs}
    else:
        at, values = length, {}
        for one in outputs:
            size = one["parameters"]["binary_data_size"]
            values[one["name"]] = int(np.frombuffer(body[at : at + size], dtype="<i8")[0])
            at += size
    return int(values["label"]), int(values["exit"])


def one_by_one(address: Address, messages: Sequence[bytes], seconds: float) -> np.ndarray:
    """Send one message after the other over one connection; return the seconds that each took."""

    async def run() -> list[float]:
        line, times, until = Line(address.port), [], time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            await line.ask(messages[len(times) % len(messages)])
            times.append(time.perf_counter() - began)
        line.close()
        return times

    return np.array(asyncio.run(run()))


def at_once(address: Address, messages: Sequence[bytes], clients: int, seconds: float) -> float:
    """Return how many requests a second so many clients get answered, each sending the next when it has an answer."""

    async def client(first: int, until: float) -> int:
        line, count = Line(address.port), 0
        while time.perf_counter() < until:
            status, _, _ = await line.ask(messages[(first + count * clients) % len(messages)])
            count += status == 200
        line.close()
        return count

    async def run() -> float:
        began = time.perf_counter()
        counts = await asyncio.gather(*(client(first, began + seconds) for first in range(clients)))
        return sum(counts) / (time.perf_counter() - began)

    return asyncio.run(run())


def resident_bytes(address: Address) -> int:
    """Return the memory of a server's process."""
    lines = Path(f"/proc/{address.pid}/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
