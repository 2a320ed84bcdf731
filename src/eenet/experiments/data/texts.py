"""Texts as token numbers: what a tokenizer made of them, padded; and texts of one's own, in a file of two columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from eenet.errors import DataError, InputError
from eenet.experiments.data.columns import numbered, read_columns
from eenet.experiments.data.dataset import DataSplits, digest, shared
from eenet.models.inputs import Inputs
from eenet.running.texts import TextPreparation, formed, load_tokenizer
from eenet.training.dataset import Augment, LabelledDataset


@dataclass(frozen=True)
class Texts:
    """Texts and their labels, as read from a file."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def __add__(self, other: Texts) -> Texts:
        return Texts(self.texts + other.texts, self.labels + other.labels)

    @property
    def words(self) -> list[str]:
        """Every text normalised for comparison: in lower case, punctuation removed."""
        return [" ".join(re.findall(r"[a-z0-9]+", text.lower())) for text in self.texts]

    def select(self, rows: Sequence[int]) -> Texts:
        """Return some rows only."""
        return Texts(tuple(self.texts[row] for row in rows), tuple(self.labels[row] for row in rows))

    def without(self, words: set[str]) -> Texts:
        """Return the texts whose normalised form is none of ``words``."""
        return self.select([row for row, own in enumerate(self.words) if own not in words])


def trimmed(tokens: Int[Tensor, "row longest"], mask: Bool[Tensor, "row longest"] | None = None) -> Tensor:
    """Return token numbers ``[row, token]`` as int64, cut where the last text among the rows ends.

    Args:
        tokens: padded token numbers.
        mask: which of them are real; default: those that are not 0.
    """
    found: Any = formed(tokens.numpy(), _real(tokens, mask).numpy(), named=False)
    return torch.from_numpy(found)


def masked(
    tokens: Int[Tensor, "row longest"],
    mask: Bool[Tensor, "row longest"] | None = None,
    width: int | None = None,
    *,
    least: int = 1,
) -> dict[str, Tensor]:
    """Return token numbers and attention mask by the names that Hugging Face models use.

    Args:
        tokens: padded token numbers.
        mask: which of them are real; default: those that are not 0.
        width: tokens per text; default: up to where the last text among the rows ends.
        least: fewest tokens per text that are left by default.
    """
    found: Any = formed(tokens.numpy(), _real(tokens, mask).numpy(), named=True, width=width, least=least)
    return {name: torch.from_numpy(array) for name, array in found.items()}


def _real(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens != 0 if mask is None else mask.bool()


@final
class TextDataset(LabelledDataset):
    """Texts as token numbers, with their labels, in memory.

    Args:
        tokens: ``[sample, token]``, int32, padded.
        labels: the true classes.
        mask: ``[sample, token]``, which tokens are real; default: those that are not 0.
        form: makes what the model takes of some rows of ``tokens`` and ``mask``; `trimmed`, or `masked` for Hugging
            Face models.
        preparation: how texts become tokens, where that is known; it comes with a ``form`` of its own, see `prepared`.

    Raises:
        DataError: no samples, or another number of labels than of texts.
    """

    def __init__(
        self,
        tokens: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
        form: Callable[[Tensor, Tensor], Inputs] = trimmed,
        preparation: TextPreparation | None = None,
    ) -> None:
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
        if mask is not None and mask.shape != tokens.shape:
            raise DataError(
                f"mask of shape {tuple(mask.shape)} does not fit: the tokens have {tuple(tokens.shape)}. Pass one "
                "number per token."
            )
        self.tokens, self.mask, self.form, self._labels = tokens, _real(tokens, mask), form, labels
        self.preparation = preparation

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labels(self) -> Int[Tensor, " sample"]:
        return self._labels

    def inputs(self, rows: Int[Tensor, " row"] | slice) -> Inputs:
        return self.form(self.tokens[rows], self.mask[rows])

    def targets(self, rows: Int[Tensor, " row"] | slice) -> Int[Tensor, " row"]:
        return self._labels[rows]

    def training_batch(
        self, rows: Int[Tensor, " row"], augment: Augment | None, generator: torch.Generator
    ) -> tuple[Inputs, Int[Tensor, " row"]]:
        """Return (inputs, targets) of some texts; they are not changed at random, and ``augment`` is refused."""
        if augment is not None:
            raise InputError("augment does not fit: the samples are texts, it changes images. Leave it out.")
        return self.inputs(rows), self.targets(rows)

    def select(self, rows: Int[Tensor, " row"] | Bool[Tensor, " sample"] | slice) -> TextDataset:
        tokens, mask = self.tokens[rows], self.mask[rows]
        return TextDataset(tokens, self._labels[rows], mask=mask, form=self.form, preparation=self.preparation)

    def prepared(self, preparation: TextPreparation) -> TextDataset:
        """Return the same texts in the form of a preparation, which new texts are brought to as well."""
        form = partial(masked, width=preparation.width, least=preparation.least) if preparation.named else trimmed
        return TextDataset(self.tokens, self._labels, mask=self.mask, form=form, preparation=preparation)

    def fingerprint(self) -> str:
        return digest(self._labels, self.tokens, self.mask)


def tokenised(part: Texts, tokenizer: Path | Any, *, max_tokens: int = 128) -> TextDataset:  # noqa: ANN401
    """Return texts as a tokenizer of Hugging Face cuts them, padded as it does and with its mask.

    Args:
        part: the texts.
        tokenizer: as `load_tokenizer` returns it, or its folder.
        max_tokens: longer texts are cut there.

    Raises:
        MissingExtraError: transformers is not installed.
        DataError: there are no texts, the folder holds no whole tokenizer, or it fails on the texts.
    """
    if not len(part):
        raise DataError("texts are empty: a data set needs at least 1. Pass some.")
    preparation = TextPreparation(tokenizer=_opened(tokenizer), max_tokens=max_tokens)
    tokens, mask = map(torch.from_numpy, preparation.cut(part.texts))
    return TextDataset(tokens, torch.tensor(part.labels), mask=mask, preparation=preparation)


def _opened(tokenizer: Path | Any) -> Any:  # noqa: ANN401
    return load_tokenizer(Path(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer


# --- files ------------------------------------------------------------------------------------------------------------

SUFFIXES = (".csv", ".tsv", ".txt")
"""Of files of texts; all but ``.csv`` have tabs between their columns."""


def load_text_file(
    path: Path,
    tokenizer: Path | Any,  # noqa: ANN401
    *,
    seed: int = 0,
    max_tokens: int = 128,
    columns: tuple[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> DataSplits:
    """Return labelled texts as splits: 60 % to train on, 20 % for calibration, 20 % for testing, chosen by ``seed``.

    Args:
        path: ``.csv`` (quoted as usual; commas, semicolons, tabs or bars between columns), or ``.tsv`` or ``.txt``
            (tabs; quotes are text), in UTF-8, or in UTF-16 with its byte order mark. A first row names the columns by
            one of the usual words for labels or texts; a file of two columns may do without, then the label comes
            first. Labels are whole numbers from 0 on, or names, which are numbered in alphabetical order.
        tokenizer: folder of a Hugging Face tokenizer on this machine, or what `load_tokenizer` returns.
        seed: decides which text belongs to which split.
        max_tokens: longer texts are cut there.
        columns: what the columns of labels and of texts are called in the first row, where that is not clear.
        classes: names of the classes, in label order, where a model knows them already.

    Raises:
        DataError: the file cannot be read; which column holds what is not clear; or a row has no label, no text, or
            a label that is none of the classes.
    """
    part, names = _labelled(Path(path), columns, classes)
    made = _opened(tokenizer)
    tokenised(part.select([0]), made, max_tokens=max_tokens)  # what fails does so now; the others are cut when needed

    @cache
    def whole() -> LabelledDataset:
        return tokenised(part, made, max_tokens=max_tokens)

    return shared(lambda rows, _: whole().select(rows), torch.tensor(part.labels), names, seed, place=path)


def _labelled(
    path: Path, columns: tuple[str, str] | None = None, classes: Sequence[str] | None = None
) -> tuple[Texts, tuple[str, ...]]:
    """Return the texts of a file with their labels as numbers, and the names of the classes."""
    labels, texts, first = read_columns(path, columns)
    numbers, names = numbered(path, labels, first, classes)
    return Texts(tuple(texts), numbers), names
