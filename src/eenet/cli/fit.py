"""`eenet fit`: where to leave, learnt from a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import loading, names, paths
from eenet.cli.options import (
    CostBatchOption,
    CostEngineOption,
    CostsOption,
    DebugFlag,
    JsonFlag,
    QuietFlag,
    SeedOption,
    TableArgument,
)
from eenet.cli.output import Output, percent, text_table

if TYPE_CHECKING:
    from eenet.core.costs import Budget, CostTable
    from eenet.core.table import ExitTable
    from eenet.schedulers import Scheduler


def fit(
    val: TableArgument,
    *,
    budget: Annotated[
        str, typer.Option("--budget", "-b", metavar="B", help="Mean cost per sample: 3.2, 2.5ms or 60%.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="POLICY", help="Folder for the fitted policy.")],
    policy: Annotated[str, typer.Option("--policy", "-p", metavar="NAME", help="Which policy to fit.")] = "eenet",
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
    table = loading.read_table(val, "VAL")
    cost_table = loading.pick_costs(table, costs, batch_size, engine)
    asked = cost_table.budget(budget)
    output.note(f"Fitting {policy} on {table.num_samples} samples and {table.num_exits} exits.")
    output.note(f"Budget per sample: {asked.meaning}.")
    facts = fit_policy(table, cost_table, asked, policy, chosen, out)
    lines = [
        ("budget per sample", asked.meaning),
        ("cost on VAL", f"{facts['fit_cost']:.5g} {cost_table.unit}"),
        ("utility on VAL", percent(facts["fit_utility"])),
    ]
    output.result({**facts, "out": str(out)}, text_table(f"{policy}, written to {out}", ("what", "value"), lines))


def fit_policy(
    table: ExitTable, costs: CostTable, budget: Budget, name: str, scheduler: Scheduler, out: Path
) -> dict[str, Any]:
    """Fit a policy, write it to a folder and return what is known about it.

    Args:
        table: The fitting side.
        costs: What leaving at each exit costs.
        budget: Mean cost per sample.
        name: The policy's name, for the record.
        scheduler: What fits it.
        out: Folder to write.
    """
    from eenet import schedulers
    from eenet.core.trace import Replayer

    fitted = scheduler.fit(table, costs, budget=budget)
    cost, utility = Replayer(table).expected(fitted, costs)
    facts = {
        "policy": name,
        "seed": scheduler.seed,
        "unit": costs.unit,
        "budget": budget.value,
        "budget_input": budget.text,
        "budget_meaning": budget.meaning,
        "num_samples": table.num_samples,
        "num_exits": table.num_exits,
        "num_classes": table.num_classes,
        "fit_cost": float(cost),
        "fit_utility": float(utility),
    }
    schedulers.save_policy(fitted, out, costs=costs, info=facts)
    return facts
