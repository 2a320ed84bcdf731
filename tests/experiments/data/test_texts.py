"""Texts as token numbers: cut where they end, in the form a model takes, never changed at random.

Texts of one's own: columns with and without names, labels as numbers and names, bad files refused.
"""

import functools
import sys
from pathlib import Path

import pytest
import torch
from written_data import write_tokenizer

from eenet.errors import DataError, InputError, MissingExtraError
from eenet.experiments.data import TextDataset, Texts, load_text_file, masked, random_flip, tokenised
from eenet.experiments.data.texts import read_rows

TOKENS = torch.tensor([[3, 7, 9, 4, 8], [5, 6, 0, 0, 0], [2, 2, 2, 0, 0]], dtype=torch.int32)
LABELS = torch.tensor([0, 1, 1])


def test_inputs_are_cut_to_the_longest_text_among_them() -> None:
    data = TextDataset(TOKENS, LABELS)
    assert [tuple(inputs.shape) for inputs, _ in data.batches(2)] == [(2, 5), (1, 3)]
    chosen = data.select(torch.tensor([1])).inputs(slice(0, 1))
    assert chosen.tolist() == [[5, 6]] and chosen.dtype == torch.int64
    assert data[2][0].tolist() == [2, 2, 2] and data[2][1] == 1
    assert data.targets(torch.tensor([2, 0])).tolist() == [1, 0]


def test_masks_go_with_the_names_of_hugging_face() -> None:
    data = TextDataset(TOKENS, LABELS, form=masked)
    inputs = data.inputs(torch.tensor([1, 2]))
    assert inputs["input_ids"].tolist() == [[5, 6, 0], [2, 2, 2]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    wide = TextDataset(TOKENS, LABELS, form=functools.partial(masked, width=4)).select(slice(1, 3))
    assert wide.inputs(slice(None))["input_ids"].shape == (2, 4)
    assert data[1][0]["input_ids"].tolist() == [5, 6]


def test_a_training_batch_is_what_any_batch_is() -> None:
    data, rows = TextDataset(TOKENS, LABELS), torch.tensor([2, 1])
    inputs, targets = data.training_batch(rows, None, torch.Generator())
    assert torch.equal(inputs, data.inputs(rows)) and torch.equal(targets, data.targets(rows))
    with pytest.raises(InputError, match="augment does not fit: the samples are texts"):
        data.training_batch(rows, random_flip, torch.Generator())


def test_data_sets_are_told_apart_by_their_labels_and_tokens() -> None:
    other = TOKENS.clone()
    other[0, 0] += 1
    data = TextDataset(TOKENS, LABELS)
    longer = torch.nn.functional.pad(TOKENS, (0, 1))  # the same, but cut later
    assert len({data.fingerprint(), *(TextDataset(rows, LABELS).fingerprint() for rows in (other, longer))}) == 3
    assert (
        data.fingerprint()
        == TextDataset(TOKENS, LABELS.clone()).fingerprint()
        != data.select(slice(1, 3)).fingerprint()
    )


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"tokens of shape \(3,\)"):
        TextDataset(TOKENS[:, 0], LABELS)
    with pytest.raises(DataError, match="there are 3 texts"):
        TextDataset(TOKENS, LABELS[:2])
    with pytest.raises(DataError, match="texts are empty"):
        tokenised(Texts((), ()), Path())


def test_a_tokenizer_of_hugging_face_cuts_texts(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = write_tokenizer(tmp_path)
    data = tokenised(Texts(("war vote.", "vote treaty goal match coach"), (1, 0)), folder, max_tokens=6)
    assert data.tokens.dtype == torch.int32 and data.tokens.shape == (2, 6)
    assert data.tokens[0, [0, 4, 5]].tolist() == [2, 3, 0]  # [CLS] ... [SEP] [PAD]
    assert data.tokens[1, 5] == 3  # cut, and closed all the same
    assert data.labels.tolist() == [1, 0]


def test_texts_end_with_their_padding_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_tokenizer(tmp_path / "made")
    made = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    made.padding_side = "left"
    made.save_pretrained(str(tmp_path / "left"))
    texts = Texts(("a good film",), (1,))
    left, right = (tokenised(texts, place, max_tokens=16).tokens for place in (tmp_path / "left", folder))
    assert left.tolist() == right.tolist() and left[0, 0] != 0


def test_refuses_folders_without_a_tokenizer_that_fits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    part = Texts(("war",), (0,))
    with pytest.raises(DataError, match="nowhere is missing: there is no such folder"):
        tokenised(part, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty cannot be read: it is no folder of a tokenizer"):
        tokenised(part, tmp_path / "empty")
    folder = write_tokenizer(tmp_path / "other")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    with pytest.raises(DataError, match="pads with the number 3: 0 is what marks the end"):
        tokenised(part, folder)


def test_a_missing_library_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r'transformers is not installed: .* Run pip install "eenet\[text\]"'):
        tokenised(Texts(("war",), (0,)), tmp_path)


def test_words_leave_punctuation_out() -> None:
    assert Texts(('So "good"!', "bad ."), (1, 0)).words == ["so good", "bad"]


def test_texts_with_given_words_are_dropped() -> None:
    train = Texts(("bad .", "not bad", "so  bad !"), (0, 1, 0))
    held_out = Texts(("bad ?", "so bad"), (0, 0))
    assert train.without(set(held_out.words)) == Texts(("not bad",), (1,))
    assert (train + held_out).select([4, 1]) == Texts(("so bad", "not bad"), (0, 1))


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
        (b"1\tone\n" * 9, "has 9 samples: three splits need at least 10"),
        (b"".join(b"t%d\t1\n" % row for row in range(20)), "has another label in every row"),
    ],
)
def test_refuses_files_that_hold_something_else(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_text_file(tmp_path / "a.tsv", tmp_path)
    with pytest.raises(DataError, match=r"b\.tsv is missing"):
        load_text_file(tmp_path / "b.tsv", tmp_path)
