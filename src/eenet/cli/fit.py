"""`eenet fit`: where to leave, learnt from a table, with a promise if one is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from eenet.cli import loading, names, paths
from eenet.cli.options import (
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
from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.core.costs import Budget, CostTable
    from eenet.core.policy import Policy
    from eenet.core.table import ExitTable
    from eenet.schedulers import Scheduler

DELTA, EPSILON = 0.1, 0.01


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What shall hold beyond the table.

    Attributes:
        guarantee: `budget` or `accuracy`.
        delta: Chance that the promise is wrong.
        epsilon: Utility that may be lost against the full model.
    """

    guarantee: Literal["budget", "accuracy"]
    delta: float = DELTA
    epsilon: float = EPSILON


def fit(
    val: TableArgument,
    *,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", "-b", metavar="B", help="Mean cost per sample: 3.2, 2.5ms or 60%. Needed but for accuracy."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="POLICY", help="Folder for the fitted policy.")],
    policy: Annotated[str, typer.Option("--policy", "-p", metavar="NAME", help="Which policy to fit.")] = "auto",
    guarantee: Annotated[
        str | None,
        typer.Option("--guarantee", metavar="budget|accuracy", help="What to promise beyond VAL; default: nothing."),
    ] = None,
    delta: Annotated[
        float | None, typer.Option("--delta", help=f"Chance that the promise is wrong; default: {DELTA:g}.")
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
    costs: CostsOption = None,
    batch_size: CostBatchOption = None,
    engine: CostEngineOption = None,
    dtype: CostDtypeOption = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Learn where to leave: fit a policy on recorded outputs so that it meets a budget.

    Without --policy, the scheduler that does best on held-out parts of VAL is chosen. The budget holds on VAL. With
    --guarantee half of VAL is set aside to certify the policy, so that the budget (or, with accuracy, a distance to the
    full model of at most --epsilon) holds beyond VAL as well, on data drawn like it. With --exits the policy steers a
    model that has these exits only: run, bench and export then leave the other heads out.

    Examples:

        eenet fit val.npz --budget 60% --out policy

        eenet fit val.npz --budget 2.5ms --policy joint --costs costs.json --batch-size 32 --out policy

        eenet fit val.npz --budget 60% --guarantee budget --delta 0.05 --out policy

        eenet fit val.npz --guarantee accuracy --epsilon 0.01 --out policy

        eenet fit val.npz --budget 60% --deadline 90% --out policy

        eenet fit val.npz --budget 60% --exits 1,3 --out policy
    """
    output = Output(as_json=as_json, quiet=quiet)
    chosen = names.scheduler(policy, seed)
    promise = _promise(guarantee, delta, epsilon, budget)
    paths.output_folder(out, replaces=("policy.json", "policy.safetensors"))
    table = loading.read_table(val, "VAL")
    cost_table = loading.pick_costs(table, costs, batch_size, engine, dtype)
    kept = None if exits is None else loading.read_exits(exits, table.num_exits)
    if kept is not None:
        table, cost_table = _keeping(table, cost_table, kept, costs)
    asked = None if budget is None else cost_table.budget(budget)
    limit = None if deadline is None else _deadline(deadline, chosen, cost_table)
    output.note(f"Fitting {policy} on {table.num_samples} samples and {table.num_exits} exits.")
    chosen = names.with_progress(chosen, output.step)
    if asked is not None:
        output.note(f"Budget per sample: {asked.meaning}.")
    if limit is not None:
        output.note(f"Deadline of every sample: {limit.meaning}.")
    facts = fit_policy(table, cost_table, asked, policy, chosen, out, promise=promise, deadline=limit, exits=kept)
    told = [facts["reason"]] if facts["reason"] else []
    told += [facts["certificate"]["statement"]] if "certificate" in facts else []
    shown = text_table(f"{policy}, written to {out}", ("what", "value"), _lines(facts))
    output.result({**facts, "out": str(out)}, shown, *told)


def fit_policy(
    table: ExitTable,
    costs: CostTable,
    budget: Budget | None,
    name: str,
    scheduler: Scheduler,
    out: Path,
    *,
    promise: Promise | None = None,
    deadline: Budget | None = None,
    exits: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Fit a policy, write it to a folder and return what is known about it.

    Args:
        table: The fitting side.
        costs: What leaving at each exit costs.
        budget: Mean cost per sample; None only where accuracy is promised.
        name: The policy's name, for the record.
        scheduler: What fits it.
        out: Folder to write.
        promise: What shall hold beyond the table.
        deadline: What no sample may exceed.
        exits: Which exits of the model the table has; None: all.
    """
    from eenet import schedulers
    from eenet.core.trace import Replayer

    fitted, known = _fitted(table, costs, budget, scheduler, promise, deadline)
    cost, utility = Replayer(table).expected(fitted, costs)
    facts = {
        "policy": name,
        "seed": scheduler.seed,
        "unit": costs.unit,
        **_named("budget", budget),
        **({} if deadline is None else _named("deadline", deadline)),
        "num_samples": table.num_samples,
        "num_exits": table.num_exits,
        **({} if exits is None else {"exits": list(exits)}),
        "num_classes": table.num_classes,
        "fit_cost": float(cost),
        "fit_utility": float(utility),
        **known,
    }
    schedulers.save_policy(fitted, out, costs=costs, info=facts, exits=exits)
    return facts


def _fitted(
    table: ExitTable,
    costs: CostTable,
    budget: Budget | None,
    scheduler: Scheduler,
    promise: Promise | None,
    deadline: Budget | None,
) -> tuple[Policy, dict[str, Any]]:
    """Return the policy, why it was chosen where there was a choice, and its certificate if something was promised."""
    from eenet.schedulers.certify import certify
    from eenet.schedulers.deadline import DeadlineScheduler

    if deadline is not None:
        scheduler = DeadlineScheduler(scheduler=scheduler, deadline=deadline, seed=scheduler.seed)
    if promise is not None:
        certified = certify(
            scheduler,
            table,
            costs,
            budget=budget,
            guarantee=promise.guarantee,
            delta=promise.delta,
            epsilon=promise.epsilon,
            seed=scheduler.seed,
        )
        return certified.policy, {"reason": certified.reason, "certificate": certified.certificate.to_dict()}
    if budget is None:
        raise InputError("budget is missing: without a promise of accuracy one is needed. Pass a mean cost per sample.")
    dial = scheduler.sweep(table, costs, [budget])
    return dial.at(budget), {"reason": dial.reason}


def _keeping(
    table: ExitTable, costs: CostTable, exits: tuple[int, ...], path: Path | None
) -> tuple[ExitTable, CostTable]:
    """Return table and costs of some exits only: without the other heads, where a profile says what these cost."""
    from eenet.core.costs import CostTable

    parts = loading.cost_parts(path, costs)
    kept = None if parts is None else CostTable(parts.cumulative(exits), costs.unit, costs.reference)
    smaller = table.with_costs(costs).keeping(exits, kept)
    return smaller, smaller.require_costs()


def _promise(guarantee: str | None, delta: float | None, epsilon: float | None, budget: str | None) -> Promise | None:
    """Return what the command line asks for, None if nothing is to be promised."""
    from eenet.schedulers.certify import check_promise

    chance, loss = DELTA if delta is None else delta, EPSILON if epsilon is None else epsilon
    if guarantee is not None:
        check_promise(guarantee, chance, loss, budget)
    elif budget is None:
        raise InputError(
            "--budget is missing: only --guarantee accuracy goes without one. Pass a mean cost per sample, such as 60%."
        )
    elif delta is not None:
        raise InputError(f"--delta {delta:g} promises nothing: there is no --guarantee. Add it.")
    if epsilon is not None and guarantee != "accuracy":
        raise InputError(f"--epsilon {epsilon:g} promises nothing: it belongs to --guarantee accuracy. Add that.")
    if guarantee is None:
        return None
    return Promise(guarantee=cast(Literal["budget", "accuracy"], guarantee), delta=chance, epsilon=loss)


def _deadline(text: str, scheduler: Scheduler, costs: CostTable) -> Budget:
    from eenet.schedulers.deadline import DeadlineScheduler

    return DeadlineScheduler(scheduler=scheduler, deadline=text).limit(costs)


def _named(name: str, value: Budget | None) -> dict[str, Any]:
    """Return a budget or a deadline as three JSON values."""
    if value is None:
        return {name: None, f"{name}_input": None, f"{name}_meaning": None}
    return {name: value.value, f"{name}_input": value.text, f"{name}_meaning": value.meaning}


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the printed table."""
    unit, certificate = facts["unit"], facts.get("certificate")
    lines = [
        ("budget per sample", facts["budget_meaning"]),
        ("deadline of every sample", facts.get("deadline_meaning")),
        ("cost on VAL", f"{facts['fit_cost']:.5g} {unit}"),
        ("utility on VAL", percent(facts["fit_utility"])),
    ]
    if certificate is not None:
        bound = certificate["bound"]
        lines += [
            ("certified mean cost, at most", f"{bound:.5g} {unit}")
            if certificate["guarantee"] == "budget"
            else ("certified loss of utility, at most", percent(bound)),
            ("price of the promise in utility", percent(certificate["price"])),
            ("price of the promise in cost", f"{certificate['price_cost']:.5g} {unit}"),
        ]
    return [(what, value) for what, value in lines if value is not None]
