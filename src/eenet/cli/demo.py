"""`eenet demo`: the main job from training to report, on the data set that comes along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from eenet.cli.compare import compare, write_comparison
from eenet.cli.fit import fit
from eenet.cli.interrupt import require
from eenet.cli.loading import Costs
from eenet.cli.measure import Timing, bench, profile
from eenet.cli.options import SeedOption, folder_out
from eenet.cli.output import Output, Result, comparison_parts, facts_table, percent, section_parts, shares
from eenet.cli.train import record, train_run
from eenet.report import bench_section
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    from eenet.experiments.recipes import Run
    from eenet.policies import SavedPolicy
    from eenet.report import Example
    from eenet.running import Prediction

BUDGET, BUDGETS = "60%", ["40%", "60%", "80%"]
BATCH_SIZES = "1,32,500"
EXAMPLES_PER_EXIT = 6


def demo(
    *,
    out: Annotated[Path, folder_out("Folder for everything.")] = Path("eenet-demo"),
    seed: SeedOption = 0,
    output: Output,
) -> Result:
    """Do the main job on handwritten digits: train, record, measure, fit, compare, run, report.

    Takes a minute or two on two cores and needs no download: scikit-learn brings the digits.

    Examples:

        eenet demo

        eenet demo --out my-demo --seed 1
    """
    require("torch", "sklearn", "matplotlib")
    from eenet.experiments import recipes
    from eenet.policies import load_policy

    folder, val, test, policy = out / "run", out / "val.npz", out / "test.npz", out / "policy"
    output.note("[1/6] Training a small CNN with 3 exits on 797 digits.")
    recipe = recipes.RECIPES["digits_tiny"].with_seed(seed)
    run = train_run(recipe, folder, None, output, "The same command goes on from there.")
    output.note("[2/6] Recording what every exit says about unseen samples, with the operations each exit costs.")
    for path in (val, test):
        record(folder, split=path.stem, out=path, output=output)
    output.note("[3/6] Measuring what every exit costs on this machine.")
    timing = Timing(run=folder, batch_size=BATCH_SIZES, seed=seed)
    profile(timing, out=out / "costs.json", output=output)
    output.note(f"[4/6] Fitting the policy eenet to a budget of {BUDGET} of the original model.")
    fitted, _ = fit(val, budget=BUDGET, policy="eenet", out=policy, costs=Costs(), seed=seed, output=output)
    output.note("[5/6] Comparing policies at equal cost.")
    comparison, _ = compare(val, test, budget=BUDGETS, costs=Costs(), seed=seed, output=output)
    output.note("[6/6] Running the adaptive model for real on the test images.")
    prediction, real = _run(run, load_policy(policy), Costs().read_table(test))
    timed, _ = bench(timing, policy=policy, passes=3, out=out / "bench.json", output=output)
    caveats = (
        f"Run for real, {real['same_exit']} of {real['num_samples']} test images left where replay predicted.",
        "On a net this small, leaving can cost more in bookkeeping than it saves in layers; larger nets gain more.",
    )
    files = write_comparison(
        comparison,
        out,
        title="eenet demo: handwritten digits",
        bench=timed,
        examples=_examples(run, prediction),
        caveats=caveats,
        command=output.line,
    )
    value = {"out": str(out), "fit": fitted, "run": real, "bench": timed, "comparison": comparison}
    return value, [
        *comparison_parts(comparison),
        *section_parts(bench_section(timed)),
        facts_table("The adaptive model on the test images", _facts(fitted, real, timed["rows"][-1])),
        *(f"wrote {file}" for file in files),
    ]


def _run(run: Run, saved: SavedPolicy, test: ExitTable) -> tuple[Prediction, dict[str, Any]]:
    """Run the test images for real and compare every decision with the replay of recorded outputs."""
    from eenet.policies import exit_distribution, replay
    from eenet.running import AdaptiveModel

    known = test.require_costs()
    trace = replay(saved.policy, test, saved.costs)
    prediction = AdaptiveModel(run.model, saved.policy, saved.costs).predict_all(run.splits.test.batches(128))
    right = prediction.labels == run.splits.test.labels.numpy()
    return prediction, {
        "num_samples": len(right),
        "unit": known.unit,
        "full_cost": known.full,
        "mean_cost": float(prediction.cost.mean()) if prediction.cost is not None else None,
        "replayed_cost": trace.mean_cost,
        "same_exit": int((prediction.exit_index == trace.exit_index).sum()),
        "exit_distribution": exit_distribution(prediction.exit_index, run.model.num_exits).tolist(),
        "accuracy": float(right.mean()),
        "full_accuracy": float(test.require_utility("demo")[:, -1].mean()),
    }


def _facts(fitted: Mapping[str, Any], real: dict[str, Any], timed: dict[str, Any]) -> dict[str, str]:
    """Return what the adaptive model did: budget, cost, accuracy, agreement with replay."""
    full = f"all layers: {timed['full_ms']:.3g} ms, {timed['speedup']:.2f}x"
    return {
        "budget per sample": fitted["budget_meaning"],
        "cost per sample, run for real": f"{real['mean_cost']:.4g} {real['unit']} of {real['full_cost']:.4g}",
        "accuracy": f"{percent(real['accuracy'])} (all layers: {percent(real['full_accuracy'])})",
        "left at exits 0, 1, ...": f"{shares(real['exit_distribution'])} %",
        f"time per sample, batch size {timed['batch_size']}": f"{timed['adaptive_ms']:.3g} ms ({full})",
        "left where replay predicted": f"{real['same_exit']} of {real['num_samples']}",
    }


def _examples(run: Run, prediction: Prediction) -> list[Example]:
    """Return the first test images that left at each exit."""
    from eenet.experiments.data.dataset import as_images
    from eenet.report import Example

    test, classes = as_images(run.splits.test), run.splits.classes
    return [
        Example(
            exit_index=k,
            caption=f"{classes[int(test.labels[row])]}, answered {classes[int(prediction.labels[row])]}",
            image=(test.images[slice(row, row + 1)][0, 0] * 255).byte().numpy(),
        )
        for k in range(run.model.num_exits)
        for row in np.flatnonzero(prediction.exit_index == k)[:EXAMPLES_PER_EXIT].tolist()
    ]
