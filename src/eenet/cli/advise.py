"""`eenet advise`: which exits save more than they cost, and whether leaving early pays at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from eenet.cli import loading, options
from eenet.cli.fit import read_budget
from eenet.cli.interrupt import require
from eenet.cli.loading import Costs
from eenet.cli.output import Output, Result
from eenet.cli.screen import AllOption, advice_parts
from eenet.cli.statics import StaticOption, read_statics
from eenet.errors import InputError
from eenet.tables.capacity import read_capacities
from eenet.tables.costs import CostTable

if TYPE_CHECKING:
    from eenet.evaluation import TierFit


def advise(
    val: options.TableArgument,
    *,
    budget: options.BudgetsOption = None,
    static: StaticOption = None,
    confidence: options.ConfidenceOption = None,
    capacity: Annotated[
        list[str] | None,
        options.word("C", "What a tier of devices holds: 20MFLOPs, 5ms; with --run 1.2MB, '0.3M params'. Repeatable."),
    ] = None,
    run: Annotated[Path | None, options.folder_in("--run", "The run that VAL was recorded from, for its size.")] = None,
    costs: Costs,
    out: Annotated[Path | None, options.file_out("Write the advice here, as JSON.", ".json")] = None,
    seed: options.SeedOption = 0,
    everything: AllOption = False,
    output: Output,
) -> Result:
    """Say which exits to keep, and whether early exit pays on this data at all.

    VAL should have more exits than you mean to keep. With --costs, a file of eenet profile, an exit must save more
    than its head costs; without, heads count as part of their stages. Early exit is compared with each exit alone, the
    original model, the best mixture of these, and the models of --static, all on samples that nothing was fitted on.

    With --capacity, the weakest tier of devices first, it says which exits fit which tier.

    Examples:

        eenet advise val.npz --costs costs.json --batch-size 1

        eenet advise val.npz --run run --capacity 100kB --capacity 20MFLOPs --costs costs.json

        eenet advise val.npz --budget 60% --static 2.1ms:0.93 --json
    """
    table = costs.read_table(val)
    known = table.require_costs()
    asked = [read_budget(text, known, costs) for text in budget or []]
    models = read_statics(static, table)
    parts = costs.parts(known)
    tiers = _tiers(capacity, known, run)
    for one in asked:
        output.note(f"Budget per sample: {one.meaning}.")

    from eenet import evaluation

    output.note(f"Judging {table.num_exits} exits on {table.num_samples} samples.")
    shared: dict[str, Any] = {"seed": seed, "progress": output.step, "confidence": confidence or "max_prob"}
    advice = evaluation.advise(table, budgets=asked, parts=parts, statics=models, **shared)
    value = advice.to_dict()
    if tiers:
        value["tiers"] = [tier.to_dict() for tier in tiers]
    output.save(value, out)
    return value, advice_parts(value, everything=everything)


def _tiers(capacities: list[str] | None, costs: CostTable, run: Path | None) -> tuple[TierFit, ...]:
    """Return which exits fit the tiers of devices that were asked for."""
    from eenet.evaluation import fitting_exits

    if not capacities:
        if run is not None:
            raise InputError(f"--run {str(run)!r} is not needed: it tells the size of exits. Pass --capacity too.")
        return ()
    wanted, sizes = read_capacities(capacities), None
    if run is not None:
        require("torch")
        from eenet.models import exit_sizes

        model = loading.open_run(run, None).model
        if model.num_exits != costs.num_exits:
            raise InputError(
                f"--run {str(run)!r} of {model.num_exits} exits does not fit: VAL has {costs.num_exits}. Pass the run "
                "that it was recorded from."
            )
        sizes = exit_sizes(model)
    return fitting_exits(wanted, costs, sizes)
