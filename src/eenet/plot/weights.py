"""The weights of linear scores as heat strips: the paper's Figure 5."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from eenet.evaluation.scores import ScoreWeights
from eenet.evaluation.scores import score_weights as weights_of
from eenet.policies.policy import Policy
from eenet.report.plots import is_dark

_COLOURS = colormaps["cividis"]  # one direction of brightness, so that signs can be told in grey print
_CELL = 1.05  # inches of a weight with a name
_WRITTEN = 16  # columns up to which weights are written into their cells
_TICKS = 12


def score_weights(policy: Policy) -> Figure:
    """Return the weights of a policy's score as one heat strip per exit: the paper's Figure 5.

    On the left the weights of classes (or features), on the right those of everything else that the score reads, with
    their values; each side has a colour scale of its own. Exits at which all leave have no strip.

    Args:
        policy: Of `EENetScheduler` or `StoppingScheduler`, also through transforms and mixtures; of a mixture with
            several scores, the one that most samples follow is drawn.

    Raises:
        InputError: The policy's score has no weights.
    """
    found = weights_of(policy)
    columns, names = next(iter(found.by_column.values())).shape[1], list(found.named)
    early, rows = len(next(iter(found.named.values()))), len(found.by_column)
    wide = float(np.clip(0.44 * columns, 2.5, 7.0))
    size = (1.6 + wide + _CELL * len(names), 1.5 + early * (0.3 + 0.36 * rows))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(early, 2, squeeze=False, width_ratios=(wide, _CELL * len(names)))
    scales = [_scale(found.by_column), _scale(found.named)]
    for k, (left, right) in enumerate(grid):
        strip = np.stack([weights[k] for weights in found.by_column.values()])
        _strip(left, strip, scales[0], digits=2 if columns <= _WRITTEN else 0)
        _strip(right, np.array([[weights[k] for weights in found.named.values()]]), scales[1], digits=4)
        left.set_yticks(range(rows), list(found.by_column), fontsize=8)
        left.set_title(f"exit {k}", fontsize=9, loc="left", pad=3)
        right.set_yticks([])
        for axes in (left, right):
            axes.set_xticks([])
    shown = np.unique(np.linspace(0, columns - 1, min(columns, _TICKS if columns > _WRITTEN else columns)).round())
    grid[-1, 0].set_xticks(shown, [f"{column:g}" for column in shown], fontsize=8)
    grid[-1, 0].set_xlabel(found.columns)
    grid[-1, 1].set_xticks(range(len(names)), [_wrapped(name) for name in names], fontsize=8)
    for column, scale in enumerate(scales):
        bar = ScalarMappable(norm=scale, cmap=_COLOURS)
        figure.colorbar(bar, ax=list(grid[:, column]), location="bottom", aspect=40, shrink=0.9, pad=0.04)
    figure.suptitle(_title(found), fontsize=10)
    return figure


def _scale(weights: Mapping[str, np.ndarray]) -> Normalize:
    """Return a colour scale with 0 in the middle."""
    most = max(float(np.nanmax(np.abs(values), initial=0.0)) for values in weights.values()) or 1.0
    return Normalize(-most, most)


def _strip(axes: Axes, values: np.ndarray, scale: Normalize, *, digits: int) -> None:
    """Draw weights as cells, the largest written with so many digits; what is not read stays empty."""
    axes.imshow(np.ma.masked_invalid(values), norm=scale, cmap=_COLOURS, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2)
    decimals = max(0, digits - 1 - math.floor(math.log10(scale.vmax or 1.0)))
    for (row, column), value in np.ndenumerate(values) if digits else ():
        if np.isfinite(value):
            colour = "white" if is_dark(_COLOURS(scale(value))) else "black"
            axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=7, color=colour)


def _wrapped(name: str) -> str:
    """Return a name in two lines, broken near its middle."""
    words = name.split()
    if len(words) < 2:
        return name
    half = (len(words) + 1) // 2
    return " ".join(words[:half]) + "\n" + " ".join(words[half:])


def _title(found: ScoreWeights) -> str:
    parts = ["weights of the score"]
    if found.transformed:
        parts.append("which reads calibrated or combined exits")
    if found.share < 1 - 1e-6:
        parts.append(f"\nfollowed by {found.share:.0%} of the samples")
    return ", ".join(parts).replace(", \n", "\n")
