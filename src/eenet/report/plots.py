"""Plots of a comparison, from the contract JSON of ``eenet compare``.

Figures are made without pyplot: nothing global is touched and no display is needed. Colours are those of Okabe and
Ito, which colour-blind readers can distinguish; line styles and markers repeat the distinction.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np

from eenet.errors import missing_extra, visible
from eenet.tables.atomic import atomic_path

try:
    from matplotlib import colormaps, rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
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


def png(figure: Figure, dpi: int = 130) -> bytes:
    """Return a figure as the bytes of a PNG image."""
    buffer = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # names and units are no formulas
        for text in figure.findobj(Text):
            text.set_parse_math(False)
            text.set_text(visible(text.get_text()))
        figure.savefig(buffer, dpi=dpi, format="png")
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
