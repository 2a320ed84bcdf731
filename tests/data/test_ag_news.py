"""AG News: official files and a part of them; no article on two sides, in whatever form."""

import re
from pathlib import Path

import pytest
from written_data import write_ag_news, write_tokenizer

from eenet.data import load_ag_news
from eenet.data.ag_news import read_ag_news
from eenet.data.texts import Texts
from eenet.errors import DataError


def apart(sides: dict[str, Texts]) -> bool:
    """Whether no two sides share an article, told by its last words, digits and punctuation aside."""
    endings = [{" ".join(re.findall("[a-z]+", text.lower())[-8:]) for text in part.texts} for part in sides.values()]
    return sum(map(len, endings)) == len(set().union(*endings))


@pytest.mark.parametrize("part_of_it", [False, True])
def test_calibration_is_kept_out_of_training(tmp_path: Path, part_of_it: bool) -> None:
    root = write_ag_news(tmp_path, part_of_it=part_of_it)
    sides, other = (read_ag_news(root, seed=seed) for seed in (0, 1))
    assert [len(part) for part in sides.values()] == [140 if part_of_it else 60, 20, 20]
    assert apart(sides) and apart(other)
    assert sides["calibration"] != other["calibration"] and sides["test"] == other["test"]
    assert sides["test"].texts[5].startswith("Title 5 of test") and sides["test"].labels[:6] == (0, 1, 2, 3, 0, 1)
    assert all(text.startswith("Title") for text in sides["calibration"].texts)


def test_an_article_without_its_title_is_the_same_article(tmp_path: Path) -> None:
    root = write_ag_news(tmp_path, part_of_it=True)
    said = "the bank of one city has made a profit of two per cent"
    for name, text in (("full_test", f"A bank pays {said}."), ("desc_train", said), ("full_train_5k", f"New: {said}")):
        with (root / "ag_news" / f"{name}.tsv").open("a") as lines:
            lines.write(f"2\t{text}\n")
    sides = read_ag_news(root)
    assert sum(said in text for part in sides.values() for text in part.texts) == 1
    assert said in sides["test"].texts[-1]


def test_an_article_in_lower_case_without_digits_is_the_same_article(tmp_path: Path) -> None:
    root = write_ag_news(tmp_path, part_of_it=True)
    with (root / "ag_news" / "full_test.tsv").open("a") as lines:
        lines.write(
            "2\tProfits up: One city's bank has made $12 million in the year, two per cent more than last year.\n"
        )
    with (root / "ag_news" / "norm_train.tsv").open("w") as lines:
        lines.write("label\ttext\n")
        lines.write("2\tprofits up one city s bank has made million in the year two per cent more than last year\n")
        lines.write("1\tsome other team has won a game that nobody else had heard of\n")
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


def test_refuses_what_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no AG News: ag_news with train.csv and test.csv \(or full_train_5k.tsv"):
        load_ag_news(tmp_path, tmp_path)
    root = write_ag_news(tmp_path)
    (root / "ag_news" / "test.csv").write_text('"5","a","b"\n')
    with pytest.raises(DataError, match=r"test\.csv has no class 1 to 4 in row 1"):
        read_ag_news(root)


def test_the_real_part_has_no_article_twice(data_root: Path) -> None:
    if not (data_root / "ag_news" / "full_train_5k.tsv").is_file():
        pytest.skip("the data folder has no ag_news")
    sides = read_ag_news(data_root)
    assert apart(sides)
    assert len(sides["test"]) == 7600 and 2_000 < len(sides["calibration"]) < 2_500 and len(sides["train"]) > 20_000
    assert set(sides["train"].labels) == {0, 1, 2, 3}
