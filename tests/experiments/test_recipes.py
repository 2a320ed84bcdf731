"""Recipes and run folders: train, open again, refuse what does not belong."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eenet.errors import DataError, InputError
from eenet.experiments import recipes
from eenet.experiments.recipes import RECIPES, Attachment, Recipe, attached_recipe, open_run, train
from eenet.experiments.recipes.attached import training
from eenet.tables.files import read_object, write_json


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    recipe = RECIPES["digits_tiny"]
    recipe = dataclasses.replace(recipe, settings=dataclasses.replace(recipe.settings, epochs=0.5))
    monkeypatch.setitem(recipes.RECIPES, recipe.name, recipe)
    return recipe


def test_a_run_is_opened_as_it_was_trained(quick: Recipe, tmp_path: Path) -> None:
    trained = train(quick.with_seed(4), tmp_path / "run", progress=False)
    opened = open_run(tmp_path / "run")
    inputs = opened.splits.test.inputs(slice(0, 20))
    with torch.inference_mode():
        pairs = zip(trained.model(inputs), opened.model(inputs), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert opened.recipe.settings.seed == 4 and not opened.model.training
    assert torch.equal(opened.splits.test.labels, trained.splits.test.labels)
    described = read_object(tmp_path / "run" / "recipe.json", "run")
    assert described.items() >= {"recipe": "digits_tiny", "seed": 4, "data_root": None}.items()
    assert described["class_names"] == list("0123456789") == list(opened.classes)
    assert opened.preparation == trained.splits.test.preparation
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    train(quick.with_seed(4), tmp_path / "run", progress=False)  # again: nothing changes
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="holds a run with seed 4, not 1"):
        train(quick.with_seed(1), tmp_path / "run", progress=False)
    (tmp_path / "run" / "recipe.json").write_text('{"recipe": "cifar10_resnet56_3"}')
    with pytest.raises(InputError, match="do not fit: the file lacks stages"):
        open_run(tmp_path / "run")


def test_a_flipped_bit_is_noticed(quick: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(quick, run, progress=False)
    for name, places in (("model.safetensors", (9, 200, -5000, -1)), ("recipe.json", (20, -100))):
        content = (run / name).read_bytes()
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 4
            (run / name).write_bytes(changed)
            with pytest.raises(InputError, match=name):
                open_run(run)
        (run / name).write_bytes(content)
    open_run(run)


def test_refuses_what_is_no_finished_run(quick: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run .* is missing"):
        open_run(tmp_path)
    (tmp_path / "recipe.json").write_text('{"recipe": "unheard"}')
    with pytest.raises(InputError, match="its recipe 'unheard' is not known"):
        open_run(tmp_path)
    for described in ('{"recipe": ["digits_tiny"]}', '{"recipe": "digits_tiny", "seed": "x"}'):
        (tmp_path / "recipe.json").write_text(described)
        with pytest.raises(InputError, match="cannot be opened"):
            open_run(tmp_path)
    (tmp_path / "recipe.json").write_text('{"recipe": "digits_tiny", "seed": 0}')
    with pytest.raises(InputError, match="is not finished"):
        open_run(tmp_path)


def test_refuses_a_missing_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EENET_DATA", raising=False)
    recipe = RECIPES["cifar10_resnet56_6"]
    with pytest.raises(DataError, match="data root is missing"):
        train(recipe, tmp_path / "run", progress=False)
    with pytest.raises(DataError, match="was expected, found nothing"):
        train(recipe, tmp_path / "run", data_root=tmp_path, progress=False)
    assert not (tmp_path / "run").exists()


PAPER = [name for name in RECIPES if name.endswith("-paper")]


@pytest.mark.parametrize("name", PAPER)
def test_models_of_the_papers_sizes_are_made(name: str) -> None:
    # their shapes alone where that can be; that their numbers are the same each time is seen in the slow tests
    with torch.device("cpu" if "bert" in name else "meta"):  # a BERT is checked against itself while it is made
        model = RECIPES[name].make()
    assert model.num_exits >= 3 and sum(parameter.numel() for parameter in model.parameters()) > 500_000


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in PAPER else ()) for name in RECIPES]
)
def test_building_is_repeatable_and_leaves_the_random_state(name: str) -> None:
    state = torch.get_rng_state()
    first, second = RECIPES[name].build().state_dict(), RECIPES[name].build().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert RECIPES[name].name == name


MODULE = """
import torch


def make():
    blocks = [torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.ReLU()) for _ in range(3)]
    return torch.nn.Sequential(*blocks, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 12))
"""

OTHER_MODULE = """
import torch


def make():
    model = torch.nn.Sequential()
    model.add_module("flat", torch.nn.Flatten())
    model.add_module("last", torch.nn.Linear(360, 12))
    return model
"""


@pytest.fixture
def attachment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attachment]:
    """A description of a model of the user's own, whose module lies in the current directory."""
    (tmp_path / "owned.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Attachment(
        model="owned:make",
        exits=("0", "1"),
        input=(3, 10, 12),
        num_classes=None,
        classes=12,
        weights=None,
        normalisation=None,
        data="digits",
        settings=training(epochs=0.2),
    )
    sys.modules.pop("owned", None)


def test_an_attached_run_is_made_again_from_its_source(attachment: Attachment, tmp_path: Path) -> None:
    trained = train(attached_recipe(attachment), tmp_path / "run", progress=False)
    opened = open_run(tmp_path / "run")
    inputs = opened.splits.test.inputs(slice(0, 20))
    assert inputs.shape == (20, 3, 10, 12)  # grey as every colour, brought to the model's size
    assert opened.splits.classes == (*"0123456789", "10", "11")
    with torch.inference_mode():
        pairs = zip(trained.model(inputs), opened.model(inputs), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        state = opened.model.start(inputs)
        for stage in opened.model.stages:
            state = stage(state)
        assert torch.allclose(state, opened.model(inputs)[-1], atol=1e-5)  # the stages hold the trained weights too
    assert opened.recipe.details == attachment.to_dict()
    described = read_object(tmp_path / "run" / "recipe.json", "run")
    assert Attachment.from_dict(described) == attachment


def test_a_run_whose_source_is_gone_cannot_be_opened(
    attachment: Attachment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "run" / "recipe.json", {"recipe": "attached", "seed": 0, **attachment.to_dict()})
    (tmp_path / "run" / "model.safetensors").write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="its model cannot be made again: model 'owned:make' is not found"):
        open_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owned.py").write_text(OTHER_MODULE)
    with pytest.raises(
        InputError, match="its model cannot be made again: exits name the module '0', which is not there"
    ):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    "harm", [{"exits": None}, {"training": {"epochs": -1}}, {"training": {"speed": 3}}, {"seed": "x"}]
)
def test_a_damaged_description_is_refused(attachment: Attachment, harm: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "recipe.json", {"recipe": "attached", "seed": 0, **attachment.to_dict(), **harm})
    with pytest.raises(InputError, match=r"recipe.json is damaged"):
        open_run(tmp_path / "run")


def test_data_that_do_not_fit_the_model_are_refused(attachment: Attachment) -> None:
    with pytest.raises(DataError, match="have 10 classes, the model has 4"):
        attached_recipe(dataclasses.replace(attachment, classes=4)).load_data()
    rng = np.random.default_rng(0)
    np.savez("mine.npz", images=rng.random((20, 4, 6, 6), dtype=np.float32), labels=np.arange(20) % 3)
    mine = dataclasses.replace(attachment, data="mine.npz")
    with pytest.raises(DataError, match="have 4 channels, the model takes 3"):
        attached_recipe(mine).load_data().train  # noqa: B018
    Path("moved").mkdir()
    Path("mine.npz").rename("moved/mine.npz")
    with pytest.raises(DataError, match="is missing"):
        attached_recipe(mine).load_data()
    assert attached_recipe(mine).load_data(Path("moved")).classes[-1] == "11"  # found where it lies now
