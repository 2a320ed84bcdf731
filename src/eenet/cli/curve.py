"""A small plot of utility over cost, in characters that every terminal and every pipe can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from eenet.errors import visible

Points: TypeAlias = Sequence[tuple[float, float]]
"""Cost and utility, a fraction."""

LEAST = 5  # rows, without the axis and the line that explains the marks
_MOST = 10
_WIDEST = 76
_LOG_SPAN = 12.0  # a cost range wider than this gets a logarithmic axis
_AROUND = 3  # lines below the rows


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Lines and points of utility over cost.

    Attributes:
        lines: By what they mean, points by rising cost, which are joined; flat from the last one on.
        points: By what they mean, points that are not joined.
        unit: Of the costs.
    """

    lines: Mapping[str, Points]
    points: Mapping[str, Points]
    unit: str

    def drawn(self, width: int, height: int | None = None) -> str:
        """Return the plot in so many characters and lines; empty where that is too small, or nothing to draw.

        Args:
            width: Of the terminal.
            height: Lines that are left for it; default: as many as it likes.
        """
        rows = min(_MOST, _MOST if height is None else height - _AROUND)
        known = [np.array(points, dtype=float) for points in (*self.lines.values(), *self.points.values()) if points]
        if rows < LEAST or width < 40 or not known:
            return ""
        (low, least), (high, most) = np.concatenate(known).min(axis=0), np.concatenate(known).max(axis=0)
        if not (high > low and most > least):
            return ""
        log = bool(low > 0 and high / low > _LOG_SPAN)
        columns = min(width, _WIDEST) - 8
        grid = np.full((rows, columns), " ")
        place = np.geomspace if log else np.linspace
        costs, many = place(low, high, columns), place(low, high, columns * rows)  # so that steep lines have no holes
        across = np.linspace(0, columns - 1, len(many)).round().astype(int)
        legend = []
        for mark, (name, points) in zip("*-", self.lines.items(), strict=False):
            cost, utility = np.array(points, dtype=float).T
            heights = self._rows(np.interp(many, cost, utility), least, most, rows)
            seen = (many >= cost[0]) & (grid[heights, across] == " ")
            grid[heights[seen], across[seen]] = mark
            legend.append(f"{mark} {name}")
        for mark, (name, points) in zip("xo", self.points.items(), strict=False):
            cost, utility = np.array(points, dtype=float).reshape(-1, 2).T
            nearest = np.abs(costs[None] - cost[:, None]).argmin(axis=1)
            grid[self._rows(utility, least, most, rows), nearest] = mark
            legend += [f"{mark} {name}"] if len(points) else []
        labels = {0: f"{most:.1%}", rows - 1: f"{least:.1%}"}
        lines = [f"{labels.get(row, ''):>6} |{''.join(cells)}".rstrip() for row, cells in enumerate(grid)]
        ends = (f"{low:.4g}", visible(f"{self.unit} per sample{', log scale' if log else ''}"), f"{high:.4g}")
        gap = columns - sum(map(len, ends))
        axis = f"{'':8}{ends[0]}{' ' * (gap // 2)}{ends[1]}{' ' * (gap - gap // 2)}{ends[2]}"
        return "\n".join([*lines, f"{'':6} +{'-' * columns}", axis, visible(f"{'':8}{'   '.join(legend)}")])

    @staticmethod
    def _rows(utilities: np.ndarray, least: float, most: float, rows: int) -> np.ndarray:
        """Return the row of each utility, the largest in row 0."""
        places: np.ndarray = np.rint((most - utilities) / (most - least) * (rows - 1)).astype(int)
        return places
