"""Files of labelled texts: which column has what, how they are written, and labels as classes."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from eenet.errors import DataError
from eenet.experiments.data.columns import numbered, read_columns
from eenet.experiments.data.files import read_rows

BODY = [(("bad", "good")[row % 2], f"film number {row % 37}") for row in range(40)]
LABELS, TEXTS = map(list, zip(*BODY, strict=True))
PLAIN = "".join(f"{label},{text}\n" for label, text in BODY)
REVERSED = "".join(f"{text},{label}\n" for label, text in BODY)
Read = Callable[..., tuple[list[str], list[str], int]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """What writes a file and reads its columns."""

    def written(content: str | bytes, suffix: str = ".csv", **settings: object) -> tuple[list[str], list[str], int]:
        path = tmp_path / f"texts{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_columns(path, **settings)

    return written


@pytest.mark.parametrize("word", ["label", "Labels", "sentiment", "target", "class", " y ", "category", "strange"])
@pytest.mark.parametrize("name", ["text", "Sentence", "review"])
def test_columns_are_found_by_the_usual_words(read: Read, word: str, name: str) -> None:
    assert read(f"{name},{word}\n{REVERSED}") == (LABELS, TEXTS, 2)
    assert read(f"{word},{name}\n{PLAIN}") == (LABELS, TEXTS, 2)


def test_columns_are_found_by_order_or_by_given_names(read: Read) -> None:
    assert read(PLAIN) == (LABELS, TEXTS, 1)
    assert read(f"label,story\n{PLAIN}") == (LABELS, TEXTS, 2)
    three = "id,mood,story\n" + "".join(f"{row},{label},{text}\n" for row, (label, text) in enumerate(BODY))
    assert read(three, columns=("mood", "story")) == (LABELS, TEXTS, 2)
    assert read(three.replace("mood", "label").replace("story", "text")) == (LABELS, TEXTS, 2)
    with pytest.warns(UserWarning, match="'label' and 'text' are read, title not"):
        assert read(three.replace("id,mood,story", "title,label,text")) == (LABELS, TEXTS, 2)


def test_files_are_read_however_they_are_written(read: Read) -> None:
    named = f"label,text\n{PLAIN}"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert read(named.replace("film", "f\xe9lm").encode(encoding))[1][0] == "f\xe9lm number 0"
    for content, separator in itertools.product((named, PLAIN), ",;\t|"):
        assert read(content.replace(",", separator))[:2] == (LABELS, TEXTS)
    for suffix in (".tsv", ".txt", ".TSV"):
        assert read(named.replace(",", "\t"), suffix)[:2] == (LABELS, TEXTS)
    for ends in ("\r\n", "\r"):
        assert read(named.replace("\n", ends))[:2] == (LABELS, TEXTS)
    quoted = "label;text\n" + "".join(f'{label};"{text}; ""so"",\nit was"\n' for label, text in BODY)
    assert read(quoted)[1][0] == 'film number 0; "so",\nit was'
    assert len(read(named.replace("film number 36", "x" * 300_000))[1][36]) == 300_000


def test_quotes_and_line_ends_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes('label\tsentence\n1\t" A "good"\x85 film \r\n\n0\tbad'.encode())
    assert read_rows(tmp_path / "a.tsv") == [["label", "sentence"], ["1", '" A "good"\x85 film '], ["0", "bad"]]
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf1,"two\nlines, ""quoted"""\n')
    assert read_rows(tmp_path / "a.csv") == [["1", 'two\nlines, "quoted"']]


def test_labels_that_look_alike_are_one(read: Read) -> None:
    written = ("café", "cafe\u0301", "caf\u200bé", " caf\u00e9\ufeff", "a  b", "a b", "a\u00a0b", "a\u00ad b")
    content = "label\u200b,text\n" + "".join(f"{written[row % 8]},te\u200bxt {row}\n" for row in range(40))
    labels, texts, _ = read(content)
    assert set(labels) == {"café", "a b"} and texts[0] == "te\u200bxt 0"
    assert numbered(PATH, labels, 2, None)[1] == ("a b", "café")
    assert numbered(PATH, labels, 2, ("cafe\u0301", "a  b"))[0][:2] == (0, 0)
    assert read(content, columns=("label", "text"))[0] == labels


BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": (b"", "is empty"),
    "one column": ("1\n" * 20, "has 1 column: a label and a text were expected"),
    "one column more": (f"label,text\n{PLAIN}bad,one,two\n", "has 3 columns in row 42: the first row has 2"),
    "names alone": ("label,text\n", "has no row after the names"),
    "no label": (f"label,text\n{PLAIN},nobody judged it\n", "has no label in row 42"),
    "blank label": (f"{PLAIN}  ,nobody judged it\n", "has no label in row 41"),
    "no text": (f"label,text\n{PLAIN}bad, \n", "has no text in row 42"),
    "a text that is not seen": (f"label,text\n{PLAIN}bad, \u200b\u2060 \ufe0f\n", "has no text in row 42"),
    "a label that is not seen": (f"label,text\n{PLAIN}\u200b,one\n", "has no label in row 42"),
    "a missing value": (f"label,text\n{PLAIN}NaN,nobody\n", "has the label 'NaN' in row 42"),
    "a long label": (f"label,text\n{PLAIN}{'9' * 5000},nobody\n", "has the label '99999"),
    "texts first": (REVERSED, "has 37 different values in its first column, 2 in its second"),
    "strange names": (f"mood,story\n{PLAIN}", "begins with 'mood' and 'story', which may be names of columns"),
    "a name that is a label": ("topic,text\n" + PLAIN.replace("bad", "topic"), "is a label below"),
    "two labels": ("label,sentiment,text\na,b,c\n", "which is the label and which the text is not clear"),
    "the same twice": (f"label,label\n{PLAIN}", "which is the label and which the text is not clear"),
    "three columns": (
        "id,mood,story\n1,bad,a\n",
        "which is the label and which the text is not clear: id, mood, story",
    ),
    "two separators": (PLAIN.replace(",", ";").replace("\n", ", really\n"), "may be divided by ',' or ';'"),
    "latin": ("label,text\nbad,f\xe9lm\n".encode("latin-1"), "it is no text in UTF-8"),
    "no mark": (f"label,text\n{PLAIN}".encode("utf-16-le"), "contains a NUL character in line 1"),
    "NUL": (f"label,text\n{PLAIN}bad,a\0b\n", "contains a NUL character in line 42"),
    "an open quote": (f'label,text\n{PLAIN}bad,"open\n{PLAIN}', "cannot be read: unexpected end of data"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_clear_or_damaged_is_refused(read: Read, case: str) -> None:
    content, said = BAD[case]
    with pytest.raises(DataError, match=r"texts\.csv") as raised:
        read(content)
    assert said in str(raised.value)


def test_given_columns_must_be_there_once(read: Read, tmp_path: Path) -> None:
    for wanted in (("mood", "text"), ("text", "text"), ("label", "mood")):
        with pytest.raises(DataError, match="has not one column"):
            read(f"label,text\n{PLAIN}", columns=wanted)
    with pytest.raises(DataError, match=r"nowhere\.csv is missing"):
        read_columns(tmp_path / "nowhere.csv")


PATH = Path("texts.csv")


@pytest.mark.parametrize(
    ("labels", "classes", "numbers", "names"),
    [
        (["b", "a", "b", "a"], None, (1, 0, 1, 0), ("a", "b")),
        (["1", "0", "1", "0", "01", "0"], None, (1, 0, 1, 0, 1, 0), ("0", "1")),
        (["0.0", "1.0", "1.0", "0.0"], None, (0, 1, 1, 0), ("0", "1")),
        (["1", "2", "1", "2"], None, (1, 2, 1, 2), ("0", "1", "2")),
        (["-1", "1", "1", "-1"], None, (0, 1, 1, 0), ("-1", "1")),
        (["none", "hate", "none", "hate"], None, (1, 0, 1, 0), ("hate", "none")),
        (["Good", "bad"], ("BAD", "GOOD", "FAIR"), (1, 0), ("BAD", "GOOD", "FAIR")),
        (["1", "0"], ("bad", "good"), (1, 0), ("bad", "good")),
        (["2", "1"], ("1", "2"), (1, 0), ("1", "2")),
        (["-1", "0", "1.5"] * 3, None, (0, 1, 2) * 3, ("-1", "0", "1.5")),
        (["1", "2", "3+"], ("1", "2", "3+"), (0, 1, 2), ("1", "2", "3+")),
        (["4 stars", "5 stars"], ("4 stars", "5 stars"), (0, 1), ("4 stars", "5 stars")),
    ],
)
def test_labels_become_numbers(
    labels: list[str], classes: tuple[str, ...] | None, numbers: tuple[int, ...], names: tuple[str, ...]
) -> None:
    assert numbered(PATH, labels, 2, classes) == (numbers, names)


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (["0", "1", "None", "1", "0", "0"], None, "has the label 'None' in row 4: the others are numbers"),
        (["0.1", "0.7", "0.3", "0.7"], None, "has 3 different labels in 4 rows"),
        (["1", "5000000", "1", "5000000"], None, "has labels up to 5000000, and 2 different ones"),
        (["pos", "neg", "1", "0"] * 3, None, "'pos' in row 2 and '1' in row 4: they are names"),
        (["1", "2", "3+"] * 3, None, "'3+' in row 4 and '1' in row 2"),
        (["Good", "good", "bad", "Good", "good", "bad"], None, "differ in upper and lower case only"),
        (["bad", "awful"], ("bad", "good"), "has the label 'awful' in row 3: the model's classes are bad, good"),
        (["0", "2"], ("bad", "good"), "has the label 2 in row 3: the model knows 2 classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: list[str], classes: tuple[str, ...] | None, said: str) -> None:
    with pytest.raises(DataError) as raised:
        numbered(PATH, labels, 2, classes)
    assert said in str(raised.value)
