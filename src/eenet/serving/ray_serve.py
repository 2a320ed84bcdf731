"""A model beyond one machine, by Ray Serve: one deployment per stage, and one that answers HTTP."""

from __future__ import annotations

import asyncio
import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from eenet.errors import EenetError, InputError, RunError, require
from eenet.log import logger
from eenet.running.adaptive import AdaptiveModel, SampleIds, whole_ids
from eenet.running.engines.graphs import GraphEngine, checked_inputs
from eenet.running.exports import open_export
from eenet.running.inputs import Inputs
from eenet.running.loop import Prediction
from eenet.serving.answers import Answer, as_answer
from eenet.serving.app import make_app
from eenet.serving.door import Limits
from eenet.serving.served import Served
from eenet.serving.service import QueueFull, content_ids
from eenet.serving.slo import StageTimes
from eenet.serving.stages import Outcome, Parcel, Stage, asked_of_dial
from eenet.serving.steering import Steering
from eenet.serving.watch import Snapshot, Watch
from eenet.tables.arrays import batch_size
from eenet.tables.checks import number
from eenet.tables.costs import Budget, BudgetLike

_PAUSE_S = 0.2  # before a stage is asked again whose replica is gone
_BATCHES = 2  # of the largest size, that a replica is given at a time: one runs, one waits
clock = time.monotonic


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `ray_app` was asked for; see there."""

    export: str
    name: str
    budget: str | float | None
    max_batch: int
    max_wait_s: float
    queue_limit: int
    retry_s: float
    threads: int
    token: str | None


def ray_app(
    export: str | os.PathLike[str],
    *,
    name: str | None = None,
    budget: str | float | None = None,
    max_batch: int = 32,
    max_wait_ms: float = 2.0,
    queue_limit: int = 1024,
    max_replicas: int = 4,
    num_cpus: float = 0.1,
    threads: int = 1,
    retry_s: float = 30.0,
    token: str | None = None,
) -> Any:  # noqa: ANN401 - an Application of Ray Serve
    """Return an exported model as an application of Ray Serve, to be started by ``serve.run``.

    Every stage is a deployment of its own, whose replicas have the weights of that stage only, make batches, and
    become more or fewer by how many requests wait for them. The ingress is one replica with the HTTP surface of
    ``eenet serve``; it knows the budget, which goes with each request, so that all stages decide alike. Where a replica
    is gone, it asks again: what a stage does depends on nothing but what it is given. Answers are those of
    `AdaptiveModel`, by the same loop. Shadows, and a budget that follows the load, are left to ``eenet serve``.

    Args:
        export: The folder; every machine of the cluster finds it at this path.
        name: Of the model in addresses; default: that of the folder.
        budget: A mean cost per sample, to begin with; default: the export's own policy decides.
        max_batch: How many requests run together in a stage.
        max_wait_ms: How long requests wait for a full batch, in milliseconds.
        queue_limit: How many samples may be inside.
        max_replicas: Of each stage; it has one at least.
        num_cpus: What Ray sets aside for each replica, the ingress included.
        threads: Of the engine of each replica.
        retry_s: For how long the ingress asks a stage again whose replicas are gone, in seconds.
        token: That requests must bring; None: none.

    Raises:
        BundleError, InputError: It is no export of a whole model, or a setting is out of range.
        MissingExtraError: Ray, or the engine, is not installed.

    Example:
        >>> from ray import serve  # doctest: +SKIP
        >>> serve.run(ray_app("exported", budget="60%"))  # doctest: +SKIP
    """
    require("ray", reason="ray_app needs it")
    from ray import serve

    folder = Path(export).resolve()
    model = _opened(folder, threads)
    if budget is not None:
        model.at(budget)  # refused here, not in a replica
    settings = Settings(
        export=str(folder),
        name=name or folder.name,
        budget=budget,
        max_batch=int(number(max_batch, "max_batch", 1, whole=True)),
        max_wait_s=number(max_wait_ms, "max_wait_ms", 0) / 1e3,
        queue_limit=int(number(queue_limit, "queue_limit", 1, whole=True)),
        retry_s=number(retry_s, "retry_s", 0),
        threads=int(number(threads, "threads", 1, whole=True)),
        token=token,
    )
    most = int(number(max_replicas, "max_replicas", 1, whole=True))
    inside = _BATCHES * settings.max_batch
    shared: dict[str, Any] = {"ray_actor_options": {"num_cpus": number(num_cpus, "num_cpus", 0)}}
    scaling = {"min_replicas": 1, "max_replicas": most, "target_ongoing_requests": settings.max_batch}
    stages = [
        serve.deployment(
            StageReplica, name=f"stage_{k}", max_ongoing_requests=inside, autoscaling_config=scaling, **shared
        ).bind(settings, k)
        for k in range(model.engine.num_exits)
    ]
    ingress = serve.deployment(
        Ingress, name="ingress", num_replicas=1, max_ongoing_requests=4 * settings.queue_limit, **shared
    )
    return ingress.bind(settings, *stages)


def _opened(folder: Path, threads: int) -> AdaptiveModel:
    opened = open_export(folder, threads)
    return AdaptiveModel(opened.engine, opened.policy, opened.costs, dial=opened.dial, check_source=False)


class StageReplica:
    """One replica of one stage."""

    def __init__(self, settings: Settings, index: int) -> None:
        from ray import serve

        stage, thread = Stage(settings.export, index, settings.threads), ThreadPoolExecutor(1)

        @serve.batch(max_batch_size=settings.max_batch, batch_wait_timeout_s=settings.max_wait_s)  # type: ignore[untyped-decorator]
        async def batched(parcels: list[Parcel]) -> list[Outcome]:
            # in a thread, so that the next batch gathers meanwhile
            return await asyncio.get_running_loop().run_in_executor(thread, stage.run, parcels)

        self._batched = batched

    async def run(self, parcel: Parcel) -> Outcome:
        """Run a parcel, together with others that come at about the same time."""
        outcome: Outcome = await self._batched(parcel)
        return outcome


class Ingress:
    """Answers HTTP, and carries samples from stage to stage."""

    def __init__(self, settings: Settings, *stages: Any) -> None:  # noqa: ANN401 - handles of Ray
        opened = open_export(settings.export, settings.threads)
        model = AdaptiveModel(opened.engine, opened.policy, opened.costs, dial=opened.dial, check_source=False)
        manifest = opened.manifest
        served = Served(name=settings.name, model=model, classes=manifest.classes, preparation=manifest.preparation)
        self.service = RayService(model, stages, settings)
        service: Any = self.service  # has what the surface asks of a `Service`
        self._app = make_app(served, service, token=settings.token, limits=Limits())

    async def __call__(self, request: Request) -> Response:
        """Answer a request of HTTP by the application that ``eenet serve`` has."""
        status, headers, parts = 500, [], []

        async def send(message: Any) -> None:  # noqa: ANN401 - of ASGI
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], message["headers"]
            else:
                parts.append(message.get("body", b""))

        await self._app(request.scope, request.receive, send)
        response = Response(b"".join(parts), status)
        response.raw_headers = list(headers)
        return response

    async def predict(self, inputs: Inputs, **asked: Any) -> Answer:  # noqa: ANN401 - see `RayService.submit`
        """Answer samples without HTTP: ``handle.predict.remote(inputs, budget="60%")``."""
        return await asyncio.wrap_future(self.service.submit(inputs, **asked))


class RayService:
    """What `Service` is to its surface, with stages elsewhere; to be used within one event loop.

    Args:
        model: For its inputs, costs, policy and dial; it does not run here.
        stages: Handles of the stages' deployments.
        settings: As of `ray_app`.
    """

    def __init__(self, model: AdaptiveModel, stages: Any, settings: Settings) -> None:  # noqa: ANN401
        self.model, self._stages, self._settings = model, stages, settings
        assert isinstance(model.engine, GraphEngine)
        self._specs = model.engine.inputs
        self._steering = Steering(model, None, None, clock())
        self._watch = Watch(len(stages), settings.max_batch)
        self._times = StageTimes(len(stages))
        self._waiting = [0] * len(stages)
        costs = self._steering.costs
        self._cumulative = np.full(len(stages), math.nan) if costs is None else np.array(costs.cumulative)
        self._inside = 0
        self._lost = _errors_of_ray()
        self.ready = True
        if settings.budget is not None:
            self.set_budget(settings.budget)

    def set_budget(self, budget: BudgetLike) -> None:
        """See `Service.set_budget`."""
        self._steering.set_budget(budget)

    @property
    def budget(self) -> Budget | None:
        """See `Service.budget`."""
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
        """See `Service.submit`; samples whose deadline is over leave at the exit that they have seen last."""
        arrays = dict(zip((one.name for one in self._specs), checked_inputs(inputs, self._specs), strict=True))
        count = batch_size(arrays)
        if count > self._settings.queue_limit:
            raise InputError(
                f"inputs of {count} samples do not fit: a request has from 1 to {self._settings.queue_limit}. Send "
                "them in parts."
            )
        ids = content_ids(arrays if len(arrays) > 1 else next(iter(arrays.values())))
        ids = ids if sample_ids is None else whole_ids(sample_ids, count)
        until = math.inf if deadline_ms is None else clock() + number(deadline_ms, "deadline_ms", above=0) / 1e3
        _, promised = self._steering.policies(ids[:1], budget, max_exit)  # refuses what cannot be asked for
        parcel = Parcel(ids=ids, inputs=arrays, budget=self._asked(budget), max_exit=max_exit)
        if self._inside + count > self._settings.queue_limit:
            self._watch.refused += 1
            raise QueueFull(f"queue of {self._settings.queue_limit} samples is full: {count} more cannot be accepted.")
        self._inside += count
        self._watch.requests += 1
        steered = budget is None and max_exit is None and deadline_ms is None
        carried = self._carried(parcel, until, promised if steered else math.nan)
        return asyncio.run_coroutine_threadsafe(carried, asyncio.get_running_loop())

    def resume(self, state: bytes) -> Future[Answer]:
        """Refuse samples that a weak device began."""
        raise InputError(
            f"state of {len(state)} bytes is not taken here: stages in Ray begin with inputs. Send it to eenet serve."
        )

    def _asked(self, budget: BudgetLike | None) -> float | None:
        """Return what stages are to ask of the dial, in its unit; None: the export's own policy decides."""
        if budget is not None:
            return asked_of_dial(self.model, budget)
        controller, dial, costs = self._steering.controller, self.model.dial, self._steering.costs
        if controller is None or dial is None or costs is None:
            return None
        return max(controller.steering()[1] * (costs.factor(dial.costs) or 1.0), dial.costs.low)

    async def _carried(self, parcel: Parcel, until: float, promised: float) -> Answer:
        """Carry samples from stage to stage, and return what they are answered."""
        began, count = clock(), len(parcel.ids)
        exits, places = np.zeros(count, dtype=np.int64), np.arange(count)
        found: np.ndarray | None = None
        rest: Parcel | None = parcel
        try:
            for k in range(len(self._stages)):
                if rest is None:
                    break
                outcome = await self._ran(k, rest)
                rest, late = outcome.rest, clock() > until
                leaving = [(outcome.left, outcome.log_probs)] + [(outcome.stay, outcome.so_far)] * late
                for rows, log_probs in leaving:
                    if log_probs is None or not len(rows):
                        continue
                    if found is None:
                        found = np.empty((count, log_probs.shape[1]), dtype=np.float32)
                    found[places[rows]], exits[places[rows]] = log_probs, k
                rest = None if late else rest
                places = places[outcome.stay]
        except EenetError:
            self._watch.failures += count
            raise
        finally:
            self._inside -= count
        assert found is not None
        answer = as_answer(Prediction(exit_index=exits, log_probs=found, outputs=found, cost=self._cumulative[exits]))
        self._count(answer, promised, clock() - began)
        return answer

    async def _ran(self, k: int, parcel: Parcel) -> Outcome:
        """Ask a stage, and ask again where its replica is gone."""
        until, count = clock() + self._settings.retry_s, len(parcel.ids)
        self._waiting[k] += count
        try:
            while True:
                try:
                    outcome: Outcome = await self._stages[k].run.remote(parcel)
                    break
                except self._lost as error:
                    if clock() > until:
                        raise RunError(
                            f"stage {k} does not answer for {self._settings.retry_s:g} s: {type(error).__name__}. "
                            "Look at its replicas in the log of Ray."
                        ) from error
                    logger.warning("stage %d is asked again: %s", k, type(error).__name__)
                    await asyncio.sleep(_PAUSE_S)
        finally:
            self._waiting[k] -= count
        if outcome.error is not None:
            raise outcome.error
        if outcome.ran is not None:
            size, stayed, seconds = outcome.ran
            self._times.update(k, size, stayed, seconds)
            self._watch.batches[k].add(size)
        return outcome

    def _count(self, answer: Answer, promised: float, seconds: float) -> None:
        """Take in an answer; the budget is kept by what it cost."""
        self._watch.latency(seconds)
        for k in np.unique(answer.exit).tolist():
            rows = answer.exit == k
            cost, many = float(self._cumulative[k]), int(rows.sum())
            self._watch.left(k, answer.score[rows], cost, [promised] * many)
            if self._steering.controller is not None and not math.isnan(promised):
                self._steering.controller.update(cost, many)

    def snapshot(self) -> Snapshot:
        """See `Service.snapshot`; ``waiting`` are the samples that were sent to a stage and have not come back."""
        watch, steering = self._watch, self._steering
        controller, stages = steering.controller, len(self._stages)
        return Snapshot(
            ready=self.ready,
            requests=watch.requests,
            answered=watch.answered,
            refused=watch.refused,
            cancelled=watch.cancelled,
            samples=watch.samples,
            failures=watch.failures,
            waiting=tuple(self._waiting),
            oldest_wait_s=(0.0,) * stages,
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
            shadows=0,
            agreement=None,
            promised_agreement=None,
            alarms=tuple(watch.alarms.values()),
            turns=(0, 0),
            slo_ms=None,
            recent_p99_ms=watch.p99_ms,
        )


def _errors_of_ray() -> tuple[type[Exception], ...]:
    """Return what is raised where a replica is gone, and not by what it ran."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    return RayError, RayServeException
