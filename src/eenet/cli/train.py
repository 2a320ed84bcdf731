"""`eenet train` and `eenet record`: a model with exits, and what its exits say."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eenet.cli import loading, names, paths
from eenet.cli.loading import readable
from eenet.cli.options import DataRootOption, DebugFlag, JsonFlag, QuietFlag, RunArgument, SeedOption
from eenet.cli.output import Output, error_line, percent, text_table
from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.core.costs import CostTable
    from eenet.recipes import Run


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, for example digits_tiny.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Folder for the run.")],
    data_root: DataRootOption = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Train a multi-exit model. A run that was stopped goes on where it was when the command is given again.

    Examples:

        eenet train digits_tiny --out run

        eenet train cifar10_resnet56_3 --data-root data --out run
    """
    output = Output(as_json=as_json, quiet=quiet)
    chosen = names.recipe(recipe, seed)
    paths.output_folder(out)
    if data_root is not None:
        paths.existing_folder(data_root, "--data-root")

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
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples per forward pass.")] = 128,
    data_root: DataRootOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Record what every exit says about every sample of a split: the table that fit and compare work on.

    Policies are fitted on val and judged on test; neither took part in training.

    Examples:

        eenet record run --split val --out val.npz

        eenet record run --split test --out test.npz
    """
    output = Output(as_json=as_json, quiet=quiet)
    if out.suffix == ".npz":
        paths.output_file(out)
    else:
        paths.output_folder(out, replaces=("logits.npy",))
    opened = loading.open_run(run, data_root)
    dataset = opened.splits.get(split)
    cost_table = _costs(opened, costs)

    from eenet.inference.record import record as write_record

    if split == "train":
        output.note("Note: the model has seen these samples; a policy fitted on them would trust early exits too much.")
    output.note(f"Recording {len(dataset)} samples of split {split}.")
    table = write_record(
        opened.model, dataset, out, batch_size=batch_size, split=split, costs=cost_table, progress=not quiet
    )
    utility = table.require_utility("record").mean(dim=0).tolist()
    rows = list(zip(map(str, range(table.num_exits)), cost_table.cumulative, map(percent, utility), strict=True))
    facts = {"out": str(out), "split": split, "num_samples": table.num_samples, "utility": utility}
    output.result(
        {**facts, "costs": cost_table.to_dict()},
        text_table(
            f"{table.num_samples} samples of {split}, written to {out}", ("exit", cost_table.unit, "utility"), rows
        ),
    )


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
