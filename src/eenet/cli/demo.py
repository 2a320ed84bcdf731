"""`eenet demo`: the main job from training to report, on the data set that comes along."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import names, paths
from eenet.cli.compare import write_comparison
from eenet.cli.fit import fit_policy
from eenet.cli.loading import readable
from eenet.cli.options import DebugFlag, JsonFlag, QuietFlag, SeedOption
from eenet.cli.output import Output, error_line
from eenet.cli.show import bench_table, comparison_tables, demo_tables

if TYPE_CHECKING:
    from eenet.core.table import ExitTable
    from eenet.evaluation import Comparison
    from eenet.inference.adaptive import Prediction
    from eenet.recipes import Run
    from eenet.report.sections import Example
    from eenet.schedulers import SavedPolicy

RECIPE = "digits_tiny"
BUDGET = "60%"
BUDGETS = ("40%", "60%", "80%")
BATCH_SIZES = (1, 32, 500)
EXAMPLES_PER_EXIT = 6


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The recorded sides of the demo."""

    val: ExitTable
    test: ExitTable


def demo(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for everything.")] = Path(
        "eenet-demo"
    ),
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Do the main job on scikit-learn's handwritten digits: train, record, measure, fit, compare, run, report.

    Takes a minute or two on two cores and needs no download.

    Examples:

        eenet demo

        eenet demo --out my-demo --seed 1
    """
    output = Output(as_json=as_json, quiet=quiet)
    paths.output_folder(out)
    try:
        value = run_demo(out, seed, output)
    except KeyboardInterrupt:
        error_line("The same command goes on with the training where it was stopped.", start="")
        raise
    files = [f"wrote {out / name}" for name in ("utility_cost.png", "report.html")]
    output.result(
        value, *comparison_tables(value["comparison"]), bench_table(value["bench"]), *demo_tables(value), *files
    )


def run_demo(out: Path, seed: int, output: Output) -> dict[str, Any]:
    """Do every step of the demo, each into the folder, and return what came out as JSON values.

    Args:
        out: The folder.
        seed: Of everything random.
        output: Told about every step.
    """
    output.note("[1/6] Training a small CNN with 3 exits on 797 digits.")
    run = _train(out / "run", seed, output)
    output.note("[2/6] Recording what every exit says about unseen samples, with the operations each exit costs.")
    tables = _record(run, out, output)
    output.note("[3/6] Measuring what every exit costs on this machine.")
    _measure(run, out / "costs.json", seed, output)
    output.note(f"[4/6] Fitting the policy eenet to a budget of {BUDGET} of the original model.")
    saved, facts = _fit(tables, out / "policy", seed)
    output.note("[5/6] Comparing policies at equal cost.")
    comparison = _compare(tables, seed, output)
    output.note("[6/6] Running the adaptive model for real on the test images.")
    prediction, real = _run(run, saved, tables)
    bench = _bench(run, saved, out, seed, output)
    value = {"out": str(out), "fit": facts, "run": real, "bench": bench, "comparison": comparison.to_dict()}
    _report(value, run, prediction, out)
    return value


def _train(folder: Path, seed: int, output: Output) -> Run:
    from eenet import recipes

    return recipes.train(names.recipe(RECIPE, seed), folder, progress=not output.quiet)


def _record(run: Run, out: Path, output: Output) -> Tables:
    from eenet.inference.measure import measure_flops
    from eenet.inference.record import record

    costs = readable(measure_flops(run.model, run.splits.test.inputs(slice(0, 2))).costs())
    shared: dict[str, Any] = {"costs": costs, "progress": not output.quiet}
    recorded = {
        name: record(run.model, run.splits.get(name), out / f"{name}.npz", split=name, **shared)
        for name in ("val", "test")
    }
    return Tables(**recorded)


def _measure(run: Run, path: Path, seed: int, output: Output) -> None:
    from eenet.inference.measure import measure

    inputs = run.splits.test.inputs(slice(0, max(BATCH_SIZES)))
    measure(run.model, inputs, batch_sizes=BATCH_SIZES, seed=seed, progress=not output.quiet).save(path)


def _fit(tables: Tables, folder: Path, seed: int) -> tuple[SavedPolicy, dict[str, Any]]:
    from eenet.schedulers import load_policy

    costs = tables.val.require_costs()
    facts = fit_policy(tables.val, costs, costs.budget(BUDGET), "eenet", names.scheduler("eenet", seed), folder)
    return load_policy(folder), facts


def _compare(tables: Tables, seed: int, output: Output) -> Comparison:
    from eenet import evaluation

    chosen = names.schedulers(None, seed)
    return evaluation.compare(tables.val, tables.test, chosen, BUDGETS, seed=seed, progress=output.step)


def _run(run: Run, saved: SavedPolicy, tables: Tables) -> tuple[Prediction, dict[str, Any]]:
    """Run the test images for real and compare every decision with the replay of recorded outputs."""
    from eenet.core.trace import exit_distribution, replay
    from eenet.inference.adaptive import AdaptiveModel

    trace = replay(saved.policy, tables.test, saved.costs)
    prediction = AdaptiveModel(run.model, saved.policy, saved.costs).predict_all(run.splits.test.batches(128))
    right = prediction.labels == run.splits.test.labels
    return prediction, {
        "num_samples": len(right),
        "unit": tables.test.require_costs().unit,
        "full_cost": tables.test.require_costs().full,
        "mean_cost": float(prediction.cost.mean()) if prediction.cost is not None else None,
        "replayed_cost": trace.mean_cost,
        "same_exit": int((prediction.exit_index == trace.exit_index).sum()),
        "exit_distribution": exit_distribution(prediction.exit_index, run.model.num_exits).tolist(),
        "accuracy": float(right.double().mean()),
        "full_accuracy": float(tables.test.require_utility("demo")[:, -1].mean()),
    }


def _bench(run: Run, saved: SavedPolicy, out: Path, seed: int, output: Output) -> dict[str, Any]:
    from eenet.core.files import write_json
    from eenet.inference.bench import bench

    inputs = run.splits.test.inputs(slice(None))
    report = bench(
        run.model, saved.policy, inputs, batch_sizes=BATCH_SIZES, passes=3, seed=seed, progress=not output.quiet
    ).to_dict()
    write_json(out / "bench.json", report)
    return report


def _report(value: dict[str, Any], run: Run, prediction: Prediction, out: Path) -> None:
    real = value["run"]
    caveats = (
        f"Run for real, {real['same_exit']} of {real['num_samples']} test images left where replay foretold.",
        "On a net this small, leaving can cost more in bookkeeping than it saves in layers; larger nets gain more.",
    )
    write_comparison(
        value["comparison"],
        out,
        title="eenet demo: handwritten digits",
        bench=value["bench"],
        examples=_examples(run, prediction),
        caveats=caveats,
        command=shlex.join(["eenet", "demo", "--out", str(out), "--seed", str(value["fit"]["seed"])]),
    )


def _examples(run: Run, prediction: Prediction) -> list[Example]:
    """Return the first few test images that left at each exit."""
    from eenet.data.dataset import as_images
    from eenet.report.sections import Example

    test, classes = as_images(run.splits.test), run.splits.classes
    return [
        Example(
            exit_index=k,
            caption=f"{classes[int(test.labels[row])]}, answered {classes[int(prediction.labels[row])]}",
            image=(test.images[slice(row, row + 1)][0, 0] * 255).byte().numpy(),
        )
        for k in range(run.model.num_exits)
        for row in (prediction.exit_index == k).nonzero().flatten()[:EXAMPLES_PER_EXIT].tolist()
    ]
