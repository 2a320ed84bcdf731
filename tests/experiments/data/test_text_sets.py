"""SST-2 and AG News: no held-out sentence or article is trained on, in whatever form."""

import re
from pathlib import Path

import pytest
from written_data import write_ag_news, write_sst2, write_tokenizer

from eenet.errors import DataError
from eenet.experiments.data import load_ag_news, load_sst2
from eenet.experiments.data.text_sets import read_ag_news, read_sst2
from eenet.experiments.data.texts import Texts


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    return write_tokenizer(tmp_path / "tokenizer")


def test_held_out_sentences_are_halved_by_the_seed(tmp_path: Path, tokenizer: Path) -> None:
    splits, other = (load_sst2(write_sst2(tmp_path / str(seed)), tokenizer, seed=seed) for seed in (0, 1))
    assert [len(part) for part in (splits.train, splits.calibration, splits.test)] == [40, 20, 20]
    rows = {tuple(row) for part in (splits.calibration, splits.test) for row in part.tokens.tolist()}
    assert len(rows) == 40 and not rows & {tuple(row) for row in splits.train.tokens.tolist()}
    assert splits.calibration.tokens.tolist() != other.calibration.tokens.tolist()
    assert splits.train.tokens.shape[1] == 72 and splits.classes == ("negative", "positive")
    parts, apart = read_sst2(tmp_path / "0"), load_sst2(tmp_path / "0", tokenizer, pooled=False)
    assert apart.calibration.labels.tolist() == list(parts["dev"].labels)
    assert apart.test.labels.tolist() == list(parts["test"].labels)


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


def test_sst2_refuses_what_is_missing_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "sst2_glue").mkdir()
    (tmp_path / "sst2_glue" / "train.tsv").touch()
    said = r"has no SST-2: sst2_glue with train.tsv, dev.tsv, test.tsv was expected, found train.tsv in .*sst2_glue"
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


def apart(parts: dict[str, Texts]) -> bool:
    """Whether no two parts share an article, by its last words, digits and punctuation aside."""
    endings = [{" ".join(re.findall("[a-z]+", text.lower())[-8:]) for text in part.texts} for part in parts.values()]
    return sum(map(len, endings)) == len(set().union(*endings))


@pytest.mark.parametrize("part_of_it", [False, True])
def test_calibration_is_kept_out_of_training(tmp_path: Path, part_of_it: bool) -> None:
    root = write_ag_news(tmp_path, part_of_it=part_of_it)
    parts, other = (read_ag_news(root, seed=seed) for seed in (0, 1))
    assert [len(part) for part in parts.values()] == [140 if part_of_it else 60, 20, 20]
    assert apart(parts) and apart(other)
    assert parts["calibration"] != other["calibration"] and parts["test"] == other["test"]
    assert parts["test"].texts[5].startswith("Title 5 of test") and parts["test"].labels[:6] == (0, 1, 2, 3, 0, 1)
    assert all(text.startswith("Title") for text in parts["calibration"].texts)


def test_an_article_without_its_title_or_in_lower_case_without_digits_is_the_same_article(tmp_path: Path) -> None:
    root = write_ag_news(tmp_path, part_of_it=True)
    said = "the bank of one city has made a profit of two per cent"
    for name, text in (("full_test", f"A bank pays {said}."), ("desc_train", said), ("full_train_5k", f"New: {said}")):
        with (root / "ag_news" / f"{name}.tsv").open("a") as lines:
            lines.write(f"2\t{text}\n")
    parts = read_ag_news(root)
    assert sum(said in text for part in parts.values() for text in part.texts) == 1
    assert said in parts["test"].texts[-1]
    with (root / "ag_news" / "full_test.tsv").open("a") as lines:
        lines.write("2\tProfits up: One city's bank has made $12 million in the year, more than in all years before.\n")
    (root / "ag_news" / "norm_train.tsv").write_text(
        "label\ttext\n2\tprofits up one city s bank has made million in the year more than in all years before\n"
        "1\tsome other team has won a game that nobody else had heard of\n"
    )
    train = read_ag_news(root)["train"].texts
    assert train[-1].startswith("some other team") and not any("profits up" in text for text in train)


def test_backslashes_stand_for_line_ends(tmp_path: Path) -> None:
    root = write_ag_news(tmp_path)
    with (root / "ag_news" / "test.csv").open("a") as lines:
        lines.write('"4","A ""new""  chip","made in\\two towns"\n')
    test = read_ag_news(root)["test"]
    assert test.texts[-1] == 'A "new" chip made in two towns' and test.labels[-1] == 3


def test_splits_hold_tokens(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    splits = load_ag_news(write_ag_news(tmp_path), write_tokenizer(tmp_path / "tokenizer"), max_tokens=16)
    assert splits.classes == ("World", "Sports", "Business", "Sci/Tech")
    assert splits.train.tokens.shape == (60, 16) and len(splits.calibration) == len(splits.test) == 20


def test_ag_news_refuses_what_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no AG News: ag_news with train.csv, test.csv \(or ag_news with full_train"):
        load_ag_news(tmp_path, tmp_path)
    root = write_ag_news(tmp_path)
    (root / "ag_news" / "test.csv").write_text('"5","a","b"\n')
    with pytest.raises(DataError, match=r"test\.csv has no class 1 to 4 in row 1"):
        read_ag_news(root)


def test_the_real_part_has_no_article_twice(data_root: Path) -> None:
    if not (data_root / "ag_news" / "full_train_5k.tsv").is_file():
        pytest.skip("the data folder has no ag_news")
    parts = read_ag_news(data_root)
    assert apart(parts)
    assert len(parts["test"]) == 7600 and 2_000 < len(parts["calibration"]) < 2_500 and len(parts["train"]) > 20_000
    assert set(parts["train"].labels) == {0, 1, 2, 3}
