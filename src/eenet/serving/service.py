"""`Service`: runs a model stage by stage in a thread of its own, while requests come and go."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float32, Float64, Int

from eenet.errors import RunError
from eenet.running.adaptive import AdaptiveModel, SampleIds, whole_ids
from eenet.running.inputs import Inputs, batch_of
from eenet.running.row_ids import row_ids
from eenet.serving.watch import Counts, Snapshot
from eenet.tables.arrays import batch_size
from eenet.tables.costs import Budget, BudgetLike

_LATENCY = tuple(0.1 * 1.25**i for i in range(60))
_SCORES = tuple(i / 20 for i in range(1, 20))


class QueueFull(RunError):
    """More samples wait than are allowed.

    Attributes:
        retry_after_s: In about how many seconds there will be room.
    """

    retry_after_s: float = 1.0


class Stopped(RunError):
    """The service takes no more requests: it drains, is closed, or its engine thread ended."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request is answered, in the order of its samples.

    Attributes:
        label: The class.
        probabilities: Of all classes.
        exit: Where the sample left, 0-based.
        cost: Of leaving there, in the unit of the model's costs; NaN where these are not known.
        score: Probability of the class that is answered.
    """

    label: Int[np.ndarray, " sample"]
    probabilities: Float32[np.ndarray, "sample class"]
    exit: Int[np.ndarray, " sample"]
    cost: Float64[np.ndarray, " sample"]
    score: Float64[np.ndarray, " sample"]


@final
class Service:
    """Runs an exported (or bundled) model stage by stage in a thread of its own; requests come and go while it runs."""

    def __init__(
        self,
        model: AdaptiveModel,
        *,
        max_batch: int = 32,
        max_wait_ms: float = 2.0,
        queue_limit: int = 1024,
        slo_ms: float | None = None,
        floor: float | None = None,
        shadow: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model, self.ready = model, True
        self.queue_limit = queue_limit
        self._budget: Budget | None = None
        self._lock = threading.Condition()
        self._queue: deque[tuple[Inputs, np.ndarray, Future[Answer]]] = deque()
        self._requests = self._answered = 0
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="eenet-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        inputs: Inputs,
        *,
        sample_ids: SampleIds | None = None,
        budget: BudgetLike | None = None,
        deadline_ms: float | None = None,
        max_exit: int | None = None,
    ) -> Future[Answer]:
        """Take in a request of one sample or more."""
        inputs = batch_of(inputs)
        ids = row_ids(inputs) if sample_ids is None else whole_ids(sample_ids, batch_size(inputs))
        future: Future[Answer] = Future()
        with self._lock:
            if not self.ready:
                raise Stopped("service takes no more requests.")
            if len(self._queue) >= self.queue_limit:
                raise QueueFull("queue is full.")
            self._queue.append((inputs, ids, future))
            self._requests += 1
            self._lock.notify()
        return future

    def set_budget(self, budget: BudgetLike) -> None:
        """Turn the dial; samples already inside keep the policy they entered with."""
        turned = self.model.at(budget)
        assert turned.costs is not None or turned.dial is not None
        costs = turned.costs or turned.dial.costs  # type: ignore[union-attr]
        self.model, self._budget = turned, costs.budget(budget)

    @property
    def budget(self) -> Budget | None:
        """What is asked now; None: the model's own policy decides."""
        return self._budget

    def snapshot(self) -> Snapshot:
        """Return the numbers of this moment."""
        exits = self.model.engine.num_exits
        none = Counts(_SCORES).read()
        return Snapshot(
            ready=self.ready,
            requests=self._requests,
            answered=self._answered,
            refused=0,
            cancelled=0,
            samples=self._answered,
            failures=0,
            waiting=(len(self._queue),) + (0,) * (exits - 1),
            oldest_wait_s=(0.0,) * exits,
            exits=(0,) * exits,
            batches=(none,) * exits,
            stage_ms=(None,) * exits,
            unit=None if self.model.costs is None else self.model.costs.unit,
            mean_cost=None,
            recent_cost=None,
            promised_cost=None,
            budget=self._budget,
            in_force=None,
            target=None,
            scores=(none,) * exits,
            latency_ms=Counts(_LATENCY).read(),
            shadows=0,
            agreement=None,
            promised_agreement=None,
            alarms=(),
            turns=(0, 0),
            slo_ms=None,
            recent_p99_ms=None,
        )

    def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests and finish those that were accepted; return whether all were by then."""
        self.ready = False
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while self._answered < self._requests:
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(0.005)
        return True

    def close(self) -> None:
        """Stop; what was not answered fails with `Stopped`."""
        with self._lock:
            self.ready, self._stop = False, True
            self._lock.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._stop:
                    self._lock.wait()
                if self._stop:
                    break
                inputs, ids, future = self._queue.popleft()
            try:
                out = self.model(inputs, ids)
                probabilities = np.exp(out.outputs)
                label = probabilities.argmax(axis=1)
                future.set_result(
                    Answer(
                        label=label,
                        probabilities=probabilities,
                        exit=out.exit_index,
                        cost=np.full(len(ids), np.nan) if out.cost is None else out.cost,
                        score=probabilities.max(axis=1).astype(np.float64),
                    )
                )
            except Exception as error:  # noqa: BLE001 - whatever an engine raises belongs to the request
                future.set_exception(error)
            self._answered += 1
        for _, _, future in self._queue:
            future.set_exception(Stopped("service was closed."))
