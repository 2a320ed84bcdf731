"""Texts of one's own: columns with and without names, labels as numbers and names, bad files refused."""

from pathlib import Path

import pytest
from written_data import write_tokenizer

from eenet.data import load_text_file
from eenet.data.text_files import read_rows
from eenet.errors import DataError

TEXTS = [f'war "vote" {row}' if row % 2 else f"goal, match {row}" for row in range(20)]


def sides(path: Path, tokenizer: Path) -> list[tuple[tuple[int, ...], int]]:
    """Every text's tokens with its label, from all three sides."""
    splits = load_text_file(path, tokenizer)
    parts = [splits.train, splits.calibration, splits.test]
    assert [len(part) for part in parts] == [12, 4, 4]
    return sorted(
        (tuple(tokens), label)
        for part in parts
        for tokens, label in zip(part.tokens.tolist(), part.labels.tolist(), strict=True)
    )


def test_columns_are_found_by_their_names_or_order(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tokenizer, quoted = write_tokenizer(tmp_path / "tokenizer"), [text.replace('"', '""') for text in TEXTS]
    files = {
        "plain.tsv": [f"{row % 2}\t{text}" for row, text in enumerate(TEXTS)],
        "named.tsv": ["sentence\tLabel", *(f"{text}\t{row % 2}" for row, text in enumerate(TEXTS))],
        "plain.csv": [f'{row % 2},"{text}"' for row, text in enumerate(quoted)],
        "names.csv": ["label,text", *(f'{("goal", "war")[row % 2]},"{text}"' for row, text in enumerate(quoted))],
    }
    found = []
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        found.append(sides(tmp_path / name, tokenizer))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(set(found[0])) == 20
    assert load_text_file(tmp_path / "names.csv", tokenizer).classes == ("goal", "war")
    assert load_text_file(tmp_path / "plain.csv", tokenizer).classes == ("0", "1")


def test_quotes_and_line_ends_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes('label\tsentence\n1\t" A "good"\x85 film \r\n\n0\tbad'.encode())
    assert read_rows(tmp_path / "a.tsv") == [["label", "sentence"], ["1", '" A "good"\x85 film '], ["0", "bad"]]
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf1,"two\nlines, ""quoted"""\n')
    assert read_rows(tmp_path / "a.csv") == [["1", 'two\nlines, "quoted"']]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"1\tone\n2\ttwo\tthree\n", r"has 3 columns in row 2: the first row has 2"),
        (b"\xff\xfe\xff", "cannot be read"),
        (b"1\n" * 20, "has 1 columns: a label and a text were expected"),
        (b"1\tone\n" * 9, "has 9 texts: three sides need at least 10"),
        (b"".join(b"t%d\t1\n" % row for row in range(20)), "has another label in every row"),
    ],
)
def test_refuses_files_that_hold_something_else(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_text_file(tmp_path / "a.tsv", tmp_path)
    with pytest.raises(DataError, match=r"b\.tsv is missing"):
        load_text_file(tmp_path / "b.tsv", tmp_path)
