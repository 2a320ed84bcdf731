"""SST-2: sentences of film reviews, and phrases of them to train on.

Source: R. Socher et al., *Recursive deep models for semantic compositionality over a sentiment treebank*, EMNLP 2013;
the files are those of GLUE (A. Wang et al., ICLR 2019).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from eenet.data.dataset import DataSplits, LabelledDataset, Split
from eenet.data.folders import data_folder
from eenet.data.text_files import LABEL, read_rows
from eenet.data.texts import Texts, tokenised
from eenet.errors import DataError

__all__ = ["SST2_CLASSES", "load_sst2", "read_sst2"]

SST2_CLASSES = ("negative", "positive")
FOLDERS = ("sst2_glue", "SST-2", "sst2")
PARTS = ("train", "dev", "test")
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

    Raises:
        DataError: a file is missing or damaged.
        MissingExtraError: transformers is not installed; raised when a split is first asked for.
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
            sides = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed)).chunk(2)
        else:
            rows, first = torch.arange(len(held_out)), len(parts["dev"])
            sides = (rows[:first], rows[first:])
        return pool().select(sides[0 if split == "calibration" else 1])

    return DataSplits(load=load, classes=SST2_CLASSES)


def read_sst2(root: Path) -> dict[str, Texts]:
    """Return the parts of SST-2 as read: train phrases, dev and test sentences, in lower case and stripped.

    Args:
        root: the folder that holds ``sst2_glue`` (or ``SST-2``), or that folder itself.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = data_folder(root, FOLDERS, [f"{part}.tsv" for part in PARTS], "SST-2")
    return {part: _read(folder / f"{part}.tsv", part) for part in PARTS}


def _read(path: Path, part: str) -> Texts:
    heading, *rows = read_rows(path)
    if LABEL not in heading and part == "test":
        return Texts((), ())
    if LABEL not in heading or len(heading) != 2:
        raise DataError(
            f"data file {path} has the columns {', '.join(heading)}: label and sentence were expected. Get it again."
        )
    column = heading.index(LABEL)
    bad = next((number for number, row in enumerate(rows, 2) if row[column] not in ("0", "1")), None)
    if bad is not None:
        raise DataError(f"data file {path} has no label 0 or 1 in row {bad}: it is damaged. Get it again.")
    return Texts(tuple(row[1 - column].strip().lower() for row in rows), tuple(int(row[column]) for row in rows))
