"""`eenet speedup`: from a model and data to one that stops early, and what that saves, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eenet.cli import options
from eenet.cli.attach import Data, Making, SpecArgument, Training, attached_run
from eenet.cli.compare import compare, write_comparison
from eenet.cli.fit import Promise, fit
from eenet.cli.interrupt import require
from eenet.cli.loading import Costs, readable
from eenet.cli.measure import Timing, bench
from eenet.cli.output import Output, Result
from eenet.cli.screen import AllOption, comparison_parts
from eenet.cli.train import record
from eenet.errors import InputError
from eenet.report.sections import bench_section
from eenet.tables.costs import CostTable

_AT_RANDOM = ("timm", "torchvision")  # whose models begin with random weights


def speedup(
    spec: SpecArgument,
    *,
    samples: Data,
    budget: Annotated[
        str, options.word("B", "Mean cost per sample: 60% of the model, 1.2GFLOPs.", *options.BUDGET)
    ] = "60%",
    making: Making,
    everything_learns: Annotated[
        bool, typer.Option("--all-layers", help="Train the whole model; default: the heads of the exits only.")
    ] = False,
    epochs: Annotated[float, typer.Option(help="Passes over the training samples.")] = 5.0,
    out: Annotated[Path, options.folder_out("Folder for the run and all results.", "RUN")],
    seed: options.SeedOption = 0,
    everything: AllOption = False,
    output: Output,
) -> Result:
    """Make a model stop early and say what that saves: attach, train, record, fit, compare, time.

    Data are split: 60 % to train on, 20 % for calibration, 20 % for testing; the model must not have been trained on
    these. RUN is a run like that of `eenet attach`, with the policy in RUN/policy, tables in RUN/val.npz and
    RUN/test.npz, and the page RUN/report.html. The same command goes on where it was stopped; with another --budget,
    nothing is trained again.

    Examples:

        eenet speedup timm:efficientnet_lite0 --weights trained.pth --data photos/ --out run

        eenet speedup timm:resnet18 --input 1,32,32 --data digits --all-layers --budget 50% --out run

        eenet speedup hf:bert --data texts.csv --all-layers --out run

        eenet run run --policy run/policy photos/ --budget 40%
    """
    _check(spec, samples, making, everything_learns=everything_learns)
    require("torch")
    from eenet.evaluation import saving
    from eenet.policies import load_policy
    from eenet.speedup.one_call import BATCH_SIZES, PASSES, samples_to_time
    from eenet.speedup.parts import require_enough

    def check(known: dict[str, Any]) -> None:
        cumulative = tuple(row["flops"] for row in known["exits"])
        readable(CostTable(cumulative, known["unit"], known["reference"])).budget(budget)
        require_enough(known["samples"])

    training = Training(epochs=epochs, freeze=not everything_learns)
    attached, _ = attached_run(spec, making, samples, training, out=out, seed=seed, output=output, check=check)
    val, test, policy, root = out / "val.npz", out / "test.npz", out / "policy", samples.data_root
    for path in (val, test):
        record(out, split=path.stem, out=path, data_root=root, output=output)
    fitted, _ = fit(val, budget=budget, out=policy, promise=Promise(), costs=Costs(), seed=seed, output=output)
    output.note("Comparing policies at equal cost.")
    comparison, _ = compare(
        val, test, budget=[budget], policy=["auto", "max_prob"], costs=Costs(), seed=seed, output=output
    )
    timing = Timing(run=out, batch_size=",".join(map(str, BATCH_SIZES)), data_root=root, seed=seed)
    table = Costs().read_table(test)
    count = samples_to_time(table.require_costs())
    timed, _ = bench(timing, policy=policy, passes=PASSES, samples=count, out=out / "bench.json", output=output)
    speedups = {row["batch_size"]: row["speedup"] for row in timed["rows"]}
    saved = saving(load_policy(policy).policy, table, speedups=speedups)
    files = write_comparison(
        comparison,
        out,
        title=f"What stopping early saves: {spec}",
        verdict=saved.sentence,
        bench=timed,
        command=output.line,
    )
    value = {"out": str(out), "saving": saved.to_dict(), "model": attached, "fit": fitted}
    value |= {"bench": timed, "comparison": comparison}
    shown = comparison_parts(comparison, saved.sentence, everything=everything)
    shown = [*shown, bench_section(timed)] if everything else shown[:-1]  # without how to see more of `compare`
    return value, [*shown, f"wrote {out / 'report.html'} and {len(files) - 1} files beside it"]


def _check(spec: str, samples: Data, making: Making, *, everything_learns: bool) -> None:
    """Refuse what nothing can be learnt from."""
    if samples.data is None:
        raise InputError("--data is missing: exits learn from samples, and are judged on others. Pass --data.")
    if spec.partition(":")[0] in _AT_RANDOM and making.weights is None and not everything_learns:
        raise InputError(
            f"{spec} without --weights begins at random: heads alone would learn from nothing. Pass --weights FILE, or "
            "--all-layers to train the whole model."
        )
