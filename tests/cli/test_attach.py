"""`eenet attach`: a model of the user's own gets exits, learns them, and is a run like any other."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.conftest import refused
from written_data import write_tokenizer

from eenet.experiments.recipes import attach_source, load_source, open_run
from eenet.models import exit_sizes
from eenet.models.weights import save_tensors
from eenet.tables.table import ExitTable

MODULE = """
import torch


def make(channels=1):
    block = lambda: torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU())
    return torch.nn.Sequential(
        torch.nn.Conv2d(channels, 4, 3, stride=2, padding=1),
        *(block() for _ in range(4)),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 10),
    )


def colour():
    return make(channels=3)


def maps():
    block = lambda: torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU())
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), *(block() for _ in range(4)), torch.nn.Conv2d(4, 2, 1)
    )


def text():
    return "no module"


def broken():
    raise KeyError("lost")


module = make()
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with a module of the user's in it."""
    (tmp_path / "users_own.py").write_text(MODULE)
    (tmp_path / "users_broken.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("users_own", "users_broken"):
        sys.modules.pop(name, None)


OWN = ("attach", "users_own:make", "--input", "1,8,8")


def test_exits_are_shown_without_data(eenet, here):
    path = list(sys.path)
    value = eenet(*OWN, "--exits", "1,3", "--json", "-q").value
    assert sys.path == path
    assert (value["num_exits"], value["num_classes"], value["input"], value["run"]) == (3, 10, [1, 8, 8], None)
    assert [row["module"] for row in value["exits"]] == ["1", "3", "(original output)"]
    assert [row["shape"] for row in value["exits"]] == [[4, 4, 4], [4, 4, 4], [10]]
    # by hand: a 3x3 convolution at 4x4 places, from 1 channel or 4 to 4; heads and the last layer are linear
    first, block, linear = 2 * 16 * 9 * 4, 2 * 16 * 9 * 16, 2 * 4 * 10
    assert value["reference"] == first + 4 * block + linear
    assert [row["flops"] for row in value["exits"]] == [
        first + block + linear,
        first + 3 * block + 2 * linear,
        first + 4 * block + 3 * linear,
    ]
    assert [row["head_parameters"] for row in value["exits"]] == [2 * 4 + 4 * 10 + 10] * 2 + [0]
    shown = eenet(*OWN, "--exits", "2", "-q")
    assert shown.code == 0 and "module tapped" in shown.stdout and "have learnt nothing" in shown.stdout
    assert not [name for name in os.listdir(here) if not name.startswith("users_")]


def test_exits_by_capacity_are_those_of_the_library(eenet, here):
    source = load_source("users_own:make", shape=(1, 8, 8))
    sizes = [int(size) for size in exit_sizes(attach_source(source, ["1", "3"]))["params"]]
    assert sizes[0] < sizes[1]
    words = (*OWN, "--capacity", f"{sizes[0]} params", "--capacity", f"{sizes[1]} params")
    rows = eenet(*words, "--json", "-q").value["exits"]
    assert [row["module"] for row in rows] == ["1", "3", "(original output)"]
    assert [row["parameters"] for row in rows] == sizes
    shown = eenet(*words, "-q")
    assert shown.code == 0 and str(sizes[1]) in shown.stdout


def test_a_run_by_capacity_goes_on_and_refuses_other_capacities(eenet, here):
    rng = np.random.default_rng(0)
    np.savez(here / "mine.npz", images=rng.integers(80, size=(60, 1, 6, 6), dtype=np.uint8), labels=np.arange(60) % 3)
    words = (*OWN, "--data", "mine.npz", "--epochs", "0.5", "--out", "run", "-q", "--capacity")
    assert eenet(*words, "7kFLOPs").code == 0
    before = (here / "run" / "model.safetensors").read_bytes()
    assert eenet(*words, "7kFLOPs").code == 0
    assert (here / "run" / "model.safetensors").read_bytes() == before
    refused(eenet(*words, "17kFLOPs"), "is taken", "exits")


@pytest.mark.parametrize("data", [pytest.param("digits", marks=pytest.mark.slow), "mine.npz"])
def test_a_trained_run_is_a_run_like_any_other(data, eenet, here):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=60)
    images = (rng.integers(80, size=(60, 1, 6, 6)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(here / "mine.npz", images=images, labels=labels)
    words = (*OWN, "--exits", "1,3", "--data", data, "--epochs", "0.5", "--out", "run", "-q")
    assert eenet(*words).code == 0
    before = (here / "run" / "model.safetensors").stat().st_mtime_ns
    again = eenet(*words[:-1])
    assert again.code == 0 and "run is trained already, with these settings: nothing is done" in again.stdout
    assert "Attaching" not in again.stderr and (here / "run" / "model.safetensors").stat().st_mtime_ns == before
    for changed in (("--batch-size", "8"), ("--freeze",)):
        other = eenet(*words[:-1], *changed)
        said = "it holds a run with " + ("batch size 32, not 8." if len(changed) == 2 else "heads share 0.0, not 1.0.")
        refused(other, said)
        assert other.stderr.count("\n") == 1  # nothing else was printed
    described = json.loads((here / "run" / "recipe.json").read_text())
    assert (described["recipe"], described["model"], described["exits"]) == ("attached", "users_own:make", ["1", "3"])
    assert eenet("record", "run", "--split", "val", "--out", "val.npz", "-q").code == 0
    table = ExitTable.load(here / "val.npz")
    assert (table.num_exits, table.num_columns) == (3, 10)
    assert table.num_samples == (500 if data == "digits" else 12)
    assert eenet("fit", "val.npz", "-b", "60%", "-p", "max_prob", "--out", "policy", "-q").code == 0
    ran = eenet("run", "run", "--policy", "policy", "split:test", "--json", "-q")
    assert ran.code == 0 and ran.value["num_samples"] == (500 if data == "digits" else 12)
    if data == "digits":
        assert eenet("profile", "run", "--batch-size", 4, "--passes", 1, "--out", "costs.json", "-q").code == 0
        assert eenet("advise", "val.npz", "--costs", "costs.json", "--batch-size", 4, "-q").code == 0
    words = ("bench", "run", "--policy", "policy", "--batch-size", 4, "--samples", 8, "--passes", 1, "-q")
    assert eenet(*words).code == 0
    other = eenet(*OWN, "--exits", "2,3", "--data", data, "--epochs", "0.5", "--out", "run", "-q")
    assert other.code == 2 and "is taken" in other.stderr


def test_a_folder_of_images_per_class_is_data(eenet, here):
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (here / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = (rng.integers(80, size=(9, 12, 3)) + 150 * number).astype(np.uint8)
            Image.fromarray(pixels).save(here / "photos" / name / f"{i}.png")
    words = ("attach", "users_own:colour", "--input", "3,8,8", "--exits", "1,3", "--data", "photos", "--epochs", "0.5")
    bad = [here / "photos" / "dark" / "bad.png", here / "photos" / "light" / "moves.gif"]
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(bad[0])
    frames = [Image.new("L", (9, 9), k) for k in (0, 255)]
    frames[0].save(bad[1], save_all=True, append_images=frames[1:])
    refused(eenet(*words, "--out", "run", "-q"), "has", "1 others cannot be used either: ")
    os.remove(bad[0])
    refused(eenet(*words, "--out", "run", "-q"), "moves.gif has several frames")
    assert not (here / "run").exists()
    os.remove(bad[1])
    (here / "photos" / "dark" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"not read: 1 \.txt\.") as said:
        ran = eenet(*words, "--batch-size", 4, "--out", "run", "-q")
    assert len(said) == 1
    os.remove(here / "photos" / "dark" / "notes.txt")
    assert ran.code == 0, ran.stderr
    assert [line.split() for line in ran.stdout.splitlines() if "dark" in line or "together" in line] == [
        ["dark", "6", "2", "2"],
        ["together", "12", "4", "4"],
    ]
    assert "4 samples of the calibration set" in ran.stdout
    opened = open_run(here / "run")
    assert opened.splits.classes[:2] == ("dark", "light")
    assert [len(opened.splits.get(side)) for side in ("train", "val", "test")] == [12, 4, 4]
    assert all(opened.splits.get(side).inputs(slice(0, 2)).shape[1:] == (3, 8, 8) for side in ("train", "test"))
    assert opened.example(3)[0].shape == (3, 3, 8, 8) and opened.example(3)[1] == ""
    os.rename(here / "photos", here / "run" / "photos")  # the folder may lie elsewhere later
    lost = eenet("record", "run", "--split", "test", "--out", "test.npz", "-q")
    refused(
        lost, "photos are gone", "the run run was trained on them", "--data-root with the folder that contains photos"
    )
    moved = open_run(here / "run")  # the run folder says how images are read
    assert (moved.classes, moved.preparation) == (opened.classes, opened.splits.test.preparation)
    made_up, why = moved.example(3)
    assert made_up.shape == (3, 3, 8, 8) and "photos are gone" in why
    assert eenet("record", "run", "--split", "test", "--data-root", "run", "--out", "test.npz", "-q").code == 0


def test_a_folder_of_masks_is_data(eenet, here):
    rng = np.random.default_rng(0)
    for i in range(20):
        mask = np.repeat(rng.integers(2, size=(2, 1)), 6, axis=0).repeat(8, axis=1).astype(np.uint8)
        for name, pixels in (("images", mask[..., None].repeat(3, axis=2) * 200), ("masks", mask)):
            (here / "scenes" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(here / "scenes" / name / f"{i}.png")
    (here / "scenes" / "classes.txt").write_text("sky\nroad\n", encoding="utf-8-sig")
    words = ("attach", "users_own:maps", "--input", "3,12,8", "--exits", "1,3", "--epochs", "0.5", "--out", "run", "-q")
    ran = eenet(*words, "--data", "scenes")
    assert ran.code == 0, ran.stderr
    opened = open_run(here / "run")
    assert opened.splits.classes == ("sky", "road") and opened.splits.test.targets(slice(0, 2)).shape == (2, 12, 8)
    value = eenet("record", "run", "--split", "test", "--out", "test.npz", "--json", "-q").value
    assert len(value["miou"]) == 3
    refused(eenet(*words[:-2], "new", "-q", "--data", "digits"), "data 'digits' do not fit", "answers per pixel")
    words = (*OWN[:1], "users_own:colour", "--input", "3,12,8", "--data", "scenes", "--out", "new", "-q")
    refused(eenet(*words), "data 'scenes' do not fit", "class per pixel")
    os.remove(here / "scenes" / "classes.txt")
    refused(eenet(*words), "class per pixel")
    assert not (here / "new").exists()


TONES = {"bad": ("dull", "awful"), "good": ("fine", "great")}


@pytest.fixture
def bert(here):
    """A small Hugging Face model that names its classes, with its tokenizer; and texts in a file of three columns."""
    library = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ("[CLS]", "[PAD]", "[SEP]", "[UNK]")  # padding has not the number 0
    words = [*special, "the", "film", "was", *(word for tone in TONES.values() for word in tone)]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    named = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), special, strict=True))
    library.PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(here / "bert")
    config = library.RobertaConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        pad_token_id=1,
        id2label={0: "good", 1: "bad"},
        label2id={"good": 0, "bad": 1},
    )
    library.RobertaForSequenceClassification(config).save_pretrained(here / "bert")
    rng = np.random.default_rng(0)
    rows = [
        f"{row};{tone};the film was {' '.join(rng.choice(TONES[tone], size=1 + row % 7))}"
        for row in range(60)
        for tone in TONES
    ]
    (here / "texts.csv").write_text("\n".join(["id;verdict;text", *rows]) + "\n")
    return here


TEXTS = ("attach", "hf:bert", "--input", "12", "--exits", "2", "--data", "texts.csv", "--out", "run", "-q")


def test_texts_are_data(eenet, bert, monkeypatch):
    learn = ("--epochs", "6", "--batch-size", "8", "--lr", "0.01", "--head-lr", "0.01")
    ran = eenet(*TEXTS, "--columns", "verdict,text", *learn)
    assert ran.code == 0 and "Trained hf:bert with 2 exits" in ran.stdout, ran.stderr
    described = json.loads((bert / "run" / "recipe.json").read_text())
    assert described["columns"] == ["verdict", "text"] and described["shortest"] is not None
    opened = open_run(bert / "run")
    assert opened.splits.classes == ("good", "bad")  # as the model numbers them
    test = opened.splits.test
    inputs = test.inputs(slice(0, 12))
    assert inputs["attention_mask"].sum(dim=1).tolist() == (inputs["input_ids"] != 1).sum(dim=1).tolist()
    assert len(set(inputs["attention_mask"].sum(dim=1).tolist())) > 1
    with torch.inference_mode():  # padding is not read: a text alone has the same answer
        whole = opened.model(inputs)
        for row in range(12):
            alone = opened.model(test.inputs(slice(row, row + 1)))
            assert all(torch.allclose(a[row], b[0], atol=1e-5) for a, b in zip(whole, alone, strict=True))
    with monkeypatch.context() as patch:  # opened once: recording the model takes most of the time
        patch.setattr("eenet.experiments.recipes.open_run", lambda *_, **__: opened)
        value = eenet("record", "run", "--split", "val", "--out", "val.npz", "--json", "-q").value
        assert value["num_samples"] == 24 and value["utility"][-1] > 0.9
        assert eenet("fit", "val.npz", "-b", "80%", "-p", "max_prob", "--out", "policy", "-q").code == 0
        ran = eenet("run", "run", "--policy", "policy", "split:test", "--json", "-q").value
        assert ran["accuracy"] > 0.9
    wanted = ran["samples"]
    vocabulary = list(json.loads((bert / "run" / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
    rows = [[vocabulary[token] for token in row if token > 3] for row in inputs["input_ids"].tolist()]
    (bert / "new.txt").write_text("".join(" ".join(row) + "\n" for row in rows))
    os.remove(bert / "texts.csv")  # the run folder has what is needed, the tokenizer too
    os.remove(bert / "bert" / "tokenizer.json")
    samples = eenet("run", "run", "--policy", "policy", "new.txt", "--json", "-q").value["samples"]
    assert [sample["prediction"] for sample in samples] == [sample["prediction"] for sample in wanted[:12]]
    assert [sample["probability"] for sample in samples] == pytest.approx(
        [sample["probability"] for sample in wanted[:12]], abs=1e-5
    )
    assert samples[0]["input"] == " ".join(rows[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which is the label and which the text is not clear: id, verdict, text. Name the two columns"),
        (("--columns", "verdict"), "--columns 'verdict' are not two names"),
        (("--columns", "tone,text"), "has not one column 'tone'"),
        (("--columns", "id,text"), "has the label 59 in row 120: the model knows 2 classes"),
        (("--columns", "text,verdict"), "the model's classes are good, bad"),
        (("--columns", "verdict,text", "--input", "2"), "max_tokens 2 leave no room"),
        (("--columns", "verdict,text", "--tokenizer", "none"), "--tokenizer 'none' does not exist"),
        (("--columns", "verdict,text", "--tokenizer", "other"), "pads with 0, the model"),
        (("--columns", "verdict,text", "--tokenizer", "config"), "config has no vocabulary"),
        (("--data", "none.csv"), "none.csv is missing"),
        (("--data", "digits"), "data 'digits' do not fit: each image has a class per sample, and hf:bert takes 12"),
    ],
)
def test_texts_that_do_not_fit_are_refused_before_any_work(words, said, eenet, bert):
    write_tokenizer(bert / "other")
    (bert / "config").mkdir()
    os.link(bert / "bert" / "config.json", bert / "config" / "config.json")
    options = dict(zip(TEXTS[2:-1:2], TEXTS[3:-1:2], strict=True)) | dict(zip(words[::2], words[1::2], strict=True))
    refused(eenet(*TEXTS[:2], *(word for pair in options.items() for word in pair), "-q"), said)
    assert not (bert / "run").exists()


def test_other_classes_are_learnt_by_a_new_last_layer(eenet, bert):
    (bert / "texts.csv").write_text((bert / "texts.csv").read_text().replace("bad", "awful"))
    said = "the label 'awful' in row 2"
    refused(eenet(*TEXTS, "--columns", "verdict,text"), said, "--num-classes")
    with pytest.warns(UserWarning, match=r"has no weights for classifier.out_proj.bias, .*: they begin at random"):
        ran = eenet(*TEXTS, "--columns", "verdict,text", "--num-classes", "3", "--epochs", "0.5")
    assert ran.code == 0 and "The last layer is made for 3 classes." in ran.stdout
    assert open_run(bert / "run").splits.classes == ("awful", "good", "2")  # said once, before the training


def test_options_of_texts_are_refused_without_texts(eenet, here):
    refused(eenet(*OWN, "--columns", "a,b", "-q"), "--columns say how texts are read")
    refused(eenet(*OWN, "--columns", "a,b", "--data", "digits", "--out", "new", "-q"), "'digits' are no texts")


def test_frozen_models_stay_as_they_are(eenet, here):
    model = load_source("users_own:make", shape=(1, 8, 8), seed=5).model
    save_tensors(here / "own.safetensors", model.state_dict())
    torch.save(model.state_dict(), here / "own.pt")
    kept = {}
    for name in ("own.safetensors", "own.pt"):
        words = ("--weights", name, "--freeze", "--data", "digits", "--epochs", "0.5", "--out", f"run {name[4:]}", "-q")
        assert eenet(*OWN, "--exits", "1,3", *words).code == 0
        from safetensors.torch import load_file

        kept[name] = load_file(here / f"run {name[4:]}" / "model.safetensors")
        for key, tensor in model.state_dict().items():
            assert torch.equal(kept[name][f"whole.model.{key}"], tensor)
    one, two = kept.values()
    assert all(torch.equal(one[key], two[key]) for key in one)


BAD = {
    "no kind": (("attach", "resnet18"), "timm:NAME, torchvision:NAME"),
    "no name": (("attach", "timm:"), "of no known kind"),
    "no module": (("attach", "users_lost:make"), "no module 'users_lost'"),
    "broken module": (("attach", "users_broken:make"), "no_such_thing"),
    "no function": (("attach", "users_own:mak"), "make"),
    "a module, no function": (("attach", "users_own:module"), "it is a Sequential"),
    "a number, no function": (("attach", "users_own:number"), "it is a int"),
    "no module returned": (("attach", "users_own:text"), "it returned str"),
    "function fails": (("attach", "users_own:broken"), "KeyError: 'lost'"),
    "wrong input": (("attach", "users_own:make", "--input", "3,8,8"), "fails on it"),
    "default input": (("attach", "users_own:make"), "--input"),
    "odd input": ((*OWN[:2], "--input", "1,eight"), "--input '1,eight' is no list of whole numbers from 1"),
    "unknown module to tap": ((*OWN, "--exits", "1,33"), "'33'"),
    "exits and capacities": ((*OWN, "--exits", "2", "--capacity", "1MB"), "--exits '2' and --capacity"),
    "no capacity": ((*OWN, "--capacity", "much"), "'much'"),
    "too few exits": ((*OWN, "--exits", "1"), "exits 1"),
    "classes": ((*OWN, "--num-classes", "5"), "num_classes 5"),
    "no data": ((*OWN, "--out", "{new}"), "--data"),
    "no out": ((*OWN, "--data", "digits"), "--out"),
    "unknown data": ((*OWN, "--data", "mnist", "--out", "{new}"), "digits and cifar10"),
    "missing data": ((*OWN, "--data", "none.npz", "--out", "{new}"), "none.npz"),
    "no data root": ((*OWN, "--data", "cifar10", "--out", "{new}"), "--data-root"),
    "missing weights": ((*OWN, "--weights", "none.pt"), "none.pt"),
    "no weights": ((*OWN, "--weights", "users_own.py"), "cannot be read"),
    "learning rate": ((*OWN, "--lr", "0", "--data", "digits", "--out", "{new}"), "lr 0"),
    "no folder of Hugging Face": (("attach", "hf:bert-base-uncased"), "nothing is downloaded"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case, eenet, here):
    words, said = BAD[case]
    before = sorted(os.listdir(here))
    refused(eenet(*(word.format(new=here / "new") for word in words), "-q"), said)
    assert sorted(os.listdir(here)) == before


def test_weights_of_another_model_are_refused(eenet, here):
    state = load_source("users_own:make", shape=(1, 8, 8)).model.state_dict()
    lost = {key: value for key, value in state.items() if key != "7.bias"}
    for name, tensors, said in (
        ("lost", lost, "the file lacks 7.bias"),
        ("more", state | {"8.bias": torch.zeros(3)}, "the model has not, 8.bias"),
        ("odd", state | {"7.bias": torch.zeros(3)}, "7.bias has shape (3,), the model's has (10,)"),
    ):
        save_tensors(here / f"{name}.safetensors", tensors)
        refused(eenet(*OWN, "--weights", f"{name}.safetensors", "-q"), said)


@pytest.mark.parametrize(
    ("spec", "library", "extra"),
    [
        ("timm:resnet18", "timm", "vision"),
        ("torchvision:resnet18", "torchvision.models", "vision"),
        ("hf:here", "transformers", "text"),
    ],
)
def test_a_missing_library_is_named_with_what_brings_it(spec, library, extra, eenet, here, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    ran = eenet("attach", spec, "-q")
    assert ran.code == 2 and f'pip install "eenet[{extra}]"' in ran.stderr


@pytest.mark.slow
def test_unknown_names_of_libraries_list_the_near_ones(eenet):
    pytest.importorskip("timm")
    for spec, near in (("timm:resnet_18", "resnet18"), ("torchvision:resnet_18", "resnet18")):
        ran = eenet("attach", spec, "-q")
        assert ran.code == 2 and near in ran.stderr and ran.stderr.count("\n") == 1
    assert eenet("attach", "timm:hf-hub:timm/resnet18", "-q").code == 2
    assert eenet("attach", "torchvision:fcn_resnet50", "-q").code == 2  # it would fetch weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "shape", "classes"),
    [
        (("timm:resnet10t", "--input", "1,32,32", "--num-classes", "5"), [1, 32, 32], 5),
        (("timm:vit_tiny_patch16_224", "--input", "3,64,64", "--exits", "3"), [3, 64, 64], 1000),
        (("timm:efficientnet_lite0",), [3, 224, 224], 1000),
        (("torchvision:resnet18", "--exits", "layer1,layer2,layer3", "--input", "3,64,64"), [3, 64, 64], 1000),
        (("torchvision:vit_b_16", "--input", "3,32,32", "--num-classes", "7", "--exits", "2"), [3, 32, 32], 7),
    ],
)
def test_models_of_libraries_get_exits(words, shape, classes, eenet):
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    value = eenet("attach", *words, "--json", "-q").value
    assert (value["input"], value["num_classes"]) == (shape, classes)
    assert [row["share"] for row in value["exits"]] == sorted(row["share"] for row in value["exits"])


@pytest.mark.slow
def test_a_local_model_of_hugging_face_gets_exits(eenet, tmp_path):
    library = pytest.importorskip("transformers")
    config = library.BertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, vocab_size=50, num_labels=3
    )
    library.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    ran = eenet("attach", f"hf:{tmp_path / 'bert'}", "--json", "-q")
    assert (ran.code, ran.stderr) == (0, "")
    assert (ran.value["input"], ran.value["num_classes"], ran.value["num_exits"]) == ([128], 3, 4)
    assert eenet("attach", f"hf:{tmp_path / 'bert'}", "--input", "16", "--json").value["input"] == [16]
    refused(eenet("attach", f"hf:{tmp_path / 'bert'}", "--input", "3,8,8"), "reads tokens")
    ran = eenet("attach", f"hf:{tmp_path / 'bert'}", "--data", "digits", "--out", tmp_path / "run")
    assert ran.code == 2 and "do not fit" in ran.stderr and not (tmp_path / "run").exists()
