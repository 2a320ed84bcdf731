"""Who leaves where by two policies, side by side: the paper's Figure 3."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from eenet.errors import InputError, visible
from eenet.evaluation.paired import GROUPS, Paired, paired
from eenet.plot.samples import RIGHT, WRONG, Images, Texts, border, checked_images, checked_texts
from eenet.policies.policy import Policy
from eenet.report.plots import GREY
from eenet.tables.checks import instance, listed, number
from eenet.tables.table import ExitTable

# all lengths in inches
_LADDER = 1.5  # width of the middle column
_GAP = 0.12  # between examples
_LABEL = 0.17  # of the group and number above an example
_COUNTS = 0.36  # of the counts above a row of examples
_PAD = 0.14
_TITLE, _LEGEND_LINE = 0.62, 0.2
_WIDEST = 5.2  # of one side


def ladder(
    table: ExitTable,
    first: Policy,
    second: Policy,
    *,
    images: Images = None,
    texts: Texts = None,
    names: Sequence[str] = ("max_prob", "auto"),
    per_group: int = 4,
    seed: int = 0,
) -> Figure:
    """Return who leaves where by two policies: the paper's Figure 3.

    In the middle the exits with their cost; on each side, at every exit, how many that left there are right, how many
    left, and examples. The border says whether an example is answered right where it leaves by that policy (blue and
    solid) or wrong (orange and dashed); the letter is its group (`eenet.evaluation.paired.GROUPS`), the number its row
    in the table. An example is drawn on both sides. Title and legend state the realised costs, and how many samples
    are in each group.

    Policies are best compared at equal cost: those of `eenet.evaluation.at_equal_cost`. Where realised costs differ by
    more than 0.1 % the figure says so.

    Args:
        table: With labels, or a utility of 0 and 1, and costs.
        first: The policy compared with, on the left.
        second: Such as a learnt one, on the right.
        images: One picture per sample, uint8, ``[sample, height, width, 3]`` or ``[sample, height, width, 1]``.
        texts: One text per sample, in place of pictures. Without either, examples are markers.
        names: Of the two policies.
        per_group: How many examples of each group are drawn, where there are so many.
        seed: Of the choice of examples.

    Raises:
        TableError: Which answers are right, or the costs, are not known.
        ShapeError: Policies, pictures or texts do not fit the table.
        InputError: Pictures and texts together, or other than two names.
    """
    if images is not None and texts is not None:
        raise InputError("images and texts together cannot be drawn: an example is one or the other. Leave one out.")
    names = listed(names, "names")
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise InputError(f"names {names!r} do not fit: there are two policies. Give one name for each.")
    instance(table, ExitTable, "table")
    seed = int(number(seed, "seed", 0, whole=True))
    per_group = int(number(per_group, "per_group", 1, whole=True))
    pictures, lines = checked_images(images, table.num_samples), checked_texts(texts, table.num_samples)
    found = paired(table, first, second)
    chosen = _chosen(found, per_group, seed)
    page = _Page(found, chosen, _Tiles(pictures, lines), table.num_exits)
    page.title(names, table.require_costs().unit)
    for k, cost in enumerate(table.require_costs().cumulative):
        page.rung(k, f"{cost:.4g} {table.require_costs().unit}")
    page.legend(names[1])
    return page.figure


def _chosen(found: Paired, per_group: int, seed: int) -> Int[np.ndarray, " example"]:
    """Return the rows of some examples of each group but the last, group by group."""
    generator, chosen = np.random.default_rng(seed), []
    for name in list(GROUPS)[:-1]:
        rows = np.flatnonzero(found.group == name)
        chosen.append(np.sort(generator.permutation(rows)[:per_group]))
    return np.concatenate(chosen)


@dataclass(frozen=True)
class _Tiles:
    """How one example is drawn: as a picture, as a text, or as a marker."""

    images: UInt8[np.ndarray, "sample height width 3"] | None
    texts: list[str] | None

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of an example."""
        if self.texts is not None:
            return 2.45, 0.62
        if self.images is None:
            return 0.5, 0.36
        height, width = self.images.shape[1:3]
        return 0.72 * float(np.clip(width / height, 0.5, 2.5)), 0.72

    def draw(self, axes: Axes, row: int, x: float, y: float, *, right: bool) -> None:
        """Draw an example with its upper left corner at a place."""
        width, height = self.size
        if self.images is not None:
            axes.imshow(self.images[row], extent=(x, x + width, y + height, y), aspect="auto", zorder=1)
        elif self.texts is not None:
            wrapped = textwrap.wrap(visible(self.texts[row]), 41, max_lines=4, placeholder=" …")
            axes.text(x + 0.06, y + height / 2, "\n".join(wrapped), fontsize=6.8, va="center", parse_math=False)
        else:
            shape, colour = ("o", RIGHT) if right else ("X", WRONG)
            axes.scatter([x + width / 2], [y + height / 2], s=70, linewidths=0, marker=shape, color=colour)
        edge = border(right=right) | ({} if self.texts is None else {"linewidth": 1.6})
        axes.add_patch(Rectangle((x, y), width, height, fill=False, zorder=2, **edge))


class _Page:
    """The figure, drawn from the top in inches: nothing can overlap."""

    def __init__(self, found: Paired, chosen: Int[np.ndarray, " example"], tiles: _Tiles, num_exits: int) -> None:
        self.found, self.tiles = found, tiles
        self.counts = found.right_and_left(num_exits)
        # rows of the table by policy and exit
        self.cells = [[chosen[left[chosen] == k] for k in range(num_exits)] for left in found.exit_index]
        width, height = tiles.size
        most = max(len(cell) for side in self.cells for cell in side)
        self.columns = max(1, min(most, int((_WIDEST + _GAP) / (width + _GAP))))
        self.side = max(2.3, self.columns * (width + _GAP) - _GAP)
        lines = [max(-(-len(side[k]) // self.columns) for side in self.cells) for k in range(num_exits)]
        self.heights = [_COUNTS + max(count, 0.35) * (height + _LABEL + _GAP) + _PAD for count in lines]
        total = _TITLE + sum(self.heights) + _LEGEND_LINE * len(GROUPS) + 2 * _PAD
        full = 2 * self.side + _LADDER + 2 * _PAD
        self.figure = Figure(figsize=(full, total))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.frame = {"xlim": (0, full), "ylim": (total, 0)}
        self.axes.set(**self.frame)
        self.y, self.x = _TITLE, (_PAD, _PAD + self.side + _LADDER)

    def text(self, x: float, y: float, text: str, **how: Any) -> None:  # noqa: ANN401 - what matplotlib takes
        style: dict[str, Any] = {"va": "center", "fontsize": 9} | how
        self.axes.text(x, y, visible(text), parse_math=False, **style)

    def title(self, names: Sequence[str], unit: str) -> None:
        """Write the names, accuracies and costs."""
        for x, name, right, cost in zip(self.x, names, self.found.right, self.found.costs, strict=True):
            self.text(x, 0.2, name, fontsize=12, fontweight="bold")
            self.text(x, 0.42, f"{right.mean():.2%} right at {cost:.5g} {unit} per sample", gid="accuracy and cost")
        middle = self.x[1] - _LADDER / 2
        note = "equal cost" if self.found.equal_cost else "NOT at equal cost"
        self.text(middle, 0.31, note, ha="center", fontsize=8, color=GREY if self.found.equal_cost else WRONG)

    def rung(self, k: int, cost: str) -> None:
        """Draw an exit, and who leaves there on both sides."""
        top, middle = self.y, self.x[1] - _LADDER / 2
        self.axes.plot([0.3 * _PAD, self.frame["xlim"][1] - 0.3 * _PAD], [top, top], color="#dddddd", linewidth=0.8)
        box = FancyBboxPatch(
            (middle - 0.48, top + 0.15), 0.96, 0.46, boxstyle="round,pad=0,rounding_size=0.08", fc="#eef1f4", ec=GREY
        )
        self.axes.add_patch(box)
        self.text(middle, top + 0.29, f"exit {k}", ha="center", fontweight="bold")
        self.text(middle, top + 0.47, cost, ha="center", fontsize=8)
        if k + 1 < len(self.heights):
            below, arrow = top + self.heights[k] + 0.13, {"arrowstyle": "-|>", "color": GREY}
            self.axes.annotate("", xy=(middle, below), xytext=(middle, top + 0.63), arrowprops=arrow)
        for side, x in enumerate(self.x):
            self._examples(side, k, x, top)
        self.y += self.heights[k]

    def _examples(self, side: int, k: int, x: float, top: float) -> None:
        right, left = self.counts[side, k]
        share = f"  ({right / left:.1%})" if left else ""
        self.text(x, top + 0.17, f"right / left:  {right} / {left}{share}", gid=f"counts {side} {k}")
        width, height = self.tiles.size
        for place, row in enumerate(self.cells[side][k].tolist()):
            line, column = divmod(place, self.columns)
            at = x + column * (width + _GAP), top + _COUNTS + line * (height + _LABEL + _GAP)
            name = f"{self.found.group[row]} {row}"
            self.text(at[0], at[1] + 0.06, name, fontsize=7, color="black", gid=f"example {side} {k}")
            self.tiles.draw(self.axes, row, at[0], at[1] + _LABEL, right=bool(self.found.right[side, row]))

    def legend(self, second: str) -> None:
        """Explain groups and borders, and keep the frame, which pictures move."""
        self.axes.plot([0, self.frame["xlim"][1]], [self.y, self.y], color="#dddddd", linewidth=0.8)
        y, share = self.y + 0.2, 1 / len(self.found.group)
        for name, count in self.found.counts.items():
            meaning = GROUPS[name].replace("the second", second).replace("second", second)
            self.text(self.x[0], y, name, fontweight="bold", fontsize=8)
            self.text(self.x[0] + 0.85, y, str(count), fontsize=8, ha="right", gid=f"group {name}")
            self.text(self.x[0] + 1.35, y, f"{count * share:.1%}", fontsize=8, ha="right")
            self.text(self.x[0] + 1.5, y, meaning, fontsize=8)
            y += _LEGEND_LINE
        for i, right in enumerate((True, False)):
            at = self.x[1], self.y + 0.14 + 0.3 * i
            self.axes.add_patch(Rectangle(at, 0.3, 0.18, fill=False, **border(right=right)))
            meaning = f"answered {'right' if right else 'wrong'} where it leaves"
            self.text(at[0] + 0.4, at[1] + 0.09, meaning, fontsize=8)
        self.text(self.x[1], self.y + 0.84, "above each example: its group and its row in the table", fontsize=8)
        self.axes.set(**self.frame, aspect="auto")
