"""Texts of one's own, in a file of two columns."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from eenet.data.dataset import DataSplits, LabelledDataset
from eenet.data.sharing import LEAST, shared
from eenet.data.texts import Texts, tokenised
from eenet.errors import DataError

__all__ = ["load_text_file", "read_rows"]

LABEL = "label"


def load_text_file(path: Path, tokenizer: Path, *, seed: int = 0, max_tokens: int = 128) -> DataSplits:
    """Return labelled texts as splits: 60 % to train on, 20 % for calibration, 20 % for testing, drawn by ``seed``.

    Args:
        path: ``.csv`` (quoted as usual) or ``.tsv`` (quotes are text), UTF-8, of two columns. A first row with the word
            ``label`` in it names the columns; without one the label comes first. Labels are whole numbers from 0 on,
            or names, which are numbered in alphabetical order.
        tokenizer: folder of a Hugging Face tokenizer on this machine.
        seed: decides which text belongs to which side.
        max_tokens: longer texts are cut there.

    Raises:
        DataError: the file is missing or damaged, or has other columns or fewer than 10 texts.
        MissingExtraError: transformers is not installed; raised when a split is first asked for.
    """
    part, classes = _labelled(Path(path), read_rows(Path(path)))

    @cache
    def whole() -> LabelledDataset:
        return tokenised(part, tokenizer, max_tokens=max_tokens)

    return shared(lambda rows, _: whole().select(rows), len(part), classes, seed)


def read_rows(path: Path) -> list[list[str]]:
    """Return the rows of a ``.csv`` file, or of a file with tabs between columns, in which quotes are text.

    Raises:
        DataError: the file is missing, empty or no UTF-8, or its rows have different numbers of columns.
    """
    if not path.is_file():
        raise DataError(f"data file {path} is missing: there is no such file. Check the path.")
    try:
        with path.open(encoding="utf-8-sig", newline="" if path.suffix == ".csv" else "\n") as lines:
            if path.suffix == ".csv":
                rows = [row for row in csv.reader(lines, strict=True) if row]
            else:
                rows = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data file {path} cannot be read: {error}. Write it as UTF-8 with two columns.") from error
    if not rows:
        raise DataError(f"data file {path} is empty: rows of texts were expected. Get it again.")
    columns = len(rows[0])
    odd = next((number for number, row in enumerate(rows, 1) if len(row) != columns), None)
    if odd is not None:
        raise DataError(
            f"data file {path} has {len(rows[odd - 1])} columns in row {odd}: the first row has {columns}. Correct the "
            "row."
        )
    return rows


def _labelled(path: Path, rows: list[list[str]]) -> tuple[Texts, tuple[str, ...]]:
    """Return texts with their labels as numbers, and the names of the classes."""
    if len(rows[0]) != 2:
        raise DataError(f"data file {path} has {len(rows[0])} columns: a label and a text were expected. Keep two.")
    heading = [cell.strip().lower() for cell in rows[0]]
    column = heading.index(LABEL) if LABEL in heading else 0
    body = rows[1:] if LABEL in heading else rows
    if len(body) < LEAST:
        raise DataError(f"data file {path} has {len(body)} texts: three sides need at least {LEAST}. Get more.")
    told = [row[column].strip() for row in body]
    names = sorted(set(told))
    if len(names) == len(body):
        raise DataError(
            f"data file {path} has another label in every row: they are no classes. Put the label first, or name the "
            "columns in a first row."
        )
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = {name: int(name) for name in names}
        names = [str(number) for number in range(max(numbers.values()) + 1)]
    else:
        numbers = {name: number for number, name in enumerate(names)}
    return Texts(tuple(row[1 - column].strip() for row in body), tuple(numbers[label] for label in told)), tuple(names)
