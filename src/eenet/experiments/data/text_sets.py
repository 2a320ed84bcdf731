"""SST-2 (sentences of film reviews, and phrases of them to train on) and AG News (news articles of four kinds).

Sources: R. Socher et al., *Recursive deep models for semantic compositionality over a sentiment treebank*, EMNLP 2013
(the files are those of GLUE, A. Wang et al., ICLR 2019); X. Zhang, J. Zhao, Y. LeCun, *Character-level convolutional
networks for text classification*, NIPS 2015.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from eenet.experiments.data.columns import LABEL
from eenet.experiments.data.dataset import DataSplits, Split, shuffled
from eenet.experiments.data.files import bad_file, data_folder, read_rows
from eenet.experiments.data.texts import Texts, tokenised
from eenet.training.dataset import LabelledDataset

# --- SST-2 ------------------------------------------------------------------------------------------------------------

SST2_CLASSES = ("negative", "positive")
SST2_FOLDERS = ("sst2_glue", "SST-2", "sst2")
SST2_FILES = ("train", "dev", "test")
MAX_TOKENS = 72  # the longest sentence has 70 tokens of BERT


def load_sst2(
    root: Path, tokenizer: Path, *, seed: int = 0, max_tokens: int = MAX_TOKENS, pooled: bool = True
) -> DataSplits:
    """Return SST-2: train phrases to train on, dev and test sentences pooled and halved into calibration and test.

    Phrases that have the words of a held-out sentence, punctuation aside, are left out of training. Where the test
    file has no labels, as that of GLUE, the dev sentences alone are halved.

    Args:
        root: the folder that holds ``sst2_glue`` (or ``SST-2``), or that folder itself.
        tokenizer: folder of a Hugging Face tokenizer on this machine.
        seed: decides which held-out sentences are calibration.
        max_tokens: longer sentences are cut there.
        pooled: False: dev sentences for calibration, test sentences for testing, where the latter have labels.
    """
    parts = read_sst2(root)
    held_out = parts["dev"] + parts["test"]

    @cache
    def pool() -> LabelledDataset:
        return tokenised(held_out, tokenizer, max_tokens=max_tokens)

    def load(split: Split) -> LabelledDataset:
        if split == "train":
            return tokenised(parts["train"].without(set(held_out.words)), tokenizer, max_tokens=max_tokens)
        if pooled or not len(parts["test"]):
            halves = shuffled(len(held_out), seed).chunk(2)
        else:
            halves = torch.arange(len(held_out)).tensor_split([len(parts["dev"])])
        return pool().select(halves[0 if split == "calibration" else 1])

    return DataSplits(load=load, classes=SST2_CLASSES)


def read_sst2(root: Path) -> dict[str, Texts]:
    """Return the parts of SST-2 as `load_sst2` reads them: train phrases, dev and test sentences, in lower case."""
    folder, _ = data_folder(root, "SST-2", (SST2_FOLDERS, [f"{part}.tsv" for part in SST2_FILES]))
    return {part: _read_sst2(folder / f"{part}.tsv", part) for part in SST2_FILES}


def _read_sst2(path: Path, part: str) -> Texts:
    heading, *rows = read_rows(path)
    if LABEL not in heading and part == "test":
        return Texts((), ())
    if LABEL not in heading or len(heading) != 2:
        raise bad_file(path, f"has the columns {', '.join(heading)}: label and sentence were expected")
    column = heading.index(LABEL)
    bad = next((number for number, row in enumerate(rows, 2) if row[column] not in ("0", "1")), None)
    if bad is not None:
        raise bad_file(path, f"has no label 0 or 1 in row {bad}: it is damaged")
    return Texts(tuple(row[1 - column].strip().lower() for row in rows), tuple(int(row[column]) for row in rows))


# --- AG News ----------------------------------------------------------------------------------------------------------

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
AG_NEWS_FOLDERS = ("ag_news", "ag_news_csv")
OFFICIAL = ("train.csv", "test.csv")
PARTIAL = ("full_train_5k.tsv", "mixed_train.tsv", "desc_train.tsv", "full_test.tsv")
FURTHER = "norm_train.tsv"  # lower case, no digits; not needed
RUN = 8  # words that two articles do not share in a row, unless they are one


def load_ag_news(root: Path, tokenizer: Path, *, seed: int = 0, max_tokens: int = 128) -> DataSplits:
    """Return AG News, split as `read_ag_news` does: train articles, some of them for calibration, and test articles.

    Args:
        root: the folder that holds ``ag_news`` (or ``ag_news_csv``), or that folder itself.
        tokenizer: folder of a Hugging Face tokenizer on this machine.
        seed: decides which train articles are calibration.
        max_tokens: longer texts are cut there.
    """
    folder, _ = _ag_news_folder(root)

    @cache
    def parts() -> dict[Split, Texts]:
        return read_ag_news(folder, seed=seed)

    def load(split: Split) -> LabelledDataset:
        return tokenised(parts()[split], tokenizer, max_tokens=max_tokens)

    return DataSplits(load=load, classes=AG_NEWS_CLASSES)


def read_ag_news(root: Path, *, seed: int = 0) -> dict[Split, Texts]:
    """Return the texts of every split, each a title and a description in one line.

    As many train articles as there are test articles, at most half of them, are chosen by ``seed`` for calibration and
    kept out of training. Two texts that share 8 words in a row, digits and punctuation aside, are taken for one
    article: training has none of the calibration and test articles, calibration none of the test articles. Texts that
    occur twice are kept once.

    The official files are ``train.csv`` and ``test.csv`` (class from 1 to 4, title, description). Without them a part
    is read: ``full_train_5k.tsv``, ``mixed_train.tsv``, ``desc_train.tsv`` and ``full_test.tsv`` (label from 0 to 3,
    text). Of that part, calibration is chosen from the first file, whose texts have titles as the test texts do; the
    second and third, some of whose texts have none, and ``norm_train.tsv`` (lower case, no digits) if it is there, are
    for training only.
    """
    folder, number = _ag_news_folder(root)
    if number == 0:
        full, test = (_read_ag_news(folder / name, first=1) for name in OFFICIAL)
        further = Texts((), ())
    else:
        full, mixed, described, test = (_read_ag_news(folder / name, first=0) for name in PARTIAL)
        further = mixed + described
        if (folder / FURTHER).is_file():
            further += _read_ag_news(folder / FURTHER, first=0)
    full = _without(full, test)
    held_out, kept = shuffled(len(full), seed).tensor_split([min(len(test), len(full) // 2)])
    calibration = full.select(held_out.sort().values.tolist())
    train = _without(_unique(full.select(kept.sort().values.tolist()) + further), test + calibration)
    return {"train": train, "calibration": calibration, "test": test}


def _ag_news_folder(root: Path) -> tuple[Path, int]:
    return data_folder(root, "AG News", (AG_NEWS_FOLDERS, OFFICIAL), (AG_NEWS_FOLDERS, PARTIAL))


def _read_ag_news(path: Path, first: int) -> Texts:
    """Return a file's texts; its classes are counted from ``first``."""
    rows = read_rows(path)
    body = rows[1:] if rows[0][0] == "label" else rows
    known = {str(first + number): number for number in range(len(AG_NEWS_CLASSES))}
    bad = next((number for number, row in enumerate(body, 1 + len(rows) - len(body)) if row[0] not in known), None)
    if bad is not None:
        expected = "class, title and description were expected"
        raise bad_file(path, f"has no class {first} to {first + 3} in row {bad}: {expected}")
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
    words = part.words
    return part.select(sorted({words[row]: row for row in reversed(range(len(part)))}.values()))
