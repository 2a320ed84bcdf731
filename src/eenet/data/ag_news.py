"""AG News: news articles of four kinds.

Source: X. Zhang, J. Zhao, Y. LeCun, *Character-level convolutional networks for text classification*, NIPS 2015.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from eenet.data.dataset import DataSplits, LabelledDataset, Split
from eenet.data.folders import find_folder, missing
from eenet.data.text_files import read_rows
from eenet.data.texts import Texts, tokenised
from eenet.errors import DataError

__all__ = ["AG_NEWS_CLASSES", "load_ag_news", "read_ag_news"]

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
FOLDERS = ("ag_news", "ag_news_csv")
OFFICIAL = ("train.csv", "test.csv")
PARTIAL = ("full_train_5k.tsv", "mixed_train.tsv", "desc_train.tsv", "full_test.tsv")
FURTHER = "norm_train.tsv"  # lower case, no digits; not needed
RUN = 8  # words that two articles do not share in a row, unless they are one


def load_ag_news(root: Path, tokenizer: Path, *, seed: int = 0, max_tokens: int = 128) -> DataSplits:
    """Return AG News: train articles to train on, some of them kept out as calibration, and the test articles.

    See `read_ag_news` for which article is on which side.

    Args:
        root: the folder that holds ``ag_news`` (or ``ag_news_csv``), or that folder itself.
        tokenizer: folder of a Hugging Face tokenizer on this machine.
        seed: decides which train articles are calibration.
        max_tokens: longer texts are cut there.

    Raises:
        DataError: a file is missing or damaged.
        MissingExtraError: transformers is not installed; raised when a split is first asked for.
    """
    folder = _folder(root)

    @cache
    def parts() -> dict[Split, Texts]:
        return read_ag_news(folder, seed=seed)

    def load(split: Split) -> LabelledDataset:
        return tokenised(parts()[split], tokenizer, max_tokens=max_tokens)

    return DataSplits(load=load, classes=AG_NEWS_CLASSES)


def read_ag_news(root: Path, *, seed: int = 0) -> dict[Split, Texts]:
    """Return the texts of every side, each a title and a description in one line.

    As many train articles as there are test articles, at most half of them, are drawn by ``seed`` for calibration and
    kept out of training. Two texts that share 8 words in a row, digits and punctuation aside, are taken for one
    article: training has none of the calibration and test articles, calibration none of the test articles. Texts that
    occur twice are kept once.

    Args:
        root: the folder that holds ``ag_news``, or that folder itself, with the official ``train.csv`` and ``test.csv``
            (class from 1 to 4, title, description); or with ``full_train_5k.tsv``, ``mixed_train.tsv``,
            ``desc_train.tsv`` and ``full_test.tsv`` (label from 0 to 3, text), a part of it. Of that part, calibration
            is drawn from the first file, whose texts have titles as the test texts do; the second and third, some of
            whose texts have none, and ``norm_train.tsv`` (lower case, no digits) if it is there, are for training only.
        seed: decides which train articles are calibration.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = _folder(root)
    if all((folder / name).is_file() for name in OFFICIAL):
        full, test = (_read(folder / name, first=1) for name in OFFICIAL)
        further = Texts((), ())
    else:
        full, mixed, described, test = (_read(folder / name, first=0) for name in PARTIAL)
        further = mixed + described
        if (folder / FURTHER).is_file():
            further += _read(folder / FURTHER, first=0)
    full = _without(full, test)
    order = torch.randperm(len(full), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order.tensor_split([min(len(test), len(full) // 2)])
    calibration = full.select(held_out.sort().values.tolist())
    train = _without(_unique(full.select(kept.sort().values.tolist()) + further), test + calibration)
    return {"train": train, "calibration": calibration, "test": test}


def _folder(root: Path) -> Path:
    for needed in (OFFICIAL, PARTIAL):
        folder = find_folder(root, FOLDERS, needed)
        if folder is not None:
            return folder
    raise missing(root, FOLDERS, f"{' and '.join(OFFICIAL)} (or {', '.join(PARTIAL)})", "AG News")


def _read(path: Path, first: int) -> Texts:
    """Return a file's texts; its classes are counted from ``first``."""
    rows = read_rows(path)
    body = rows[1:] if rows[0][0] == "label" else rows
    known = {str(first + number): number for number in range(len(AG_NEWS_CLASSES))}
    bad = next((number for number, row in enumerate(body, 1 + len(rows) - len(body)) if row[0] not in known), None)
    if bad is not None:
        raise DataError(
            f"data file {path} has no class {first} to {first + 3} in row {bad}: class, title and description were "
            "expected. Get it again."
        )
    # a backslash stands for a line's end
    texts = (" ".join(" ".join(row[1:]).replace("\\", " ").split()) for row in body)
    return Texts(tuple(texts), tuple(known[row[0]] for row in body))


def _runs(text: str) -> Iterator[str]:
    """Yield all runs of a text's words; a shorter text is one run."""
    words = re.findall(r"[a-z]+", text.lower())
    for start in range(max(1, len(words) - RUN + 1)):
        yield " ".join(words[start : start + RUN])


def _without(part: Texts, others: Texts) -> Texts:
    """Return the texts of articles that others have not."""
    taken = {run for text in others.texts for run in _runs(text)}
    return part.select([row for row, text in enumerate(part.texts) if taken.isdisjoint(_runs(text))])


def _unique(part: Texts) -> Texts:
    """Return every text once."""
    first: dict[str, int] = {}
    for row, words in enumerate(part.words):
        first.setdefault(words, row)
    return part.select(list(first.values()))
