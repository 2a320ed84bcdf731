"""`eenet train` and `eenet record`: a model with exits, and what its exits say."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import loading, names, paths
from eenet.cli.loading import readable
from eenet.cli.options import DataRootOption, DebugFlag, DownloadFlag, JsonFlag, QuietFlag, RunArgument, SeedOption
from eenet.cli.output import Output, error_line, percent, text_table
from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.core.costs import CostTable
    from eenet.core.table import ExitTable
    from eenet.inference.record import Batches
    from eenet.recipes import Run


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, for example digits_tiny.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Folder for the run.")],
    data_root: DataRootOption = None,
    download: DownloadFlag = False,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Train a multi-exit model. A run that was stopped goes on where it was when the command is given again.

    Examples:

        eenet train digits_tiny --out run

        eenet train cifar10_resnet56_3 --data-root data --out run

        eenet train cifar100-densenet121 --data-root data --download --out run
    """
    output = Output(as_json=as_json, quiet=quiet)
    chosen = names.recipe(recipe, seed)
    paths.output_folder(out)
    loading.prepare_data(chosen, data_root, download=download)

    from eenet import recipes

    output.note(f"Training {recipe}: {chosen.summary}.")
    try:
        run = recipes.train(chosen, out, data_root=data_root, progress=not quiet)
    except KeyboardInterrupt:
        root = "" if data_root is None else f" --data-root {shlex.quote(str(data_root))}"
        again = f"eenet train {recipe}{root} --out {shlex.quote(str(out))} --seed {seed}"
        error_line(f"The state is kept in {out}. To go on: {again}", start="")
        raise
    facts = {"run": str(out), "recipe": recipe, "seed": seed, "num_exits": run.model.num_exits}
    output.result(facts, f"Trained {recipe} with {run.model.num_exits} exits: {out}")


def record(
    run: RunArgument,
    *,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="val, test or train.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="TABLE", help="File .npz, or a folder.")],
    costs: Annotated[
        Path | None,
        typer.Option("--costs", metavar="FILE", help="Costs to store, from `eenet profile`; default: FLOPs."),
    ] = None,
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
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Record what every exit says about every sample of a split: the table that fit and compare work on.

    Policies are fitted on val and judged on test; neither took part in training. Where the data set has masks, maps are
    recorded in short, with what is needed for the mean IoU.

    Examples:

        eenet record run --split val --out val.npz

        eenet record run --split test --out test.npz
    """
    output = Output(as_json=as_json, quiet=quiet)
    if out.suffix == ".npz":
        paths.output_file(out)
    else:
        paths.output_folder(out, replaces=("*.npy",))
    opened = loading.open_run(run, data_root)
    dataset = opened.splits.get(split)
    write_record = _recording(dataset, utility, batch_size)
    cost_table = _costs(opened, costs)

    if split == "train":
        output.note("Note: the model has seen these samples; a policy fitted on them would trust early exits too much.")
    output.note(f"Recording {len(dataset)} samples of split {split}.")
    table = write_record(opened.model, dataset, out, split=split, costs=cost_table, progress=not quiet)
    worth = {"utility": table.require_utility("record").mean(dim=0).tolist(), **_data_set_worth(out)}
    shown = [map(percent, column) for column in worth.values()]
    rows = list(zip(map(str, range(table.num_exits)), cost_table.cumulative, *shown, strict=True))
    facts = {"out": str(out), "split": split, "num_samples": table.num_samples, **worth}
    output.result(
        {**facts, "costs": cost_table.to_dict()},
        text_table(
            f"{table.num_samples} samples of {split}, written to {out}", ("exit", cost_table.unit, *worth), rows
        ),
    )


def _recording(dataset: Batches, utility: str | None, batch_size: int | None) -> Callable[..., ExitTable]:
    """Return what records a data set: maps where it has masks, classes where it has labels."""
    from eenet.inference.record import record
    from eenet.inference.record_dense import dense_utility, holds_masks, record_dense

    size: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    if holds_masks(dataset):
        return partial(record_dense, utility=dense_utility(utility or "accuracy"), **size)
    if utility is not None:
        raise InputError(
            f"--utility {utility!r} has no meaning here: the data set has one label per sample, and an answer is right "
            "or wrong. Leave it out."
        )
    return partial(record, **size)


def _data_set_worth(out: Path) -> dict[str, list[float]]:
    """Return what a data set's maps are worth at every exit, where counts were recorded."""
    from eenet.evaluation.segmentation import find_confusion, mean_iou

    confusion = find_confusion(out)
    return {} if confusion is None else {"miou": mean_iou(confusion.sum(dim=0)).tolist()}


def _costs(run: Run, path: Path | None) -> CostTable:
    """Return the costs of a file, or count the operations of the run's model."""
    from eenet.inference.flops import measure_flops
    from eenet.inference.measure import load_costs

    if path is None:
        return readable(measure_flops(run.model, run.splits.test.inputs(slice(0, 2))).costs())
    costs = load_costs(paths.existing(path, "--costs"))
    if costs.num_exits != run.model.num_exits:
        raise InputError(
            f"--costs {str(path)!r} does not fit: it has {costs.num_exits} exits, the model {run.model.num_exits}. "
            "Profile this run."
        )
    return costs
