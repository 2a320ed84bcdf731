"""The commands on a run whose data set has masks, from recording to benchmarks; random weights."""

import numpy as np
import pytest
import torch
from segmenting import rectangles, segmenter
from tests.cli.conftest import made_run, refused, table_arrays

from eenet.evaluation import load_confusion
from eenet.evaluation.segmentation import mean_iou
from eenet.experiments.data.dataset import ArrayDataset, DataSplits
from eenet.experiments.recipes import RECIPES, Recipe
from eenet.models.weights import save_tensors
from eenet.tables.files import write_json
from eenet.tables.table import ExitTable
from eenet.training.settings import TrainSettings


class Masked(ArrayDataset):
    """Images of rectangles with their masks."""

    def __init__(self, seed: int) -> None:
        self.data = rectangles(24, seed=seed)
        plain = (0.0,) * 3, (1.0,) * 3
        super().__init__(self.data.images, torch.zeros(24, dtype=torch.long), mean=plain[0], std=plain[1])

    def batches(self, batch_size):
        return self.data.batches(batch_size)


RECIPE = Recipe(
    name="rectangles",
    summary="coloured rectangles",
    make=segmenter,
    data=lambda root, seed: DataSplits(
        load=lambda split: Masked(["train", "calibration", "test"].index(split)), classes=("none", "a", "b", "c")
    ),
    settings=TrainSettings(epochs=1, batch_size=8, lr=0.1),
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(RECIPES, "rectangles", RECIPE)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, its tables and a policy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "rectangles", RECIPE)
        return made_run(tmp_path_factory.mktemp("made"), "rectangles", RECIPE.build().state_dict(), "95%")


def test_record_says_what_images_and_the_data_set_are_worth(eenet, made, tmp_path):
    assert not ExitTable.load(made / "val.npz").has_classes
    words = ("record", made / "run", "--split", "val", "--out", tmp_path / "a.npz")
    ran = eenet(*words, "--utility", "miou", "--batch-size", 5, "--json", "-q")
    table, confusion = ExitTable.load(tmp_path / "a.npz"), load_confusion(tmp_path / "a.npz")
    assert ran.value["utility"] == pytest.approx(table.require_utility("test").mean(axis=0).tolist())
    assert ran.value["miou"] == pytest.approx(mean_iou(confusion.sum(axis=0)).tolist())
    np.testing.assert_allclose(table.require_utility("test"), mean_iou(confusion), atol=1e-6)
    assert "miou" in eenet(*words).stdout


def test_compare_judges_by_mean_iou_and_leaves_out_what_needs_classes(eenet, made, tmp_path):
    ran = eenet("compare", made / "val.npz", made / "test.npz", "--json", "--out", tmp_path)
    assert not {"vote", "patience", "ztw", "oracle"} & set(ran.value["area"])
    assert {"auto", "stopping", "eenet", "max_prob", "joint", "pcee", "random"} <= set(ran.value["area"])
    for name in ("vote", "patience", "ztw"):
        assert f"{name} is left out" in ran.stderr
    worth = mean_iou(load_confusion(made / "test.npz").sum(axis=0)).tolist()
    assert [one["utility_test"] for one in ran.value["exits"]] == pytest.approx(worth)
    assert (tmp_path / "report.html").is_file()


def test_profile_and_bench_run_maps(eenet, made):
    words = ("--batch-size", "1,4", "--passes", 1, "--json", "-q")
    value = eenet("profile", made / "run", "--policy", made / "policy", *words).value
    assert all(row["answer"]["median"] > 0 for row in value["latency"])
    value = eenet("bench", made / "run", "--policy", made / "policy", "--samples", 8, *words).value
    assert [row["regrouped_ms"] is None for row in value["rows"]] == [True, False]
    assert eenet("bench", made / "run", "--policy", made / "policy", "--samples", 8, *words[:4]).code == 0


def test_run_says_where_images_left_and_what_that_cost(eenet, made):
    value = eenet("run", made / "run", "--policy", made / "policy", "split:test", "--json", "-q").value
    assert value["num_samples"] == 24 and value["accuracy"] is None and value["mean_cost"] > 0
    assert {"exit", "cost"} <= set(value["samples"][0]) and "prediction" not in value["samples"][0]
    assert eenet("run", made / "run", "--policy", made / "policy", "split:test").code == 0


BAD = {
    "unknown utility": (("record", "{made}/run", "--split", "val", "--utility", "iou", "--out", "{new}"), "iou"),
    "vote by name": (("compare", "{made}/val.npz", "{made}/test.npz", "-p", "vote"), "name no classes"),
    "patience": (("fit", "{made}/val.npz", "-b", "90%", "-p", "patience", "--out", "{new}"), "name no classes"),
    "splits": (("compare", "{made}/val.npz", "{made}/test.npz", "--splits", "2"), "splits 2"),
    "groups": (
        ("compare", "{made}/val.npz", "{made}/test.npz", "--groups", "{made}/groups.txt"),
        "groups with confusion",
    ),
    "export": (
        ("export", "{made}/run", "--policy", "{made}/policy", "--engine", "onnxruntime", "--out", "{new}"),
        "maps",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_maps_do_not_allow_is_refused(case, eenet, made, tmp_path):
    words, said = BAD[case]
    (made / "groups.txt").write_text("a\n" * 24, encoding="utf-8")
    refused(eenet(*(word.format(made=made, new=tmp_path / "new") for word in words), "-q"), said)
    assert list(tmp_path.iterdir()) == []


def test_utility_means_nothing_where_samples_have_labels(eenet, tmp_path):
    write_json(tmp_path / "run" / "recipe.json", {"recipe": "digits_tiny", "seed": 0, "data_root": None})
    save_tensors(tmp_path / "run" / "model.safetensors", RECIPES["digits_tiny"].build().state_dict())
    words = ("record", tmp_path / "run", "--split", "val", "--utility", "miou", "--out", tmp_path / "a.npz", "-q")
    ran = eenet(*words)
    assert ran.code == 2 and "utility" in ran.stderr and not (tmp_path / "a.npz").exists()


@pytest.mark.usefixtures("few_policies")
def test_tables_without_labels_are_compared_without_what_needs_them(eenet, tmp_path):
    for name, seed in (("val", 0), ("test", 1)):
        utility = np.random.default_rng(seed).random((200, 3)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", **table_arrays(seed=seed, labels=None, utility=utility))
    ran = eenet("compare", tmp_path / "val.npz", tmp_path / "test.npz", "--json")
    assert ran.code == 0 and "ztw is left out" in ran.stderr
    assert {"vote", "patience"} <= set(ran.value["area"]) and "ztw" not in ran.value["area"]
