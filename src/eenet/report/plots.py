"""Plots of a comparison, from the contract JSON of ``eenet compare``.

Figures are made without pyplot: nothing global is touched and no display is needed. Colours are those of Okabe and
Ito, which colour-blind readers can distinguish; line styles and markers repeat the distinction.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

from eenet.errors import missing_extra, visible
from eenet.tables.atomic import atomic_path

try:
    from matplotlib import colormaps, rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import imsave
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
except ModuleNotFoundError as error:
    raise missing_extra(error, "plots need it") or error from error

Colour: TypeAlias = tuple[float, float, float, float]
"""Red, green, blue and opacity, from 0 to 1."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_NAMED = ("*", "p", "h", "<", ">")  # of models without early exits
_STYLES = ("-", "--", "-.")
GREY = "#666666"
_LOG_SPAN = 12.0  # a cost range wider than this gets a logarithmic axis
_MOST_BUDGETS = 4  # in one figure: of more, so many spread over their range
_PAYS, _EVEN = "#D55E00", "#9aa5b1"


def utility_cost(comparison: Mapping[str, Any]) -> Figure:
    """Return the utility-cost curves of all policies.

    Every policy's realised points have markers at the asked budgets; the bounds ``random`` and ``oracle`` are dashed,
    every static exit is a cross and the full model a line.
    """
    figure, axes = canvas()
    for name, style in _styles(comparison).items():
        costs, utilities = _dense(*_curve(comparison, name))
        label = f"{name}  {100 * comparison['area'][name]:.2f}"
        axes.plot(costs, 100 * utilities, label=label, **style)
        if style["marker"]:  # what was realised at the asked budgets
            rows = [row for row in comparison["rows"] if row["policy"] == name]
            costs, utilities = (np.array([row[key] for row in rows]) for key in ("test_cost", "test_utility"))
            marks = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6, "linestyle": "none"}
            axes.plot(costs, 100 * utilities, **(style | marks))
    static = _static(comparison)
    axes.plot(*static, "x", markersize=9, markeredgewidth=2, color="black", label="static exits", zorder=5)
    for one, marker in zip(comparison.get("statics", ()), cycle(_NAMED), strict=False):
        point: dict[str, Any] = {
            "markersize": 9,
            "color": GREY,
            "markeredgecolor": "black",
            "linestyle": "none",
            "zorder": 6,
        }
        axes.plot(one["cost"], 100 * one["utility"], marker, label=f"{one['name']} (no exits)", **point)
    full = static[1][-1]
    axes.axhline(full, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label=f"last exit  {full:.2f}")
    axes.set_ylabel("Utility on the test samples [%]")
    _frame(axes, comparison)
    _cost_axis(axes, comparison)
    legend(axes, "policy, area [%]")
    return figure


def gain_over_random(comparison: Mapping[str, Any]) -> Figure:
    """Return every policy's gain over ``random`` (the best static mix) at equal cost, which separates close curves."""
    figure, axes = canvas()
    base_costs, base_utilities = _curve(comparison, "random")
    grid = np.geomspace(base_costs[0], max(_curve(comparison, name)[0][-1] for name in comparison["curves"]), 400)
    base = np.interp(grid, base_costs, base_utilities)
    for name, style in _styles(comparison).items():
        if name in ("random", "oracle"):
            continue
        costs, utilities = _curve(comparison, name)
        line = {key: value for key, value in style.items() if key != "marker"}
        axes.plot(grid, 100 * (np.interp(grid, costs, utilities) - base), label=name, **line)
        gains = 100 * (utilities - np.interp(costs, base_costs, base_utilities))
        axes.plot(costs, gains, **(style | {"linestyle": "none", "markersize": 4}))
    axes.axhline(0, color=GREY, linewidth=1, linestyle="--", label="random (best static mix)")
    axes.set_ylabel("Gain over the best static mix [points]")
    _cost_axis(axes, comparison)
    legend(axes, "policy")
    return figure


def exit_shares(comparison: Mapping[str, Any]) -> Figure:
    """Return where the test samples left, as stacked bars by policy, for up to four of the asked budgets."""
    figure, panels = _panels(comparison["rows"], comparison["unit"], row_height=0.27)
    num_exits = len(comparison["exits"])
    colours = exit_colours(num_exits)
    for axes, rows in panels:
        _bars(axes, rows, colours)
    axes = panels[-1][0]
    axes.set_xlabel("Share of the test samples [%]")
    handles = [axes.barh(0, 0, color=colour, label=f"exit {k}") for k, colour in enumerate(colours)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(num_exits, 8), frameon=False)
    return figure


def group_losses(comparison: Mapping[str, Any], by: str = "class") -> Figure:
    """Return the loss of every class, or ``group``, as a dot, by policy, for up to four of the asked budgets."""
    chosen = [entry for entry in comparison["groups"] if entry["by"] == by]
    figure, panels = _panels(chosen, comparison["unit"], row_height=0.3)
    for axes, entries in panels:
        for row, entry in enumerate(entries):
            _dots(axes, row, entry["groups"])
            axes.plot([entry["loss"]] * 2, [row - 0.35, row + 0.35], color="black", linewidth=2)
        axes.set_yticks(range(len(entries)), [entry["policy"] for entry in entries], fontsize=8.5)
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    panels[-1][0].set_xlabel("Loss by leaving early [points]")
    return figure


def _panels(
    entries: Sequence[Mapping[str, Any]], unit: str, *, row_height: float
) -> tuple[Figure, list[tuple[Axes, list[Mapping[str, Any]]]]]:
    """Return a figure with one panel per budget, four at most, each with its entries, one per policy."""
    budgets = sorted({entry["budget"] for entry in entries})
    if len(budgets) > _MOST_BUDGETS:
        budgets = [budgets[round(index)] for index in np.linspace(0, len(budgets) - 1, _MOST_BUDGETS)]
    # a budget typed in two ways has one panel
    groups = [list({one["policy"]: one for one in entries if one["budget"] == budget}.values()) for budget in budgets]
    ratios = [len(group) for group in groups]
    figure = Figure(figsize=(8.5, 0.9 + sum(row_height * ratio + 0.55 for ratio in ratios)), layout="constrained")
    grid = figure.subplots(len(groups), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axes, group in zip(grid, groups, strict=True):
        budget, text = group[0]["budget"], str(group[0]["budget_input"])
        typed = "" if text == f"{budget:g}" else f"{text} = "
        axes.set_title(f"asked: {typed}{budget:.4g} {unit} per sample", fontsize=10, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure, list(zip(grid, groups, strict=True))


def _dots(axes: Axes, row: int, groups: Sequence[Mapping[str, Any]]) -> None:
    """Draw one dot per group, the first with its name."""
    colours = [_PAYS if group["pays_more"] else _EVEN for group in groups]
    axes.scatter([group["loss"] for group in groups], [row] * len(groups), c=colours, s=28, alpha=0.8, linewidths=0)
    axes.annotate(
        groups[0]["name"], (groups[0]["loss"], row), xytext=(5, 0), textcoords="offset points", fontsize=8, va="center"
    )


def png(figure: Figure, dpi: int = 130) -> bytes:
    """Return a figure as the bytes of a PNG image."""
    buffer = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # names and units are no formulas
        for text in figure.findobj(Text):
            text.set_parse_math(False)
            text.set_text(visible(text.get_text()))
        figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def image_png(image: UInt8[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Return a grey or RGB image as the bytes of a PNG image."""
    buffer = io.BytesIO()
    imsave(buffer, image, format="png", cmap="gray", vmin=0, vmax=255)
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 130) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_path(path) as draft:
        draft.write_bytes(png(figure, dpi))


def exit_colours(num_exits: int) -> list[Colour]:
    """Return a colour for each exit, from light to dark, so that they differ in grey print too."""
    return [colormaps["cividis"](position) for position in np.linspace(0.95, 0.1, num_exits)]


def is_dark(colour: Colour) -> bool:
    """Return whether a colour needs white text on it."""
    return bool(np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.55)


def canvas() -> tuple[Figure, Axes]:
    """Return a figure with one plain plot."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: Axes, title: str, *, reverse: bool = False) -> None:
    """Write the legend of a plot to its right."""
    axes.legend(
        title=title,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        alignment="left",
        reverse=reverse,
    )


def _styles(comparison: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return line properties by policy, the best area first, the bounds around; colours follow the order given."""
    names = [name for name in comparison["area"] if name not in ("random", "oracle")]
    styles: dict[str, dict[str, Any]] = {
        name: {"color": color, "linestyle": _STYLES[i // len(COLOURS) % len(_STYLES)], "marker": marker}
        | {"markersize": 0, "linewidth": 1.6}
        for i, (name, color, marker) in enumerate(zip(names, cycle(COLOURS), cycle(_MARKERS), strict=False))
    }
    ordered = dict(sorted(styles.items(), key=lambda item: -comparison["area"][item[0]]))
    dashed = {"linestyle": "--", "linewidth": 1.4, "marker": "", "markersize": 0}
    above = {"oracle": dashed | {"color": "#999999", "linestyle": (0, (6, 2, 1, 2))}}
    below = {"random": dashed | {"color": GREY}}
    return {name: style for name, style in (above | ordered | below).items() if name in comparison["area"]}


def _curve(comparison: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return costs and utilities of a policy's curve by rising cost."""
    points = comparison["curves"][name]
    return np.array([point["cost"] for point in points]), np.array([point["utility"] for point in points])


def _static(comparison: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return cost and utility in percent of every exit for all samples."""
    exits = comparison["exits"]
    return [exit_["cost"] for exit_ in exits], [100 * exit_["utility_test"] for exit_ in exits]


def _dense(costs: np.ndarray, utilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve with many points: lines straight in cost are bent on a logarithmic axis."""
    every = np.union1d(costs, np.geomspace(costs[0], costs[-1], 200))
    return every, np.interp(every, costs, utilities)


def _frame(axes: Axes, comparison: Mapping[str, Any]) -> None:
    """Keep the oracle, mostly luck, from squeezing all other curves: it may leave the frame at the top."""
    inside = [100 * _curve(comparison, name)[1] for name in comparison["curves"] if name != "oracle"]
    named = [100 * one["utility"] for one in comparison.get("statics", ())]
    values = np.concatenate([*inside, _static(comparison)[1], named])
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 0.5)
    axes.set_ylim(low - 0.05 * span, high + 0.15 * span)


def _cost_axis(axes: Axes, comparison: Mapping[str, Any]) -> None:
    """Label the cost axis; above it the same in percent of the original model or the last exit."""
    (*_, high), reference = _static(comparison)[0], comparison["reference"]
    all_costs = [*_static(comparison)[0], *(one["cost"] for one in comparison.get("statics", ()))]
    full, low, high = high if reference is None else reference, min(all_costs), max(all_costs)
    axes.set_xlabel(f"Mean cost per sample [{comparison['unit']}]")
    if high / low > _LOG_SPAN:
        axes.set_xscale("log")
        axes.set_xlim(low * 0.93, high * 1.08)
    else:
        margin = 0.03 * (high - low)
        axes.set_xlim(low - margin, high + margin)
    top = axes.secondary_xaxis(
        "top", functions=(lambda cost: np.multiply(cost, 100 / full), lambda share: np.multiply(share, full / 100))
    )
    top.set_xlabel("% of the " + ("last exit" if reference is None else "original model without exits"))
    for axis in (axes.xaxis, top.xaxis):
        if axes.get_xscale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], colours: Sequence[Any]) -> None:
    """Draw one stacked bar per row, shares of 6 % and more written into it."""
    names = [row["policy"] for row in rows]
    shares = 100 * np.array([row["exit_distribution"] for row in rows])
    left = np.zeros(len(rows))
    for k, colour in enumerate(colours):
        bars = axes.barh(names, shares[:, k], left=left, color=colour, height=0.8, edgecolor="white", linewidth=0.5)
        texts = [f"{share:.0f}" if share >= 6 else "" for share in shares[:, k]]
        axes.bar_label(bars, texts, label_type="center", fontsize=7.5, color="white" if is_dark(colour) else "black")
        left += shares[:, k]
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8.5, length=0)
