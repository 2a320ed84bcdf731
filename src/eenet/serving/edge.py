"""`EdgeClient`: a weak device answers what it can, a server the rest; without the server the device answers all."""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from typing import Any, final
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Shaped

from eenet.errors import EenetError, InputError, RunError
from eenet.log import logger
from eenet.running.adaptive import SampleIds
from eenet.running.inputs import Inputs
from eenet.running.loop import Prediction
from eenet.running.sent import Compression
from eenet.running.tiers import Tier, TierResult
from eenet.serving.answers import Answer, as_answer
from eenet.serving.protocol import OUTPUTS
from eenet.tables.checks import instance, number

EDGE, SERVER, FALLBACK = "edge", "server", "fallback"
"""Who answered a sample: the device, the server, or the device in its place."""

_MOST_BYTES = 1 << 28  # of an answer
_BUSY = (429, 503)  # try again later, says the server
_AGAIN_S = 0.05
_KINDS = {"INT64": np.int64, "FP32": np.float32, "FP64": np.float64}


@dataclass(frozen=True, kw_only=True)
class EdgeAnswer(Answer):
    """What a batch is answered, in the order of its samples.

    Attributes:
        source: Who answered each sample: ``edge``: it left on the device; ``server``: it went on there; ``fallback``:
            it should have gone on, and the server did not answer. Then it has the answer of the device's last exit.
    """

    source: Shaped[np.ndarray, " sample"]


@final
class EdgeClient:
    """Runs the first stages of a model here, and sends the samples that stay to a server, which has all stages.

    Every sample is answered. Where the server is away, late, or answers with an error, the device's own last exit
    answers, and says so. The server must have the same model and policy as the device. One call at a time.

    Args:
        model: The folder of an export of the first stages (``eenet export --tier``), or a `Tier`.
        url: Of the model at the server, such as ``http://server:8000/v2/models/digits``.
        token: That the server wants.
        timeout_s: How long the server may take for a batch, all tries together, in seconds.
        retries: How often it is asked again, after an error or where it is busy, within that time.
        pause_s: For how long it is not asked after it could not be reached, in seconds.
        compress: How states are sent, see `Tier`.

    Raises:
        InputError: It is no address or not the first tier, or a setting is out of range.

    Example:
        >>> client = EdgeClient("device", "http://server:8000/v2/models/digits", token="secret")  # doctest: +SKIP
        >>> client(images).source  # doctest: +SKIP
        array(['edge', 'server', 'edge'], dtype='<U8')
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Tier,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 5.0,
        retries: int = 1,
        pause_s: float = 1.0,
        compress: Compression | None = None,
    ) -> None:
        self.tier = model if isinstance(model, Tier) else Tier(model)
        if self.tier.first or self.tier.ends:
            raise InputError(
                f"model has the stages {self.tier.first} to {self.tier.last} of {self.tier.engine.num_exits}: a device "
                "has the first ones, and not the last. Pass what eenet export --tier wrote."
            )
        self._remote = _Remote(
            url,
            token,
            timeout_s=number(timeout_s, "timeout_s", above=0),
            retries=int(number(retries, "retries", 0, 100, whole=True)),
        )
        self._pause_s, self._compress = number(pause_s, "pause_s", 0), compress
        self._away_until = -math.inf

    def __call__(self, inputs: Inputs, sample_ids: SampleIds | None = None) -> EdgeAnswer:
        """Answer a batch.

        Args:
            inputs: As of `AdaptiveModel`.
            sample_ids: As of `AdaptiveModel`.

        Raises:
            InputError, RunError, ShapeError: As of `AdaptiveModel`, of what runs here; never because of the server.
        """
        result = self.tier(inputs, sample_ids, compress=self._compress)
        count = len(result.rows) + len(result.staying)
        parts = []
        if result.prediction is not None:
            parts.append((result.rows, as_answer(result.prediction), EDGE))
        if result.state is not None:
            staying = np.setdiff1d(np.arange(count), result.rows)
            there = self._there(result)
            parts.append((staying, self._here(result), FALLBACK) if there is None else (staying, there, SERVER))
        order = np.argsort(np.concatenate([rows for rows, _, _ in parts]))
        joined = {
            one.name: np.concatenate([getattr(answer, one.name) for _, answer, _ in parts])[order]
            for one in fields(Answer)
        }
        source = np.concatenate([np.full(len(rows), who, dtype="<U8") for rows, _, who in parts])[order]
        return EdgeAnswer(**joined, source=source)

    def _there(self, result: TierResult) -> Answer | None:
        """Return what the server answers to the samples that stay; None: it does not."""
        assert result.state is not None and result.so_far is not None
        if time.monotonic() < self._away_until:
            return None
        try:
            body = self._remote.post(result.state)
            return read_answer(body, result.so_far.shape, self.tier.last + 1, self.tier.engine.num_exits)
        except (EenetError, OSError, http.client.HTTPException) as error:
            logger.warning("the server did not answer %d samples, the device does: %s", len(result.staying), error)
            if not isinstance(error, InputError):  # else it is there, and refuses
                self._away_until = time.monotonic() + self._pause_s
            return None

    def _here(self, result: TierResult) -> Answer:
        """Return what the last exit here answers to the samples that stay."""
        log_probs: Any = result.so_far
        exits, costs = np.full(len(log_probs), self.tier.last), self.tier.costs
        cost = None if costs is None else np.full(len(log_probs), costs.cumulative[self.tier.last])
        return as_answer(Prediction(exit_index=exits, log_probs=log_probs, outputs=log_probs, cost=cost))


class _Remote:
    """Asks a server, for a bounded time."""

    def __init__(self, url: str, token: str | None, *, timeout_s: float, retries: int) -> None:
        parts = urlsplit(instance(url, str, "url"))
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
            raise InputError(
                f"url {url!r} is no address of a model: such are http://server:8000/v2/models/NAME. Pass one."
            )
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, port, f"{parts.path.rstrip('/')}/resume"
        self._timeout_s, self._retries = timeout_s, retries
        self._headers = {"Content-Type": "application/octet-stream", "Accept": "application/json"}
        if token is not None:
            if not (token.isascii() and token.isprintable()):
                raise InputError("token has characters that a header cannot have. Pass one word of letters and digits.")
            self._headers["Authorization"] = f"Bearer {token}"

    def post(self, body: bytes) -> bytes:
        """Return what is answered.

        Raises:
            HTTPException, OSError: It cannot be reached, or not in time.
            InputError: It refuses these bytes.
            RunError: It failed, or is busy.
        """
        until = time.monotonic() + self._timeout_s
        for left in range(self._retries, -1, -1):
            wait = 0.0
            try:
                status, wait, content = self._once(body, until)
                if status == 200:
                    return content
                said = f"server answers {status}: {content[:200].decode(errors='replace')}."
                if status < 500 and status not in _BUSY:
                    raise InputError(f"{said} Check url and token, and that both have the same model and policy.")
                error: Exception = RunError(f"{said} Try again later.")
            except (OSError, http.client.HTTPException) as found:
                error = found
            if not left or time.monotonic() + wait >= until:
                raise error
            time.sleep(wait)
        raise AssertionError

    def _once(self, body: bytes, until: float) -> tuple[int, float, bytes]:
        """Return the status, after how many seconds to try again, and the content."""
        connection = self._kind(self._host, self._port, timeout=_rest(until))
        with closing(connection):
            connection.connect()
            # each part that comes begins a new timeout: only closing the line ends a server that sends byte by byte
            watch = threading.Timer(_rest(until), _close, [connection.sock])
            watch.start()
            try:
                connection.request("POST", self._path, body, self._headers)
                with connection.getresponse() as response:
                    content = response.read(_MOST_BYTES + 1)
            finally:
                watch.cancel()
        _rest(until)
        if len(content) > _MOST_BYTES:
            raise RunError(f"answer of more than {_MOST_BYTES} bytes is not read. Check the address.")
        after = response.headers.get("Retry-After", "")
        return response.status, float(after) if after.isdecimal() else _AGAIN_S, content


def _close(line: socket.socket) -> None:
    with suppress(OSError):  # closed by now
        line.shutdown(socket.SHUT_RDWR)


def _rest(until: float) -> float:
    """Return how many seconds are left."""
    rest = until - time.monotonic()
    if rest <= 0:
        raise TimeoutError("the time for the server is over")
    return rest


def read_answer(body: bytes, shape: tuple[int, ...], first: int, num_exits: int) -> Answer:
    """Return the answers in the body of a response, as the Open Inference Protocol has them.

    Args:
        body: As it came.
        shape: Samples and classes that were asked about.
        first: The first exit at which they may have left.
        num_exits: Of the model.

    Raises:
        RunError: It is something else.
    """
    try:
        outputs = {one["name"]: _tensor(one) for one in json.loads(body)["outputs"]}
        answer = Answer(**{name: outputs[name] for name in OUTPUTS})
        shapes = {name: getattr(answer, name).shape for name in OUTPUTS}
        if shapes != {name: shape if name == "probabilities" else shape[:1] for name in OUTPUTS}:
            raise ValueError(f"its outputs are {shapes}")
        exits, labels = answer.exit, answer.label
        if exits.min() < first or exits.max() >= num_exits or labels.min() < 0 or labels.max() >= shape[1]:
            raise ValueError("it names exits or classes that there are not")
        if not np.isfinite(answer.probabilities).all():
            raise ValueError("it has probabilities that are no numbers")
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RunError(f"answer of the server cannot be used: {error}. Check that it serves this model.") from error
    return answer


def _tensor(one: Mapping[str, Any]) -> np.ndarray:
    """Return a tensor of JSON; null, an unknown cost, is NaN."""
    values = [math.nan if value is None else value for value in one["data"]]
    return np.array(values, dtype=_KINDS[one["datatype"]]).reshape(one["shape"])
