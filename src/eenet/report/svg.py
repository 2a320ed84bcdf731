"""Charts as plain SVG text: as wide as the page, with letters of one size, coloured by the page's style sheet.

Curves are drawn in a square of 1000 units that is stretched to the plot; text and points are placed in percent of it.
"""

from __future__ import annotations

import base64
import html as markup
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from eenet.errors import visible

DASHES = ("", "9 5", "12 4 2 4", "4 3", "2 4", "14 5 5 5", "8 3")
_COLOURS = 7  # --c0, --c1, ... of the style sheet
_LOG_SPAN = 4.0  # a cost range wider than this gets a logarithmic axis
_MOST_TICKS = 7
_ROOM = 0.14  # of the width, for the name of a point


def escape(text: str) -> str:
    """Return plain text as HTML."""
    return markup.escape("\n".join(map(visible, text.splitlines())))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve: its name, costs and utilities [%] by rising cost, and whether it is shown at first."""

    name: str
    costs: Sequence[float]
    utilities: Sequence[float]
    shown: bool = True
    note: str = ""

    def style(self, number: int) -> str:
        """Return colour and dashes of the curve with this number among all, which no other curve has."""
        dashes = DASHES[(number + number // _COLOURS) % len(DASHES)]
        return f"stroke:var(--c{number % _COLOURS})" + (f";stroke-dasharray:{dashes}" if dashes else "")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A named point: an exit for all samples, or a model without exits."""

    name: str
    cost: float
    utility: float
    of_exit: bool = True


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where costs and utilities are in the plot.

    Attributes:
        full: Cost that counts as 100 %.
        costs: Lowest and highest cost.
        utilities: Lowest and highest utility.
    """

    full: float
    costs: tuple[float, float]
    utilities: tuple[float, float]

    @classmethod
    def around(cls, full: float, costs: Sequence[float], utilities: Sequence[float]) -> Frame:
        """Return the frame around values, with a margin."""
        low, high = min(utilities), max(utilities)
        span = max(high - low, 0.5)
        first, last = min(costs), max(costs)
        if last > _LOG_SPAN * first:
            first, last = first / 1.1, last * 1.1
        else:
            first, last = first - 0.04 * (last - first), last + 0.04 * (last - first)
        return cls(full=full, costs=(first, last), utilities=(low - 0.08 * span, high + 0.12 * span))

    @property
    def logarithmic(self) -> bool:
        """Whether equal ratios of cost are equally wide."""
        return self.costs[1] > _LOG_SPAN * self.costs[0]

    def x(self, cost: float) -> float:
        """Return where a cost is, from 0 to 1."""
        low, high = self.costs
        if self.logarithmic:
            return math.log(cost / low) / math.log(high / low)
        return (cost - low) / (high - low)

    def y(self, utility: float) -> float:
        """Return where a utility is, from 0 at the top to 1."""
        low, high = self.utilities
        return (high - utility) / (high - low)

    def at(self, cost: float, utility: float) -> tuple[str, str]:
        """Return a place in percent of the plot."""
        return f"{100 * self.x(cost):.2f}%", f"{100 * self.y(utility):.2f}%"

    def path(self, costs: Sequence[float], utilities: Sequence[float]) -> str:
        """Return a curve in the square of 1000 units; on a logarithmic axis lines straight in cost are bent."""
        x, y = np.array(costs, dtype=np.float64), np.array(utilities, dtype=np.float64)
        if self.logarithmic:
            every = np.union1d(x, np.geomspace(x[0], x[-1], 80))
            x, y = every, np.interp(every, x, y)
        places = [f"{1000 * self.x(a):.1f} {1000 * self.y(b):.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        return "M" + "L".join(places)

    def ticks(self) -> tuple[list[float], list[float]]:
        """Return round shares of the full cost [%], and round utilities."""
        low, high = (100 * cost / self.full for cost in self.costs)
        if self.logarithmic:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            every = [step * 10.0**power for power in powers for step in (1, 1.5, 2, 3, 5, 7)]
            shares = [one for one in every if low <= one <= high]
            return shares if len(shares) <= _MOST_TICKS else shares[:: -(-len(shares) // 6)], _round(*self.utilities)
        return _round(low, high), _round(*self.utilities)


def _round(low: float, high: float) -> list[float]:
    """Return four to seven round numbers between two others."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= rough * 0.95)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def chart(
    frame: Frame, curves: Sequence[Curve], points: Sequence[Point], *, name: str, alt: str, marker: Mapping[str, str]
) -> str:
    """Return the plot of curves and points, with a marker.

    Args:
        frame: Where they are.
        curves: The first is drawn thicker, and on top.
        points: Drawn over the curves.
        name: That ids begin with.
        alt: What it shows, for those who do not see it.
        marker: Attributes of the marker by name, ``line`` and ``dot``; empty for none.
    """
    shares, utilities = frame.ticks()
    grid = ""
    for share in shares:
        x = f"{100 * frame.x(share * frame.full / 100):.2f}%"
        grid += f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="100%"/>'
        grid += f'<text x="{x}" y="100%" dy="1.3em" text-anchor="middle">{share:g}</text>'
    for utility in utilities:
        y = f"{100 * frame.y(utility):.2f}%"
        grid += f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        grid += f'<text x="0" y="{y}" dx="-.5em" dy=".35em" text-anchor="end">{utility:g}</text>'
    paths = [
        f'<path id="{name}-{k}" class="{"first" if k == 0 else "other"}{"" if one.shown else " off"}" '
        f'style="{one.style(k)}" d="{frame.path(one.costs, one.utilities)}"/>'
        for k, one in enumerate(curves)
    ]
    named = _named(frame, points)
    drawn = "".join(_point(frame, one, named=one in named) for one in points)
    at = f'<line class="at" {marker["line"]}/><circle class="now" r="7" {marker["dot"]}/>' if marker else ""
    return (
        f'<svg class="plot" role="img" aria-label="{escape(alt)}">{grid}'
        '<svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none">'
        f"{''.join(reversed(paths))}</svg>{drawn}{at}</svg>"
    )


def _named(frame: Frame, points: Sequence[Point]) -> list[Point]:
    """Return the points whose names have room: models, the last exit, and exits far enough before the next named."""
    named = [one for one in points if not one.of_exit]
    before = math.inf
    for one in reversed([one for one in points if one.of_exit]):
        if frame.x(one.cost) <= before - _ROOM:
            named.append(one)
            before = frame.x(one.cost)
    return named


def _point(frame: Frame, point: Point, *, named: bool) -> str:
    x, y = frame.at(point.cost, point.utility)
    title = f"<title>{escape(point.name)}: {point.utility:.2f} %</title>"
    shape = f'<circle class="exit" cx="{x}" cy="{y}" r="4.5">{title}</circle>'
    if not point.of_exit:
        shape = (
            f'<svg x="{x}" y="{y}" overflow="visible"><path class="exit" d="M0-7L7 0L0 7L-7 0Z">{title}</path></svg>'
        )
    if not named:
        return shape
    right = frame.x(point.cost) > 0.85
    beside = 'dx="-.6em" text-anchor="end"' if right else 'dx=".7em"'
    return f'{shape}<text x="{x}" y="{y}" {beside} dy="1.25em">{escape(point.name)}</text>'


def swatch(curve: Curve, number: int) -> str:
    """Return a short piece of a curve, for a legend."""
    style = f"{curve.style(number)};stroke-width:{3.5 if number == 0 else 2};fill:none"
    return f'<svg viewBox="0 0 35 10" aria-hidden="true"><path style="{style}" d="M0 5H35"/></svg>'


def halves(counts: Sequence[int], *, up: bool) -> str:
    """Return bars as a path: one half of a mirrored histogram in a square of 1000 units, full for the largest."""
    largest, width, sign = max(1, *counts), 1000 / len(counts), -1 if up else 1
    heights = [sign * round(480 * count / largest) for count in counts]
    return "".join(
        f"M{k * width:.0f} 500h{width * 0.86:.0f}v{height}h-{width * 0.86:.0f}z"
        for k, height in enumerate(heights)
        if height
    )


def image_source(image: UInt8[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"]) -> str:
    """Return a grey or RGB image as the source of an HTML image: a PNG inside of the page."""
    height, width = image.shape[:2]
    lines = np.hstack([np.zeros((height, 1), dtype=np.uint8), image.reshape(height, -1)])  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if image.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    whole = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(whole).decode("ascii")
