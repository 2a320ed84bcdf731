"""The page of an experiment: exits, costs, the comparison, real speed-up, and every caveat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eenet.experiments import pages
from eenet.experiments.pages import spread
from eenet.experiments.reproduce.figures import figures_section
from eenet.report import comparison_markdown, gain_over_random, markdown_table, save_figure, utility_cost, verdict
from eenet.tables.costs import CostTable


def write_page(folder: Path, name: str, found: Mapping[str, Any], costs: CostTable) -> Path:
    """Write the page of an experiment with its plots, and return where; ``found`` are the results of the steps."""
    comparison = found["comparison"]
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(utility_cost(comparison), folder / f"{name}_curves.png", dpi=100)
    save_figure(gain_over_random(comparison), folder / f"{name}_gain.png", dpi=100)
    intro = [
        f"{found['title']}. {found['training']}",
        exits_section(found["budget"], costs),
        budget_section(found["budget"]),
        losses_section(comparison, "auto"),
        "## Real speed-up\n\n" + speed_section(found["bench"]),
        f"![Utility against cost]({name}_curves.png)",
        f"![Gain over the best static mix]({name}_gain.png)",
    ]
    notes = [*found["caveats"], *comparison.get("notes", ())]
    text = "\n\n".join(filter(None, intro))
    page = comparison_markdown(dict(comparison) | {"notes": notes}, title=name, command=found["command"], intro=text)
    published = "## The published scheduler\n\n" + published_section(found["published"])
    figures = figures_section(found["figures"])
    return pages.write_page(folder / f"{name}.md", page, published, figures, pages.machine())


def exits_section(budget: Mapping[str, Any], costs: CostTable) -> str:
    """Return what every exit costs and gets right on the test set."""
    rows = [
        (str(k), f"{cost:.4g}", f"{100 * cost / costs.full:.0f}", f"{100 * utility:.2f}")
        for k, (cost, utility) in enumerate(zip(costs.cumulative, budget["utility"], strict=True))
    ]
    return "## Exits\n\n" + markdown_table(
        ("exit", costs.unit, "% of the original model", f"{budget['measure']}, %"), rows
    )


def budget_section(budget: Mapping[str, Any]) -> str:
    """Return the smallest budget that loses no more than was allowed."""
    shares = " ".join(f"{100 * share:.0f}" for share in budget["exit_distribution"])
    return (
        f"The smallest budget at which the policy `auto` loses at most {100 * budget['loss']:g} points of "
        f"{budget['measure']} on the calibration set, on which it was fitted, is **{budget['budget']}** of the "
        "original model's operations. On the test set its "
        f"{budget['measure']} is {100 * budget['test_utility']:.2f} % at {100 * budget['test_cost']:.1f} % of the "
        f"cost; that of the full model {100 * budget['full_utility']:.2f} %. Left at the exits: {shares} %."
    )


def losses_section(comparison: Mapping[str, Any], policy: str) -> str:
    """Return a policy's utility minus that of the full model at the asked budgets, at equal cost."""
    full = comparison["full"]
    losses = [
        f"{100 * (row['utility_at_budget'] - full['utility_test']):+.2f} at {row['budget'] / full['cost']:.0%}"
        for row in comparison["rows"]
        if row["policy"] == policy
    ]
    if not losses:
        return ""
    splits = f", means over {comparison['splits']} random splits" if comparison["splits"] > 1 else ""
    return f"`{policy}` minus the full model, in points: {', '.join(losses)} of its cost{splits}."


def speed_section(report: Mapping[str, Any]) -> str:
    """Return full against adaptive inference by engine and batch size."""
    rows = [
        (
            row["engine"],
            str(row["batch_size"]),
            spread(row["full_ms"], row["full_spread"]),
            spread(row["adaptive_ms"], row["adaptive_spread"]),
            f"{row['speedup']:.2f}",
            f"{row['ideal_speedup']:.2f}",
            f"{row['ideal_speedup_flops']:.2f}",
            "-" if row["efficiency"] is None else f"{row['efficiency']:.2f}",
            str(row["flips"]),
        )
        for row in report["rows"]
    ]
    head = (
        f"The policy of that budget on {report['samples']} test samples in float32, {report['threads']} thread(s); "
        "full = the original model without exits on the same engine. Milliseconds per sample, medians over "
        f"{report['passes']} passes in turns (quartiles in brackets). Efficiency = realised share of the saving that "
        "the engine's own stage times promise; flips = samples whose exit differs from replay on logits recorded at "
        "another batch size.\n\n"
    )
    columns = ("engine", "batch", "full", "adaptive", "speed-up", "ideal", "ideal by FLOPs", "efficiency", "flips")
    return head + markdown_table(columns, rows)


def published_section(published: Mapping[str, Any]) -> str:
    """Return how the paper's rule does, converged and as published, on one split, or why it is left out."""
    if "left_out" in published:
        return f"Left out: {published['left_out']}.\n"
    area = published["area"]
    seconds = {row["policy"]: row["fit_seconds"] for row in published["rows"]}
    rows = [
        (name, f"{100 * area[name]:.2f}", f"{seconds[name]:.1f}") for name in sorted(area, key=lambda name: -area[name])
    ]
    lines = [
        f"* {pair['a']} - {pair['b']}: {pair['difference']:+.2f} points, 95 % interval "
        f"{pair['low']:+.2f} to {pair['high']:+.2f}{f' ({said})' if (said := verdict(pair)) else ''}"
        for pair in published["pairs"]
        if pair["a"] in ("eenet_published", "eenet_paper")
    ]
    head = (
        "Fitted on the calibration set, evaluated on the test set; seconds are those of all ten standard budgets.\n\n"
    )
    return head + markdown_table(("policy", "area %", "fit s"), rows) + "\n" + "\n".join(lines) + "\n"
