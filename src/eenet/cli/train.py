"""`eenet train` and `eenet record`: a model with exits, and what its exits say."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eenet.cli import loading, options
from eenet.cli.interrupt import require
from eenet.cli.output import Output, Result, error_line, percent
from eenet.errors import InputError
from eenet.imports import known
from eenet.report.sections import Table
from eenet.tables.costs import CostTable

if TYPE_CHECKING:
    from eenet.experiments.recipes import Recipe, Run


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, for example digits_tiny.")],
    *,
    out: Annotated[Path, options.folder_out("Folder for the run.", "RUN")],
    data: loading.Data,
    seed: options.SeedOption = 0,
    output: Output,
) -> Result:
    """Train a multi-exit model; a run that was stopped continues when the command is repeated.

    Examples:

        eenet train digits_tiny --out run

        eenet train cifar10_resnet56_3 --data-root data --out run

        eenet train cifar100-densenet121 --data-root data --download --out run
    """
    require("torch")
    from eenet.experiments import recipes

    chosen = recipes.RECIPES[known("recipe", recipe, recipes.RECIPES)].with_seed(seed)
    folder = data.prepare(chosen)
    output.note(f"Training {recipe}: {chosen.summary}.")
    root = "" if folder is None else f" --data-root {shlex.quote(str(folder))}"
    again = f"To go on: eenet train {recipe}{root} --out {shlex.quote(str(out))} --seed {seed}"
    run = train_run(chosen, out, folder, output, again)
    facts = {"run": str(out), "recipe": recipe, "seed": seed, "num_exits": run.model.num_exits}
    return facts, [f"Trained {recipe} with {run.model.num_exits} exits: {out}"]


def train_run(recipe: Recipe, out: Path, data_root: Path | None, output: Output, again: str) -> Run:
    """Train a recipe into a folder; when interrupted, say how to go on."""
    from eenet.experiments import recipes

    try:
        return recipes.train(recipe, out, data_root=data_root, progress=not output.quiet)
    except KeyboardInterrupt:
        error_line(f"The state is kept in {out}. {again}", start="")
        raise


def record(
    run: options.RunArgument,
    *,
    split: Annotated[str, options.word("NAME", "val, test or train.")],
    out: Annotated[Path, options.word("TABLE", "File .npz, or a folder.", "--out", "-o")],
    costs: Annotated[Path | None, options.file_in("--costs", "Costs of `eenet profile`; default: FLOPs.")] = None,
    batch_size: Annotated[
        int | None, options.count("Samples per forward pass; default: 128, or 8 where masks are known.")
    ] = None,
    utility: Annotated[str | None, options.word("U", "Of maps: accuracy (default) or miou.")] = None,
    data_root: options.DataRootOption = None,
    output: Output,
) -> Result:
    """Record what every exit says about every sample of a split: the table of fit and compare.

    Policies are fitted on val and judged on test; neither took part in training. Where the data set has masks, maps are
    recorded in short, with what is needed for the mean IoU.

    Examples:

        eenet record run --split val --out val.npz

        eenet record run --split test --out test.npz
    """
    is_file = out.suffix == ".npz"
    out = options.output_file(out) if is_file else options.output_folder(out, replaces=("manifest.json", "*.npy"))
    opened = loading.open_run(run, data_root)
    dataset = opened.splits.get(split)
    cost_table, counted = _costs(opened, costs)

    if split == "train":
        output.note("Note: the model has seen these samples; a policy fitted on them would trust early exits too much.")
    output.note(f"Recording {len(dataset)} samples of split {split}.")

    from eenet import running

    table = running.record(
        opened.model,
        dataset,
        out,
        utility=utility,
        batch_size=batch_size,
        split=split,
        costs=cost_table,
        progress=not output.quiet,
    )

    from eenet.evaluation.segmentation import find_confusion, mean_iou

    means = {"utility": table.require_utility("record").mean(axis=0).tolist()}
    if (confusion := find_confusion(out)) is not None:
        means["miou"] = mean_iou(confusion.sum(axis=0)).tolist()
    facts = {
        "out": str(out),
        "split": split,
        "num_samples": table.num_samples,
        **means,
        "costs": cost_table.to_dict(),
    }
    rows = [
        (f"{k}", f"{cost:.4g}", *(percent(values[k]) for values in means.values()))
        for k, cost in enumerate(cost_table.cumulative)
    ]
    title = f"{table.num_samples} samples of {split}, written to {out}{counted}"
    return facts, [Table(("exit", cost_table.unit, *means), rows, title)]


def _costs(run: Run, path: Path | None) -> tuple[CostTable, str]:
    """Return the costs of a file, or count the operations of the run's model; and at how many tokens, if of texts."""
    from eenet.running.measuring import load_costs, measure_flops, tokens_in

    if path is None:
        inputs = run.splits.test.inputs(slice(0, 2))
        tokens = tokens_in(inputs)
        counted = "" if tokens is None else f"; operations counted for texts of {tokens} tokens, padding included"
        return loading.readable(measure_flops(run.model, inputs).costs()), counted
    costs = load_costs(path)
    if costs.num_exits != run.model.num_exits:
        raise InputError(
            f"--costs {str(path)!r} does not fit: it has {costs.num_exits} exits, the model {run.model.num_exits}. "
            "Profile this run."
        )
    return costs, ""
