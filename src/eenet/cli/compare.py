"""`eenet compare`: which policy to take, judged on tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from eenet.cli import loading, names
from eenet.cli.interrupt import require
from eenet.cli.loading import Costs
from eenet.cli.options import BudgetsOption, SeedOption, TableArgument, file_in, folder_out, place
from eenet.cli.output import Output, Result, comparison_parts
from eenet.errors import InputError
from eenet.tables.files import write_json


def compare(
    val: TableArgument,
    test: Annotated[Path, place("TEST", "Exit table to judge on.")],
    *,
    budget: BudgetsOption = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", "-p", metavar="NAME", help="Name of a policy. Repeatable.")
    ] = None,
    costs: Costs,
    splits: Annotated[
        int, typer.Option("--splits", min=1, help="Pool VAL and TEST and split them anew this often.")
    ] = 1,
    groups: Annotated[
        Path | None,
        file_in("--groups", "Group of every TEST sample, to see who pays: .npy, or text, a number or name per line."),
    ] = None,
    out: Annotated[Path | None, folder_out("Folder for JSON, plots, page.")] = None,
    seed: SeedOption = 0,
    output: Output,
) -> Result:
    """Compare policies at equal cost: fitted on VAL, judged on TEST.

    Without --budget the ten standard budgets are listed. Without --policy all but the slow eenet_published, and those
    that cannot be fitted on VAL, are compared; the bounds random and oracle always are. With --splits, VAL and TEST are
    pooled and split anew: training must have seen neither. What early exit costs each class is reported, and other
    groups with --groups. Tables recorded from maps are judged by the mean IoU of TEST.

    Examples:

        eenet compare val.npz test.npz --budget 40% --budget 60%

        eenet compare val.npz test.npz -b 2.5ms -p eenet -p joint --costs costs.json --batch-size 1 --json
    """
    from eenet import evaluation
    from eenet.evaluation.segmentation import find_confusion

    chosen = names.schedulers(policy, seed)
    if out is not None:
        require("matplotlib")
    val_table = costs.read_table(val)
    known = val_table.require_costs()
    test_table = costs.read_table(test, known.unit)
    for name, reason in names.unsuited(val_table).items() if policy is None else ():
        del chosen[name]
        output.note(f"{name} is left out: {reason}.")
    confusion = find_confusion(test)
    if confusion is not None and (splits > 1 or groups is not None):
        option = f"--splits {splits}" if groups is None else "--groups"
        raise InputError(
            f"{option} cannot be used here: {str(test)!r} was recorded from maps, which are compared on TEST as it is, "
            "by one number for all images. Leave it out."
        )
    asked = [known.budget(text) for text in budget or []]
    grouping = None if groups is None else loading.read_groups(groups)
    for one in asked:
        output.note(f"Budget per sample: {one.meaning}.")
    shared: dict[str, Any] = {"seed": seed, "progress": output.step}
    if confusion is not None:
        comparison = evaluation.compare_dense(val_table, test_table, confusion, chosen, asked, **shared)
    else:
        shared |= {"splits": splits, "groups": grouping}
        comparison = evaluation.compare(val_table, test_table, chosen, asked, **shared)
    value = comparison.to_dict()
    if out is not None:
        for path in write_comparison(value, out, command=output.line):
            output.note(f"wrote {path}")
    return value, [*comparison_parts(value), *(f"Note: {note}" for note in comparison.notes)]


def write_comparison(value: Mapping[str, Any], out: Path, **page: Any) -> list[Path]:  # noqa: ANN401 - passed through
    """Write a comparison as JSON, plots and page, and return the files.

    Args:
        value: The JSON of `eenet compare`.
        out: Folder to write into.
        **page: Passed on to `eenet.report.comparison_page`.
    """
    from eenet import report

    files = [out / name for name in ("comparison.json", "utility_cost.png", "gain.png", "exits.png", "report.html")]
    write_json(files[0], dict(value))
    for path, draw in zip(files[1:], (report.utility_cost, report.gain_over_random, report.exit_shares), strict=False):
        report.save_figure(draw(value), path)
    report.write_page(files[-1], report.comparison_page(value, **page))
    return files
