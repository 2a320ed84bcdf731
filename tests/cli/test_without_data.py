"""A run folder says what running needs: data are opened only where their samples are needed."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import made_run, refused

from eenet.errors import DataError, InputError
from eenet.experiments.recipes import RECIPES, open_run
from eenet.experiments.recipes.recipe import Recipe
from eenet.experiments.recipes.stored import store
from eenet.tables.files import read_object, write_json


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with its policy, as training leaves it, whose data are gone."""
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES["digits_tiny"]
    made_run(tmp_path, "digits_tiny", recipe.build().state_dict())
    described = read_object("run/recipe.json", "run") | store(recipe.load_data(), tmp_path / "run")
    write_json("run/recipe.json", described, sealed=True)

    def gone(*_: object) -> None:
        raise DataError("data digits are gone: the run was trained on them. Put them back.")

    monkeypatch.setattr(Recipe, "load_data", gone)
    return tmp_path / "run"


def test_images_are_answered_without_the_data(eenet, run):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("3.png")
    np.savez("raw.npz", images=np.zeros((2, 1, 8, 8), np.uint8))
    words = ("run", "run", "--policy", "policy", "--json", "-q")
    assert [len(eenet(*words, name).value["samples"]) for name in ("3.png", "raw.npz")] == [1, 2]
    refused(eenet(*words, "split:test"), "data digits are gone")


def test_what_only_needs_a_form_makes_inputs_up_and_says_so(eenet, run):
    words = ("run", "--batch-size", 2, "--passes", 1)
    shown = eenet("profile", *words)
    assert shown.code == 0 and "Note: data digits are gone" in shown.stderr and "made up" in shown.stderr
    refused(eenet("bench", *words, "--policy", "policy", "-q"), "data digits are gone")
    refused(eenet("record", "run", "--split", "test", "--out", "t.npz", "-q"), "data digits are gone")


@pytest.mark.slow
def test_an_export_needs_no_data(eenet, run):
    for engine in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(engine)
    made = eenet("export", "run", "-p", "policy", "--engine", "onnxruntime", "--out", "exported")
    assert made.code == 0 and "made up" in made.stderr
    manifest = json.loads((run.parent / "exported" / "manifest.json").read_text())
    assert manifest["classes"] == list("0123456789") and manifest["preparation"]["size"] == [8, 8]


@pytest.mark.parametrize(
    "stored",
    [{"images": {}}, {"images": {"mean": [1]}}, {"texts": {}}, {"sounds": {}}, 3, {"texts": {"tokenizer": {}}}],
)
def test_a_damaged_preparation_is_refused(stored, run):
    described = read_object(run / "recipe.json", "run") | {"preparation": stored}
    write_json(run / "recipe.json", described, sealed=True)
    with pytest.raises(InputError, match=r"its preparation is damaged|tokenizer .* is missing or was changed"):
        open_run(run).preparation  # noqa: B018 - it is read when it is asked for
