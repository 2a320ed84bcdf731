"""`eenet fit`: where to leave, learnt from a table, with a guarantee if one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import loading, names
from eenet.cli.loading import Costs
from eenet.cli.options import SeedOption, TableArgument, folder_out
from eenet.cli.output import Output, Result, facts_table, percent
from eenet.errors import InputError
from eenet.tables.costs import Budget, CostTable
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    from eenet.policies import Dial, Policy
    from eenet.schedulers import Scheduler

DELTA, EPSILON = 0.1, 0.01


def fit(
    val: TableArgument,
    *,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", "-b", metavar="B", help="Mean cost per sample: 3.2, 2.5ms or 60%. Needed but for accuracy."
        ),
    ] = None,
    out: Annotated[
        Path, folder_out("Folder for the fitted policy.", "POLICY", replaces=("policy.json", "policy.safetensors"))
    ],
    policy: Annotated[str, typer.Option("--policy", "-p", metavar="NAME", help="Which policy to fit.")] = "auto",
    guarantee: Annotated[
        str | None,
        typer.Option("--guarantee", metavar="budget|accuracy", help="What shall hold beyond VAL; default: nothing."),
    ] = None,
    delta: Annotated[
        float | None, typer.Option("--delta", help=f"Chance that the guarantee is wrong; default: {DELTA:g}.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", help=f"Accuracy that may be lost against the full model; default: {EPSILON:g}."),
    ] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="D", help="Cost no sample may exceed: 4, 3ms or 80%.")
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(
            "--exits", metavar="K,K,...|FILE", help="Early exits to keep, or the file of eenet advise; default: all."
        ),
    ] = None,
    costs: Costs,
    seed: SeedOption = 0,
    output: Output,
) -> Result:
    """Learn where to leave: fit a policy on recorded outputs so that it meets a budget.

    Without --policy, the scheduler that does best on held-out parts of VAL is chosen. The budget holds on VAL. With
    --guarantee half of VAL is set aside to certify the policy, so that the budget (or, with accuracy, a distance to the
    full model of at most --epsilon) holds beyond VAL as well, on data of the same distribution. With --exits the policy
    is for a model that has these exits only: run, bench and export then leave the other heads out.

    Examples:

        eenet fit val.npz --budget 60% --out policy

        eenet fit val.npz --budget 2.5ms --policy joint --costs costs.json --batch-size 32 --out policy

        eenet fit val.npz --budget 60% --guarantee budget --delta 0.05 --out policy

        eenet fit val.npz --guarantee accuracy --epsilon 0.01 --out policy

        eenet fit val.npz --budget 60% --deadline 90% --out policy

        eenet fit val.npz --budget 60% --exits 1,3 --out policy
    """
    scheduler = names.scheduler(policy, seed, output.step)
    wanted = _guarantee(guarantee, delta, epsilon, budget)
    table = costs.read_table(val)
    kept = None if exits is None else loading.read_exits(exits, table.num_exits)
    if kept is not None:
        table = _keeping(table, kept, costs)
    known = table.require_costs()
    asked, limit = None if budget is None else known.budget(budget), None
    if deadline is not None:
        from eenet.schedulers import DeadlineScheduler

        scheduler = DeadlineScheduler(scheduler=scheduler, deadline=deadline, seed=seed)
        limit = scheduler.limit(known)
    output.note(f"Fitting {policy} on {table.num_samples} samples and {table.num_exits} exits.")
    if asked is not None:
        output.note(f"Budget per sample: {asked.meaning}.")
    if limit is not None:
        output.note(f"Deadline of every sample: {limit.meaning}.")

    from eenet.policies import Replayer, save_policy

    fitted, dial, reasons = _fitted(scheduler, table, asked, wanted)
    cost, utility = Replayer(table).expected(fitted)
    facts = {
        "policy": policy,
        "seed": seed,
        "unit": known.unit,
        **_named("budget", asked),
        **({} if limit is None else _named("deadline", limit)),
        "num_samples": table.num_samples,
        "num_exits": table.num_exits,
        **({} if kept is None else {"exits": list(kept)}),
        **({"num_classes": table.num_columns} if table.has_classes else {}),
        "fit_cost": float(cost),
        "fit_utility": float(utility),
        **reasons,
    }
    save_policy(fitted, out, costs=known, info=facts, exits=kept, dial=dial, source=table.source)
    return {**facts, "out": str(out)}, [
        facts_table(f"{policy}, written to {out}", _printed(facts)),
        *([facts["reason"]] if facts["reason"] else []),
        *([facts["certificate"]["statement"]] if "certificate" in facts else []),
    ]


def _fitted(
    scheduler: Scheduler, table: ExitTable, budget: Budget | None, guarantee: dict[str, Any] | None
) -> tuple[Policy, Dial, dict[str, Any]]:
    """Return the policy, the fit for other budgets (never certified), why they were chosen, and the certificate."""
    from eenet.schedulers import certify

    if guarantee is None:
        assert budget is not None  # or `_guarantee` had refused
        dial = scheduler.sweep(table, budgets=[budget])
        return dial.at(budget), dial, {"reason": dial.reason}
    certified = certify(scheduler, table, budget=budget, seed=scheduler.seed, **guarantee)
    dial = certified.dial
    return certified.policy, dial, {"reason": dial.reason, "certificate": certified.certificate.to_dict()}


def _keeping(table: ExitTable, exits: tuple[int, ...], costs: Costs) -> ExitTable:
    """Return the table of some exits only: without the other heads' cost, where a profile says what these cost."""
    known = table.require_costs()
    parts = costs.parts(known)
    return table.keeping(
        exits, None if parts is None else CostTable(parts.cumulative(exits), known.unit, known.reference)
    )


def _guarantee(
    guarantee: str | None, delta: float | None, epsilon: float | None, budget: str | None
) -> dict[str, Any] | None:
    """Return the guarantee that is asked for, as `certify` takes it; None without one."""
    from eenet.schedulers.certify import check_promise

    chance, loss = DELTA if delta is None else delta, EPSILON if epsilon is None else epsilon
    if guarantee is not None:
        check_promise(guarantee, chance, loss, budget)
    elif budget is None:
        raise InputError(
            "--budget is missing: only --guarantee accuracy goes without one. Pass a mean cost per sample, such as 60%."
        )
    elif delta is not None:
        raise InputError(f"--delta {delta:g} has no meaning: there is no --guarantee. Add it.")
    if epsilon is not None and guarantee != "accuracy":
        raise InputError(f"--epsilon {epsilon:g} has no meaning: it belongs to --guarantee accuracy. Add that.")
    return None if guarantee is None else {"guarantee": guarantee, "delta": chance, "epsilon": loss}


def _named(name: str, value: Budget | None) -> dict[str, Any]:
    """Return a budget or a deadline as three JSON values."""
    if value is None:
        return {name: None, f"{name}_input": None, f"{name}_meaning": None}
    return {name: value.value, f"{name}_input": value.text, f"{name}_meaning": value.meaning}


def _printed(facts: dict[str, Any]) -> dict[str, str | None]:
    """Return what is printed about a policy."""
    unit, certificate = facts["unit"], facts.get("certificate")
    printed = {
        "budget per sample": facts["budget_meaning"],
        "deadline of every sample": facts.get("deadline_meaning"),
        "cost on VAL": f"{facts['fit_cost']:.5g} {unit}",
        "utility on VAL": percent(facts["fit_utility"]),
    }
    if certificate is None:
        return printed
    bound = certificate["bound"]
    certified = (
        {"certified mean cost, at most": f"{bound:.5g} {unit}"}
        if certificate["guarantee"] == "budget"
        else {"certified loss of utility, at most": percent(bound)}
    )
    return {
        **printed,
        **certified,
        "utility lost to the guarantee": percent(certificate["price"]),
        "cost added by the guarantee": f"{certificate['price_cost']:.5g} {unit}",
    }
