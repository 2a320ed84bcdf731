"""Results as frames of pandas, and as the short HTML that a notebook shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from eenet.errors import require, visible

if TYPE_CHECKING:
    import pandas

_MOST_ROWS = 12  # in a notebook


def frame(columns: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return a frame of pandas: of arrays by the name of their column, or of rows.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    require("pandas", reason="frames need it")
    import pandas

    return pandas.DataFrame(columns if isinstance(columns, Mapping) else list(columns))


def notebook(sentence: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Return a sentence and a small table as HTML, in which names are text and never markup.

    Args:
        sentence: Above the table.
        rows: Cells by heading; those of the first row are the headings. Of many rows the first are shown.
    """
    said = f"<p>{_text(sentence)}</p>"
    if not rows:
        return said
    shown = [f"<tr>{''.join(f'<th>{_text(name)}</th>' for name in rows[0])}</tr>"]
    shown += [f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row.values())}</tr>" for row in rows[:_MOST_ROWS]]
    more = f"<p>{len(rows) - _MOST_ROWS} more rows: to_frame()</p>" if len(rows) > _MOST_ROWS else ""
    return f"{said}<table>{''.join(shown)}</table>{more}"


def samples(count: int) -> str:
    """Return a number of samples in words: "1 sample", "20 samples"."""
    return f"{count} sample" if count == 1 else f"{count} samples"


def few(values: Sequence[object]) -> str:
    """Return values separated by commas, of many the first three and the last."""
    words = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    return ", ".join(words if len(words) <= 6 else [*words[:3], "...", words[-1]])


def _text(cell: object) -> str:
    return escape(visible(f"{cell:.4g}" if isinstance(cell, float) else "-" if cell is None else str(cell)))
