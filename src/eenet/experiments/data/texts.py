"""Texts as token numbers: what a tokenizer made of them, padded; and texts of one's own, in a file of two columns."""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from eenet.errors import DataError, InputError, MissingExtraError
from eenet.experiments.data.dataset import DataSplits, digest, shared
from eenet.models.inputs import Inputs
from eenet.training.dataset import Augment, LabelledDataset


@dataclass(frozen=True)
class Texts:
    """Texts and their labels, as read from a file."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    def __add__(self, other: Texts) -> Texts:
        """Return these texts and then the others."""
        return Texts(self.texts + other.texts, self.labels + other.labels)

    @property
    def words(self) -> list[str]:
        """Each text as its words alone, in lower case: punctuation makes no text a new one."""
        return [" ".join(re.findall(r"[a-z0-9]+", text.lower())) for text in self.texts]

    def select(self, rows: Sequence[int]) -> Texts:
        """Return some rows only."""
        return Texts(tuple(self.texts[row] for row in rows), tuple(self.labels[row] for row in rows))

    def without(self, words: set[str]) -> Texts:
        """Return the texts that have other words than those."""
        return self.select([row for row, own in enumerate(self.words) if own not in words])


def trimmed(tokens: Int[Tensor, "row longest"]) -> Int[Tensor, "row token"]:
    """Return token numbers as int64, cut to the longest text among the rows."""
    return tokens[:, : max(1, int((tokens != 0).sum(dim=1).max()))].long()


def masked(tokens: Int[Tensor, "row longest"], width: int | None = None) -> dict[str, Tensor]:
    """Return token numbers and attention mask by the names that Hugging Face models know them by.

    Args:
        tokens: padded token numbers.
        width: tokens per text; default: of the longest text among the rows.
    """
    numbers = trimmed(tokens) if width is None else tokens[:, :width].long()
    return {"input_ids": numbers, "attention_mask": (numbers != 0).long()}


@final
class TextDataset(LabelledDataset):
    """Texts as token numbers, with their labels, held in memory.

    Args:
        tokens: ``[sample, token]``, int32, 0 where a text has ended.
        labels: the true classes.
        form: makes what the model takes of some rows of ``tokens``; `trimmed`, or `masked` for Hugging Face models.

    Raises:
        DataError: no samples, or another number of labels than of texts.
    """

    def __init__(self, tokens: Tensor, labels: Tensor, *, form: Callable[[Tensor], Inputs] = trimmed) -> None:
        if tokens.ndim != 2 or not tokens.numel():
            raise DataError(
                f"tokens of shape {tuple(tokens.shape)} are not usable: the shape must be (sample, token) with at "
                "least 1 of each."
            )
        if labels.shape != tokens.shape[:1]:
            raise DataError(
                f"labels of shape {tuple(labels.shape)} do not fit: there are {len(tokens)} texts. Pass one label per "
                "text."
            )
        self.tokens = tokens
        self.form = form
        self._labels = labels

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.tokens)

    @property
    def labels(self) -> Int[Tensor, " sample"]:
        """The class of every text."""
        return self._labels

    def inputs(self, rows: Int[Tensor, " row"] | slice) -> Inputs:
        """Return what the model takes for some texts."""
        return self.form(self.tokens[rows])

    def targets(self, rows: Int[Tensor, " row"] | slice) -> Int[Tensor, " row"]:
        """Return the classes of some texts."""
        return self._labels[rows]

    def training_batch(
        self, rows: Int[Tensor, " row"], augment: Augment | None, generator: torch.Generator
    ) -> tuple[Inputs, Int[Tensor, " row"]]:
        """Return (inputs, targets) of some texts; they are not changed at random, and ``augment`` is refused."""
        if augment is not None:
            raise InputError("augment does not fit: the samples are texts, it changes images. Leave it out.")
        return self.inputs(rows), self.targets(rows)

    def select(self, rows: Int[Tensor, " row"] | Bool[Tensor, " sample"] | slice) -> TextDataset:
        """Return a data set of some rows only, or of those where a mask is true."""
        return TextDataset(self.tokens[rows], self._labels[rows], form=self.form)

    def fingerprint(self) -> str:
        """Return a short digest of the labels and tokens, and of how many tokens a text may have."""
        return digest(self._labels, self.tokens)


def tokenised(part: Texts, tokenizer: Path, *, max_tokens: int = 128) -> TextDataset:
    """Return texts as a tokenizer of Hugging Face cuts them.

    Args:
        part: the texts.
        tokenizer: folder on this machine with the tokenizer, as ``save_pretrained`` leaves it; nothing is downloaded.
        max_tokens: longer texts are cut there.

    Raises:
        MissingExtraError: transformers is not installed.
        DataError: there are no texts, or the folder holds no tokenizer that pads with 0.
    """
    if not len(part):
        raise DataError("texts are empty: a data set needs at least 1. Pass some.")
    made = _load_tokenizer(Path(tokenizer))
    rows = made(list(part.texts), padding="max_length", truncation=True, max_length=max_tokens)["input_ids"]
    return TextDataset(torch.tensor(rows, dtype=torch.int32), torch.tensor(part.labels))


def _load_tokenizer(folder: Path) -> Any:  # noqa: ANN401
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            'transformers is not installed: texts are cut into tokens by it. Run pip install "eenet[text]".'
        ) from error
    advice = "Pass a folder that save_pretrained of a tokenizer has written."
    if not folder.is_dir():
        raise DataError(f"tokenizer {folder} is missing: there is no such folder. {advice}")
    try:
        made = library.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"tokenizer {folder} cannot be read: it is no folder of a tokenizer. {advice}") from error
    if made.pad_token_id != 0:
        raise DataError(
            f"tokenizer {folder} pads with the number {made.pad_token_id}: 0 is what marks the end of a text here. "
            "Pass a tokenizer that pads with 0, as those of BERT do."
        )
    made.padding_side = "right"  # zeros at the end are where a text has ended
    return made


# --- files ------------------------------------------------------------------------------------------------------------

LABEL = "label"


def load_text_file(path: Path, tokenizer: Path, *, seed: int = 0, max_tokens: int = 128) -> DataSplits:
    """Return labelled texts as splits: 60 % to train on, 20 % for calibration, 20 % for testing, chosen by ``seed``.

    Args:
        path: ``.csv`` (quoted as usual) or ``.tsv`` (quotes are text), UTF-8, of two columns. A first row with the word
            ``label`` in it names the columns; without one the label comes first. Labels are whole numbers from 0 on,
            or names, which are numbered in alphabetical order.
        tokenizer: folder of a Hugging Face tokenizer on this machine.
        seed: decides which text belongs to which split.
        max_tokens: longer texts are cut there.

    Raises:
        DataError: the file is missing or damaged, or has other columns or fewer than 10 texts.
        MissingExtraError: transformers is not installed; raised when a split is first asked for.
    """
    part, classes = _labelled(Path(path), read_rows(Path(path)))

    @cache
    def whole() -> LabelledDataset:
        return tokenised(part, tokenizer, max_tokens=max_tokens)

    return shared(lambda rows, _: whole().select(rows), len(part), classes, seed, place=path)


def read_rows(path: Path) -> list[list[str]]:
    """Return the rows of a ``.csv`` file, or of a file with tabs between columns, in which quotes are text."""
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
    labels = [row[column].strip() for row in body]
    names = sorted(set(labels))
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
    return Texts(tuple(row[1 - column].strip() for row in body), tuple(numbers[label] for label in labels)), tuple(
        names
    )
