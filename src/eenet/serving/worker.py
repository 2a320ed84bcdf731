"""The thread that runs the engine: takes samples out of the queues, stage by stage, and answers those that leave."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from eenet.errors import EenetError, InputError
from eenet.log import logger
from eenet.policies.mixture import coin
from eenet.policies.policy import static_policy
from eenet.policies.scorers import ConfidenceScorer
from eenet.running.adaptive import AdaptiveModel
from eenet.running.inputs import rows_of
from eenet.running.loop import Group, Loop
from eenet.serving.queues import Block, Entry, Picked, Queues, Request, first_groups, later_groups
from eenet.serving.slo import StageTimes
from eenet.serving.steering import Steering
from eenet.serving.watch import Snapshot, Watch

_SHARE = 0.25  # of the target for the latency, that one batch may take
_SHADOWS = 256  # that may be inside; further ones are left out
_SALT = 0x5AD0  # so that the choice of shadows is no coin of a policy
clock = time.monotonic


class Worker:
    """Runs what `Service` accepts, in a thread of its own.

    Everything that it shares with other threads is behind one lock; the engine and the answers are not.

    Args:
        model: As of `Service`.
        steering: Gives policies.
        max_batch: As of `Service`.
        max_wait_s: In seconds.
        slo_s: In seconds.
        shadow: As of `Service`.
        seed: As of `Service`.
        answer: Makes the answer of a request all of whose samples have left.
        stopped: The error of requests that are not answered any more.
    """

    def __init__(
        self,
        model: AdaptiveModel,
        steering: Steering,
        *,
        max_batch: int,
        max_wait_s: float,
        slo_s: float | None,
        shadow: float,
        seed: int,
        answer: Callable[[Request[Any]], Any],
        stopped: type[EenetError],
    ) -> None:
        self._model, self._steering, self._slo_s = model, steering, slo_s
        self._shadow, self._seed, self._max_batch = shadow, seed + _SALT, max_batch
        self._answer, self._stopped = answer, stopped
        self.open, self._closed = True, False
        self._last = model.engine.num_exits - 1
        self._queues = Queues(self._last + 1, max_batch, max_wait_s)
        self._times = StageTimes(self._last + 1)
        self._watch = Watch(self._last + 1, max_batch)
        self._cumulative = (math.nan,) * (self._last + 1) if steering.costs is None else steering.costs.cumulative
        self._lock = threading.Condition()
        self._next_place = 0
        self._requests: dict[int, Request[Any]] = {}  # by the number of each sample that is inside
        self._comparing = 0  # how many of these run only to be compared
        self._thread = threading.Thread(target=self._run, name="eenet-engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    # --- called by other threads -------------------------------------------------------------------------------------

    def accept(self, request: Request[Any], limit: int) -> bool:
        """Let a request wait before stage 0; return False where too many samples are inside.

        Raises:
            Stopped: No request is taken any more.
        """
        with self._lock:
            if not self.open:
                raise self._stopped("service takes no more requests: it is being stopped. Send them elsewhere.")
            if self.inside + len(request.ids) > limit:
                self._watch.refused += 1
                return False
            self._watch.requests += 1
            self._admit(request)
            self._lock.notify_all()
        return True

    @property
    def inside(self) -> int:
        """How many samples are inside that wait for an answer."""
        return len(self._requests) - self._comparing

    def room_in_s(self) -> float:
        """Return in about how many seconds half of what waits now will have left."""
        with self._lock:
            return max(self._times.work(self._queues.waiting()) / 2, 0.01)

    def turned(self) -> None:
        """Take in that another budget is in force."""
        with self._lock:
            self._watch.turned(self._steering.bound())

    def drain(self, timeout_s: float | None) -> bool:
        """See `Service.drain`."""
        with self._lock:
            self.open = False
            return self._lock.wait_for(lambda: not self.inside or self._closed, timeout_s) and not self.inside

    def close(self) -> None:
        """See `Service.close`."""
        with self._lock:
            self.open, self._closed = False, True
            self._lock.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def snapshot(self) -> Snapshot:
        """See `Service.snapshot`."""
        steering, watch = self._steering, self._watch
        controller, follower = steering.controller, steering.follower
        with self._lock:
            return Snapshot(
                ready=self.open,
                requests=watch.requests,
                answered=watch.answered,
                refused=watch.refused,
                cancelled=watch.cancelled,
                samples=watch.samples,
                failures=watch.failures,
                waiting=self._queues.waiting(),
                oldest_wait_s=self._queues.oldest_wait(clock()),
                exits=tuple(watch.exits),
                batches=tuple(one.read() for one in watch.batches),
                stage_ms=self._times.recent_ms(),
                unit=None if steering.costs is None else steering.costs.unit,
                mean_cost=watch.spent / watch.samples if watch.samples and steering.costs else None,
                recent_cost=watch.recent_cost,
                promised_cost=watch.promised_cost,
                budget=steering.asked,
                in_force=None if controller is None else controller.budget,
                target=None if controller is None else controller.target,
                scores=tuple(one.read() for one in watch.scores),
                latency_ms=watch.latencies.read(),
                shadows=watch.shadows,
                agreement=watch.agreement,
                promised_agreement=watch.promised_agreement,
                alarms=tuple(watch.alarms.values()),
                turns=(0, 0) if follower is None else (follower.turned_down, follower.turned_up),
                slo_ms=None if self._slo_s is None else 1e3 * self._slo_s,
                recent_p99_ms=watch.p99_ms,
            )

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        reason = "service was closed before this request was answered. Send it elsewhere."
        try:
            while (work := self._next()) is not None:
                work()
        except BaseException as error:  # nobody may wait for a thread that is not there any more
            logger.exception("the engine thread ended")
            reason = f"engine thread ended: {type(error).__name__}: {error}. Start the service again."
            if not isinstance(error, Exception):
                raise
        finally:
            with self._lock:
                self.open, self._closed = False, True
                lost = {id(one): one for one in self._requests.values()}
                self._requests.clear()
                self._comparing = 0
                self._queues.clear()
            for request in lost.values():
                if not request.future.done():
                    self._fail(request, self._stopped(reason))
            with self._lock:
                self._lock.notify_all()

    def _next(self) -> Callable[[], None] | None:
        """Wait for the samples that run next, take them out, and return what runs them; None: the end."""
        with self._lock:
            while not self._closed:
                chosen = self._queues.choose(clock())
                if (request := self._queues.take_at_once(due=isinstance(chosen, tuple))) is not None:
                    return partial(self._answer_at_once, request)
                if isinstance(chosen, tuple):
                    stage, shapes = chosen
                    most = self._max_batch
                    if self._slo_s is not None:
                        most = self._times.most(stage, _SHARE * self._slo_s, most)
                    return partial(self._step, stage, shapes, self._queues.take(stage, shapes, most))
                self._lock.wait(chosen)
        return None

    def _answer_at_once(self, request: Request[Any]) -> None:
        assert request.run is not None
        try:
            answer = request.run()
        except Exception as error:  # noqa: BLE001 - whatever an engine or a policy raises belongs to the request
            with self._lock:
                self._watch.failures += len(request.ids)
            self._fail(request, request.failed(request.first, error))
        else:
            with self._lock:
                for k in np.unique(answer.exit).tolist():
                    self._count(k, [request] * int((answer.exit == k).sum()), answer.probabilities[answer.exit == k])
                self._watch.latency(clock() - request.accepted)
            if request.future.set_running_or_notify_cancel():
                request.future.set_result(answer)
        self._drop(request)

    def _step(self, stage: int, shapes: Hashable, picked: Picked) -> None:
        """Run a stage for the samples that were taken out."""
        picked = self._wanted(picked)
        if not picked:
            return
        began = clock()
        loop = Loop(self._model.engine, self._model.policy)
        size = sum(len(rows) for _, rows in picked)
        try:
            with loop.engine.session():
                group = loop.joined(
                    first_groups(self._model, picked) if not stage else later_groups(loop, stage, picked)
                )
                self._hurry(stage, group, began)
                rest = loop.through(group, stage, stage)
            if not all(part.classes for part in loop.left):
                raise InputError("exits return no classes: a service answers with these. Run the model by itself.")
        except Exception as error:  # noqa: BLE001 - whatever an engine or a policy raises belongs to the samples
            self._fault(picked, error)
            return
        now = clock()
        with self._lock:
            self._watch.batches[stage].add(size)
            self._times.update(stage, size, 0 if rest is None else len(rest.ids), now - began)
            if rest is not None:
                self._put(stage + 1, shapes, rest, now)
        self._leave(loop, now)
        with self._lock:
            work = self._times.work(self._queues.waiting())
        if self._steering.look(now, work):
            self.turned()

    def _wanted(self, picked: Picked) -> Picked:
        """Return those samples whose requests still wait for an answer."""
        kept = []
        for block, rows in picked:
            places = block.places(rows)
            requests = [self._requests.get(place) for place in places]
            stays = [one is not None and not one.future.cancelled() for one in requests]
            for request in {id(one): one for one in requests if one is not None and one.future.cancelled()}.values():
                self._drop(request)
                self._watch.cancelled += 1
            if all(stays):
                kept.append((block, rows))
            elif any(stays):
                kept.append((block, rows[np.array(stays)]))
        return kept

    def _hurry(self, stage: int, group: Group, now: float) -> None:
        """Let samples leave here whose deadline leaves no time for another stage."""
        if stage == self._last:
            return
        after = now + self._times.of(stage, len(group.ids)) + self._times.of(stage + 1, 1)
        for row, place in enumerate(group.places.tolist()):
            request = self._requests[place]
            if request.strict and after > request.deadline:
                assert group.own is not None
                group.own[row] = self._steering.up_to(group.own[row], stage)

    def _put(self, stage: int, shapes: Hashable, group: Group, now: float) -> None:
        block = Block(group, now, len(group.ids))
        places = group.places.tolist()
        entries = [Entry(self._requests[place].deadline, place, block, row) for row, place in enumerate(places)]
        self._queues.put(stage, shapes, block, entries)

    def _admit(self, request: Request[Any]) -> None:
        """Number the samples of a request, and let them wait before stage 0."""
        request.first, request.missing = self._next_place, len(request.ids)
        self._next_place += len(request.ids)
        for place in request.places:
            self._requests[place] = request
        if request.run is not None:
            self._queues.at_once.append(request)
            return
        self._comparing += request.compared is not None
        block = Block(request, clock(), len(request.ids))
        entries = [Entry(request.deadline, place, block, row) for row, place in enumerate(request.places)]
        self._queues.put(0, request.shapes, block, entries)

    def _leave(self, loop: Loop, now: float) -> None:
        """Answer the samples that left."""
        complete: list[Request[Any]] = []
        with self._lock:
            for part in loop.left:
                probabilities = np.exp(part.answers)
                found = [(self._requests[place], place) for place in part.places.tolist()]
                labels = probabilities.argmax(axis=1).tolist()
                rows = [row for row, (request, _) in enumerate(found) if request.compared is None]
                for (request, _), label in zip(found, labels, strict=True):
                    if request.compared is not None:
                        self._watch.shadow(request.compared == label)
                for row in rows:
                    request, place = found[row]
                    if request.take(place - request.first, part.exit_index, probabilities[row]):
                        complete.append(request)
                if rows:
                    self._count(part.exit_index, [found[row][0] for row in rows], probabilities[rows])
                    self._compare(part.exit_index, [found[row] for row in rows], [labels[row] for row in rows])
            for request in complete:
                self._watch.latency(now - request.accepted)
                if self._steering.follower is not None:
                    self._steering.follower.answered(now - request.accepted)
        for request in complete:  # without the lock: whoever waits may call back
            if request.future.set_running_or_notify_cancel():
                request.future.set_result(self._answer(request))
        self._forget([place for part in loop.left for place in part.places.tolist()])

    def _count(self, exit_index: int, requests: list[Request[Any]], probabilities: np.ndarray) -> None:
        """Take in what samples that left at one exit were answered, and what they cost."""
        cost = self._cumulative[exit_index]
        self._watch.left(exit_index, probabilities.max(axis=1), cost, [one.promised for one in requests])
        steered = sum(one.steered for one in requests)
        if steered and self._steering.controller is not None:
            self._steering.controller.update(cost, steered)

    def _compare(self, exit_index: int, found: list[tuple[Request[Any], int]], labels: list[int]) -> None:
        """Let a random share of the samples run to the last exit, behind all others."""
        if not self._shadow:
            return
        ids = np.array([request.ids[place - request.first] for request, place in found])
        for row in np.flatnonzero(coin(ids, self._seed) < self._shadow).tolist():
            request, place = found[row]
            if exit_index == self._last:
                self._watch.shadow(True)
            elif self.open and self._comparing < _SHADOWS:
                of = np.array([place - request.first])
                own = np.empty(1, dtype=object)
                own[0] = static_policy(ConfidenceScorer("max_prob"), self._last, self._last + 1)
                self._admit(
                    Request(
                        inputs=rows_of(request.inputs, of),
                        ids=request.ids[of],
                        own=own,
                        shapes=request.shapes,
                        future=Future(),
                        accepted=request.accepted,
                        deadline=math.inf,
                        compared=labels[row],
                    )
                )

    def _fault(self, picked: Picked, error: Exception) -> None:
        """Let the samples of a batch that failed run again, each by itself; the one that fails so is to blame."""
        places = [place for block, rows in picked for place in block.places(rows)]
        if len(places) == 1:
            request = self._requests[places[0]]
            if request.compared is None:
                self._watch.failures += request.missing
            self._fail(request, request.failed(places[0], error))
            self._drop(request)
            return
        logger.warning("a batch of %d samples failed and runs again, one by one: %s", len(places), error)
        now = clock()
        with self._lock:
            for place in places:
                request = self._requests[place]
                block = Block(request, now, 1)
                entry = Entry(request.deadline, place, block, place - request.first)
                self._queues.put(0, (request.shapes, place), block, [entry])

    def _drop(self, request: Request[Any]) -> None:
        """Forget a request; those of its samples that still wait are left out when their turn comes."""
        self._forget(request.places)

    def _forget(self, places: Iterable[int]) -> None:
        with self._lock:
            for place in places:
                request = self._requests.pop(place, None)
                self._comparing -= request is not None and request.compared is not None
            if not self.inside:
                self._lock.notify_all()

    @staticmethod
    def _fail(request: Request[Any], error: Exception) -> None:
        if request.future.set_running_or_notify_cancel():
            request.future.set_exception(error)
