"""One file, one preparation: training, recording, `eenet run` of a run and of an export read the same numbers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import refused
from written_data import write_tokenizer

from eenet.cli.samples import Images, TextFiles
from eenet.errors import DataError, InputError
from eenet.experiments.data import load_image_folder, load_text_file, load_tokenizer
from eenet.experiments.recipes import open_run
from eenet.running.preparation import Preparation
from eenet.running.texts import TextPreparation

MODULE = """
import torch


def colour():
    block = lambda: torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU())
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2, padding=1),
        *(block() for _ in range(4)),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    )
"""


def photos(root: Path) -> Path:
    """Write wide photos: what their class is about is in the middle, its contrary at the ends; some are turned."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("left", "right")):
        (root / name).mkdir(parents=True)
        for row in range(10):
            pixels = rng.integers(0, 60, (24, 72, 4)).astype(np.uint8)
            pixels[:, 24:48, 2 * label] += 150
            pixels[:, :20, 2 - 2 * label] += 150
            pixels[..., 3] = 255
            pixels[:8, :, 3] = 0 if row % 2 else 255
            exif = Image.Exif()
            exif[0x0112] = (1, 3, 6, 8)[row % 4]
            Image.fromarray(pixels).save(root / name / f"{row}.png", exif=exif)
    return root


def test_files_are_prepared_as_the_data_set_prepares_them(tmp_path):
    test = load_image_folder(photos(tmp_path), size=16).test
    source = Images(test.preparation).files([str(path) for path in test.images.paths])
    np.testing.assert_array_equal(source.read(slice(0, len(test))), test.inputs(slice(None)))
    assert (test.preparation.short_side, test.preparation.size) == (18, (16, 16))


@pytest.mark.slow
def test_every_route_gives_the_same_answers(eenet, tmp_path, monkeypatch):
    for engine in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(engine)
    (tmp_path / "users_colour.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    photos(tmp_path / "photos")
    words = (
        "attach",
        "users_colour:colour",
        "--input",
        "3,12,10",
        "--exits",
        "1,3",
        "--data",
        "photos",
        "--epochs",
        "1",
    )
    assert eenet(*words, "--batch-size", 4, "--out", "run", "-q").code == 0
    assert eenet("record", "run", "--split", "val", "--out", "val.npz", "-q").code == 0
    assert eenet("fit", "val.npz", "-b", "70%", "-p", "max_prob", "--out", "policy", "-q").code == 0
    exported = eenet("export", "run", "-p", "policy", "--engine", "onnxruntime", "--out", "exported", "-q")
    assert exported.code == 0, exported.stderr
    test = open_run(tmp_path / "run").splits.test
    preparation = json.loads((tmp_path / "exported" / "manifest.json").read_text())["preparation"]
    assert (preparation["size"], preparation["raw_size"], preparation["short_side"]) == ([12, 10], [12, 12], 14)

    def answers(*words: object) -> list[float]:
        samples = eenet("run", *words, "--json", "-q").value["samples"]
        return [sample["probability"] * (1 if sample["prediction"] else -1) for sample in samples]

    files = test.images.paths
    np.savez(tmp_path / "raw.npz", images=test.images[:].numpy())
    np.savez(tmp_path / "floats.npz", images=test.images[:].numpy() / np.float32(255))
    wanted = answers("run", "-p", "policy", "split:test")
    for inputs in (files, ["raw.npz"], ["floats.npz"]):
        np.testing.assert_allclose(answers("run", "-p", "policy", *inputs), wanted, atol=1e-5)
        np.testing.assert_allclose(answers("exported", *inputs), wanted, atol=1e-4)
    assert len(answers("run", "-p", "policy", "photos")) == 20
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "photos" / "left" / "deep.png")
    for target in (("run", "-p", "policy"), ("exported",)):
        refused(eenet("run", *target, "photos", "-q"), "deep.png has pixels of mode I")
    sys.modules.pop("users_colour", None)


def test_folders_are_read_as_those_of_classes_are(tmp_path):
    photos(tmp_path)
    (tmp_path / "left" / "._0.png").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "0.png").touch()
    (tmp_path / "left" / "0.heic").touch()
    images = Images(Preparation(mean=(0.5,), std=(0.5,), size=(4, 4)))
    with pytest.warns(UserWarning, match=r"files that are not read: 2 hidden, 1 \.heic"):
        source = images.files([str(tmp_path)])
    assert len(source.names) == 20 and source.read(slice(0, 3)).shape == (3, 1, 4, 4)
    for name, fact in (
        ("left/._0.png", "no image"),
        ("none.png", "does not exist"),
        (".hidden", "damaged or no image"),
    ):
        with pytest.raises(InputError, match=fact):
            images.files([str(tmp_path / name)])


def test_a_file_that_is_damaged_later_is_named(tmp_path):
    photos(tmp_path)
    source = Images(Preparation(mean=(0.5,), std=(0.5,), size=(4, 4))).files([str(tmp_path / "left")])
    path = tmp_path / "left" / "1.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"1\.png is damaged"):
        source.read(slice(0, 3))


def test_images_of_other_channels_come_in_arrays_only(tmp_path):
    images = Images(Preparation(mean=(0.5,) * 4, std=(0.5,) * 4, size=(4, 4)))
    with pytest.raises(InputError, match="images of 4 channels cannot be read from image files"):
        images.files([str(photos(tmp_path))])
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4, 4), np.uint8))
    assert len(images.array(tmp_path / "a.npy").names) == 2


@pytest.fixture
def texts(tmp_path):
    """What reads texts of two classes, with a tokenizer of words."""
    pytest.importorskip("transformers")
    how = TextPreparation(tokenizer=load_tokenizer(write_tokenizer(tmp_path / "tokenizer")), max_tokens=8, named=True)
    return TextFiles(preparation=how, classes=("bad", "good"), columns=("verdict", "comment"))


def test_texts_are_read_with_labels_and_without(texts, tmp_path):
    lines, tones = ["goal, match", "war vote war vote war vote", "goal"], ["good", "bad", "good"]
    pairs = list(zip(lines, tones, strict=True))
    for name, rows, known in (
        ("plain.txt", lines, False),
        ("one.csv", ["text", *lines], False),
        ("bare.csv", [f'"{line}"' for line in lines], False),
        ("own.csv", ["comment", *lines], False),
        ("ids.tsv", ["id\tsentence", *(f"{k}\t{line}" for k, line in enumerate(lines))], False),
        ("both.tsv", ["id\tlabel\tsentence", *(f"7\t{tone}\t{line}" for line, tone in pairs)], True),
        ("named.csv", ["verdict;text;comment", *(f"{tone};no;{line}" for line, tone in pairs)], True),
    ):
        (tmp_path / name).write_text("\n".join(rows) + "\n")
        source = texts.files([str(tmp_path / name)])
        assert list(source.names) == lines, name
        assert (source.labels is None) != known and source.texts
        assert not known or source.labels.tolist() == [1, 0, 1]
        wide, narrow = source.read(slice(0, 2)), source.read(slice(2, 3))
        assert wide["input_ids"].shape == (2, 8) and narrow["attention_mask"].sum() == narrow["input_ids"].size
    both = texts.files([str(tmp_path / name) for name in ("both.tsv", "plain.txt")])
    assert len(both.names) == 6 and both.labels is None


def test_texts_are_prepared_as_the_data_set_prepares_them(texts, tmp_path):
    lines = [f"{('war', 'goal')[row % 2]} {'vote ' * (row % 5)}" for row in range(30)]
    (tmp_path / "all.csv").write_text("label,text\n" + "".join(f"{k % 2},{line}\n" for k, line in enumerate(lines)))
    test = load_text_file(tmp_path / "all.csv", tmp_path / "tokenizer", max_tokens=8).test.prepared(texts.preparation)
    (tmp_path / "plain.txt").write_text("\n".join(lines))
    every = {tuple(row) for row in texts.files([str(tmp_path / "plain.txt")]).read(slice(0, 30))["input_ids"].tolist()}
    inputs = test.inputs(slice(None))
    assert all((*row, *[0] * 8)[: len(next(iter(every)))] in every for row in inputs["input_ids"].tolist())
    np.savez(tmp_path / "tokens.npz", labels=test.labels.numpy(), **{k: one.numpy() for k, one in inputs.items()})
    source = texts.array(tmp_path / "tokens.npz")
    for name, tensor in inputs.items():
        np.testing.assert_array_equal(source.read(slice(1, 4))[name], tensor[1:4])
    assert source.labels.tolist() == test.labels.tolist()


def test_what_are_no_texts_is_refused_and_strange_labels_are_left_out(texts, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    (tmp_path / "odd.csv").write_text("label,text\nawful,goal\nbad,war\n")
    (tmp_path / "gap.csv").write_text("label,text\nbad,goal\nbad,\n")
    (tmp_path / "commas.csv").write_text("goal, match\nwar\n")
    np.savez(tmp_path / "odd.npz", input_ids=np.zeros((2, 5), int))
    np.savez(tmp_path / "real.npz", input_ids=np.zeros((2, 5)), attention_mask=np.zeros((2, 5)))
    with pytest.warns(UserWarning, match=r"labels are left out, they are none of the model's: .* the label 'awful'"):
        assert texts.files([str(tmp_path / "odd.csv")]).labels is None
    for name, said in (
        ("photo.png", "the model reads texts"),
        ("none.csv", "does not exist"),
        ("gap.csv", "has no text in row 3"),
        ("commas.csv", "1 columns in row 2"),
    ):
        with pytest.raises(InputError, match=said):
            texts.files([str(tmp_path / name)])
    for name in ("odd.npz", "real.npz"):
        with pytest.raises(InputError, match="reads input_ids and attention_mask, whole numbers"):
            texts.array(tmp_path / name)
    images = Images(Preparation(mean=(0.5,), std=(0.5,), size=(4, 4)))
    with pytest.raises(InputError, match="is a file of texts: the model reads images"):
        images.files([str(tmp_path / "odd.csv")])


@pytest.mark.slow
def test_a_bundle_that_contains_its_structure_runs_on_texts(eenet, tmp_path) -> None:
    from small_bert import CLASSES, small_bundle, small_texts

    bundle = small_bundle()
    bundle.save_pretrained(tmp_path / "bundle")
    texts = [text for text, _ in small_texts(9)]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    ran = eenet("run", str(tmp_path / "bundle"), str(tmp_path / "texts.txt"), "--json")
    assert ran.code == 0, ran.stderr
    wanted = bundle.adaptive()(bundle.preparation(texts))
    rows = json.loads(ran.stdout)["samples"]
    assert [row["exit"] for row in rows] == wanted.exit_index.tolist()
    assert [row["class"] for row in rows] == [CLASSES[k] for k in wanted.labels]
    ran = eenet("run", str(tmp_path / "bundle"), "split:test")
    assert ran.code == 2 and "knows no data set" in ran.stderr
