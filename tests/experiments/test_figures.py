"""The figures of an experiment: what is drawn, what is counted, and what is said where something cannot be drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from eenet.evaluation.paired import GROUPS, at_equal_cost, group_counts
from eenet.experiments.data.dataset import ArrayDataset
from eenet.experiments.data.texts import TextDataset
from eenet.experiments.reproduce.figures import Figures, figures_section, pictures, texts
from eenet.policies import ConfidenceScorer, static_policy
from eenet.running.texts import TextPreparation
from eenet.schedulers import GeometricScheduler, StoppingScheduler
from eenet.testing import synthetic_table

COUNT = 400


def grey(count: int, height: int = 4, width: int = 4) -> ArrayDataset:
    images = torch.linspace(0, 1, count)[:, None, None, None].expand(count, 1, height, width)
    return ArrayDataset(images.clone(), torch.zeros(count, dtype=torch.int64), mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def figures() -> Figures:
    val, test = synthetic_table(COUNT), synthetic_table(COUNT, seed=1)
    return Figures(
        table=test,
        max_prob=GeometricScheduler().sweep(val),
        auto=StoppingScheduler().sweep(val),
        learned=("stopping", StoppingScheduler().fit(val, budget="60%")),
        cost=2.5,
        samples=grey(COUNT),
    )


def test_all_five_are_drawn_small_and_counted_at_equal_cost(figures, tmp_path):
    found = figures.save(tmp_path, "some")
    assert list(found["files"]) == ["ladder", "scores", "weights", "exits", "reliability"] and not found["left_out"]
    for name in found["files"].values():
        assert (tmp_path / name).stat().st_size < 300_000
        with Image.open(tmp_path / name) as drawn:
            assert drawn.format == "PNG" and len(drawn.getcolors()) > 2
    pair = at_equal_cost(figures.max_prob, figures.auto, figures.table, 2.5)
    assert found["pair"]["groups"] == group_counts(figures.table, *pair)
    assert found["pair"]["costs"][0] == pytest.approx(found["pair"]["costs"][1], rel=1e-3)
    assert np.sum(found["pair"]["right_and_left"], axis=1)[:, 1].tolist() == [COUNT, COUNT]
    assert found["auroc"].keys() == {"max_prob", "auto", "stopping"} and found["auroc"]["stopping"][0] > 0.5
    page = figures_section(found)
    assert all(f"](some_{kind}.png)" in page for kind in found["files"])
    assert all(f"| {name} |" in page for name in GROUPS) and "| max_prob |" in page and "`stopping`" in page


def test_what_cannot_be_drawn_is_said_with_the_reason(figures, tmp_path):
    all_at_once = replace(figures, learned=("stopping", static_policy(ConfidenceScorer("max_prob"), 0, 4)), cost=0.1)
    found = all_at_once.save(tmp_path, "some")
    assert set(found["left_out"]) == {"ladder", "scores", "weights"} and "pair" not in found and not found["auroc"]
    page = figures_section(found)
    assert "*ladder* is left out: budget 0.1" in page and "*weights* is left out" in page and "groups" not in page


def test_of_maps_only_weights_and_exits_are_drawn(figures, tmp_path):
    found = replace(figures, maps=True).save(tmp_path, "some")
    assert list(found["files"]) == ["weights", "exits"] and "auroc" not in found
    assert "*scores* is left out: an answer is a whole map" in figures_section(found)


def test_pictures_are_those_before_normalisation_and_no_larger_than_they_are_drawn():
    dataset = grey(300, 100, 50)
    found = pictures(dataset)
    assert found.shape == (300, 64, 32, 1) and found.dtype == np.uint8
    assert np.array_equal(found[:, 0, 0, 0], np.round(255 * dataset.images[:, 0, 0, 0].numpy()))
    four = ArrayDataset(torch.zeros(2, 4, 3, 3), torch.zeros(2, dtype=torch.int64), mean=(0.0,) * 4, std=(1.0,) * 4)
    assert pictures(four) is None


class Words:
    """Stands for a tokenizer of Hugging Face."""

    def decode(self, tokens, **how):
        assert how["skip_special_tokens"]
        return " ".join(f"w{token}" for token in tokens)


def test_texts_are_those_that_the_model_reads():
    tokens, labels = torch.tensor([[1, 2, 0], [3, 0, 0]], dtype=torch.int32), torch.tensor([0, 1])
    known = TextDataset(tokens, labels, preparation=TextPreparation(tokenizer=Words(), max_tokens=3))
    assert texts(known) == ["w1 w2", "w3"] and pictures(known) is None
    assert texts(TextDataset(tokens, labels)) is None and texts(grey(2)) is None
