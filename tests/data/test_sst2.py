"""SST-2: phrases to train on that are no held-out sentence, held-out sentences on two sides."""

from pathlib import Path

import pytest
from written_data import write_sst2, write_tokenizer

from eenet.data import load_sst2
from eenet.data.sst2 import read_sst2
from eenet.errors import DataError


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    return write_tokenizer(tmp_path / "tokenizer")


def test_held_out_sentences_are_halved_by_the_seed(tmp_path: Path, tokenizer: Path) -> None:
    splits, other = (load_sst2(write_sst2(tmp_path / str(seed)), tokenizer, seed=seed) for seed in (0, 1))
    assert [len(side) for side in (splits.train, splits.calibration, splits.test)] == [40, 20, 20]
    rows = {tuple(row) for side in (splits.calibration, splits.test) for row in side.tokens.tolist()}
    assert len(rows) == 40 and not rows & {tuple(row) for row in splits.train.tokens.tolist()}
    assert splits.calibration.tokens.tolist() != other.calibration.tokens.tolist()
    assert splits.train.tokens.shape[1] == 72 and splits.classes == ("negative", "positive")


def test_dev_and_test_can_stay_apart(tmp_path: Path, tokenizer: Path) -> None:
    root = write_sst2(tmp_path)
    parts, splits = read_sst2(root), load_sst2(root, tokenizer, pooled=False)
    assert splits.calibration.labels.tolist() == list(parts["dev"].labels)
    assert splits.test.labels.tolist() == list(parts["test"].labels)


def test_phrases_that_are_held_out_sentences_are_left_out(tmp_path: Path, tokenizer: Path) -> None:
    folder = write_sst2(tmp_path) / "sst2_glue"
    held_out = read_sst2(tmp_path)["dev"].texts[3]
    with (folder / "train.tsv").open("a") as train:
        train.write(f"1\t{held_out.upper()} !!\n")
    assert len(read_sst2(folder)["train"]) == 41
    assert len(load_sst2(folder, tokenizer).train) == 40


def test_the_test_file_of_glue_has_no_labels(tmp_path: Path) -> None:
    folder = write_sst2(tmp_path) / "sst2_glue"
    (folder / "test.tsv").write_text("index\tsentence\n0\tgood\n")
    (folder / "dev.tsv").write_text('sentence\tlabel\n" A "good" Film \t1\n')
    parts = read_sst2(tmp_path)
    assert len(parts["test"]) == 0
    assert parts["dev"].texts == ('" a "good" film',) and parts["dev"].labels == (1,)


def test_refuses_what_is_missing_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "sst2_glue").mkdir()
    (tmp_path / "sst2_glue" / "train.tsv").touch()
    said = (
        r"has no SST-2: sst2_glue with train.tsv and dev.tsv and test.tsv was expected, found train.tsv in .*sst2_glue"
    )
    with pytest.raises(DataError, match=said):
        load_sst2(tmp_path, tmp_path)
    folder = write_sst2(tmp_path / "b") / "sst2_glue"
    (folder / "dev.tsv").write_text("label\tsentence\n1\tgood\n2\tbad\n")
    with pytest.raises(DataError, match=r"dev\.tsv has no label 0 or 1 in row 3"):
        load_sst2(folder, tmp_path)
    (folder / "dev.tsv").write_text("class\tsentence\n1\tgood\n")
    with pytest.raises(DataError, match=r"dev\.tsv has the columns class, sentence: label and sentence were expected"):
        load_sst2(folder, tmp_path)


def test_the_real_files_have_the_known_counts(data_root: Path) -> None:
    if not (data_root / "sst2_glue").is_dir():
        pytest.skip("the data folder has no sst2_glue")
    parts = read_sst2(data_root)
    assert {name: len(part) for name, part in parts.items()} == {"train": 67_349, "dev": 872, "test": 1821}
    held_out = set((parts["dev"] + parts["test"]).words)
    assert len(parts["train"].without(held_out)) == 67_334
