"""`eenet compare`: which policy to take, judged on tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import loading, names, paths
from eenet.cli.options import (
    BudgetsOption,
    CostBatchOption,
    CostDtypeOption,
    CostEngineOption,
    CostsOption,
    DebugFlag,
    GroupsOption,
    JsonFlag,
    PoliciesOption,
    QuietFlag,
    SeedOption,
    TableArgument,
)
from eenet.cli.output import Output
from eenet.cli.show import comparison_tables

if TYPE_CHECKING:
    from eenet.evaluation import Comparison


def compare(
    val: TableArgument,
    test: Annotated[Path, typer.Argument(metavar="TEST", help="Exit table to judge on.")],
    *,
    budget: BudgetsOption = None,
    policy: PoliciesOption = None,
    costs: CostsOption = None,
    batch_size: CostBatchOption = None,
    engine: CostEngineOption = None,
    dtype: CostDtypeOption = None,
    splits: Annotated[int, typer.Option("--splits", min=1, help="Redraw VAL and TEST from their pool this often.")] = 1,
    groups: GroupsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for JSON, plots, page.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Compare policies at equal cost: fitted on VAL, judged on TEST.

    Without --budget the ten standard budgets are shown. Without --policy all but the slow eenet_published, and those
    that cannot be fitted on VAL, are compared; the bounds random and oracle always are. With --splits, VAL and TEST are
    pooled and redrawn: training must have seen neither. Who pays for leaving early is told for every class, and for
    other groups with --groups. Tables recorded from maps are judged by the mean IoU of TEST.

    Examples:

        eenet compare val.npz test.npz --budget 40% --budget 60%

        eenet compare val.npz test.npz -b 2.5ms -p eenet -p joint --costs costs.json --batch-size 1 --json
    """
    output = Output(as_json=as_json, quiet=quiet)
    chosen = names.schedulers(policy, seed)
    if out is not None:
        paths.output_folder(out)
    val_table, test_table = loading.read_table(val, "VAL"), loading.read_table(test, "TEST")
    for name, reason in names.unsuited(val_table).items() if policy is None else ():
        del chosen[name]
        output.note(f"{name} is left out: {reason}.")
    confusion = loading.read_confusion(test, splits=splits, grouped=groups is not None)
    cost_table = loading.pick_costs(val_table, costs, batch_size, engine, dtype)
    asked = [cost_table.budget(text) for text in budget or []]
    told_apart = None if groups is None else loading.read_groups(groups)
    for one in asked:
        output.note(f"Budget per sample: {one.meaning}.")
    shared: dict[str, Any] = {"seed": seed, "progress": output.step, "costs": None if costs is None else cost_table}

    from eenet import evaluation

    if confusion is not None:
        comparison = evaluation.compare_dense(val_table, test_table, confusion, chosen, asked, **shared)
    else:
        shared |= {"splits": splits, "groups": told_apart}
        comparison = evaluation.compare(val_table, test_table, chosen, asked, **shared)
    value = comparison.to_dict()
    if out is not None:
        options = {
            "--budget": budget,
            "--policy": policy,
            "--costs": costs,
            "--batch-size": batch_size,
            "--engine": engine,
            "--dtype": dtype,
            "--splits": splits if splits > 1 else None,
            "--groups": groups,
            "--seed": seed or None,
        }
        for path in write_comparison(value, out, command=_command(val, test, options)):
            output.note(f"wrote {path}")
    output.result(value, *comparison_tables(value), *_notes(comparison))


def write_comparison(value: Mapping[str, Any], out: Path, **page: Any) -> list[Path]:  # noqa: ANN401 - passed through
    """Write a comparison as JSON, plots and page, and return the files.

    Args:
        value: The contract JSON of `eenet compare`.
        out: Folder to write into.
        **page: Passed on to `eenet.report.comparison.comparison_page`.
    """
    from eenet.core.files import write_json
    from eenet.report import plots
    from eenet.report.comparison import comparison_page
    from eenet.report.html import write_page

    files = [out / name for name in ("comparison.json", "utility_cost.png", "gain.png", "exits.png", "report.html")]
    write_json(files[0], dict(value))
    for path, draw in zip(files[1:], (plots.utility_cost, plots.gain_over_random, plots.exit_shares), strict=False):
        plots.save_figure(draw(value), path)
    write_page(files[-1], comparison_page(value, **page))
    return files


def _command(val: Path, test: Path, options: Mapping[str, object]) -> str:
    """Return the command line again; options that were not given are None or empty."""
    parts = ["eenet", "compare", str(val), str(test)]
    for name, value in options.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        parts += [word for one in values for word in (name, str(one))]
    return shlex.join(parts)


def _notes(comparison: Comparison) -> list[str]:
    return [f"Note: {note}" for note in comparison.notes]
