"""The page of `policies.py`, which sets all policies side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sst2

from eenet.evaluation.results import BOUNDS
from eenet.experiments.pages import again, bullets, machine, write_page
from eenet.experiments.reproduce import EXPERIMENTS
from eenet.report import markdown_table, save_figure, utility_cost, verdict

DRAWN = ("max_prob", "joint", "stopping", "auto", "random", "oracle")
SIMPLE = ("max_prob", "certainty", "margin", "joint", "patience", "vote")
BEHIND, ABOVE, DEVIATION = 0.2, 1.0, 0.02  # what we hold ourselves to; points, points, share of the cost
MAIN = "cifar10_resnet56_6"
SHOWN = slice(0, 10, 2)  # budgets of the planted part that have a column
CAVEATS = {
    "cifar10": EXPERIMENTS["cifar10-resnet56-6"].caveats["small"],
    "sst2": sst2.CAVEATS[1:],  # the first is about counts this page does not show
}
Results = Mapping[str, Any]


def policies_page(results: Results, options: argparse.Namespace) -> Path:
    """Write the page and its plots; return where it stands."""
    options.out.mkdir(parents=True, exist_ok=True)
    parts = ["# All policies side by side", intro(results)]
    for name, result in results["real"].items():
        plot = f"policies_{name}.png"
        save_figure(utility_cost(curves_of(result["policies"])), options.out / plot, dpi=100)
        parts += [f"## {name}", *real_sections(name, result, plot)]
    parts += ["## Planted optimum", planted_section(results["planted"])]
    parts += ["## Certificates", certificates_section(results["certificates"])]
    parts += ["## Controller", controller_section(results["controller"])]
    command = f"python benchmarks/policies.py --tables RUNS --work WORK --splits {options.splits}"
    command += f" --published-splits {options.published_splits} --seed {options.seed}"
    command += "".join(f" --policy {name}" for name in options.policy or ())
    return write_page(options.out / "policies.md", *parts, again(command), machine())


def intro(results: Results) -> str:
    """Return what the page is about and which tables are left out."""
    said = (
        "All policies on the same tables, compared at equal realised cost: `area` is the mean utility over ten "
        "budgets, see [how comparisons are made](how.md). `random` and `oracle` are bounds. Differences are in points "
        "with a 95 % interval; *significant* is said only of `auto` against each other policy, corrected for their "
        "number (Holm). Then three "
        "experiments on planted data, where the truth is known: how near policies come to the best possible one, how "
        "often certificates are wrong, and what the controller does when inputs become harder."
    )
    return "\n\n".join([said, *(f"`{name}` is left out: {why}." for name, why in results["left_out"].items())])


# --- real tables -----------------------------------------------------------------------------------------------------


def real_sections(name: str, result: Results, plot: str) -> list[str]:
    """Return what is said about one table."""
    comparison = result["policies"]
    drawn = f", means over {comparison['splits']} redrawn splits" if comparison["splits"] > 1 else ""
    caveats = next((said for start, said in CAVEATS.items() if name.startswith(start)), ())
    return [
        f"Fitted on {comparison['n_val']} samples, judged on {comparison['n_test']} others{drawn}.",
        exits_table(comparison),
        f"![Utility against cost]({plot})",
        areas_table(result),
        areas_notes(result),
        "What we hold ourselves to:\n\n" + "\n".join(aims(name, result)),
        bullets("Caveats", (*caveats, *comparison["notes"])),
    ]


def curves_of(comparison: Results) -> dict[str, Any]:
    """Return a comparison of the policies that are drawn."""
    names = [name for name in comparison["area"] if name in DRAWN]
    return {
        **comparison,
        "area": {name: comparison["area"][name] for name in names},
        "curves": {name: comparison["curves"][name] for name in names},
        "rows": [row for row in comparison["rows"] if row["policy"] in names],
    }


def exits_table(comparison: Results) -> str:
    """Return what every exit costs and is worth."""
    rows = [
        (str(k), f"{exit_['cost']:.1f}", f"{100 * exit_['utility_test']:.2f}")
        for k, exit_ in enumerate(comparison["exits"])
    ]
    return markdown_table(("exit", f"cost [{comparison['unit']}]", "utility %"), rows)


def areas_table(result: Results) -> str:
    """Return policies by area, with their differences, how they keep budgets and how long fitting takes."""
    comparison, published = result["policies"], result.get("published")
    area, rows = dict(comparison["area"]), []
    if published:
        area["eenet_published"] = published["area"]["eenet_published"]
    for name in sorted(area, key=lambda name: -area[name]):
        own = published if published and name == "eenet_published" else comparison
        splits = "" if own["splits"] == comparison["splits"] else f" ({own['splits']} splits)"
        kept = result["budgets"].get(name)
        seconds = [f"{row['fit_seconds']:.2f}" for row in own["rows"] if row["policy"] == name and name not in BOUNDS]
        rows.append(
            (
                name + splits,
                f"{100 * area[name]:.2f}",
                *(difference(own, name, base) for base in ("max_prob", "auto")),
                *(f"{100 * kept[key]:.2f} %" if kept else "-" for key in ("mean", "worst")),
                *(seconds[:1] or "-"),
            )
        )
    columns = ("policy", "area %", "minus max_prob", "minus auto", "mean off", "worst off", "fit s")
    return markdown_table(columns, rows)


def areas_notes(result: Results) -> str:
    """Return how the table is to be read."""
    said: str = (
        "*off*: by how much the mean cost on the test set differs from that on the fitting set, as a share of it, "
        "over all splits and ten budgets. *fit s*: seconds for all ten budgets together, one split. The interval's "
        "method: " + result["policies"]["pairs"][0]["method"] + "."
    )
    published = result.get("published")
    if published and published["splits"] != result["policies"]["splits"]:
        said += (
            f" `eenet_published` trains networks for every budget; it saw {published['splits']} splits. On these "
            f"`max_prob` has an area of {100 * published['area']['max_prob']:.2f} %, and the difference is the one on "
            f"them; how it keeps budgets was not followed."
        )
    return said


def pair(comparison: Results, a: str, b: str) -> dict[str, Any] | None:
    """Return the difference of two policies, turned round where needed; None where it was not made."""
    for found in comparison["pairs"]:
        if (found["a"], found["b"]) == (a, b):
            return dict(found)
        if (found["a"], found["b"]) == (b, a):
            turned = {"difference": -found["difference"], "low": -found["high"], "high": -found["low"]}
            return {**found, **turned, "a": a, "b": b}
    return None


def difference(comparison: Results, a: str, b: str) -> str:
    """Return a difference with its interval in a cell."""
    found = pair(comparison, a, b)
    if found is None:
        return "-"
    said = verdict(found)
    middle, low, high = (f"{round(found[key], 2) + 0.0:+.2f}" for key in ("difference", "low", "high"))  # no -0.00
    return f"{middle} ({low} to {high})" + (f", {said}" if said else "")


def aims(name: str, result: Results) -> list[str]:
    """Return a line for every aim: whether it is met on this table, and by which numbers."""
    comparison, lines = result["policies"], []
    if "auto" in comparison["area"]:
        simple = [policy for policy in SIMPLE if policy in comparison["area"]]
        best = max(simple, key=lambda policy: float(comparison["area"][policy]), default=None)
        against = pair(comparison, "auto", best) if best else None
        if against:
            lines.append(
                _aim(
                    f"`auto` at most {BEHIND:g} points below the best simple policy",
                    f"{difference(comparison, 'auto', str(best))} against `{best}`",
                    met=against["difference"] >= -BEHIND,
                )
            )
        if name == MAIN:
            lines += main_aims(comparison)
    kept = result["budgets"]
    over = [f"`{policy}` {100 * value['mean']:.2f} %" for policy, value in kept.items() if value["mean"] > DEVIATION]
    most = max(kept, key=lambda policy: float(kept[policy]["mean"]))
    numbers = f"more with {', '.join(over)}" if over else f"the most is {100 * kept[most]['mean']:.2f} %, `{most}`"
    aim = f"mean costs on the test set within {100 * DEVIATION:g} % of those on the fitting set, on average"
    return [*lines, _aim(aim, numbers, met=not over)]


def main_aims(comparison: Results) -> list[str]:
    """Return the aims of the main table."""
    lines = []
    if above := pair(comparison, "auto", "max_prob"):
        text = difference(comparison, "auto", "max_prob")
        lines.append(_aim(f"`auto` {ABOVE:g} point above `max_prob`", text, met=above["difference"] >= ABOVE))
    if surely := pair(comparison, "auto", "joint"):
        text = difference(comparison, "auto", "joint")
        lines.append(_aim("`auto` above `joint` with its whole interval", text, met=surely["low"] > 0))
    return lines


def _aim(aim: str, numbers: str, *, met: bool) -> str:
    return f"* {aim}: **{'met' if met else 'missed'}**, {numbers}."


# --- planted data ----------------------------------------------------------------------------------------------------


def planted_section(planted: Results) -> str:
    """Return the gain shares of all policies on both planted tables."""
    parts = [
        f"Fitted on {planted['fitted']} samples ({len(planted['seeds'])} draws), judged on {planted['fresh']} fresh "
        "ones by the exact chance of being right. The cells are the share of the possible gain at the cost that was "
        "realised, mean ± standard deviation over draws: 0 is the best blind mix of exits, 100 the best policy there "
        "is. *all*: what is gained at all ten budgets as a share of what is possible at all ten, its mean and the "
        "lowest of a draw; *off*: mean and worst distance of the cost on fresh data from the asked budget, as a share "
        "of it; large where a policy stays below a budget because more bought nothing. On `gaussian` thresholds on the "
        "confidence are optimal; on `classwise` they cannot be. Shares are measured to about half a point, the noise "
        "of the fresh samples. `joint` finds the best thresholds on the data it is fitted on, as a test shows; "
        "what is missing, those thresholds lose on other data."
    ]
    for kind in dict.fromkeys(row["table"] for row in planted["rows"]):
        rows = [row for row in planted["rows"] if row["table"] == kind]
        rows.sort(key=lambda row: -float(of_all(row).mean()))
        shown = (f"{budget:g}" for budget in rows[0]["budgets"][SHOWN])
        columns = (kind, *shown, "all", "least", "mean off", "worst off")
        parts.append(markdown_table(columns, [planted_cells(row) for row in rows]))
    return "\n\n".join(part.rstrip("\n") for part in parts)


def gains(row: Results, key: str) -> np.ndarray:
    """Return a number of each draw and budget."""
    return np.array([[gain[key] for gain in draw] for draw in row["gains"]])


def of_all(row: Results) -> np.ndarray:
    """Return which share of what is possible at all budgets together is gained, for each draw in percent."""
    share: np.ndarray = 100 * gains(row, "reached").sum(axis=1) / gains(row, "possible").sum(axis=1)
    return share


def planted_cells(row: Results) -> Sequence[str]:
    """Return the cells of one policy."""
    shares, whole = 100 * gains(row, "reached") / gains(row, "possible"), of_all(row)
    off = 100 * np.abs(gains(row, "cost") / np.array(row["budgets"]) - 1)
    spread = zip(shares.mean(axis=0)[SHOWN], shares.std(axis=0, ddof=1)[SHOWN], strict=True)
    each = [f"{mean:.1f} ± {sd:.1f}" for mean, sd in spread]
    both = (f"{whole.mean():.1f}", f"{whole.min():.1f}")
    return (row["policy"], *each, *both, f"{off.mean():.2f} %", f"{off.max():.2f} %")


def certificates_section(found: Results) -> str:
    """Return how often promises were broken and what they cost."""
    unit, rows = found["unit"], []
    for row in found["rows"]:
        asked = row["promise"].get("budget")
        goal = f"cost at most {asked:g} {unit}" if asked else f"loss at most {100 * row['promise']['epsilon']:g} points"
        rows.append(
            (
                goal,
                str(row["size"]),
                f"{100 * row['broken']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})",
                f"{100 * row['plainly_broken']:.1f}",
                f"{100 * row['utility_lost']:+.2f}",
                f"{row['cost_added']:+.3f}",
                f"{100 * row['fell_back']:.1f}",
            )
        )
    columns = ("promise", "samples", "broken %", "plain fit %", "price [points]", f"cost [{unit}]", "fell back %")
    over = sum(row["broken"] > found["delta"] for row in found["rows"])
    surely = sum(row["low"] > found["delta"] for row in found["rows"])
    head = (
        f"{found['draws']} draws of `gaussian` for each line; `joint`, half of the draw certifies, delta "
        f"{found['delta']:g}: at most {100 * found['delta']:g} % of the promises may be broken. Judged on "
        f"{found['fresh']} fresh samples. *broken*: share of draws whose promise does not hold, with its exact 95 % "
        "interval. *plain fit*: the same for a fit on the whole draw that keeps the promise on the draw itself. "
        "*price*: utility that the plain fit has more, in points, and cost that the certified policy has more; both on "
        "fresh samples. *fell back*: nothing could be promised, and a fixed exit was returned."
    )
    verdict = f"{over} of {len(rows)} lines are above what delta allows, {surely} with the whole interval."
    return f"{head}\n\n{markdown_table(columns, rows)}\n{verdict}"


def controller_section(found: Results) -> str:
    """Return what the stream costs with and without the controller."""
    rows = []
    for row in found["rows"]:
        for kind in ("fixed", "controlled"):
            off: list[float] = [100 * (stream[kind] / row["budget"] - 1) for stream in row["streams"]]
            worst = max(off, key=abs)
            rows.append(
                (
                    f"{row['budget']:g}",
                    kind,
                    *(
                        f"{np.mean([s[key] for s in row['streams']]):.3f}"
                        for key in (f"{kind}_first", f"{kind}_second")
                    ),
                    f"{np.mean([stream[kind] for stream in row['streams']]):.3f}",
                    f"{round(float(np.mean(off)), 2) + 0.0:+.2f} %",
                    f"{worst:+.2f} %",
                    f"{100 * np.mean([stream[f'{kind}_utility'] for stream in row['streams']]):.2f}",
                )
            )
    columns = ("budget", "policy", "first half", "second half", "mean cost", "off budget", "worst stream", "utility %")
    streams = len(found["rows"][0]["streams"])
    head = (
        f"Streams of {found['samples']} samples of `gaussian`; from the middle on, every exit tells "
        f"{found['harder']:g} times as much as before. `joint`, fitted on {found['fitted']} samples like the first "
        f"half; costs in {found['unit']}, means over {streams} streams. *fixed*: the fitted policy of the budget; "
        "*controlled*: `BudgetController` with its default settings, which moves along the same dial. Utilities are "
        "not at equal cost: the fixed policy pays for its own with what it spends above the budget."
    )
    return f"{head}\n\n{markdown_table(columns, rows)}"
