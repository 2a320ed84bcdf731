"""`eenet attach`: a model of the user's own gets exits, learns them, and is a run like any other."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.conftest import Ran

from eenet.experiments.recipes import load_source, open_run
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


def text():
    return "no module"


def broken():
    raise KeyError("lost")


module = make()
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with a module of the user's in it."""
    (tmp_path / "users_own.py").write_text(MODULE)
    (tmp_path / "users_broken.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("users_own", "users_broken"):
        sys.modules.pop(name, None)


OWN = ("attach", "users_own:make", "--input", "1,8,8")


def test_exits_are_shown_without_data(eenet: Callable[..., Ran], here: Path) -> None:
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


@pytest.mark.parametrize("data", [pytest.param("digits", marks=pytest.mark.slow), "mine.npz"])
def test_a_trained_run_is_a_run_like_any_other(data: str, eenet: Callable[..., Ran], here: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=60)
    images = (rng.integers(80, size=(60, 1, 6, 6)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(here / "mine.npz", images=images, labels=labels)
    words = (*OWN, "--exits", "1,3", "--data", data, "--epochs", "0.5", "--out", "run", "-q")
    assert eenet(*words).code == 0
    before = (here / "run" / "model.safetensors").read_bytes()
    assert eenet(*words).code == 0  # goes on with what is done
    assert (here / "run" / "model.safetensors").read_bytes() == before
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


def test_a_folder_of_images_per_class_is_data(eenet: Callable[..., Ran], here: Path) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (here / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = (rng.integers(80, size=(9, 12, 3)) + 150 * number).astype(np.uint8)
            Image.fromarray(pixels).save(here / "photos" / name / f"{i}.png")
    words = ("attach", "users_own:colour", "--input", "3,8,8", "--exits", "1,3", "--data", "photos", "--epochs", "0.5")
    ran = eenet(*words, "--batch-size", 4, "--out", "run", "-q")
    assert ran.code == 0, ran.stderr
    opened = open_run(here / "run")
    assert opened.splits.classes[:2] == ("dark", "light")
    assert [len(opened.splits.get(side)) for side in ("train", "val", "test")] == [12, 4, 4]
    assert all(opened.splits.get(side).inputs(slice(0, 2)).shape[1:] == (3, 8, 8) for side in ("train", "test"))
    os.rename(here / "photos", here / "run" / "photos")  # the folder may lie elsewhere later
    assert eenet("record", "run", "--split", "test", "--out", "test.npz", "-q").code == 2
    assert eenet("record", "run", "--split", "test", "--data-root", "run", "--out", "test.npz", "-q").code == 0


def test_frozen_models_stay_as_they_are(eenet: Callable[..., Ran], here: Path) -> None:
    model = load_source("users_own:make", shape=(1, 8, 8), seed=5).model
    save_tensors(here / "own.safetensors", model.state_dict())
    torch.save(model.state_dict(), here / "own.pt")
    kept = {}
    for name in ("own.safetensors", "own.pt"):
        words = ("--weights", name, "--freeze", "--data", "digits", "--epochs", "0.5", "--out", f"run {name}", "-q")
        assert eenet(*OWN, "--exits", "1,3", *words).code == 0
        from safetensors.torch import load_file

        kept[name] = load_file(here / f"run {name}" / "model.safetensors")
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
    "odd input": ((*OWN[:2], "--input", "1,eight"), "--input '1,eight' is no list of whole numbers above 0"),
    "unknown module to tap": ((*OWN, "--exits", "1,33"), "'33'"),
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
def test_bad_input_is_refused_before_any_work(case: str, eenet: Callable[..., Ran], here: Path) -> None:
    words, said = BAD[case]
    before = sorted(os.listdir(here))
    ran = eenet(*(word.format(new=here / "new") for word in words), "-q")
    assert (ran.code, ran.stdout) == (2, "") and said in ran.stderr
    assert ran.stderr.startswith("Error: ") and ran.stderr.count("\n") == 1
    assert sorted(os.listdir(here)) == before


def test_weights_of_another_model_are_refused(eenet: Callable[..., Ran], here: Path) -> None:
    state = load_source("users_own:make", shape=(1, 8, 8)).model.state_dict()
    lost = {key: value for key, value in state.items() if key != "7.bias"}
    for name, tensors, said in (
        ("lost", lost, "the file lacks 7.bias"),
        ("more", state | {"8.bias": torch.zeros(3)}, "the model has not, 8.bias"),
        ("odd", state | {"7.bias": torch.zeros(3)}, "7.bias has shape (3,), the model's has (10,)"),
    ):
        save_tensors(here / f"{name}.safetensors", tensors)
        ran = eenet(*OWN, "--weights", f"{name}.safetensors", "-q")
        assert (ran.code, ran.stdout) == (2, "") and said in ran.stderr


@pytest.mark.parametrize(
    ("spec", "library", "extra"),
    [
        ("timm:resnet18", "timm", "vision"),
        ("torchvision:resnet18", "torchvision.models", "vision"),
        ("hf:here", "transformers", "text"),
    ],
)
def test_a_missing_library_is_named_with_what_brings_it(
    spec: str,
    library: str,
    extra: str,
    eenet: Callable[..., Ran],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    ran = eenet("attach", spec, "-q")
    assert ran.code == 2 and f'pip install "eenet[{extra}]"' in ran.stderr


@pytest.mark.slow
def test_unknown_names_of_libraries_list_the_near_ones(eenet: Callable[..., Ran]) -> None:
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
def test_models_of_libraries_get_exits(
    words: tuple[str, ...], shape: list[int], classes: int, eenet: Callable[..., Ran]
) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    value = eenet("attach", *words, "--json", "-q").value
    assert (value["input"], value["num_classes"]) == (shape, classes)
    assert [row["share"] for row in value["exits"]] == sorted(row["share"] for row in value["exits"])


@pytest.mark.slow
def test_a_local_model_of_hugging_face_gets_exits(eenet: Callable[..., Ran], tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    config = library.BertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, vocab_size=50, num_labels=3
    )
    library.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    ran = eenet("attach", f"hf:{tmp_path / 'bert'}", "--json", "-q")
    assert (ran.code, ran.stderr) == (0, "")
    assert (ran.value["input"], ran.value["num_classes"], ran.value["num_exits"]) == ([128], 3, 4)
    assert eenet("attach", f"hf:{tmp_path / 'bert'}", "--input", "16", "--json").value["input"] == [16]
    ran = eenet("attach", f"hf:{tmp_path / 'bert'}", "--input", "3,8,8")
    assert ran.code == 2 and "reads tokens" in ran.stderr
    ran = eenet("attach", f"hf:{tmp_path / 'bert'}", "--data", "digits", "--out", tmp_path / "run")
    assert ran.code == 2 and "it holds images" in ran.stderr and not (tmp_path / "run").exists()
