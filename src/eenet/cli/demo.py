"""`eenet demo`: the main job from training to report, on the data set that comes along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from eenet.cli.compare import AllOption, compare, write_comparison
from eenet.cli.fit import Promise, fit
from eenet.cli.interrupt import require
from eenet.cli.loading import Costs
from eenet.cli.measure import Timing, bench, profile
from eenet.cli.options import SeedOption, folder_out
from eenet.cli.output import Output, Result, comparison_parts, facts_table, percent
from eenet.cli.run import run
from eenet.cli.train import record, train_run
from eenet.report.sections import Block, Section, bench_section, exit_shares
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    from eenet.experiments.recipes import Run
    from eenet.policies import SavedPolicy
    from eenet.report import Example

BUDGET, BUDGETS = "25%", ["20%", "25%", "30%"]
WHY_SO_LOW = (
    "The budgets lie between exit 0 and exit 1: on digits exit 1 alone is as good as all layers, so that from its cost "
    "on there is nothing to gain by choosing between samples, and random is as good as any policy."
)
BATCH_SIZES = "1,32,500"
EXAMPLES_PER_EXIT = 6
SMALL_NET = "On a net this small, leaving can cost more in bookkeeping than it saves in layers; larger nets gain more."


def demo(
    *,
    out: Annotated[Path, folder_out("Folder for everything.")] = Path("eenet-demo"),
    seed: SeedOption = 0,
    everything: AllOption = False,
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
    trained = train_run(recipe, folder, None, output, "The same command goes on from there.")
    output.note("[2/6] Recording what every exit says about unseen samples, with the operations each exit costs.")
    for path in (val, test):
        record(folder, split=path.stem, out=path, output=output)
    output.note("[3/6] Measuring what every exit costs on this machine.")
    timing = Timing(run=folder, batch_size=BATCH_SIZES, seed=seed)
    profile(timing, out=out / "costs.json", output=output)
    output.note(f"[4/6] Fitting a policy to a budget of {BUDGET} of the original model.")
    fitted, _ = fit(val, budget=BUDGET, out=policy, promise=Promise(), costs=Costs(), seed=seed, output=output)
    output.note("[5/6] Comparing policies at equal cost.")
    comparison, _ = compare(val, test, budget=BUDGETS, costs=Costs(), seed=seed, output=output)
    output.note("[6/6] Running the adaptive model for real on the test images.")
    ran, _ = run(folder, ["split:test"], policy=policy, output=output)
    real = _compared(ran, load_policy(policy), Costs().read_table(test))
    timed, _ = bench(timing, policy=policy, passes=3, out=out / "bench.json", output=output)
    agreed = f"Run for real, {real['same_exit']} of {real['num_samples']} test images left where replay predicted."
    files = write_comparison(
        comparison,
        out,
        title="eenet demo: handwritten digits",
        bench=timed,
        examples=_examples(trained, ran["samples"]),
        caveats=(agreed, SMALL_NET, WHY_SO_LOW),
        command=output.line,
    )
    value = {"out": str(out), "fit": fitted, "run": real, "bench": timed, "comparison": comparison}
    return value, [*_shown(value, everything), *(f"wrote {file}" for file in files)]


def _shown(value: Mapping[str, Any], everything: bool) -> list[Block | Section]:
    """Return what is printed: what was saved, then the comparison; times and facts with --all only."""
    fitted, real, timed = value["fit"], value["run"], value["bench"]
    listed: list[Block | Section] = [
        bench_section(timed),
        facts_table("The adaptive model on the test images", _facts(fitted, real, timed)),
    ]
    return [
        _conclusion(fitted, real, timed["rows"][-1]),
        SMALL_NET,
        "",
        *comparison_parts(value["comparison"], everything=everything),
        WHY_SO_LOW,
        *(listed if everything else []),
    ]


def _compared(ran: Mapping[str, Any], saved: SavedPolicy, test: ExitTable) -> dict[str, Any]:
    """Return what the run did, and how often it decided as the replay of recorded outputs."""
    from eenet.policies import replay

    trace = replay(saved.policy, test, saved.costs)
    exits = [sample["exit"] for sample in ran["samples"]]
    return {name: value for name, value in ran.items() if name != "samples"} | {
        "full_cost": test.require_costs().full,
        "replayed_cost": trace.mean_cost,
        "same_exit": int((trace.exit_index == exits).sum()),
        "full_accuracy": float(test.require_utility("demo")[:, -1].mean()),
    }


def _conclusion(fitted: Mapping[str, Any], real: Mapping[str, Any], timed: Mapping[str, Any]) -> str:
    """Say what the adaptive model saved and what it lost, in operations and in time."""
    return (
        f"With a budget of {fitted['budget_input']} of the original model the policy {fitted['policy']} spent "
        f"{real['mean_cost'] / real['full_cost']:.1%} of its operations on {real['num_samples']} test images, with an "
        f"accuracy of {percent(real['accuracy'])} (all layers: {percent(real['full_accuracy'])}); at batch size "
        f"{timed['batch_size']} an image took {timed['adaptive_ms']:.3g} ms instead of {timed['full_ms']:.3g} ms. "
        f"{real['same_exit']} of {real['num_samples']} images left where the replay of recorded outputs said."
    )


def _facts(fitted: Mapping[str, Any], real: Mapping[str, Any], bench: Mapping[str, Any]) -> dict[str, str]:
    """Return what the adaptive model did: budget, cost, accuracy, agreement with replay."""
    timed = bench["rows"][-1]
    full = f"all layers: {timed['full_ms']:.3g} ms, {timed['speedup']:.2f}x"
    return {
        "budget per sample": fitted["budget_meaning"],
        "cost per sample, run for real": f"{real['mean_cost']:.4g} {real['unit']} of {real['full_cost']:.4g}",
        "accuracy": f"{percent(real['accuracy'])} (all layers: {percent(real['full_accuracy'])})",
        "left at exits 0, 1, ...": f"{exit_shares(real['exit_distribution'])} %",
        f"time per sample, batch size {timed['batch_size']}": f"{timed['adaptive_ms']:.3g} ms ({full})",
        "left where replay predicted": f"{real['same_exit']} of {real['num_samples']}",
    }


def _examples(trained: Run, samples: Sequence[Mapping[str, Any]]) -> list[Example]:
    """Return the first test images that left at each exit."""
    from eenet.experiments.data.dataset import as_images
    from eenet.report import Example

    test, classes = as_images(trained.splits.test), trained.splits.classes
    by_exit = [[one for one in samples if one["exit"] == k] for k in range(trained.model.num_exits)]
    return [
        Example(
            exit_index=one["exit"],
            caption=f"{classes[one['label']]}, answered {one['class']}",
            image=(test.images[slice(one["sample"], one["sample"] + 1)][0, 0] * 255).byte().numpy(),
        )
        for left in by_exit
        for one in left[:EXAMPLES_PER_EXIT]
    ]
