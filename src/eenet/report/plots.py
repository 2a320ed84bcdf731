"""Plots of a comparison, drawn from the contract JSON of ``eenet compare``.

Figures are made without pyplot: nothing global is touched and no display is needed. Colours are those of Okabe and
Ito, which colour-blind readers can tell apart; line styles and markers repeat the distinction.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from eenet.core.files import atomic_path

__all__ = ["evenly", "exit_shares", "gain_over_random", "png", "save_figure", "utility_cost"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", "-.")
_GREY = "#666666"
_LOG_SPAN = 12.0  # a cost range wider than this is drawn on a logarithmic axis
_MOST_BUDGETS = 4  # groups of bars in one figure


def utility_cost(comparison: Mapping[str, Any]) -> Figure:
    """Return the utility-cost curves of all policies.

    Shown are every policy's realised points with markers at the asked budgets, the bounds ``random`` and ``oracle``
    dashed, every static exit as a cross and the full model as a line.

    Args:
        comparison: The contract JSON, with ``curves``.

    Returns:
        The figure.
    """
    figure, axes = _canvas()
    for name, style in _styles(comparison).items():
        costs, utilities = _dense(*_curve(comparison, name))
        label = f"{name}  {100 * comparison['area'][name]:.2f}"
        axes.plot(costs, 100 * utilities, label=label, **style)
        _mark_asked(axes, comparison, name, style)
    exits = comparison["exits"]
    axes.plot(
        [exit_["cost"] for exit_ in exits],
        [100 * exit_["utility_test"] for exit_ in exits],
        linestyle="none",
        marker="x",
        markersize=9,
        markeredgewidth=2,
        color="black",
        label="static exits",
        zorder=5,
    )
    full = 100 * exits[-1]["utility_test"]
    axes.axhline(full, color=_GREY, linewidth=1, linestyle=(0, (1, 2)), label=f"last exit  {full:.2f}")
    axes.set_ylabel("Utility on the test samples [%]")
    _frame(axes, comparison)
    _cost_axis(axes, comparison)
    axes.legend(
        title="policy, area [%]", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, alignment="left"
    )
    return figure


def gain_over_random(comparison: Mapping[str, Any]) -> Figure:
    """Return every policy's gain over ``random`` (the best static mix) at equal cost: it tells close curves apart.

    Args:
        comparison: The contract JSON, with ``curves``.

    Returns:
        The figure.
    """
    figure, axes = _canvas()
    base_costs, base_utilities = _curve(comparison, "random")
    grid = np.geomspace(base_costs[0], max(_curve(comparison, name)[0][-1] for name in comparison["curves"]), 400)
    base = np.interp(grid, base_costs, base_utilities)
    for name, style in _styles(comparison).items():
        if name in ("random", "oracle"):
            continue
        costs, utilities = _curve(comparison, name)
        drawn = {key: value for key, value in style.items() if key != "marker"}
        axes.plot(grid, 100 * (np.interp(grid, costs, utilities) - base), label=name, **drawn)
        gains = 100 * (utilities - np.interp(costs, base_costs, base_utilities))
        axes.plot(costs, gains, **(style | {"linestyle": "none", "markersize": 4}))
    axes.axhline(0, color=_GREY, linewidth=1, linestyle="--", label="random (best static mix)")
    axes.set_ylabel("Gain over the best static mix [points]")
    _cost_axis(axes, comparison)
    axes.legend(title="policy", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, alignment="left")
    return figure


def exit_shares(comparison: Mapping[str, Any]) -> Figure:
    """Return where the test samples left, as stacked bars by policy, for up to four of the asked budgets.

    Args:
        comparison: The contract JSON.

    Returns:
        The figure; with more than four budgets, four spread over their range are shown.
    """
    budgets = evenly(sorted({row["budget"] for row in comparison["rows"]}), _MOST_BUDGETS)
    # a budget typed in two ways is drawn once
    groups = [
        list({r["policy"]: r for r in comparison["rows"] if r["budget"] == budget}.values()) for budget in budgets
    ]
    height = 0.9 + sum(0.27 * len(group) + 0.55 for group in groups)
    figure = Figure(figsize=(8.5, height), layout="constrained")
    panels = figure.subplots(
        len(groups), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [len(group) for group in groups]}
    )[:, 0]
    num_exits = len(comparison["exits"])
    colours = [colormaps["cividis"](position) for position in np.linspace(0.95, 0.1, num_exits)]
    for axes, group in zip(panels, groups, strict=True):
        _bars(axes, group, colours, comparison["unit"])
    panels[-1].set_xlabel("Share of the test samples [%]")
    handles = [panels[0].barh(0, 0, color=colour, label=f"exit {k}") for k, colour in enumerate(colours)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(num_exits, 8), frameon=False)
    return figure


def png(figure: Figure, dpi: int = 130) -> bytes:
    """Return a figure as the bytes of a PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 130) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_path(path) as draft:
        draft.write_bytes(png(figure, dpi))


def _canvas() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styles(comparison: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return line properties by policy, the best area first, the bounds around; colours follow the order given."""
    names = [name for name in comparison["area"] if name not in ("random", "oracle")]
    styles: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        styles[name] = {
            "color": _COLOURS[index % len(_COLOURS)],
            "linestyle": _STYLES[index // len(_COLOURS) % len(_STYLES)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "markersize": 0,
            "linewidth": 1.6,
        }
    ordered = dict(sorted(styles.items(), key=lambda item: -comparison["area"][item[0]]))
    dashed = {"linestyle": "--", "linewidth": 1.4, "marker": "", "markersize": 0}
    bounds = {name: dashed | {"color": colour} for name, colour in (("oracle", "#999999"), ("random", _GREY))}
    bounds["oracle"]["linestyle"] = (0, (6, 2, 1, 2))
    present = {name: style for name, style in bounds.items() if name in comparison["area"]}
    above = {name: style for name, style in present.items() if name == "oracle"}
    below = {name: style for name, style in present.items() if name == "random"}
    return above | ordered | below


def _curve(comparison: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return costs and utilities of a policy's curve by rising cost."""
    points = comparison["curves"][name]
    return np.array([point["cost"] for point in points]), np.array([point["utility"] for point in points])


def _dense(costs: np.ndarray, utilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve with many points: lines straight in cost are bent on a logarithmic axis."""
    every = np.union1d(costs, np.geomspace(costs[0], costs[-1], 200))
    return every, np.interp(every, costs, utilities)


def _mark_asked(axes: Axes, comparison: Mapping[str, Any], name: str, style: Mapping[str, Any]) -> None:
    """Mark what a policy realised at the asked budgets."""
    rows = [row for row in comparison["rows"] if row["policy"] == name]
    if style["marker"]:
        axes.plot(
            [row["test_cost"] for row in rows],
            [100 * row["test_utility"] for row in rows],
            linestyle="none",
            marker=style["marker"],
            markersize=6,
            color=style["color"],
            markeredgecolor="white",
            markeredgewidth=0.6,
        )


def _frame(axes: Axes, comparison: Mapping[str, Any]) -> None:
    """Keep the oracle, mostly luck, from squeezing all other curves: it may leave the frame at the top."""
    shown = [100 * _curve(comparison, name)[1] for name in comparison["curves"] if name != "oracle"]
    shown.append(np.array([100 * exit_["utility_test"] for exit_ in comparison["exits"]]))
    values = np.concatenate(shown)
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 0.5)
    axes.set_ylim(low - 0.05 * span, high + 0.15 * span)


def _cost_axis(axes: Axes, comparison: Mapping[str, Any]) -> None:
    """Label the cost axis; above it the same in percent of the original model or the last exit."""
    exits, reference = comparison["exits"], comparison["reference"]
    low, high = exits[0]["cost"], exits[-1]["cost"]
    axes.set_xlabel(f"Mean cost per sample [{comparison['unit']}]")
    if high / low > _LOG_SPAN:
        axes.set_xscale("log")
        axes.set_xlim(low * 0.93, high * 1.08)
    else:
        margin = 0.03 * (high - low)
        axes.set_xlim(low - margin, high + margin)
    full = high if reference is None else reference
    top = axes.secondary_xaxis("top", functions=(_times(100 / full), _times(full / 100)))
    top.set_xlabel("% of the " + ("last exit" if reference is None else "original model without exits"))
    for axis in (axes.xaxis, top.xaxis):
        if axes.get_xscale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _times(factor: float) -> Callable[[ArrayLike], ArrayLike]:
    """Return the function that multiplies by a factor."""
    return lambda values: np.asarray(values, dtype=np.float64) * factor


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], colours: Sequence[Any], unit: str) -> None:
    """Draw one stacked bar per row, shares of 6 % and more written into it."""
    names = [row["policy"] for row in rows]
    shares = 100 * np.array([row["exit_distribution"] for row in rows])
    left = np.zeros(len(rows))
    for k, colour in enumerate(colours):
        bars = axes.barh(names, shares[:, k], left=left, color=colour, height=0.8, edgecolor="white", linewidth=0.5)
        dark = np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.55
        texts = [f"{share:.0f}" if share >= 6 else "" for share in shares[:, k]]
        axes.bar_label(bars, texts, label_type="center", fontsize=7.5, color="white" if dark else "black")
        left += shares[:, k]
    asked, text = rows[0]["budget"], str(rows[0]["budget_input"])
    typed = "" if text == f"{asked:g}" else f"{text} = "
    axes.set_title(f"budget {typed}{asked:.4g} {unit}", fontsize=10, loc="left")
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8.5, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def evenly(values: Sequence[float], most: int) -> list[float]:
    """Return at most ``most`` values spread evenly over the sorted ones."""
    if len(values) <= most:
        return list(values)
    return [values[round(index)] for index in np.linspace(0, len(values) - 1, most)]
