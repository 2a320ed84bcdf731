"""`eenet train` and `eenet record`: a model with exits, and what its exits say."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import loading, names
from eenet.cli.interrupt import require
from eenet.cli.options import DataRootOption, RunArgument, SeedOption, file_in, folder_out, output_file, output_folder
from eenet.cli.output import Output, Result, error_line, percent, text_table
from eenet.errors import InputError
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    from eenet.experiments.recipes import Recipe, Run
    from eenet.training.dataset import LabelledDataset


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, for example digits_tiny.")],
    *,
    out: Annotated[Path, folder_out("Folder for the run.", "RUN")],
    data: loading.Data,
    seed: SeedOption = 0,
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

    chosen = recipes.RECIPES[names.known("recipe", recipe, recipes.RECIPES)].with_seed(seed)
    data.prepare(chosen)
    output.note(f"Training {recipe}: {chosen.summary}.")
    root = "" if data.data_root is None else f" --data-root {shlex.quote(str(data.data_root))}"
    again = f"To go on: eenet train {recipe}{root} --out {shlex.quote(str(out))} --seed {seed}"
    run = train_run(chosen, out, data.data_root, output, again)
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
    run: RunArgument,
    *,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="val, test or train.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="TABLE", help="File .npz, or a folder.")],
    costs: Annotated[Path | None, file_in("--costs", "Costs to store, from `eenet profile`; default: FLOPs.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Samples per forward pass; default: 128, or 8 where masks are known."),
    ] = None,
    utility: Annotated[
        str | None,
        typer.Option(
            "--utility", metavar="U", help="For masks: what an image's map is worth, accuracy (default) or miou."
        ),
    ] = None,
    data_root: DataRootOption = None,
    output: Output,
) -> Result:
    """Record what every exit says about every sample of a split: the table of fit and compare.

    Policies are fitted on val and judged on test; neither took part in training. Where the data set has masks, maps are
    recorded in short, with what is needed for the mean IoU.

    Examples:

        eenet record run --split val --out val.npz

        eenet record run --split test --out test.npz
    """
    if out.suffix == ".npz":
        output_file(out)
    else:
        output_folder(out, replaces=("*.npy",))
    opened = loading.open_run(run, data_root)
    dataset = opened.splits.get(split)
    write_record = _recording(dataset, utility, batch_size)
    cost_table = _costs(opened, costs)

    if split == "train":
        output.note("Note: the model has seen these samples; a policy fitted on them would trust early exits too much.")
    output.note(f"Recording {len(dataset)} samples of split {split}.")
    table = write_record(opened.model, dataset, out, split=split, costs=cost_table, progress=not output.quiet)

    from eenet.evaluation.segmentation import find_confusion, mean_iou

    worth = {"utility": table.require_utility("record").mean(axis=0).tolist()}
    if (confusion := find_confusion(out)) is not None:
        worth["miou"] = mean_iou(confusion.sum(axis=0)).tolist()
    facts = {"out": str(out), "split": split, "num_samples": table.num_samples, **worth, "costs": cost_table.to_dict()}
    columns = {"exit": map(str, range(table.num_exits)), cost_table.unit: cost_table.cumulative}
    columns |= {name: map(percent, values) for name, values in worth.items()}
    rows = zip(*columns.values(), strict=True)
    title = f"{table.num_samples} samples of {split}, written to {out}"
    return facts, [text_table(title, rows, {name: index for index, name in enumerate(columns)})]


def _recording(dataset: LabelledDataset, utility: str | None, batch_size: int | None) -> Callable[..., ExitTable]:
    """Return what records a data set: maps where it has masks, classes where it has labels."""
    from eenet.running.recording import dense_utility, holds_masks, record, record_dense

    size: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    if holds_masks(dataset):
        return partial(record_dense, utility=dense_utility(utility or "accuracy"), **size)
    if utility is not None:
        raise InputError(
            f"--utility {utility!r} has no meaning here: the data set has one label per sample, and an answer is right "
            "or wrong. Leave it out."
        )
    return partial(record, **size)


def _costs(run: Run, path: Path | None) -> CostTable:
    """Return the costs of a file, or count the operations of the run's model."""
    from eenet.running.measuring import load_costs, measure_flops

    if path is None:
        return loading.readable(measure_flops(run.model, run.splits.test.inputs(slice(0, 2))).costs())
    costs = load_costs(path)
    if costs.num_exits != run.model.num_exits:
        raise InputError(
            f"--costs {str(path)!r} does not fit: it has {costs.num_exits} exits, the model {run.model.num_exits}. "
            "Profile this run."
        )
    return costs
