"""How exits are used over budgets, and how well their probabilities can be trusted."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eenet.errors import visible
from eenet.evaluation.paired import shares_by_budget
from eenet.evaluation.scores import Calibration, calibration
from eenet.plot.samples import RIGHT
from eenet.policies.dial import Dial
from eenet.report.plots import GREY, canvas, exit_colours, is_dark, legend
from eenet.tables.table import ExitTable

_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo", "++")
_PER_ROW = 4  # reliability diagrams


def exits_by_budget(dial: Dial, table: ExitTable) -> Figure:
    """Return the share of a table's samples that leave at each exit, as areas over the budget.

    Shares are in expectation over the coins of mixed policies, and exact at every budget.

    Args:
        dial: Any; budgets are mean costs on the data that it was fitted on.
        table: Outputs to replay.

    Raises:
        ShapeError: Dial and table do not belong together.
    """
    budgets, shares = shares_by_budget(dial, table)
    figure, axes = canvas()
    colours = exit_colours(shares.shape[1])
    with rc_context({"hatch.linewidth": 0.5}):
        areas = axes.stackplot(budgets, 100 * shares.T, colors=colours, linewidth=0.6)
    for k, (area, colour) in enumerate(zip(areas, colours, strict=True)):
        area.set(label=f"exit {k}", hatch=_HATCHES[k % len(_HATCHES)], edgecolor="white" if is_dark(colour) else GREY)
    axes.set(xlim=(budgets[0], budgets[-1]), ylim=(0, 100))
    axes.set_axisbelow(True)  # lines of a grid would be taken for borders
    unit = visible(dial.costs.unit)
    axes.set_xlabel(f"Budget: mean cost per sample on the data fitted on [{unit}]", parse_math=False)
    axes.set_ylabel("Share of the samples [%]")
    legend(axes, "leaves at", reverse=True)  # as the areas lie, the last exit on top
    return figure


def reliability(table: ExitTable, *, bins: int = 15) -> Figure:
    """Return a reliability diagram per exit: the share of right answers against the largest probability.

    Points below the diagonal are too sure. The size of a point is the number of its samples; the title states the
    expected calibration error (ECE).

    Args:
        table: With logits and labels.
        bins: Of equal width.

    Raises:
        TableError: The table has no labels, or features in place of logits.
        InputError: ``bins`` is no whole number from 1.
    """
    found = calibration(table, bins)
    rows = -(-table.num_exits // _PER_ROW)
    columns = -(-table.num_exits // rows)
    figure = Figure(figsize=(0.5 + 2.6 * columns, 0.4 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for k, axes in enumerate(grid.flat):
        if k < table.num_exits:
            _diagram(axes, found, k)
            axes.tick_params(labelbottom=k + columns >= table.num_exits)
        else:
            axes.set_axis_off()
    figure.supxlabel("Largest probability", fontsize=10)
    figure.supylabel("Share of right answers", fontsize=10)
    return figure


def _diagram(axes: Axes, found: Calibration, k: int) -> None:
    """Draw the diagram of one exit."""
    there = found.count[k] > 0
    sure, right, count = (values[k][there] for values in (found.confidence, found.accuracy, found.count))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.vlines(sure, np.minimum(sure, right), np.maximum(sure, right), color=GREY, linewidth=0.8)
    axes.plot(sure, right, color=RIGHT, linewidth=1.2)
    axes.scatter(sure, right, s=6 + 130 * count / count.sum(), color=RIGHT, zorder=3, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(f"exit {k}   ECE {found.error[k]:.1%}", fontsize=9, loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
