"""Texts as token numbers, cut where they end; texts of one's own, columns with and without names, bad files refused."""

import functools
from pathlib import Path

import pytest
import torch
from written_data import write_tokenizer

from eenet.errors import DataError, InputError
from eenet.experiments.data import TextDataset, Texts, load_text_file, load_tokenizer, masked, random_flip, tokenised
from eenet.running.texts import TextPreparation

TOKENS = torch.tensor([[3, 7, 9, 4, 8], [5, 6, 0, 0, 0], [2, 2, 2, 0, 0]], dtype=torch.int32)
LABELS = torch.tensor([0, 1, 1])


def test_inputs_are_cut_to_the_longest_text_among_them() -> None:
    data = TextDataset(TOKENS, LABELS)
    assert [tuple(inputs.shape) for inputs, _ in data.batches(2)] == [(2, 5), (1, 3)]
    chosen = data.select(torch.tensor([1])).inputs(slice(0, 1))
    assert chosen.tolist() == [[5, 6]] and chosen.dtype == torch.int64
    assert data[2][0].tolist() == [2, 2, 2] and data[2][1] == 1
    assert data.targets(torch.tensor([2, 0])).tolist() == [1, 0]
    rows = torch.tensor([2, 1])
    inputs, targets = data.training_batch(rows, None, torch.Generator())  # as any other batch
    assert torch.equal(inputs, data.inputs(rows)) and torch.equal(targets, data.targets(rows))
    with pytest.raises(InputError, match="augment does not fit: the samples are texts"):
        data.training_batch(rows, random_flip, torch.Generator())


def test_masks_go_with_the_names_of_hugging_face() -> None:
    data = TextDataset(TOKENS, LABELS, form=masked)
    inputs = data.inputs(torch.tensor([1, 2]))
    assert inputs["input_ids"].tolist() == [[5, 6, 0], [2, 2, 2]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    wide = TextDataset(TOKENS, LABELS, form=functools.partial(masked, width=4)).select(slice(1, 3))
    assert wide.inputs(slice(None))["input_ids"].shape == (2, 4)
    assert data[1][0]["input_ids"].tolist() == [5, 6]


def test_a_mask_of_its_own_says_what_is_real() -> None:
    mask = TOKENS != 0
    mask[2, 1] = False  # a number that may also be padding
    tokens = TOKENS.masked_fill(TOKENS == 0, 1)  # padded as RoBERTa does it
    data = TextDataset(tokens, LABELS, mask=mask).select(torch.tensor([2, 1]))
    assert data.inputs(slice(None)).tolist() == [[2, 2, 2], [5, 6, 1]]
    inputs = data.prepared(TextPreparation(tokenizer=None, max_tokens=3, named=True)).inputs(slice(None))
    assert inputs["input_ids"].tolist() == [[2, 2, 2], [5, 6, 1]]
    assert inputs["attention_mask"].tolist() == [[1, 0, 1], [1, 1, 0]]
    left = TextDataset(tokens.flip(1), LABELS, mask=(TOKENS != 0).flip(1)).select(slice(1, 3))
    assert left.inputs(slice(None)).shape == (2, 5)  # nothing is cut before the texts
    prints = {TextDataset(tokens, LABELS, mask=one).fingerprint() for one in (mask, None, TOKENS != 0)}
    assert len(prints) == 3


def test_fingerprints_differ_with_their_labels_and_tokens() -> None:
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
    with pytest.raises(DataError, match=r"mask of shape \(3, 4\)"):
        TextDataset(TOKENS, LABELS, mask=TOKENS[:, :4] != 0)
    with pytest.raises(DataError, match="texts are empty"):
        tokenised(Texts((), ()), Path())


def test_a_tokenizer_of_hugging_face_cuts_texts(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder, part = write_tokenizer(tmp_path / "made"), Texts(("war vote.", "vote treaty goal match coach"), (1, 0))
    data = tokenised(part, folder, max_tokens=6)
    assert data.tokens.dtype == torch.int32 and data.tokens.shape == (2, 6)
    assert data.tokens[0, [0, 4, 5]].tolist() == [2, 3, 0]  # [CLS] ... [SEP] [PAD]
    assert data.tokens[1, 5] == 3  # cut, and closed all the same
    assert data.labels.tolist() == [1, 0]
    assert data.mask.sum(dim=1).tolist() == [5, 6]
    settings = {"local_files_only": True, "padding_side": "left", "pad_token": "[UNK]"}  # are followed
    made = transformers.AutoTokenizer.from_pretrained(str(folder), **settings)
    made.save_pretrained(str(tmp_path / "other"))
    other = tokenised(part, tmp_path / "other", max_tokens=6)
    assert torch.equal(other.tokens[0], torch.cat([torch.ones(1, dtype=torch.int32), data.tokens[0, :5]]))
    assert other.mask.sum(dim=1).tolist() == [5, 6] and not other.mask[0, 0]
    with pytest.raises(DataError, match="max_tokens 2 leave no room for texts: the tokenizer adds 2"):
        tokenised(part, folder, max_tokens=2)
    with pytest.raises(DataError, match="nowhere is not found: a folder on this machine is needed"):
        tokenised(part, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty cannot be read"):
        tokenised(part, tmp_path / "empty")
    made.pad_token = None
    made.save_pretrained(str(tmp_path / "unpadded"))
    with pytest.raises(DataError, match="unpadded does not pad"):
        tokenised(part, tmp_path / "unpadded")


def test_a_model_without_a_tokenizer_has_no_vocabulary(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig(vocab_size=20).save_pretrained(tmp_path)  # for which transformers makes an empty one
    with pytest.raises(DataError, match=r"has no vocabulary: texts are cut by it, and none of vocab.txt"):
        load_tokenizer(tmp_path)


def test_texts_with_given_words_are_dropped() -> None:
    train = Texts(("bad .", "not bad", "so  bad !"), (0, 1, 0))
    held_out = Texts(("bad ?", "so bad"), (0, 0))
    assert Texts(('So "good"!', "bad ."), (1, 0)).words == ["so good", "bad"]
    assert train.without(set(held_out.words)) == Texts(("not bad",), (1,))
    assert (train + held_out).select([4, 1]) == Texts(("so bad", "not bad"), (0, 1))


TEXTS = [f'war "vote" {row}' if row % 2 else f"goal, match {row}" for row in range(20)]


def labelled(path: Path, tokenizer: Path) -> list[tuple[tuple[int, ...], int]]:
    """Every text's tokens with its label, from all three splits."""
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
        found.append(labelled(tmp_path / name, tokenizer))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(set(found[0])) == 20
    assert load_text_file(tmp_path / "names.csv", tokenizer).classes == ("goal", "war")
    assert load_text_file(tmp_path / "plain.csv", tokenizer).classes == ("0", "1")


def test_splits_are_as_the_file_has_them(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "tokenizer"))
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"goal {row},{row >= 17}\n" for row in range(20)))
    for seed in range(20):
        splits = load_text_file(tmp_path / "a.csv", tokenizer, seed=seed, max_tokens=4)
        assert all(set(splits.get(name).labels.tolist()) == {0, 1} for name in ("train", "val", "test"))
    assert splits.train.tokens.shape == (12, 4)
    splits = load_text_file(tmp_path / "a.csv", tokenizer, classes=("true", "false"), columns=("label", "text"))
    assert splits.classes == ("true", "false") and splits.train.labels.float().mean() > 0.5
