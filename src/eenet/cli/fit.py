"""`eenet fit`: where to leave, learnt from a table, with a guarantee if one is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import loading, names, options
from eenet.cli.loading import Costs
from eenet.cli.output import Output, Result, facts_table, percent
from eenet.errors import BudgetError, InputError
from eenet.policies.store import FILES
from eenet.report.sections import Block, Section
from eenet.tables.costs import Budget, CostTable
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    from eenet.policies import Dial, Policy
    from eenet.schedulers import Scheduler

DELTA, EPSILON = 0.1, 0.01


@dataclass(frozen=True, kw_only=True)
class Promise:
    """The options that say what shall hold beyond the calibration set."""

    guarantee: Annotated[
        str | None, options.word("budget|accuracy", "What shall hold beyond VAL; default: nothing.")
    ] = None
    delta: Annotated[float | None, typer.Option(help=f"Chance that the guarantee is wrong; default: {DELTA:g}.")] = None
    epsilon: Annotated[
        float | None, typer.Option(help=f"Accuracy that may be lost against the full model; default: {EPSILON:g}.")
    ] = None

    def settings(self, budget: str | None) -> dict[str, Any] | None:
        """Return the guarantee that is asked for, as `certify` takes it; None without one.

        Raises:
            InputError: The options contradict each other, or there is neither a budget nor a guarantee.
        """
        from eenet.schedulers.certify import check_promise

        delta = DELTA if self.delta is None else self.delta
        epsilon = EPSILON if self.epsilon is None else self.epsilon
        if self.guarantee is not None:
            check_promise(self.guarantee, delta, epsilon, budget)
        elif budget is None:
            raise InputError(
                "--budget is missing: only --guarantee accuracy goes without one. Pass a mean cost per sample, such as "
                "60%."
            )
        elif self.delta is not None:
            raise InputError(f"--delta {delta:g} has no meaning: there is no --guarantee. Add it.")
        if self.epsilon is not None and self.guarantee != "accuracy":
            raise InputError(f"--epsilon {epsilon:g} has no meaning: it belongs to --guarantee accuracy. Add that.")
        return None if self.guarantee is None else {"guarantee": self.guarantee, "delta": delta, "epsilon": epsilon}


def fit(
    val: options.TableArgument,
    *,
    budget: Annotated[
        str | None,
        options.word("B", "Mean cost per sample: 3.2, 2.5ms, 60%; not needed for accuracy.", *options.BUDGET),
    ] = None,
    out: Annotated[Path, options.folder_out("Folder for the policy.", "POLICY", replaces=FILES)],
    policy: Annotated[
        str, options.word("NAME", "Which policy to fit, or package.module:Class of yours.", *options.POLICY)
    ] = "auto",
    confidence: options.ConfidenceOption = None,
    promise: Promise,
    deadline: Annotated[str | None, options.word("D", "Cost no sample may exceed: 4, 3ms or 80%.")] = None,
    exits: Annotated[
        str | None, options.word("K,K,...|FILE", "Early exits to keep, or the file of eenet advise; default: all.")
    ] = None,
    costs: Costs,
    seed: options.SeedOption = 0,
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
    scheduler = names.scheduler(policy, seed, output.step, confidence)
    wanted = promise.settings(budget)
    table = costs.read_table(val)
    kept = None if exits is None else loading.read_exits(exits, table.num_exits)
    if kept is not None:
        table = _keeping(table, kept, costs)
    known = table.require_costs()
    asked, limit = None if budget is None else read_budget(budget, known, costs), None
    if deadline is not None:
        from eenet.schedulers import DeadlineScheduler

        scheduler = DeadlineScheduler(scheduler=scheduler, deadline=deadline, seed=seed)
        limit = scheduler.limit(known)
    output.note(f"Fitting {policy} on {table.num_samples} samples and {table.num_exits} exits.")
    for what, one in (("Budget per sample", asked), ("Deadline of every sample", limit)):
        if one is not None:
            output.note(f"{what}: {one.meaning}.")

    from eenet.policies import Replayer, save_policy

    fitted, dial, reasons = _fitted(scheduler, table, asked, wanted)
    cost, utility = Replayer(table).expected(fitted)
    facts = {
        "policy": policy,
        "seed": seed,
        "unit": known.unit,
        **_named("budget", asked),
        **({} if limit is None else _named("deadline", limit)),
        **({} if confidence is None else {"confidence": confidence}),
        "num_samples": table.num_samples,
        "num_exits": table.num_exits,
        **({} if kept is None else {"exits": list(kept)}),
        **({"num_classes": table.num_columns} if table.has_classes else {}),
        "fit_cost": float(cost),
        "fit_utility": float(utility),
        **reasons,
    }
    save_policy(fitted, out, costs=known, info=facts, exits=kept, dial=dial, source=table.source)
    return {**facts, "out": str(out)}, _shown(facts, table, f"{policy}, written to {out}")


def _shown(facts: dict[str, Any], table: ExitTable, title: str) -> list[Block | Section]:
    """Return what is printed: the numbers, what speaks against them, why the policy was chosen, what is promised."""
    from eenet.evaluation.advise import hardly_knowing

    doubt = hardly_knowing(table)
    return [
        facts_table(title, _printed(facts)),
        *([f"Warning: {doubt}. Do not expect to save anything on other samples; ask `eenet advise`."] if doubt else []),
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


def _named(name: str, value: Budget | None) -> dict[str, Any]:
    """Return a budget or a deadline as three JSON values."""
    keys = {name: "value", f"{name}_input": "text", f"{name}_meaning": "meaning"}
    return {key: getattr(value, attribute, None) for key, attribute in keys.items()}


def _printed(facts: dict[str, Any]) -> dict[str, str | None]:
    """Return what is printed about a policy."""
    unit, certificate = facts["unit"], facts.get("certificate")
    printed = {
        "budget per sample": facts["budget_meaning"],
        "deadline of every sample": facts.get("deadline_meaning"),
        "cost on the samples fitted on": f"{facts['fit_cost']:.5g} {unit}",
        "utility on the samples fitted on (optimistic)": percent(facts["fit_utility"]),
    }
    if certificate is not None:
        printed |= _certified(certificate, unit)
    return printed


def _certified(certificate: dict[str, Any], unit: str) -> dict[str, str]:
    """Return what was promised, the bound reached, and what that takes, on the half that took no part in fitting."""
    if certificate["guarantee"] == "budget":
        what, promised, bound = "mean cost", f"{certificate['budget']:.5g} {unit}", f"{certificate['bound']:.5g} {unit}"
    else:
        what = "loss of utility"
        promised, bound = (_points(certificate[key]) for key in ("epsilon", "bound"))
    lost, added = certificate["utility_lost"], certificate["cost_added"]
    return {
        "utility on the samples held out": percent(certificate["mean_utility"]),
        f"{what}, at most: asked for": promised,
        f"{what}, at most: bound reached": bound,
        "utility, against no guarantee": f"{_points(abs(lost))} {'lost' if lost > 0 else 'gained'}",
        "cost, against no guarantee": f"{abs(added):.5g} {unit} {'added' if added > 0 else 'saved'}",
    }


def _points(fraction: float) -> str:
    return f"{100 * fraction:.3g} percentage points"


def read_budget(text: str, known: CostTable, costs: Costs) -> Budget:
    """Read a budget; where it is below measured times, the message says that they are measured.

    Raises:
        BudgetError: It is no number, of a foreign unit, or out of reach.
    """
    try:
        return known.budget(text)
    except BudgetError as error:
        if costs.costs is None or known.unit not in ("us", "ms", "s"):
            raise
        raise BudgetError(
            f"{error} The costs are times measured on one machine, of --costs {str(costs.costs)!r}: a busy machine "
            "makes them too large. Profile again, or count operations: without --batch-size, --engine and --dtype."
        ) from error
