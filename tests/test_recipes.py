"""Recipes and run folders: train, open again, refuse what does not belong."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from eenet import recipes
from eenet.errors import DataError, InputError
from eenet.recipes import RECIPES, Recipe, open_run, train


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
    described = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert described == {"recipe": "digits_tiny", "seed": 4, "data_root": None}


def test_training_again_in_the_same_folder_changes_nothing(quick: Recipe, tmp_path: Path) -> None:
    train(quick, tmp_path, progress=False)
    before = (tmp_path / "model.safetensors").read_bytes()
    train(quick, tmp_path, progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_refuses_a_folder_of_another_run(quick: Recipe, tmp_path: Path) -> None:
    train(quick, tmp_path, progress=False)
    with pytest.raises(InputError, match="holds a run with seed 0, this one has 1"):
        train(quick.with_seed(1), tmp_path, progress=False)


def test_refuses_what_is_no_finished_run(quick: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run .* is missing"):
        open_run(tmp_path)
    (tmp_path / "recipe.json").write_text('{"recipe": "unheard"}')
    with pytest.raises(InputError, match="its recipe 'unheard' is not known"):
        open_run(tmp_path)
    (tmp_path / "recipe.json").write_text('{"recipe": "digits_tiny", "seed": 0}')
    with pytest.raises(InputError, match="is not finished"):
        open_run(tmp_path)


def test_refuses_weights_of_another_model(quick: Recipe, tmp_path: Path) -> None:
    train(quick, tmp_path, progress=False)
    described = {"recipe": "cifar10_resnet56_3", "seed": 0, "data_root": None}
    (tmp_path / "recipe.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="does not fit its recipe"):
        open_run(tmp_path)


def test_refuses_a_missing_data_root(tmp_path: Path) -> None:
    recipe = RECIPES["cifar10_resnet56_6"]
    with pytest.raises(DataError, match="data root is missing"):
        train(recipe, tmp_path / "run", progress=False)
    with pytest.raises(DataError, match="was expected and not found"):
        train(recipe, tmp_path / "run", data_root=tmp_path, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_building_is_repeatable_and_leaves_the_random_state(name: str) -> None:
    state = torch.get_rng_state()
    first, second = RECIPES[name].build().state_dict(), RECIPES[name].build().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert RECIPES[name].name == name
