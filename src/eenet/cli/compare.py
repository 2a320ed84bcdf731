"""`eenet fit` and `eenet compare`: everything that needs tables and no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import names, paths
from eenet.cli.options import (
    BudgetsOption,
    CostBatchOption,
    CostEngineOption,
    CostsOption,
    DebugFlag,
    JsonFlag,
    PoliciesOption,
    QuietFlag,
    SeedOption,
)
from eenet.cli.output import Output, percent, shares, text_table
from eenet.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from eenet.core.costs import CostTable
    from eenet.core.table import ExitTable


def read_table(path: Path, what: str) -> ExitTable:
    """Read an exit table from a file or folder named by the user.

    Raises:
        InputError: If it is missing, damaged or malformed.
    """
    from eenet.core.table import ExitTable

    return ExitTable.load(paths.existing(path, what))


def pick_costs(table: ExitTable, costs: Path | None, batch_size: int | None, engine: str | None) -> CostTable:
    """Return the costs of a profile file if one is given, else the table's own.

    Raises:
        InputError: If there are none, or they have another number of exits than the table.
    """
    from eenet.inference import load_costs

    if costs is None:
        if batch_size is not None or engine is not None:
            raise InputError("--batch-size and --engine choose among measured costs: there is no --costs. Pass --costs.")
        if table.costs is None:
            raise InputError(
                "costs are missing: the table has no key 'costs' and there is no --costs. "
                "Pass --costs FILE (written by `eenet profile`) or record the table again."
            )
        return table.costs
    chosen = load_costs(paths.existing(costs, "--costs"), batch_size=batch_size, engine=engine)
    if chosen.num_exits != table.num_exits:
        raise InputError(
            f"--costs {str(costs)!r} does not fit: it has {chosen.num_exits} exits, the table {table.num_exits}. "
            "Profile the model the table was recorded from."
        )
    return chosen


def fit(
    val: Annotated[Path, typer.Argument(metavar="VAL", help="Exit table to fit on (.npz or a folder of .npy).")],
    *,
    budget: Annotated[str, typer.Option("--budget", "-b", metavar="B", help="Mean cost per sample: 3.2, 2.5ms, 60%.")],
    policy: Annotated[str, typer.Option("--policy", "-p", metavar="NAME", help="Which policy to fit.")] = "eenet",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="POLICY", help="Folder for the fitted policy.")],
    costs: CostsOption = None,
    batch_size: CostBatchOption = None,
    engine: CostEngineOption = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Learn where to leave: fit a policy on recorded outputs so that it meets a budget.

    Examples:

        eenet fit val.npz --budget 60% --out policy

        eenet fit val.npz --budget 2.5ms --policy joint --costs costs.json --batch-size 32 --out policy
    """
    output = Output(as_json=as_json, quiet=quiet)
    chosen = names.scheduler(policy, seed)
    paths.output_folder(out, replaces=("policy.json",))
    table = read_table(val, "VAL")
    table.require_utility("fit")
    cost_table = pick_costs(table, costs, batch_size, engine)
    asked = cost_table.budget(budget)
    output.note(f"Fitting {policy} on {table.num_samples} samples, {table.num_exits} exits; budget {asked.meaning}.")

    from eenet.core.policy import save_policy
    from eenet.core.trace import Replayer

    fitted = chosen.fit(table, cost_table, budget=asked)
    cost, utility = Replayer(table).expected(fitted, cost_table)
    facts: dict[str, Any] = {
        "policy": policy,
        "seed": seed,
        "budget": asked.value,
        "budget_input": budget,
        "budget_meaning": asked.meaning,
        "unit": cost_table.unit,
        "num_samples": table.num_samples,
        "fit_cost": cost,
        "fit_utility": utility,
    }
    save_policy(fitted, out, costs=cost_table, extra=facts)
    lines = [("budget", asked.meaning), ("cost on VAL", f"{cost:.5g} {cost_table.unit}"), ("utility on VAL", percent(utility))]
    output.result({**facts, "out": str(out)}, text_table(f"{policy} -> {out}", ("what", "value"), lines))


def compare(
    val: Annotated[Path, typer.Argument(metavar="VAL", help="Exit table to fit on (.npz or a folder of .npy).")],
    test: Annotated[Path, typer.Argument(metavar="TEST", help="Exit table to judge on.")],
    *,
    budget: BudgetsOption = None,
    policy: PoliciesOption = None,
    costs: CostsOption = None,
    batch_size: CostBatchOption = None,
    engine: CostEngineOption = None,
    splits: Annotated[int, typer.Option("--splits", min=1, help="Redraw VAL and TEST from their pool this often.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for JSON, plots and page.")] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Compare policies at equal cost: fitted on VAL, judged on TEST.

    Without --policy all but the slow eenet_published are compared; the bounds random and oracle always are.
    With --splits, VAL and TEST must both be unseen in training: they are pooled and redrawn.

    Examples:

        eenet compare val.npz test.npz --budget 40% --budget 60%

        eenet compare val.npz test.npz -b 2.5ms -p eenet -p joint --costs costs.json --batch-size 1 --json
    """
    output = Output(as_json=as_json, quiet=quiet)
    chosen = names.schedulers(policy, seed)
    if out is not None:
        paths.output_folder(out)
    val_table, test_table = read_table(val, "VAL"), read_table(test, "TEST")
    cost_table = pick_costs(val_table, costs, batch_size, engine)
    asked = [cost_table.budget(text) for text in budget or []]
    output.note(f"Comparing {', '.join(chosen)}: {val_table.num_samples} VAL and {test_table.num_samples} TEST samples.")

    from eenet import evaluation

    comparison = evaluation.compare(
        val_table, test_table, chosen, asked, costs=None if costs is None else cost_table, splits=splits, seed=seed
    )
    value = comparison.to_dict()
    written = [] if out is None else write_comparison(comparison, out)
    output.result(value, *comparison_tables(value), *(f"wrote {path}" for path in written))
