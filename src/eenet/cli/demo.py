"""`eenet demo`: the main job from training to report, on the data set that comes along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from eenet import environment
from eenet.cli.compare import compare, write_comparison
from eenet.cli.fit import Promise, fit
from eenet.cli.interrupt import require
from eenet.cli.loading import Costs
from eenet.cli.measure import Timing, bench, profile
from eenet.cli.options import SeedOption, folder_out
from eenet.cli.output import Output, Part, Result, facts_table, percent
from eenet.cli.run import run
from eenet.cli.screen import AllOption, comparison_parts
from eenet.cli.train import record, train_run
from eenet.report.sections import bench_section, exit_shares
from eenet.tables.files import read_json
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    from eenet.experiments.recipes import Recipe, Run
    from eenet.policies import SavedPolicy
    from eenet.report import Example

BUDGET, BUDGETS = "30%", ["20%", "30%", "50%"]
BATCH_SIZES = "1,32"
TIMED = 256  # samples
EXAMPLES_PER_EXIT = 6
MADE = (
    "The pictures are made by code from the handwritten digits of scikit-learn: one large digit, which is the class, "
    "up to four small ones, and noise. How many small ones and how much noise is drawn before anything is trained."
)


def demo(
    *,
    out: Annotated[Path, folder_out("Folder for everything.")] = Path("eenet-demo"),
    seed: SeedOption = 0,
    everything: AllOption = False,
    output: Output,
) -> Result:
    """Do the main job on pictures of digits: train, record, measure, fit, compare, run, report.

    Takes a minute on one core and needs no download: scikit-learn brings the digits. EENET_THREADS sets more threads.

    Examples:

        eenet demo

        eenet demo --out my-demo --seed 1
    """
    require("torch", "sklearn")
    import torch

    from eenet.evaluation import saving
    from eenet.policies import load_policy

    torch.set_num_threads(environment.threads() or 1)  # more make so small a net slower; trained weights depend on it
    folder, val, test, policy = out / "run", out / "val.npz", out / "test.npz", out / "policy"
    recipe = _recipe(seed)
    output.note(f"[1/6] Training {recipe.summary}.")
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
    saved, table = load_policy(policy), Costs().read_table(test)
    real = _compared(ran, saved, table)
    timed, _ = bench(timing, policy=policy, passes=5, samples=TIMED, out=out / "bench.json", output=output)
    saves = saving(saved.policy, table, speedups={row["batch_size"]: row["speedup"] for row in timed["rows"]})
    files = write_comparison(
        comparison,
        out,
        title="eenet demo: a digit among digits",
        verdict=saves.sentence,
        budget=fitted["budget"],
        bench=timed,
        profile=read_json(out / "costs.json", "costs"),
        examples=_examples(trained, ran["samples"], _turned(saved, table, comparison)),
        caveats=(_agreed(real), MADE),
        command=output.line,
    )
    value = {"out": str(out), "saving": saves.to_dict(), "fit": fitted, "run": real, "bench": timed}
    value["comparison"] = comparison
    return value, [*_shown(value, everything), f"wrote {out / 'report.html'} and {len(files) - 1} files beside it"]


def _recipe(seed: int) -> Recipe:
    """Return what is trained, in bfloat16 where the processor is fast at it."""
    from eenet.experiments.recipes import RECIPES
    from eenet.models.processor import has_bfloat16

    recipe = RECIPES["digits_clutter"].with_seed(seed)
    return replace(recipe, settings=replace(recipe.settings, precision="bfloat16")) if has_bfloat16() else recipe


def _shown(value: Mapping[str, Any], everything: bool) -> list[Part]:
    """Return what is printed: what was saved, then the comparison; times and facts with --all only."""
    fitted, real, timed = value["fit"], value["run"], value["bench"]
    compared = comparison_parts(value["comparison"], value["saving"]["sentence"], everything=everything)
    if not everything:
        return compared[:-1]  # without how to see more of `compare`
    return [
        *compared,
        bench_section(timed),
        facts_table("The adaptive model on the test images", _facts(fitted, real, timed)),
        MADE,
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


def _agreed(real: Mapping[str, Any]) -> str:
    return f"Run for real, {real['same_exit']} of {real['num_samples']} test images left where replay predicted."


def _turned(saved: SavedPolicy, table: ExitTable, comparison: Mapping[str, Any]) -> np.ndarray | None:
    """Return where every sample leaves at every position of the comparison's dial, ``[position, sample]``."""
    from eenet.policies.replay import Replayer

    if saved.dial is None or "dial" not in comparison:
        return None
    replayer, at = Replayer(table), saved.dial.at
    return np.stack([replayer.exit_index(at(one["budget"])) for one in comparison["dial"]["positions"]])


def _examples(trained: Run, samples: Sequence[Mapping[str, Any]], turned: np.ndarray | None) -> list[Example]:
    """Return the first test images that left at each exit, and where they leave at other budgets."""
    from eenet.experiments.data.dataset import as_images
    from eenet.report import Example

    test, classes = as_images(trained.splits.test), trained.splits.classes
    by_exit = [[one for one in samples if one["exit"] == k] for k in range(trained.model.num_exits)]
    return [
        Example(
            exit_index=one["exit"],
            caption=f"{classes[one['label']]}, answered {one['class']}",
            exits=() if turned is None else tuple(turned[:, one["sample"]].tolist()),
            image=(test.images[slice(one["sample"], one["sample"] + 1)][0, 0] * 255).byte().numpy(),
        )
        for left in by_exit
        for one in left[:EXAMPLES_PER_EXIT]
    ]
