"""What stopping early really saves: models, engines, number formats and batch sizes on one page.

    eenet reproduce cifar10-resnet56-6 --data-root DIR --out runs/cifar10-resnet56-6
    python benchmarks/sst2.py --data-root DIR --run runs/sst2_minilm_6
    python benchmarks/minilm.py --data-root DIR --start runs/sst2_minilm_6 --run runs/sst2_minilm_3
    python benchmarks/efficientnet.py --data-root DIR --run runs/cifar10_efficientnet_4
    python benchmarks/speed.py --data-root DIR --runs runs --work runs/speed

The first four train the models; this one fits the policy `auto` to the budget at which accuracy is one point below the
full model's (on the calibration set), times every engine, and writes ``docs/results/speed.md``. Every measurement
leaves a file in the work folder and is not repeated while that file is there. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import efficientnet
import minilm
import numpy as np
import torch
from adaptive_overhead import Stopwatch
from common import RESULTS, command_line, data_option, given, log
from pages.speed import speed_page
from torch import Tensor, nn

from eenet import AdaptiveModel, AutoScheduler, Policy, advise, attach, evaluate
from eenet.cli.names import engine as named_engine
from eenet.errors import EenetError
from eenet.evaluation import CostParts
from eenet.experiments.pages import kept
from eenet.experiments.recipes import open_run
from eenet.experiments.reproduce.run import smallest_budget
from eenet.models.inputs import Inputs, State
from eenet.models.model import MultiExitModel
from eenet.models.processor import has_bfloat16
from eenet.models.taps import call
from eenet.models.weights import load_tensors
from eenet.running.benchmark import bench
from eenet.running.engines import Engine
from eenet.running.inputs import batch_size, rows_of
from eenet.running.latency import Latency, Spread, measure_latency
from eenet.tables.table import ExitTable

SIZES = (1, 32, 128)
ENGINES = (("eager", "float32"), ("onnxruntime", "float32"), ("openvino", "float32"), ("compiled", "float32"))
HALF = (("eager", "bfloat16"), ("openvino", "bfloat16")) if has_bfloat16() else ()  # emulated: far slower
JUDGED = ("eager", "onnxruntime")
MODELS = ("cifar10-resnet56-6", "sst2_minilm_3", "cifar10_efficientnet_4")
BELOW = 0.01
BUDGETS = tuple(f"{percent}%" for percent in range(20, 111, 5))


@dataclass(frozen=True)
class Subject:
    """A model with exits, its tables, and real samples to time it on.

    Args:
        name: Of its run folder.
        title: For the page.
        run: The folder with its tables.
        make: Returns the trained model.
        read: Returns some test samples as inputs.
        formats: Engines and number formats to time.
    """

    name: str
    title: str
    run: Path
    make: Callable[[], MultiExitModel]
    read: Callable[[int], Inputs]
    formats: tuple[tuple[str, str], ...]

    @cached_property
    def model(self) -> MultiExitModel:
        """The trained model."""
        return self.make()

    @cached_property
    def tables(self) -> tuple[ExitTable, ExitTable]:
        """What every exit says about the calibration set and the test set."""
        return ExitTable.load(self.run / "calibration.npz"), ExitTable.load(self.run / "test.npz")


def main() -> None:
    """Measure what is not measured yet, then write the page."""
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--runs", type=Path, required=True, help="folder with the run folders named above")
    parser.add_argument("--work", type=Path, required=True, help="folder for measurements; made if it is not there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one; repeatable")
    parser.add_argument(
        "--engine", action="append", choices=[name for name, _ in ENGINES], help="measure only this one"
    )
    parser.add_argument("--no-splitting", action="store_true", help="leave out what splitting costs")
    parser.add_argument("--samples", type=int, default=128, help="test samples in a pass")
    parser.add_argument("--passes", type=int, default=5, help="timed passes, after one to warm up")
    parser.add_argument("--seed", type=int, default=0)
    options = given(parser)
    found = {
        subject.name: measured(subject, options)
        for subject in subjects(options)
        if subject.name in (options.model or MODELS)
    }
    split = [] if options.no_splitting else kept(options.work / "splitting.json", lambda: splitting(options), log)
    speed_page(found, split, options)


# --- models ----------------------------------------------------------------------------------------------------------


def subjects(options: argparse.Namespace) -> Iterator[Subject]:
    """Yield the models."""
    runs, root, seed = options.runs, options.data_root, options.seed
    name = "cifar10-resnet56-6"
    resnet = open_run(runs / name / "run", data_root=root)
    yield Subject(
        name,
        "ResNet56 with 6 exits, CIFAR-10",
        runs / name,
        lambda: resnet.model,
        lambda count: resnet.splits.test.inputs(slice(0, count)),
        ENGINES + HALF,
    )
    name = "sst2_minilm_3"
    yield Subject(
        name,
        "MiniLM (BERT) with exits after every second layer, SST-2",
        runs / name,
        partial(loaded, lambda: minilm.build(runs / "sst2_minilm_6", seed), runs / name),
        lambda count: minilm.padded_splits(root, seed)["test"].inputs(slice(0, count)),
        ENGINES,
    )
    name = "cifar10_efficientnet_4"
    yield Subject(
        name,
        "EfficientNet-Lite0 with 4 exits, CIFAR-10 at 96x96",
        runs / name,
        partial(loaded, lambda: efficientnet.build(seed), runs / name),
        lambda count: efficientnet.split(root, "test").inputs(slice(0, count)),
        ENGINES,
    )


def loaded(build: Callable[[], MultiExitModel], run: Path) -> MultiExitModel:
    """Return a model with the weights of its run."""
    model = build()
    model.load_state_dict(load_tensors(run / "model.safetensors", "run"))
    return model.eval()


# --- measurements ----------------------------------------------------------------------------------------------------


def measured(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything measured of one model."""
    path = options.work / subject.name
    chosen = kept(path / "budget.json", lambda: one_point_below(subject.tables, options.seed), log)
    policy = fitted(subject.tables[0], chosen["budget"], options.seed)
    rows, fewer = [], []
    for engine, dtype in subject.formats:
        file = path / f"{engine}_{dtype}.json"
        if options.engine and engine not in options.engine and not file.is_file():
            continue
        rows.append(kept(file, partial(timed, subject, engine, dtype, policy, options), log))
        if engine in JUDGED and dtype == "float32":
            work = partial(with_paying_exits, subject, engine, chosen["budget"], options)
            fewer.append(kept(path / f"{engine}_paying_exits.json", work, log))
    memory_share = memory(subject.model)
    return {"title": subject.title, "chosen": chosen, "engines": rows, "fewer": fewer, "memory": memory_share}


def fitted(calibration: ExitTable, budget: str, seed: int) -> Policy:
    """Return the policy of a budget."""
    return AutoScheduler(seed=seed).fit(calibration, budget=budget)


def one_point_below(tables: tuple[ExitTable, ExitTable], seed: int) -> dict[str, Any]:
    """Return the smallest whole percentage of the full cost that loses one point at most on the calibration set."""
    calibration, test = tables
    costs = calibration.require_costs()
    allowed = float(calibration.require_utility("accuracy")[:, -1].mean()) - BELOW
    budget, _ = smallest_budget(calibration, lambda policy: evaluate(policy, calibration).utility, allowed, seed)
    report = evaluate(fitted(calibration, budget, seed), test, costs, budget=budget)
    accuracy = test.require_utility("accuracy").mean(axis=0).tolist()
    return {
        "budget": budget,
        "full": accuracy[-1],
        "adaptive": report.utility,
        "cost": report.cost / costs.full,
        "accuracy": accuracy,
        "costs": [cost / costs.full for cost in costs.cumulative],
        "test": test.num_samples,
    }


def timed(subject: Subject, name: str, dtype: str, policy: Policy, options: argparse.Namespace) -> dict[str, Any]:
    """Return the benchmark of one engine, the policy's own share, and where exits stop paying."""
    inputs = subject.read(options.samples)
    try:
        engine = named_engine(name, subject.model, rows_of(inputs, slice(0, 2)), dtype)
    except EenetError as error:
        return {"engine": name, "dtype": dtype, "error": str(error)}
    settings: dict[str, Any] = {"passes": options.passes, "seed": options.seed, "progress": False}
    report = bench(subject.model, policy, inputs, batch_sizes=SIZES, engines=(engine,), **settings)
    value = {"engine": name, "dtype": dtype, **report.to_dict()}
    if name in JUDGED and dtype == "float32":
        value["overhead"] = {str(size): overhead(engine, policy, inputs, size, options.passes) for size in SIZES}
        latencies = measure_latency(engine, inputs, batch_sizes=SIZES, passes=options.passes, progress=False)
        value["costs"] = {str(latency.batch_size): latency.costs().to_dict() for latency in latencies}
        value["break_even"] = break_even(subject, latencies, options.seed)
    return value


def with_paying_exits(subject: Subject, name: str, budget: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the benchmark at batch size 1 with those exits only that `advise` keeps, by the times measured there."""
    inputs = subject.read(options.samples)
    example = rows_of(inputs, slice(0, 2))
    engine = named_engine(name, subject.model, example)
    (latency,) = measure_latency(engine, inputs, batch_sizes=(1,), passes=25, progress=False)
    costs = latency.costs()
    parts = CostParts.of_profile({"latency": [latency.to_dict()]}, costs)
    advice = advise(subject.tables[0], costs, [budget], parts=parts, seed=options.seed)
    calibration, test = (table.keeping(advice.kept, advice.costs) for table in subject.tables)
    chosen = one_point_below((calibration, test), options.seed)
    policy = fitted(calibration, chosen["budget"], options.seed)
    smaller = subject.model.without(advice.dropped) if advice.dropped else subject.model
    engine = named_engine(name, smaller, example)
    passes = max(4, options.passes)
    settings: dict[str, Any] = {"passes": passes, "seed": options.seed, "progress": False}
    report = bench(smaller, policy, inputs, batch_sizes=(1,), engines=(engine,), **settings)
    (row,) = report.to_dict()["rows"]
    own = {"kept": list(advice.kept), "chosen": chosen, "overhead": overhead(engine, policy, inputs, 1, passes)}
    return {"engine": name, **row, **own}


def overhead(engine: Engine, policy: Policy, inputs: Inputs, size: int, passes: int) -> list[float]:
    """Return deciding, dropping and putting together as a share of the full model's time: quartiles over passes.

    What stages and heads take is taken off a run that nobody watches: at every call a stopwatch costs time, too.
    """
    watch = Stopwatch(engine)
    adaptive, watched = AdaptiveModel(engine, policy), AdaptiveModel(watch, policy)
    batches = [rows_of(inputs, slice(i, i + size)) for i in range(0, batch_size(inputs), size)]
    shares = []
    for turn in range(passes + 1):
        full = watch.clocked(lambda: [engine.full(batch) for batch in batches])
        watch.seconds, adaptive.next_id, watched.next_id = 0.0, 0, 0
        total = watch.clocked(lambda: [adaptive(batch) for batch in batches])
        for batch in batches:
            watched(batch)
        if turn:
            shares.append((total - watch.seconds) / full)
    return quartiles(shares)


def break_even(subject: Subject, latencies: Sequence[Latency], seed: int) -> dict[str, Any]:
    """Return, per batch size, the largest budget (a share of the full FLOPs) whose exits take less time than none."""
    table = subject.tables[0]
    costs = table.require_costs()
    low = costs.low / costs.full
    budgets = [budget for budget in BUDGETS if float(budget[:-1]) / 100 > low]
    dial = AutoScheduler(seed=seed).sweep(table, budgets=budgets)
    shares = {b: evaluate(dial.at(b), table, costs, budget=b).exit_distribution for b in budgets}
    found = {}
    for latency in latencies:
        mean = {b: sum(s * c for s, c in zip(share, latency.cumulative, strict=True)) for b, share in shares.items()}
        paying = [b for b in budgets if mean[b] < latency.full.median]
        found[str(latency.batch_size)] = paying[-1] if paying else None
    return found


# --- splitting -------------------------------------------------------------------------------------------------------


class Nothing(nn.Module):
    """Stands for a head where only stages are to be timed."""

    def forward(self, state: State) -> Tensor:
        """Return two numbers of the tapped tensor."""
        shown: Tensor = state if isinstance(state, Tensor) else state[0]
        return shown.flatten(1)[:, :2]


def foreign(options: argparse.Namespace) -> dict[str, Callable[[], tuple[nn.Module, Inputs]]]:
    """Return models of other libraries with inputs, by name."""
    import timm
    import torchvision

    generator = torch.Generator().manual_seed(options.seed)
    images = torch.randn(16, 3, 224, 224, generator=generator)
    return {
        "torchvision resnet18": lambda: (torchvision.models.resnet18(), images),
        "timm vit_tiny_patch16_224": lambda: (timm.create_model("vit_tiny_patch16_224"), images),
        "EfficientNet-Lite0, 96x96": lambda: (efficientnet.published(), images[:, :, 64:160, 64:160].contiguous()),
        "MiniLM, 64 tokens": lambda: (
            minilm.classifier(options.runs / "sst2_minilm_6", options.seed),
            rows_of(minilm.example(), np.arange(16) % 2),
        ),
    }


def splitting(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what all stages in a row take, as a share of the unsplit model, for engines and batch sizes."""
    rows = []
    for name, make in foreign(options).items():
        torch.manual_seed(options.seed)
        original, inputs = make()
        model = attach(original.eval(), rows_of(inputs, slice(0, 2)), exits=4)
        bare = MultiExitModel(list(model.stages), [*(Nothing() for _ in model.stages[1:]), model.heads[-1]])
        engine = named_engine("onnxruntime", bare, rows_of(inputs, slice(0, 2)))
        for size in (1, 16):
            batch = rows_of(inputs, slice(0, size))
            ways: dict[str, Callable[[], object]] = {
                "eager": partial(call, original, batch),
                "eager split": partial(in_a_row, bare, batch),
                "onnxruntime": partial(engine.full, batch),
                "onnxruntime split": partial(through, engine, batch),
            }
            times = alternating(ways, options.passes, repeats=max(1, 4 // size))
            for kind in JUDGED:
                ratios = [a / b for a, b in zip(times[f"{kind} split"], times[kind], strict=True)]
                rows.append({"model": name, "engine": kind, "batch_size": size, "ratio": quartiles(ratios)})
    return rows


def in_a_row(model: MultiExitModel, inputs: Inputs) -> State:
    """Run all stages of a model."""
    state = model.start(inputs)
    for stage in model.stages:
        state = stage(state)
    return state


def through(engine: Engine, inputs: Inputs) -> State:
    """Run all stages in an engine."""
    state = engine.start(inputs)
    for k in range(engine.num_exits):
        state = engine.stage(k, state)
    return state


def alternating(ways: dict[str, Callable[[], object]], passes: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each way in every pass, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    with torch.inference_mode():
        for turn in range(4 * passes + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                seconds = Stopwatch.clocked(partial(repeated, ways[name], repeats))
                if turn:
                    times[name].append(seconds)
    return times


def repeated(run: Callable[[], object], times: int) -> None:
    """Do something several times."""
    for _ in range(times):
        run()


def memory(model: MultiExitModel) -> float | None:
    """Return the bytes of weights and buffers of an attached model's stages and its original, by the original's."""
    if model.whole is None:
        return None
    original = _storages(model.whole)
    return sum((original | _storages(model.stages)).values()) / sum(original.values())


def _storages(module: nn.Module) -> dict[int, int]:
    tensors = [*module.parameters(), *module.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def quartiles(values: list[float]) -> list[float]:
    """Return lower quartile, median, upper quartile."""
    spread = Spread.of(values)
    return [spread.low, spread.median, spread.high]


if __name__ == "__main__":
    main()
