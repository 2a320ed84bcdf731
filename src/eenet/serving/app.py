"""The HTTP surface of a service: the Open Inference Protocol, the dial, the numbers, and pages for people."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from eenet.errors import EenetError
from eenet.running.inputs import Inputs
from eenet.running.pipeline import ranked
from eenet.serving import metrics, pages
from eenet.serving.answers import Answer
from eenet.serving.door import Door, Limits, error_response
from eenet.serving.forms import Form, read_form
from eenet.serving.protocol import (
    LENGTH_HEADER,
    OUTPUTS,
    InferRequest,
    model_metadata,
    read_budget,
    read_request,
    write_response,
)
from eenet.serving.served import Served
from eenet.serving.service import Service
from eenet.tables.arrays import batch_size
from eenet.tables.costs import CostTable

_POLICY = "default-src 'self'; img-src data:; frame-ancestors 'none'"
_SAFE = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
_JSON, _BINARY = "application/json", "application/octet-stream"


def make_app(served: Served, service: Service, *, token: str | None = None, limits: Limits | None = None) -> FastAPI:
    """Return the application that answers requests by a service.

    Args:
        served: The model, by the name under which it is asked for.
        service: Runs it; started and closed by the caller.
        token: That requests must bring as ``Authorization: Bearer``; None: everybody who reaches the server may ask.
        limits: Of requests.
    """
    api = Api(served, service, Door(token, limits or Limits()))
    app = FastAPI(
        title=f"eenet: {served.name}",
        version=version("eenet"),
        docs_url=None,  # these load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
    )
    for kind in (EenetError, HTTPException, Exception):
        app.add_exception_handler(kind, error_response)
    app.include_router(api.open())
    app.include_router(api.guarded(), dependencies=[Depends(api.door.check)])
    app.add_api_route("/openapi.json", lambda: JSONResponse(app.openapi()), include_in_schema=False)
    app.add_api_route("/docs", lambda: HTMLResponse(pages.docs(app.openapi()), headers=_SAFE), include_in_schema=False)
    return app


class Api:
    """What is answered at each address.

    Args:
        served: The model.
        service: Runs it.
        door: Lets requests in.
    """

    def __init__(self, served: Served, service: Service, door: Door) -> None:
        self.served, self.service, self.door = served, service, door
        # one thread: tokenizers are not made for several, and pictures leave the other cores to the engine
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="eenet-prepare")

    def open(self) -> APIRouter:
        """Return what needs no token: signs of life, and the page without its numbers."""
        router = APIRouter()
        router.add_api_route("/v2/health/live", self.live, summary="Whether the server is up")
        router.add_api_route("/v2/health/ready", self.ready, summary="Whether requests are taken")
        for path, content, kind in pages.FILES:
            router.add_api_route(path, pages.answer(content, kind, _SAFE), include_in_schema=False)
        return router

    def guarded(self) -> APIRouter:
        """Return what needs the token, where there is one."""
        router, model = APIRouter(), "/v2/models/{model}"
        router.add_api_route("/v2", self.server, summary="The server and its extensions of the protocol")
        router.add_api_route(model, self.metadata, summary="What the model takes and returns")
        router.add_api_route(f"{model}/ready", self.model_ready, summary="Whether requests are taken")
        for named in ("", "/versions/1"):
            router.add_api_route(
                f"{model}{named}/infer",
                self.infer,
                methods=["POST"],
                summary="Answer samples",
                openapi_extra=pages.INFER_BODY,
                include_in_schema=not named,
            )
        router.add_api_route(
            f"{model}/resume",
            self.resume,
            methods=["POST"],
            summary="Go on with samples that a weak device began",
            openapi_extra=pages.RESUME_BODY,
        )
        router.add_api_route(f"{model}/budget", self.budget, summary="The budget that is asked, and its range")
        router.add_api_route(
            f"{model}/budget",
            self.turn,
            methods=["PUT"],
            summary="Turn the dial; samples that are inside keep their budget",
            openapi_extra=pages.BUDGET_BODY,
        )
        router.add_api_route(
            "/predict",
            self.predict,
            methods=["POST"],
            summary="Answer pictures or texts",
            openapi_extra=pages.PREDICT_BODY,
        )
        router.add_api_route("/numbers", self.numbers, summary="What the page shows")
        router.add_api_route("/metrics", self.metrics, summary="Metrics for Prometheus")
        return router

    # --- signs of life ------------------------------------------------------------------------------------------------

    async def live(self) -> Response:
        """Say that the server is up."""
        return JSONResponse({"live": True})

    async def ready(self) -> Response:
        """Say whether requests are taken: 503 while the server shuts down, or when its engine stopped."""
        ready = self.service.ready
        alarms = {one.name: one.evidence for one in self.service.snapshot().alarms}
        return JSONResponse({"ready": ready, "alarms": alarms}, 200 if ready else 503)

    async def model_ready(self, model: str) -> Response:
        """Say whether the model takes requests."""
        self._require_name(model)
        ready = self.service.ready
        return JSONResponse({"name": model, "ready": ready}, 200 if ready else 503)

    async def server(self) -> Response:
        """Describe the server."""
        return JSONResponse({"name": "eenet", "version": version("eenet"), "extensions": ["binary_tensor_data"]})

    async def metadata(self, model: str) -> Response:
        """Describe the model, as the protocol has it."""
        self._require_name(model)
        engine = self.served.model.engine
        classes = None if self.served.classes is None else len(self.served.classes)
        return JSONResponse(model_metadata(model, f"eenet_{engine.name}", self.served.inputs, classes))

    def _require_name(self, model: str) -> None:
        if model != self.served.name:
            raise HTTPException(404, f"model {model[:80]!r} is unknown: there is {self.served.name!r}. Name this one.")

    # --- answers ------------------------------------------------------------------------------------------------------

    async def infer(self, model: str, request: Request) -> Response:
        """Answer tensors, in JSON or as bytes.

        `parameters` may have `budget` (such as "60%"), `deadline_ms`, `max_exit` and `sample_id`. Outputs are `label`,
        `probabilities`, `exit`, `cost` and `score`, with one row per sample.
        """
        self._require_name(model)
        body = await self.door.body(request)
        asked = read_request(body, request.headers.get(LENGTH_HEADER))
        del body
        if any(array.dtype.kind == "O" for array in asked.inputs.values()):  # a tokenizer takes its time
            inputs = await self._prepared(self.served.as_inputs, asked.inputs)
        else:
            inputs = self.served.as_inputs(asked.inputs)
        asking = {"budget": asked.budget, "deadline_ms": asked.deadline_ms, "max_exit": asked.max_exit}
        answer = await self._answered(inputs, sample_ids=asked.sample_ids(batch_size(inputs)), **asking)
        return _written(model, asked, answer)

    async def resume(self, model: str, request: Request) -> Response:
        """Answer samples that a weak device began, from the state that its `Tier` returned.

        The device must have the same model and policy. Outputs are those of `infer`, in the order of the samples.
        """
        self._require_name(model)
        state = await self.door.body(request)
        future = await asyncio.to_thread(self.service.resume, state)  # its checksum takes a while
        return _written(model, InferRequest(inputs={}), await asyncio.wrap_future(future))

    async def predict(self, request: Request) -> Response:
        """Answer pictures or texts as people send them.

        A form with `file` or `text`, each once or several times, and `budget`, `max_exit` or `top_k`; or a body that is
        one picture (`Content-Type: image/...`) or one text (`text/plain`).
        """
        form = await read_form(await self.door.body(request), request.headers)
        inputs = await self._prepared(self.served.read, form.files, form.texts)
        answer = await self._answered(inputs, budget=form.budget, max_exit=form.max_exit)
        return JSONResponse({"model": self.served.name, "answers": self._described(form, answer)})

    async def _prepared(self, prepare: Any, *given: Any) -> Inputs:  # noqa: ANN401 - a method of `Served`
        return await asyncio.get_running_loop().run_in_executor(self._preparing, prepare, *given)

    async def _answered(self, inputs: Inputs, **asked: Any) -> Answer:  # noqa: ANN401 - arguments of `submit`
        return await asyncio.wrap_future(self.service.submit(inputs, **asked))

    def _described(self, form: Form, answer: Answer) -> list[dict[str, Any]]:
        with_unit = self.served.model.costs
        unit = None if with_unit is None else with_unit.unit
        return [
            {
                "input": name,
                "label": self._class(int(answer.label[row])),
                "score": float(answer.score[row]),
                "exit": int(answer.exit[row]),
                "cost": None if unit is None else float(answer.cost[row]),
                "unit": unit,
                "classes": self._ranked(answer, row, form.top_k),
            }
            for row, name in enumerate(form.names)
        ]

    def _class(self, label: int) -> str:
        return str(label) if self.served.classes is None else self.served.classes[label]

    def _ranked(self, answer: Answer, row: int, count: int) -> list[dict[str, Any]]:
        import numpy as np

        with np.errstate(divide="ignore"):
            found = ranked(np.log(answer.probabilities[row]), self.served.classes, count)
        return [{"label": label, "score": score} for _, label, score in found]

    # --- the dial and the numbers -------------------------------------------------------------------------------------

    async def budget(self, model: str) -> Response:
        """Return the budget that is asked, what is aimed at under the present load, and the range of budgets."""
        self._require_name(model)
        return JSONResponse(self._budget())

    async def turn(self, model: str, request: Request) -> Response:
        """Set the mean cost per sample: `{"budget": "50%"}`."""
        self._require_name(model)
        self.service.set_budget(read_budget(await self.door.body(request)))
        return JSONResponse(self._budget())

    def _budget(self) -> dict[str, Any]:
        now, costs = self.service.snapshot(), self._costs
        return {
            "budget": None if now.budget is None else now.budget.text,
            "meaning": None if now.budget is None else now.budget.meaning,
            "value": None if now.budget is None else now.budget.value,
            "in_force": now.in_force,
            "unit": now.unit,
            "range": None if costs is None else [costs.low, costs.high],
        }

    @property
    def _costs(self) -> CostTable | None:
        """What budgets are asked in; None where there is no dial to turn."""
        model = self.served.model
        return None if model.dial is None else model.costs or model.dial.costs

    async def numbers(self) -> Response:
        """Return the numbers of this moment."""
        return JSONResponse(metrics.page_numbers(self.served.name, self.service, self._costs))

    async def metrics(self) -> Response:
        """Return the numbers of this moment as Prometheus reads them."""
        text = metrics.prometheus_text(self.served.name, self.service)
        return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


def _written(model: str, asked: InferRequest, answer: Answer) -> Response:
    text, length = write_response(model, asked, {name: getattr(answer, name) for name in OUTPUTS})
    headers = {} if length is None else {LENGTH_HEADER: str(length)}
    return Response(text, headers=headers, media_type=_JSON if length is None else _BINARY)
