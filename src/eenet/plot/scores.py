"""Scores of right and wrong samples by class: the paper's Figure 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from eenet.errors import InputError
from eenet.evaluation.paired import require_right
from eenet.evaluation.scores import auroc, main_score, on_unit_scale
from eenet.plot.samples import RIGHT, WRONG, Images, border, checked_images
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer
from eenet.policies.scorers import Confidence, confidence_scorer
from eenet.report.plots import GREY
from eenet.tables.checks import instance, number
from eenet.tables.table import ExitTable

_THUMBNAIL = 0.4  # inches
_POINTS = 72  # per inch
_HEIGHT = 5.0  # inches of the panels
_APART = 0.11  # of the height: between two pictures of a class
_MOST = 80  # points of a class that are drawn

_MARKS: dict[bool, dict[str, Any]] = {
    True: {"marker": "o", "s": 16, "facecolors": "none", "edgecolors": RIGHT, "linewidths": 1.0},
    False: {"marker": "x", "s": 18, "color": WRONG, "linewidths": 1.2},
}

Panel: TypeAlias = tuple[Float64[np.ndarray, " sample"], str]
"""Height of every sample, and what the heights are."""


def scores_by_class(
    table: ExitTable,
    policy: Policy,
    *,
    exit: int = 0,
    confidence: Confidence = "max_prob",
    images: Images = None,
    classes: int | Sequence[int] | Int[np.ndarray, " class"] = 10,
    seed: int = 0,
) -> Figure:
    """Return the scores of samples at one exit, by class: the paper's Figure 4.

    Classes are on the x axis, those that the full model gets wrong most first; samples are at the height of their
    score, on the left a confidence, on the right what the policy decides by. A border or a marker says whether the exit
    is right: on the right as the policy reads it, which may combine exits. A score that is neither a chance nor a share
    is drawn by its rank among all samples, which the axis says. Above each panel is the area under the ROC curve of its
    score, right against wrong, over all samples of the table. Both panels draw the same samples; where they are
    pictures, only those that do not hide each other.

    Args:
        table: With logits and labels.
        policy: Whose score is on the right; of a mixture with several, the one that most samples follow.
        exit: Number of an exit at which the policy decides.
        confidence: What is on the left.
        images: One picture per sample, uint8, ``[sample, height, width, 3]`` or ``[sample, height, width, 1]``.
            Without, samples are markers.
        classes: How many classes, spread evenly over the order; or the numbers of the classes.
        seed: Of the choice of samples.

    Raises:
        InputError: The policy does not decide at this exit, or has no score; no such classes or confidence.
        TableError: The table has no labels.
        ShapeError: Policy or pictures do not fit the table.
    """
    labels = instance(table, ExitTable, "table").require_labels("drawing scores by class", "classes are on the x axis")
    instance(policy, Policy, "policy").require(table.num_exits, table.num_columns)
    pictures, main = checked_images(images, table.num_samples), main_score(policy)
    seed = int(number(seed, "seed", 0, whole=True))
    k = int(number(exit, "exit", 0, main.early_exits - 1, whole=True))
    scores, right = (values[:, k] for values in main.at_exits(table))
    plain = confidence_scorer(confidence, None)
    sure = Replayer(table).scores(plain)[:, k]
    order = _classes(classes, labels, require_right(table, "drawing scores by class")[:, -1], table.num_columns)
    panels = [on_unit_scale(plain, sure), on_unit_scale(main.scorer, scores)]
    truth = [require_right(table, "drawing scores")[:, k], right]
    drawn = [_drawn(labels == label, panels, seed, apart=pictures is not None) for label in order]
    figure = Figure(figsize=(2 * (0.9 + 0.56 * max(len(order), 5)), _HEIGHT + 1.2), layout="constrained")
    for axes, panel, ok in zip(figure.subplots(1, 2, sharex=True, sharey=True), panels, truth, strict=True):
        _panel(axes, panel, ok, drawn, pictures)
        axes.set_title(f"exit {k}: AUROC {auroc(panel[0], ok):.3f}", fontsize=10, loc="left")
        axes.set_xticks(range(len(order)), [f"{label}\n{accuracy:.0%}" for label, accuracy in order.items()])
    figure.supxlabel("class, and the last exit's accuracy on it", fontsize=10)
    _explain(figure)
    return figure


def _classes(
    classes: int | Sequence[int] | Int[np.ndarray, " class"],
    labels: Int[np.ndarray, " sample"],
    right: Bool[np.ndarray, " sample"],
    num_classes: int,
) -> dict[int, float]:
    """Return the classes to draw, with the full model's accuracy on them, by rising accuracy."""
    count = np.bincount(labels, minlength=num_classes)
    accuracy = np.bincount(labels, weights=right, minlength=num_classes) / count.clip(min=1)
    there = np.flatnonzero(count)
    classes = classes.tolist() if isinstance(classes, np.ndarray) else classes
    if isinstance(classes, Sequence):
        unknown = sorted({repr(label) for label in classes if label not in there})
        if unknown or not classes:
            raise InputError(
                f"classes {', '.join(unknown) or '(none)'} cannot be drawn: the table has samples of {len(there)} "
                f"classes, of {num_classes}. Name classes that have samples."
            )
        there = np.unique(np.array(classes, dtype=np.int64))
        wanted = len(there)
    else:
        wanted = min(int(number(classes, "classes", 1, whole=True)), len(there))
    ordered = there[np.argsort(accuracy[there], kind="stable")]
    picked = ordered[np.linspace(0, len(ordered) - 1, wanted).round().astype(np.int64)]
    return {int(label): float(accuracy[label]) for label in picked}


def _drawn(
    of_class: Bool[np.ndarray, " sample"], panels: Sequence[Panel], seed: int, *, apart: bool
) -> Int[np.ndarray, " drawn"]:
    """Return samples of a class in random order, none within a picture's height of another on any panel."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(of_class))
    if not apart:
        return rows[:_MOST]
    chosen: list[int] = []
    for row in rows.tolist():
        if all(np.abs(heights[chosen] - heights[row]).min(initial=1) >= _APART for heights, _ in panels):
            chosen.append(row)
    return np.array(chosen, dtype=np.int64)


def _panel(
    axes: Axes,
    panel: Panel,
    right: Bool[np.ndarray, " sample"],
    drawn: Sequence[np.ndarray],
    images: UInt8[np.ndarray, "sample height width 3"] | None,
) -> None:
    """Draw the samples of every class in its column."""
    heights, what = panel
    for x, rows in enumerate(drawn):
        if images is not None:
            for row in rows:
                axes.add_artist(_picture(images[row], (x, heights[row]), right=bool(right[row])))
            continue
        spread = np.random.default_rng(x).uniform(-0.32, 0.32, len(rows))
        for ok, how in _MARKS.items():
            here = right[rows] == ok
            axes.scatter(
                x + spread[here], heights[rows[here]], alpha=0.75, gid=f"{'right' if ok else 'wrong'} {x}", **how
            )
    axes.set(xlim=(-0.6, len(drawn) - 0.4), ylim=(-0.06, 1.06))
    axes.set_ylabel(what)
    axes.yaxis.set_tick_params(labelleft=True)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _picture(image: UInt8[np.ndarray, "height width 3"], at: tuple[float, float], *, right: bool) -> AnnotationBbox:
    """Return a small picture with a border."""
    zoom = _THUMBNAIL * _POINTS / max(image.shape[:2])
    style = border(right=right) | {"linewidth": 1.8}
    box = AnnotationBbox(OffsetImage(image, zoom=zoom), at, pad=0.08, bboxprops=style | {"facecolor": "white"})
    box.set_gid("right" if right else "wrong")
    return box


def _explain(figure: Figure) -> None:
    """Say what borders and markers mean."""
    handles = [
        Line2D([], [], marker="o", markerfacecolor="none", color=RIGHT, linestyle="-", label="right at this exit"),
        Line2D([], [], marker="x", color=WRONG, linestyle="--", label="wrong at this exit"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, labelcolor=GREY)
