"""`eenet advise`: which exits are worth their cost, and whether leaving early pays at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from eenet.cli import loading, paths
from eenet.cli.options import (
    BudgetsOption,
    CostBatchOption,
    CostDtypeOption,
    CostEngineOption,
    CostsOption,
    DebugFlag,
    JsonFlag,
    QuietFlag,
    SeedOption,
    TableArgument,
)
from eenet.cli.output import Output, percent, text_table
from eenet.errors import BudgetError, InputError

if TYPE_CHECKING:
    from eenet.core.costs import CostTable
    from eenet.evaluation import StaticModel

StaticsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--static",
        metavar="COST:UTILITY|FILE",
        help="Another model without exits: 2.1ms:0.93, 60%:93%, or a .json with cost and utility. Repeatable.",
    ),
]


def advise(
    val: TableArgument,
    *,
    budget: BudgetsOption = None,
    static: StaticsOption = None,
    costs: CostsOption = None,
    batch_size: CostBatchOption = None,
    engine: CostEngineOption = None,
    dtype: CostDtypeOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the advice here, as JSON.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Say which exits to keep, and whether leaving early pays on this data at all.

    VAL should have more exits than you mean to keep. With --costs, a file of eenet profile, an exit must be worth what
    its head costs; without, heads count as part of their stages. Leaving early is held against each exit alone, the
    original model, the best mix of these, and the models of --static, all on samples that nothing was fitted on.

    Examples:

        eenet advise val.npz --costs costs.json --batch-size 1

        eenet advise val.npz --budget 60% --static 2.1ms:0.93 --json
    """
    output = Output(as_json=as_json, quiet=quiet)
    if out is not None:
        paths.output_file(out)
    table = loading.read_table(val, "VAL")
    cost_table = loading.pick_costs(table, costs, batch_size, engine, dtype)
    asked = [cost_table.budget(text) for text in budget or []]
    models = [model for text in static or [] for model in _statics(text, cost_table)]
    parts = loading.cost_parts(costs, cost_table)
    for one in asked:
        output.note(f"Budget per sample: {one.meaning}.")

    from eenet import evaluation
    from eenet.core.files import write_json

    output.note(f"Weighing {table.num_exits} exits on {table.num_samples} samples.")
    advice = evaluation.advise(table, cost_table, asked, parts=parts, statics=models, seed=seed, progress=output.step)
    value = advice.to_dict()
    if out is not None:
        write_json(out, value)
        output.note(f"wrote {out}")
    output.result(value, *advice_tables(value), *(f"Note: {note}" for note in advice.notes))


def _statics(text: str, costs: CostTable) -> list[StaticModel]:
    """Read the models of one --static."""
    from eenet.core.files import read_json

    path = Path(text)
    if path.suffix.lower() != ".json":
        cost, colon, utility = text.rpartition(":")
        if not colon:
            raise _no_model(text, "a cost and a utility are needed")
        return [_static(text, text, cost, utility, costs)]
    value = read_json(paths.existing(path, "--static"), "--static")
    models = value if isinstance(value, list) else [value]
    found = []
    for number, model in enumerate(models):
        if not isinstance(model, dict) or not {"cost", "utility"} <= set(model):
            raise _no_model(text, f"model {number} lacks 'cost' or 'utility'")
        name = str(model.get("name", path.stem if len(models) == 1 else f"{path.stem} {number}"))
        found.append(_static(text, name, f"{model['cost']}{model.get('unit', '')}", str(model["utility"]), costs))
    return found


def _static(text: str, name: str, cost: str, utility: str, costs: CostTable) -> StaticModel:
    from eenet.core.costs import CostTable
    from eenet.evaluation import StaticModel

    try:
        worth = float(utility.removesuffix("%")) / (100 if utility.endswith("%") else 1)
    except ValueError as error:
        raise _no_model(text, f"{utility!r} is no utility") from error
    anything = CostTable((1e-9 * costs.full, costs.full), costs.unit, costs.reference)  # a model may be cheaper
    try:
        spent = anything.budget(cost).value
    except BudgetError as error:
        raise _no_model(text, f"{cost!r} is no number, alone or with a unit like {costs.unit}") from error
    return StaticModel(name=name, cost=spent, utility=worth)


def _no_model(text: str, fact: str) -> InputError:
    return InputError(
        f"--static {text!r} is no model: {fact}. Write cost:utility such as 2.1ms:0.93, or name a .json with these."
    )


def advice_tables(value: Mapping[str, Any]) -> list[RenderableType | str]:
    """Show an advice: the verdict, then what it rests on.

    Args:
        value: The JSON of `eenet advise`.
    """
    unit = value["unit"]
    rows = [
        (
            row["budget_input"],
            row["budget"],
            percent(row["utility"]),
            percent(row["static"]),
            f"{100 * row['difference']:+.2f} ({100 * row['low']:+.2f} to {100 * row['high']:+.2f})",
            row["best_static"],
        )
        for row in value["rows"]
    ]
    columns = ("budget", unit, "leaving early", "best static mix", "difference, points", "best single model")
    statics = [(model["name"], model["cost"], percent(model["utility"])) for model in value["statics"]]
    points = [(f"{point['cost']:.4g}", percent(point["utility"])) for point in value["frontier"]]
    dropped = value["dropped"]
    advice = (
        f"Keep exits {_listed(value['kept'])}; drop {_listed(dropped)}: "
        f"eenet fit --exits {','.join(map(str, value['kept']))}, or model.without({dropped})."
        if dropped
        else f"Keep all exits: {_listed(value['kept'])}."
    )
    return [
        value["verdict"],
        advice,
        "",
        text_table("At equal cost, on held-out samples", columns, rows),
        text_table("Without early exits", ("model", unit, "utility"), statics),
        text_table("Leaving early with the kept exits, on held-out samples", (unit, "utility"), points),
    ]


def _listed(exits: list[int]) -> str:
    return ", ".join(map(str, exits))
