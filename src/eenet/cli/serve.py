"""`eenet serve`: a model behind HTTP, from an export, a bundle or a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import names, options
from eenet.cli.interrupt import require
from eenet.cli.opened import Opened, open_target
from eenet.cli.output import Output, Result, facts_table
from eenet.errors import InputError
from eenet.report.sections import exit_shares

if TYPE_CHECKING:
    from eenet.running import AdaptiveModel
    from eenet.serving import Snapshot

_LEAST_TOKEN = 16  # characters
_MIB = 1 << 20


def serve(
    target: Annotated[
        Path,
        options.place("TARGET", "A folder written by `eenet export` (no torch), a bundle, or a run.", folder=True),
    ],
    *,
    budget: Annotated[str | None, options.word("B", "Another budget than that of the policy.", *options.BUDGET)] = None,
    slo_ms: Annotated[
        float | None, typer.Option(min=0.1, help="Turn the budget down under load, so that p99 stays within this.")
    ] = None,
    floor: Annotated[
        float | None, typer.Option(min=0, max=1, help="With --slo-ms: expected utility never goes below this.")
    ] = None,
    port: Annotated[int, options.count("Port to listen at; 0: a free one.", 0, 65535)] = 8000,
    host: Annotated[
        str, options.word("ADDRESS", "Address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None, options.file_in("--token-file", "Requests must bring the token in this file.")
    ] = None,
    name: Annotated[str | None, options.word("NAME", "Of the model in addresses; default: that of the folder.")] = None,
    max_batch: Annotated[int, options.count("Most samples per stage call.")] = 32,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="Longest that a stage waits for a full batch.")] = 2.0,
    queue_limit: Annotated[int, options.count("Most samples that may wait; more are refused with 429.")] = 1024,
    shadow: Annotated[
        float, typer.Option(min=0, max=1, help="Share of samples that also run to the last exit, to watch agreement.")
    ] = 0.01,
    max_body_mib: Annotated[int, options.count("Largest body of a request, in MiB.", 1, 1024)] = 16,
    client_timeout_s: Annotated[float, typer.Option(min=1, help="Longest that a client may take to send one.")] = 30.0,
    drain_s: Annotated[float, typer.Option(min=0, help="Longest that accepted requests may take at the end.")] = 30.0,
    engine: Annotated[str | None, options.word("E", "What runs a bundle or a run; default: eager.")] = None,
    policy: Annotated[Path | None, options.POLICY_OPTION] = None,
    threads: options.ThreadsOption = None,
    force: options.ForceOption = False,
    parts: options.PartsOption = None,
    data_root: options.DataRootOption = None,
    output: Output,
) -> Result:
    """Serve a model: requests come and go stage by stage, and the budget is turned while it runs.

    Samples that leave are answered at once; those that stay wait for a full batch before the next stage. The server
    speaks the Open Inference Protocol (v2) at /v2, takes pictures and texts at /predict, shows live numbers with a
    slider at /, and metrics for Prometheus at /metrics; /docs lists all addresses.

    SIGTERM and Ctrl-C end it: it takes no more requests, answers those that it accepted, and exits with 0.

    Examples:

        eenet serve exported --budget 60%

        eenet serve exported --slo-ms 20 --port 0

        eenet serve run --policy policy --engine onnxruntime

        eenet serve exported --host 0.0.0.0 --token-file token
    """
    require("fastapi", "httptools", "orjson", "prometheus_client", "python_multipart", "uvicorn")
    token = None if token_file is None else _token(token_file)
    called = _name(name, target)
    opened = open_target(target, policy, data_root, threads, output, force=force, parts=parts)
    adaptive = _with_engine(opened, engine, target)
    from eenet.serving import Service
    from eenet.serving.app import make_app
    from eenet.serving.door import Limits
    from eenet.serving.served import Served
    from eenet.serving.server import Server, listen

    if budget is not None:
        adaptive.at(budget)  # whether that can be done is found out before anything starts
    served = Served(name=called, model=adaptive, classes=opened.classes, preparation=opened.preparation)
    with listen(host, port) as listener, _logged(output):
        waiting = {"max_batch": max_batch, "max_wait_ms": max_wait_ms, "queue_limit": queue_limit}
        service = Service(adaptive, **waiting, slo_ms=slo_ms, floor=floor, shadow=shadow)  # type: ignore[arg-type]
        try:
            if budget is not None:
                service.set_budget(budget)
            limits = Limits(body_bytes=max_body_mib * _MIB, client_timeout_s=client_timeout_s)
            app = make_app(served, service, token=token, limits=limits)
            server = Server(app, service, listener, client_timeout_s=client_timeout_s, drain_s=drain_s)
            _welcome(called, listener.getsockname()[:2], output, is_open=token is None)
            server.serve_until_stopped()
        finally:
            service.close()
        return _finished(service.snapshot())


def _finished(now: Snapshot) -> Result:
    """Return what was served."""
    total = sum(now.exits)
    shares = [count / total for count in now.exits] if total else None
    value: dict[str, Any] = {
        "requests": now.requests,
        "answered": now.answered,
        "refused": now.refused,
        "samples": now.samples,
    }
    value |= {"failures": now.failures, "mean_cost": now.mean_cost, "unit": now.unit, "exit_distribution": shares}
    facts = {
        "requests accepted": now.requests,
        "requests answered": now.answered,
        "requests refused": now.refused,
        "samples": now.samples,
        "samples that failed": now.failures,
        f"mean cost ({now.unit})": None if now.mean_cost is None else f"{now.mean_cost:.4g}",
        "left at exits, %": None if shares is None else exit_shares(shares),
    }
    return value, [facts_table("Served", facts)]


def _welcome(name: str, address: tuple[str, int], output: Output, *, is_open: bool) -> None:
    """Say where the server is, and who can reach it."""
    host, port = address
    shown = f"[{host}]" if ":" in host else host
    output.note(f"Serving {name} at http://{shown}:{port} (page, /docs, /v2, /metrics).")
    if is_open and not ip_address(host).is_loopback:
        output.note("Note: every machine that reaches this address may ask, and turn the budget. Pass --token-file.")


def _token(file: Path) -> str:
    """Return the token in a file."""
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file {str(file)!r} cannot be read: {error}. Pass a file of plain text.") from error
    if len(token) < _LEAST_TOKEN or not token.isprintable() or " " in token:
        raise InputError(
            f"--token-file {str(file)!r} has no token that can be used: it is one word of at least {_LEAST_TOKEN} "
            "characters. Make one, for example with: openssl rand -hex 32."
        )
    return token


def _name(name: str | None, target: Path) -> str:
    """Return what the model is called in addresses."""
    if name is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", target.resolve().name).strip("-.") or "model"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InputError(f"--name {name!r} cannot stand in addresses: letters, digits and ._- can. Pass another.")
    return name


def _with_engine(opened: Opened, engine: str | None, target: Path) -> AdaptiveModel:
    """Return the model on the engine that was asked for."""
    from eenet.running import AdaptiveModel
    from eenet.running.preparation import Preparation

    adaptive = opened.adaptive
    if not isinstance(adaptive, AdaptiveModel):
        raise InputError(f"{str(target)!r} has some of the stages only: the rest is elsewhere. Serve a whole model.")
    own = adaptive.engine.name
    if engine is None or engine == own:
        return adaptive
    ((engine, _),) = names.engines([engine], None)
    if own != "eager":
        raise InputError(f"--engine {engine!r} does not fit: {str(target)!r} was exported for {own}. Export it again.")
    if opened.preparation is None:
        raise InputError(
            f"--engine {engine!r} cannot be made: {str(target)!r} does not say what inputs are. Export it."
        )
    import numpy as np
    import torch
    from torch.utils._pytree import tree_map

    how = opened.preparation
    example = np.zeros((2, *how.shape), np.float32) if isinstance(how, Preparation) else how(["a text", "texts"])
    made = names.engine(engine, adaptive.engine.as_model(), tree_map(torch.from_numpy, example))
    return AdaptiveModel(made, adaptive.policy, adaptive.costs, dial=adaptive.dial, check_source=False)


@contextmanager
def _logged(output: Output) -> Iterator[None]:
    """Write what the library logs to stderr: turns of the budget, alarms, failures."""

    class Noted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            output.note(f"{record.levelname.capitalize()}: {record.getMessage()}")

    logger, handler = logging.getLogger("eenet"), Noted(logging.INFO)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
