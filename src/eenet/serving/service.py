"""`Service`: runs a model stage by stage in a thread of its own, while requests come and go."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from functools import partial
from typing import Any, final

import numpy as np
from jaxtyping import Int

from eenet.errors import InputError, RunError
from eenet.running.adaptive import AdaptiveModel, SampleIds, whole_ids
from eenet.running.engines.graphs import GraphEngine, checked_inputs
from eenet.running.inputs import Inputs, batch_of, copy_of, shapes_of
from eenet.running.row_ids import row_ids
from eenet.running.sent import Sent
from eenet.serving.answers import Answer
from eenet.serving.queues import Request
from eenet.serving.resume import Resumer
from eenet.serving.steering import Steering
from eenet.serving.watch import Snapshot
from eenet.serving.worker import Worker
from eenet.tables.arrays import batch_size
from eenet.tables.checks import instance, number
from eenet.tables.costs import Budget, BudgetLike

_DEADLINE_S = 1.0  # of requests that name none: these come before those
clock = time.monotonic


class QueueFull(RunError):
    """More samples wait than are allowed.

    Attributes:
        retry_after_s: In about how many seconds there will be room.
    """

    def __init__(self, message: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Stopped(RunError):
    """The service takes no more requests: it drains, is closed, or its engine thread ended."""


@final
class Service:
    """Runs an exported (or bundled) model stage by stage in a thread of its own; requests come and go while it runs.

    Samples of all requests run together. Those that leave are answered at once, between stages; those that stay wait
    before the next stage for others, see `Queues`. Each sample follows the policy that was in force when its request
    was accepted, and is answered as `replay` of that policy answers, whatever it ran beside (logits computed at another
    batch size differ by rounding). A sample that the engine cannot run fails alone: the others of its batch run again,
    each by itself. Memory does not grow with the number of requests.

    Args:
        model: What runs; nobody else may run it as long as the service does.
        max_batch: How many samples run together.
        max_wait_ms: How long samples wait for a full batch, in milliseconds.
        queue_limit: How many samples may be inside.
        slo_ms: The 99th percentile of the latency that the budget is turned for, in milliseconds; None: it stays. Then
            no batch is made that takes more than a quarter of it.
        floor: The least utility on the calibration set, in [0, 1], that the load may turn down to.
        shadow: Share of the samples that run to the last exit too, after they were answered, to compare the answers.
            Which they are is a hash of their ids and the seed.
        seed: Of that choice.

    Raises:
        InputError: A setting is out of range, or a target for the latency is to be followed without a dial.

    Example:
        >>> from eenet import AdaptiveModel
        >>> service = Service(AdaptiveModel("export"), slo_ms=50, floor=0.9)  # doctest: +SKIP
        >>> service.submit(images).result().label  # doctest: +SKIP
    """

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
        self.model = instance(model, AdaptiveModel, "model")
        self.queue_limit = int(number(queue_limit, "queue_limit", 1, whole=True))
        self._slo_s = None if slo_ms is None else number(slo_ms, "slo_ms", above=0) / 1e3
        self._resumer = Resumer(model)
        self._steering = Steering(model, self._slo_s, floor, clock())
        self._worker = Worker(
            model,
            self._steering,
            max_batch=int(number(max_batch, "max_batch", 1, whole=True)),
            max_wait_s=number(max_wait_ms, "max_wait_ms", 0) / 1e3,
            slo_s=self._slo_s,
            shadow=number(shadow, "shadow", 0, 1),
            seed=int(number(seed, "seed", whole=True)),
            answer=self._answer,
            stopped=Stopped,
        )
        self._cumulative = None if self._steering.costs is None else np.array(self._steering.costs.cumulative)
        self._worker.start()

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._worker.open

    @property
    def budget(self) -> Budget | None:
        """What is asked now; None: the model's own policy decides."""
        return self._steering.asked

    def submit(
        self,
        inputs: Inputs,
        *,
        sample_ids: SampleIds | None = None,
        budget: BudgetLike | None = None,
        deadline_ms: float | None = None,
        max_exit: int | None = None,
    ) -> Future[Answer]:
        """Take in a request, and return at once; any thread may call it.

        Args:
            inputs: One sample or more: an array, or a mapping of them by name, batch first. They are copied.
            sample_ids: Names of the samples, for policies that toss a coin; default: a hash of their contents.
            budget: A mean cost per sample for this request alone; the service's budget is kept without it.
            deadline_ms: By when it is to be answered, in milliseconds from now: it comes before requests with a later
                one, and its samples leave early, at exit 0 at least, where a further stage would take too long.
            max_exit: The exit, 0-based, at which its samples leave at the latest.

        Returns:
            The answer, or the error of a sample that could not be run. A request whose future is cancelled is dropped.

        Raises:
            BudgetError: As of `AdaptiveModel.at`.
            InputError: Inputs that the model does not take, as far as that is known beforehand, more samples than may
                be inside, ids that are no whole numbers, no such exit, or a deadline that is not positive.
            QueueFull: As many samples are inside as may be.
            ShapeError: Inputs of another shape, or another number of ids.
            Stopped: The service takes no more requests.
        """
        inputs = self._checked(batch_of(inputs))
        count = batch_size(inputs)
        self._require_room(count)
        ids = content_ids(inputs) if sample_ids is None else whole_ids(sample_ids, count)
        strict = deadline_ms is not None
        within = number(deadline_ms, "deadline_ms", above=0) / 1e3 if strict else self._slo_s or _DEADLINE_S
        own, promised = self._steering.policies(ids, budget, max_exit)
        now = clock()
        request: Request[Answer] = Request(
            inputs=inputs,
            ids=ids,
            own=own,
            shapes=shapes_of(inputs),
            future=Future(),
            accepted=now,
            deadline=now + within,
            strict=strict,
            steered=budget is None and max_exit is None and not strict,
            promised=math.nan if strict else promised,
        )
        return self._accepted(request)

    def _require_room(self, count: int) -> None:
        if not 1 <= count <= self.queue_limit:
            raise InputError(
                f"inputs of {count} samples do not fit: a request has from 1 to {self.queue_limit}. Send them in parts."
            )

    def _accepted(self, request: Request[Answer]) -> Future[Answer]:
        if not self._worker.accept(request, self.queue_limit):
            raise QueueFull(
                f"queue of {self.queue_limit} samples is full: {len(request.ids)} more cannot be accepted. Try again "
                "later.",
                self._worker.room_in_s(),
            )
        return request.future

    def resume(self, state: bytes) -> Future[Answer]:
        """Take in samples that a weak device began, and return at once; any thread may call it.

        They follow the model's own policy, as on the device, whatever the budget of the service; they run by
        themselves, between two batches of others.

        Args:
            state: The `TierResult.state` of the device; it is checked, and no code in it is run.

        Returns:
            The answers, in the order of the samples in the state; or the error of `Resumer`.

        Raises:
            InputError: The bytes are damaged, of another version, or of more samples than may be inside.
            QueueFull: As many samples are inside as may be.
            Stopped: The service takes no more requests.
        """
        sent = Sent.from_bytes(state)
        self._require_room(len(sent.ids))
        now = clock()
        request: Request[Answer] = Request(
            inputs=(),
            ids=sent.ids,
            own=np.empty(0, dtype=object),
            shapes=None,
            future=Future(),
            accepted=now,
            deadline=now + _DEADLINE_S,
            steered=False,
            run=partial(self._resumer, sent),
        )
        return self._accepted(request)

    def set_budget(self, budget: BudgetLike) -> None:
        """Turn the dial, for all requests from now on; those inside keep the policy that they were accepted with.

        Args:
            budget: A mean cost per sample: a number in the unit of the model's costs, with a unit, or a percentage.

        Raises:
            BudgetError: As of `AdaptiveModel.at`.
            InputError: As of `AdaptiveModel.at`.
        """
        self._steering.set_budget(budget)
        self._worker.turned()

    def snapshot(self) -> Snapshot:
        """Return the numbers of this moment."""
        return self._worker.snapshot()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests, and wait for those that were accepted; return whether all were answered by then."""
        return self._worker.drain(timeout_s)

    def close(self) -> None:
        """Stop; requests that have no answer yet fail with `Stopped`."""
        self._worker.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _checked(self, inputs: Inputs) -> Inputs:
        """Return inputs that the model takes, as arrays of the service's own."""
        engine = self.model.engine
        if isinstance(engine, GraphEngine):
            arrays = checked_inputs(inputs, engine.inputs)
            named = isinstance(inputs, dict)
            inputs = dict(zip((one.name for one in engine.inputs), arrays, strict=True)) if named else arrays[0]
        return copy_of(inputs)

    def _answer(self, request: Request[Answer]) -> Answer:
        probabilities, exits = request.probabilities, request.exits
        assert probabilities is not None
        label = probabilities.argmax(axis=1)
        return Answer(
            label=label,
            probabilities=probabilities,
            exit=exits,
            cost=np.full(len(exits), math.nan) if self._cumulative is None else self._cumulative[exits],
            score=probabilities[np.arange(len(label)), label].astype(np.float64),
        )


def content_ids(inputs: Any) -> Int[np.ndarray, " sample"]:  # noqa: ANN401 - as of `batch_of`
    """Return a hash of every sample's content, of all its arrays."""
    if not isinstance(inputs, dict):
        return row_ids(inputs)
    ids = np.zeros(batch_size(inputs), dtype=np.int64)
    for name in sorted(inputs):
        ids = ids * 1_000_003 + row_ids(inputs[name])
    return ids
