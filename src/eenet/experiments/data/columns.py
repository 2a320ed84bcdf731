"""Files of labelled texts: which column has what, and labels as numbers of classes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from eenet.errors import DataError
from eenet.experiments.data.files import bad_file, read_rows
from eenet.experiments.data.names import is_blank, key, tidy, twins

LABEL = "label"
_SEPARATORS = (",", ";", "\t", "|")  # of .csv files, tried in this order
_LABELS = {
    *(LABEL, "labels", "target", "targets", "class", "classes", "category", "categories", "sentiment", "y", "gold"),
    *("emotion", "intent", "topic", "rating", "stars", "polarity", "gold_label", "true_label"),
}
_TEXTS = {
    *("text", "texts", "sentence", "sentences", "review", "reviews", "comment", "comments", "content", "message"),
    *("tweet", "document", "phrase", "question", "query", "utterance", "body", "headline", "description", "x"),
}
_MISSING = {"nan", "null", "n/a", "<na>", "none", "na", "?", "-"}  # of numbers; the first four are never classes
_NO_CLASS = {"", "nan", "null", "n/a", "<na>"}
_LONGEST_LABEL = 200
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
_WHOLE = re.compile(r"0*([0-9]{1,9})(\.0*)?")
_OTHER_CLASSES = "Rename the labels; or pass --num-classes, for a model that learns other classes."


def read_columns(path: Path, columns: tuple[str, str] | None = None) -> tuple[list[str], list[str], int]:
    """Return the labels and the texts of a file, all of them there, and the row of the first.

    Labels and names of columns are read as they look, see `tidy`; texts as they stand.

    Args:
        path: ``.csv``, quoted as usual, with commas, semicolons, tabs or bars between columns; else with tabs between
            columns, where quotes are text.
        columns: names of both columns, where the usual words in the first row, or the order of two columns without
            names, do not say what they are.

    Raises:
        DataError: the file cannot be read, which column has what is not clear, or a row lacks its label or its text.
    """
    rows = _rows(path, columns)
    found = _columns(path, rows[0], columns)
    places, first = found or (0, 1), 0 if found is None else 1
    labels = [tidy(row[places[0]]) for row in rows[first:]]
    texts = [row[places[1]].strip() for row in rows[first:]]
    if not labels:
        raise bad_file(path, "has no row after the names of its columns: texts were expected", "Add them.")
    if found is None:
        _check_order(path, labels, texts)
    elif columns is None:
        _check_heading(path, rows[0], places, labels)
    for row, (label, text) in enumerate(zip(labels, texts, strict=True), first + 1):
        if label.casefold() in _NO_CLASS or len(label) > _LONGEST_LABEL or is_blank(text):
            what = "no text" if is_blank(text) else f"the label {label[:50]!r}" if label else "no label"
            raise bad_file(path, f"has {what} in row {row}: every text has a class", "Complete the row, or remove it.")
    return labels, texts, first + 1


def read_texts(
    path: Path, columns: tuple[str, str] | None = None, classes: Sequence[str] | None = None
) -> tuple[list[str], tuple[int, ...] | None]:
    """Return the texts of a file that a model is to answer about, and their classes where the file has them.

    Args:
        path: as `read_columns` takes it; labels may be missing, and a file of one column is one of texts.
        columns: as there; those that the file has not are left out.
        classes: names of the classes; a warning says where the labels are none of these.

    Raises:
        DataError: the file cannot be read, which column has the texts is not clear, or a row has no text.
    """
    rows = _rows(path, columns, single=True)
    label, text, first = _text_column(path, rows[0], columns)
    texts = [row[text].strip() for row in rows[first:]]
    if not all(texts) or not texts:
        where = f"in row {texts.index('') + first + 1}" if texts else "below the names of its columns"
        raise bad_file(path, f"has no text {where}: there is nothing to answer about", "Add it, or remove the row.")
    if label is None:
        return texts, None
    labels = [row[label].strip() for row in rows[first:]]
    if first == 0:
        _check_order(path, labels, texts)
    try:
        return texts, numbered(path, labels, first + 1, classes)[0]
    except DataError as error:
        warnings.warn(f"labels are left out, they are none of the model's: {error}", stacklevel=2)
        return texts, None


def _text_column(path: Path, row: Sequence[str], columns: tuple[str, str] | None) -> tuple[int | None, int, int]:
    """Return where labels, if there are any, and texts are, and which row is the first of them."""
    cells, heading = [cell.strip() for cell in row], _heading(row)
    wanted = next((name for name in (columns or ())[1:] if cells.count(name) == 1), None)
    found = [place for place, name in enumerate(heading) if name in _TEXTS] if wanted is None else [cells.index(wanted)]
    if len(found) == 1 and len(row) > 1:
        named = {columns[0]} if columns is not None and columns[0] in cells else None
        labels = [k for k, name in enumerate(heading) if (cells[k] in named if named else name in _LABELS)]
        return labels[0] if len(labels) == 1 else None, found[0], 1
    if len(row) == 1:
        return None, 0, 0 if path.suffix.lower() == ".txt" else len(found)
    known = _columns(path, row, None)
    return (0, 1, 0) if known is None else (*known, 1)


def _rows(path: Path, columns: tuple[str, str] | None, *, single: bool = False) -> list[list[str]]:
    """Return the rows of a file, its columns divided by what gives all rows the same number of them.

    A ``single`` column will do, if that is asked for.
    """
    if path.suffix.lower() != ".csv":
        return read_rows(path)
    found: dict[str, list[list[str]]] = {}
    alone: list[list[str]] = []
    faults: list[DataError] = []
    for separator in _SEPARATORS:
        try:
            rows = read_rows(path, separator)
        except DataError as error:
            faults.append(error)
            continue
        if len(rows[0]) > 1:
            found[separator] = rows
        alone = alone or rows
    wanted = None if columns is None else set(_heading(columns))
    named = [rows for rows in found.values() if (wanted or _LABELS | _TEXTS) & set(_heading(rows[0]))]
    if len(named or found) > 1:
        divided = " or ".join(map(repr, found))
        raise bad_file(path, f"may be divided by {divided}: both fit", "Name the columns in a first row.")
    if (
        single
        and not found
        and alone
        and (not faults or {alone[0][0].strip(), *_heading(alone[0])} & (_TEXTS | set(columns or ())))
    ):
        return alone
    if not found:
        raise faults[0] if faults else bad_file(path, "has 1 column: a label and a text were expected", "Keep two.")
    return named[0] if named else next(iter(found.values()))


def _heading(row: Sequence[str]) -> list[str]:
    return [key(cell).replace(" ", "_") for cell in row]


def _columns(path: Path, row: Sequence[str], wanted: tuple[str, str] | None) -> tuple[int, int] | None:
    """Return where labels and texts are, by the names in the first row; None where it names none."""
    cells = [tidy(cell) for cell in row]
    listed = ", ".join(cells)
    if wanted is not None:
        wanted = (tidy(wanted[0]), tidy(wanted[1]))
        odd = next((name for name in wanted if cells.count(name) != 1), None)
        if odd is not None or wanted[0] == wanted[1]:
            fact = f"has not one column {wanted[0]!r} and another one {wanted[1]!r}: its first row is {listed:.200}"
            raise bad_file(path, fact, "Name a column of labels and one of texts.")
        return cells.index(wanted[0]), cells.index(wanted[1])
    if len(row) == 1:
        raise bad_file(path, "has 1 column: a label and a text were expected", "Keep two.")
    heading = _heading(row)
    labels, texts = ([place for place, name in enumerate(heading) if name in known] for known in (_LABELS, _TEXTS))
    if len(row) == 2 and not (labels and texts):  # one name says what both are
        labels, texts = labels or [1 - place for place in texts], texts or [1 - place for place in labels]
    if len(row) == 2 and not labels:
        return None
    if len(labels) != 1 or len(texts) != 1:
        fact = f"has {len(row)} columns, and which is the label and which the text is not clear: {listed:.200}"
        raise bad_file(path, fact, "Name the two columns (columns=, on the command line --columns), or keep just them.")
    return labels[0], texts[0]


def _check_heading(path: Path, row: Sequence[str], places: tuple[int, int], labels: Sequence[str]) -> None:
    """Refuse a first row that may be no names of columns, and say which columns are not read."""
    if tidy(row[places[0]]) in labels:
        fact = f"begins with {tidy(row[places[0]])!r}, which may be the name of its column, and is a label below"
        raise bad_file(path, fact, f"Name the columns {LABEL} and text.")
    unread = [tidy(cell) for place, cell in enumerate(row) if place not in places]
    if named := [name for name in unread if name.casefold() not in ("", "id", "idx", "index", "unnamed: 0")]:
        both = " and ".join(repr(tidy(row[place])) for place in places)
        warnings.warn(f"data file {path}: of its columns {both} are read, {', '.join(named)} not.", stacklevel=4)


def _check_order(path: Path, labels: Sequence[str], texts: Sequence[str]) -> None:
    """Refuse two columns without names unless the first one is clearly that of labels."""
    kinds = [set(map(str.casefold, column)) for column in (labels, texts)]
    if len(kinds[0]) >= len(kinds[1]):
        fact = f"has {len(kinds[0])} different values in its first column, {len(kinds[1])} in its second: labels differ"
        raise bad_file(path, f"{fact} less than texts", "Put the label first, or name the columns in a first row.")
    if labels.count(labels[0]) == 1:
        fact = f"begins with {labels[0]!r} and {texts[0]!r}, which may be names of columns: the label occurs only once"
        raise bad_file(path, fact, f"Name the columns {LABEL} and text, or add texts of that class.")


def numbered(
    path: Path, labels: Sequence[str], first: int, classes: Sequence[str] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return labels as numbers of classes, and the names of the classes.

    Args:
        path: their file, for messages.
        labels: whole numbers from 0 on, or names, which are numbered in alphabetical order; tidy.
        first: row of the first label in the file.
        classes: names of the classes, in the order of their numbers, where they are known already.

    Raises:
        DataError: a label is none of the classes, or the labels are no classes: nearly all differ, or numbers are
            missing between them, some are names and some numbers, or names differ in upper and lower case only.
    """
    rows = {label: row for row, label in reversed(list(enumerate(labels, first)))}  # where each occurs first
    odd = [label for label in rows if not _WHOLE.fullmatch(label)]
    if odd and len(odd) < len(rows) and all(label.casefold() in _MISSING for label in odd):
        fact = f"has the label {odd[0]!r} in row {rows[odd[0]]}: the others are numbers"
        raise bad_file(path, fact, "Complete the row, or remove it.")
    kinds = {bool(_NUMBER.fullmatch(label)): label for label in rows} if classes is None else {}
    if len(kinds) > 1:
        both = " and ".join(f"{label!r} in row {rows[label]}" for label in (kinds[False], kinds[True]))
        fact = f"has the labels {both}: they are names, or numbers of classes, but not both"
        raise bad_file(path, fact, "Write all as one kind.")
    if classes is None and 2 * len(rows) > len(labels):
        fact = f"has {len(rows)} different labels in {len(labels)} rows: they are no classes"
        raise bad_file(path, fact, "Name the columns in a first row, or keep classes of several texts.")
    named = odd or (classes is not None and rows.keys() <= set(map(tidy, classes)))  # classes may be called 1, 2, 3
    numbers = _by_name(path, rows, classes) if named else _by_number(path, rows, classes)
    if classes is None:
        classes = sorted(rows) if odd else [str(number) for number in range(max(numbers.values()) + 1)]
    return tuple(numbers[label] for label in labels), tuple(classes)


def _by_number(path: Path, rows: dict[str, int], classes: Sequence[str] | None) -> dict[str, int]:
    """Return the numbers of labels that are whole numbers; ``rows`` has the row of each."""
    numbers = {label: int(match[1]) for label in rows if (match := _WHOLE.fullmatch(label))}
    last, used = max(numbers, key=numbers.__getitem__), len(set(numbers.values()))
    if classes is not None and numbers[last] >= len(classes):
        fact = f"has the label {last} in row {rows[last]}: the model knows {len(classes)} classes, from 0 on"
        raise bad_file(path, fact, _OTHER_CLASSES)
    if classes is None and 2 * used < numbers[last] + 1:
        fact = f"has labels up to {last}, and {used} different ones: classes count from 0 on"
        raise bad_file(path, fact, "Number them so, or give them names.")
    return numbers


def _by_name(path: Path, rows: dict[str, int], classes: Sequence[str] | None) -> dict[str, int]:
    """Return the numbers of labels that are names, in alphabetical order if the classes are not known."""
    names = sorted(rows) if classes is None else list(classes)
    if pair := twins(names):
        fact = f"has classes that differ in upper and lower case only, {pair[0]!r} and {pair[1]!r}: they may be one"
        raise bad_file(path, fact, "Write them alike, or as numbers.")
    known = {key(name): number for number, name in enumerate(names)}
    strange = next((label for label in sorted(rows, key=rows.__getitem__) if key(label) not in known), None)
    if strange is not None:
        fact = (
            f"has the label {strange!r} in row {rows[strange]}: the model's classes are {', '.join(classes or ()):.200}"
        )
        raise bad_file(path, fact, _OTHER_CLASSES)
    return {label: known[key(label)] for label in rows}
