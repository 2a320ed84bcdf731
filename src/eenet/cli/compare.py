"""`eenet compare`: which policy to take, judged on tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from eenet.cli import names, options
from eenet.cli.fit import read_budget
from eenet.cli.loading import Costs
from eenet.cli.output import Output, Result
from eenet.cli.screen import AllOption, comparison_parts
from eenet.cli.sides import Sides
from eenet.cli.statics import StaticOption, read_statics
from eenet.tables.atomic import atomic_files
from eenet.tables.files import write_json

SET = "comparison"
"""What the files of a comparison are called together."""


def compare(
    val: options.TableArgument,
    test: Annotated[
        Path | None,
        options.place("[TEST]", "Exit table to judge on; default: half of the rows of VAL, the other half fits."),
    ] = None,
    *,
    budget: options.BudgetsOption = None,
    policy: Annotated[
        list[str] | None,
        options.word("NAME", "A policy, or package.module:Class of yours. Repeatable.", *options.POLICY),
    ] = None,
    confidence: options.ConfidenceOption = None,
    static: StaticOption = None,
    costs: Costs,
    splits: Annotated[int, options.count("Pool VAL and TEST and split them anew this often.")] = 1,
    cap: Annotated[
        bool,
        typer.Option("--cap", help="Spend no more than pays on held-out parts of VAL; takes several times longer."),
    ] = False,
    groups: Annotated[
        Path | None,
        options.file_in(
            "--groups",
            "Group of every TEST sample, to see who pays: .npy, or text, a number or name per line; default: "
            "the column group, or label, of outcomes.",
        ),
    ] = None,
    out: Annotated[Path | None, options.folder_out("Folder for JSON and page.")] = None,
    seed: options.SeedOption = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Compare although VAL and TEST were recorded from two models.")
    ] = False,
    everything: AllOption = False,
    output: Output,
) -> Result:
    """Compare policies at equal cost: fitted on VAL, judged on TEST.

    Without --budget the ten standard budgets are listed. Without --policy all but the slow eenet_published, and those
    that cannot be fitted on VAL, are compared; the bounds random and oracle always are. Only auto (else the first
    policy named) against each other policy is tested. With --splits, VAL and TEST are pooled and split anew: training
    must have seen neither. What early exit costs each class is reported, and other groups with --groups. Tables
    recorded from maps are judged by the mean IoU of TEST. What the tested policy saves and loses is printed, at the
    smallest of the budgets that loses at most one point on VAL, with a curve and one table; --all prints everything.

    VAL and TEST may be outcomes of your own, as .csv or .parquet: one row per sample, with the columns STAGE.utility,
    STAGE.cost (of that stage by itself) and STAGE.score for every stage. Without TEST, VAL is split in halves. With
    --static, models without exits are held against the policies at their cost.

    Examples:

        eenet compare val.npz test.npz --budget 40% --budget 60%

        eenet compare outcomes.csv --splits 5 --static tiny:2.1:0.93

        eenet compare val.npz test.npz -b 2.5ms -p eenet -p joint --costs costs.json --batch-size 1 --json
    """
    from eenet import evaluation

    chosen = names.schedulers(policy, seed, confidence)
    sides = Sides.read(costs, val, test, seed)
    known = sides.val.require_costs()
    models = sides.statics(read_statics(static, sides.test), splits=splits)
    for name, reason in names.unsuited(sides.val, confidence).items() if policy is None else ():
        if chosen.pop(name, None) is None:
            continue
        output.note(f"{name} is left out: {reason}.")
    asked = [read_budget(text, known, costs) for text in budget or []]
    for one in asked:
        output.note(f"Budget per sample: {one.meaning}.")
    comparison = evaluation.compare(
        sides.val,
        sides.test,
        chosen,
        asked,
        confusion=sides.confusion(),
        groups=sides.groups(groups, splits=splits),
        statics=models,
        splits=splits,
        cap=cap,
        seed=seed,
        progress=output.step,
        check_source=not force,
    )
    comparison = replace(comparison, notes=(*filter(None, [sides.note]), *comparison.notes))
    value = comparison.to_dict()
    if out is not None:
        for path in write_comparison(value, out, command=output.line):
            output.note(f"wrote {path}")
    return value, comparison_parts(value, value["verdict"], everything=everything)


def write_comparison(value: Mapping[str, Any], out: Path, **page: Any) -> list[Path]:  # noqa: ANN401 - passed through
    """Write a comparison as JSON and page, both files at the end and together, and return them.

    Args:
        value: The JSON of `eenet compare`.
        out: Folder to write into.
        **page: Passed on to `eenet.report.comparison_page`.
    """
    from eenet import report

    with atomic_files(out, SET) as draft:
        write_json(draft / "comparison.json", dict(value))
        report.write_page(draft / "report.html", report.comparison_page(value, **page))
        names = sorted(file.name for file in draft.iterdir())
    return [out / name for name in names]
