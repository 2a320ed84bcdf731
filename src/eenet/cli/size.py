"""`eenet size`: how many replicas a load needs, stage by stage."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from eenet.cli import options
from eenet.cli.loading import Costs
from eenet.cli.opened import Opened, open_target
from eenet.cli.output import Output, Result
from eenet.errors import InputError
from eenet.report.sections import Table

if TYPE_CHECKING:
    from eenet.policies import Policy
    from eenet.running import AdaptiveModel
    from eenet.running.latency import Latency
    from eenet.serving.sizing import Sizing

_RATE = re.compile(r"([0-9.eE+]+)\s*(?:/\s*(s|min|h))?")
_SECONDS = {None: 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}
_PASSES = 7
_LENGTH = 128  # tokens of texts, where a model takes any
_COLUMNS = {
    "stage": "{stage}",
    "samples/s": "{rate:,.0f}",
    "replicas": "{replicas}",
    "load": "{load:.0%}",
    "batch": "{max_batch}",
    "its ms": "{batch_ms:.3g}",
    "mean batch": "{mean_batch:.3g}",
    "p99 ms": "{p99_ms:.3g}",
}


def size(
    target: Annotated[
        Path, options.place("TARGET", "A folder of `eenet export`, a bundle, or a JSON file of `eenet profile`.")
    ],
    *,
    rate: Annotated[str, options.word("N/s", "Requests of one sample: 5000/s, 3e5/min.")],
    slo_ms: Annotated[float, typer.Option(min=0.001, help="The 99th percentile of the latency that is wanted.")],
    budget: Annotated[str | None, options.word("B", "Mean cost per sample: 2.5ms, 60%.", *options.BUDGET)] = None,
    shares: Annotated[
        str | None, options.word("P,P,...", "Shares of samples that leave at each exit, such as 0.6,0.3,0.1.")
    ] = None,
    table: Annotated[
        Path | None,
        options.file_in("--table", "Exit table on which TARGET's policy says which shares leave where."),
    ] = None,
    latency: Annotated[
        Path | None,
        options.file_in("--latency", "Times of `eenet profile` with several batch sizes; default: measured here."),
    ] = None,
    max_batch: Annotated[int, options.count("Most samples per batch.", 1, 4096)] = 32,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="Longest that a stage waits for a full batch.")] = 2.0,
    hop_ms: Annotated[float, typer.Option(min=0, help="What it takes to get a sample to a stage, such as in Ray.")] = 0,
    load: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of its capacity a stage may use.")] = 0.8,
    engine: Annotated[str | None, options.word("E", "Engine whose times count, where there are several.")] = None,
    dtype: Annotated[str | None, options.word("D", "Number format whose times count.")] = None,
    policy: Annotated[Path | None, options.POLICY_OPTION] = None,
    threads: options.ThreadsOption = None,
    out: Annotated[Path | None, options.file_out("Write the result here, as JSON.", ".json")] = None,
    seed: options.SeedOption = 0,
    output: Output,
) -> Result:
    """Work out how many replicas each stage needs, so that 99 of 100 requests are answered in time.

    Needed are the time of every stage by batch size, and which share of the samples leaves where. A simulation with
    random arrivals checks the result. Without --table or --shares the shares are estimated from the mean cost alone.

    Examples:

        eenet size exported --rate 5000/s --slo-ms 50 --budget 60% --table test.npz

        eenet size costs.json --rate 5000/s --slo-ms 50 --shares 0.6,0.3,0.1

        eenet size exported --rate 1e6/s --slo-ms 50 --budget 60% --hop-ms 5 --json
    """
    wanted = read_rate(rate)
    given = None if shares is None else _read_shares(shares)
    if table is not None and given is not None:
        raise InputError("--table and --shares say the same thing: which share leaves where. Leave one out.")
    from eenet.serving.sizing import load_latencies, size_stages

    adaptive: AdaptiveModel | None = None
    if target.is_dir():
        opened = open_target(target, policy, None, threads, output, force=False, parts=None)
        adaptive = _whole(opened, target)
        times: Sequence[Latency] = (
            _measured(opened, adaptive, max_batch, output)
            if latency is None
            else load_latencies(latency, engine, dtype)
        )
    elif policy is not None or latency is not None:
        raise InputError(f"--policy and --latency do not fit: {str(target)!r} has times and no model. Leave them out.")
    else:
        times = load_latencies(target, engine, dtype)
    found, how = (given, "given") if given is not None else _found(adaptive, times, budget, table)
    settings = {"max_batch": max_batch, "max_wait_ms": max_wait_ms, "hop_ms": hop_ms, "load": load, "seed": seed}
    sized = size_stages(times, found, rate=wanted, slo_ms=slo_ms, **settings)  # type: ignore[arg-type]
    value = sized.to_dict() | {"shares_from": how}
    output.save(value, out)
    return value, _shown(sized, how)


def read_rate(text: str) -> float:
    """Return requests per second of a text such as ``5000/s``.

    Raises:
        InputError: It is none.
    """
    match = _RATE.fullmatch(text.strip())
    try:
        found = math.nan if match is None else float(match[1]) / _SECONDS[match[2]]
    except ValueError:
        found = math.nan
    if not 0 < found <= 1e9:
        raise InputError(f"--rate {text!r} is no rate: requests per second are needed, up to 1e9. Pass such as 5000/s.")
    return found


def _read_shares(text: str) -> list[float]:
    try:
        return [float(word.removesuffix("%")) / (100 if word.endswith("%") else 1) for word in text.split(",")]
    except ValueError as error:
        raise InputError(f"--shares {text!r} are no numbers. Pass one per exit, such as 0.6,0.3,0.1.") from error


def _whole(opened: Opened, target: Path) -> AdaptiveModel:
    from eenet.running import AdaptiveModel

    if not isinstance(opened.adaptive, AdaptiveModel):
        raise InputError(f"{str(target)!r} has some of the stages only: the rest is elsewhere. Pass a whole model.")
    return opened.adaptive


def _measured(opened: Opened, adaptive: AdaptiveModel, max_batch: int, output: Output) -> Sequence[Latency]:
    """Time the model on made-up samples, at batch sizes that double."""
    from eenet.running.latency import measure_latency

    sizes = [*(2**i for i in range(max_batch.bit_length()) if 2**i < max_batch), max_batch]
    output.note(f"Timing {adaptive.engine.name} at batch sizes {sizes[0]} to {sizes[-1]}, {_PASSES} passes.")
    settings: dict[str, Any] = {"batch_sizes": sizes, "passes": _PASSES, "progress": not output.quiet}
    return measure_latency(adaptive.engine, _made_up(opened, adaptive, max_batch), policy=adaptive.policy, **settings)


def _made_up(opened: Opened, adaptive: AdaptiveModel, count: int) -> Any:  # noqa: ANN401 - inputs of a model
    """Return samples as a model takes them: random numbers, and ones where numbers are whole, as of tokens."""
    from eenet.running.engines.graphs import GraphEngine
    from eenet.running.preparation import Preparation

    rng = np.random.default_rng(0)
    if not isinstance(adaptive.engine, GraphEngine):
        how = opened.preparation
        if how is None:
            raise InputError("TARGET does not say what its inputs are: nothing can be timed. Pass --latency FILE.")
        if isinstance(how, Preparation):
            return rng.standard_normal((count, *how.shape), dtype=np.float32)
        return how(["a text like many others, of a few words"] * count)
    made = {}
    for one in adaptive.engine.inputs:
        free = {size.axis: max(size.low, min(size.high or _LENGTH, _LENGTH)) for size in one.free}
        shape = (count, *(free[axis] if known is None else known for axis, known in enumerate(one.shape, 1)))
        is_float = one.dtype.kind == "f"
        made[one.name] = rng.standard_normal(shape).astype(one.dtype) if is_float else np.ones(shape, one.dtype)
    return made


def _found(
    adaptive: AdaptiveModel | None, times: Sequence[Latency], budget: str | None, table: Path | None
) -> tuple[Sequence[float], str]:
    """Return the shares of exits at a budget, and where they come from."""
    if table is not None:
        if adaptive is None:
            raise InputError("--table needs a policy: TARGET has times only. Pass a folder as TARGET, or --shares.")
        return _on_table(adaptive.policy if budget is None else adaptive.at(budget).policy, table)
    if budget is None:
        raise InputError("--budget is missing: it says how many samples leave early. Pass it, --table or --shares.")
    from eenet.serving.sizing import likely_shares

    costs = times[-1].costs()
    if adaptive is not None:
        adaptive.at(budget)  # refuses what cannot be asked for
        costs = adaptive.costs or adaptive.dial.costs  # type: ignore[union-attr]
    mean = costs.budget(budget).value
    if adaptive is not None and adaptive.dial is not None:
        dial = adaptive.dial
        mean *= costs.factor(dial.costs) or 1.0
        mean = min(max(mean, dial.fit_costs[0]), dial.fit_costs[-1])
        costs = dial.costs
    return likely_shares(costs, mean), "estimated from the mean cost"


def _on_table(policy: Policy, path: Path) -> tuple[Sequence[float], str]:
    from eenet.policies import Replayer

    table = Costs().read_table(path)
    policy.require(table.num_exits, table.num_columns)
    return Replayer(table).expected_shares(policy).tolist(), "replayed on the table"


def _shown(sized: Sizing, how: str) -> list[Any]:
    stages = sized.to_dict()["stages"]
    rows = [{"stage": str(k), **stage} for k, stage in enumerate(stages)]
    leaving = " · ".join(f"{100 * share:.3g}" for share in sized.shares)
    each = "1 thread" if sized.threads == 1 else f"{sized.threads} threads"
    return [
        sized.verdict,
        Table.of(rows, _COLUMNS, least=("its ms", "mean batch", "batch")),
        f"Leaving at each exit, in percent: {leaving} ({how}). A replica uses {each}. Servers that run all stages are "
        f"counted by their times alone. The simulation counted {sized.requests} requests.",
    ]
