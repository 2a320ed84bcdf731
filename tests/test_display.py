"""Frames, notebooks and representations of results: short, complete where asked, and text, never markup."""

from dataclasses import replace

import numpy as np
import pytest

from eenet import CostTable, ExitTable, GeometricScheduler, advise, compare, evaluate
from eenet.errors import MissingExtraError
from eenet.evaluation import saving
from eenet.tables.display import few, notebook
from eenet.testing.planted import synthetic_table

COSTS = CostTable((1.0, 2.0, 4.0), "ms", 3.5)


@pytest.fixture(scope="module")
def results() -> dict[str, object]:
    """One of every result, made of small tables."""
    val, test = (replace(synthetic_table(num_samples=200, seed=seed), split="made") for seed in (0, 1))
    dial = GeometricScheduler().sweep(val)
    policy = dial.at("70%")
    comparison = compare(val, test, {"max_prob": GeometricScheduler()}, ["60%", "90%"], resamples=50)
    return {
        "table": test,
        "dial": dial,
        "policy": policy,
        "costs": test.costs,
        "comparison": comparison,
        "report": evaluate(policy, test),
        "saving": saving(policy, test),
        "advice": advise(val, budgets=["70%"], resamples=50),
    }


ALL = ("table", "dial", "policy", "costs", "comparison", "report", "saving", "advice")


@pytest.mark.parametrize("name", ALL)
def test_representations_are_a_few_lines_without_arrays(name, results):
    shown = repr(results[name])
    assert "\n" not in shown and len(shown) < 600
    assert "array(" not in shown and "object at 0x" not in shown


@pytest.mark.parametrize("name", ["comparison", "report", "saving", "advice"])
def test_notebooks_show_a_sentence_and_a_small_table(name, results):
    shown = results[name]._repr_html_()
    assert shown.startswith("<p>") and shown.count("<table>") == 1 and len(shown) < 5000


def test_notebooks_show_names_as_text_and_leave_long_tables_to_frames():
    shown = notebook("a < b", [{"<b>name": "<script>", "cost": None, "x": 1 / 3}] * 15)
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "&lt;b&gt;name" in shown
    assert "a &lt; b" in shown and "<td>-</td><td>0.3333</td>" in shown
    assert shown.count("<tr>") == 13 and "3 more rows" in shown
    assert notebook("nothing", []) == "<p>nothing</p>"


def test_frames_have_one_row_per_sample_and_exit():
    table = ExitTable(
        logits=[[[2.0, 0.0], [3.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]],
        labels=[0, 1],
        costs=COSTS,
        exit_names=("a", "b", "c"),
    )
    frame = table.to_frame()
    assert list(frame) == ["sample", "exit", "exit_name", "utility", "cost", "label"]
    assert frame.to_dict("list") == {
        "sample": [0, 0, 0, 1, 1, 1],
        "exit": [0, 1, 2, 0, 1, 2],
        "exit_name": ["a", "b", "c"] * 2,
        "utility": [1, 1, 1, 0, 1, 1],
        "cost": [1, 2, 4, 1, 2, 4],
        "label": [0, 0, 0, 1, 1, 1],
    }
    assert list(replace(table, labels=None, utility=None, costs=None, exit_names=()).to_frame()) == ["sample", "exit"]


def test_costs_per_sample_are_in_the_frame():
    cost = np.array([[1.0, 2.0], [3.0, 5.0]])
    table = ExitTable(logits=np.zeros((2, 2, 2)), labels=[0, 1], cost=cost, costs=CostTable((2.0, 3.5), "ms"))
    assert table.to_frame()["cost"].tolist() == [1, 2, 3, 5]


def test_frames_of_results_have_their_numbers(results):
    comparison, report, advice = (results[name] for name in ("comparison", "report", "advice"))
    frame = comparison.to_frame()
    assert len(frame) == len(comparison.rows) == 6
    assert frame["test_utility"].tolist() == [row.test_utility for row in comparison.rows]
    assert report.to_frame()["share"].tolist() == list(report.exit_distribution)
    assert advice.to_frame()["difference"].tolist() == [row.difference for row in advice.rows]


def test_deviations_over_splits_have_columns():
    tables = [synthetic_table(num_samples=100, seed=seed) for seed in (0, 1)]
    frame = compare(*tables, {"max_prob": GeometricScheduler()}, ["70%"], splits=2).to_frame()
    assert {"sd_test_utility", "sd_test_cost"} <= set(frame) and "sd" not in frame


def test_a_frame_without_pandas_names_the_extra(results, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"eenet\[frames\]"):
        results["report"].to_frame()


def test_of_many_values_the_first_and_the_last_are_said():
    assert few((1.0, 2.5)) == "1, 2.5" and few(range(9)) == "0, 1, 2, ..., 8"
    assert "..." in repr(CostTable(tuple(range(1, 30)), "ms")) and "\n" not in repr(CostTable((1.0, 2.0), "ms"))
    assert eval(repr(COSTS)) == COSTS


def test_models_and_settings_are_short():
    torch = pytest.importorskip("torch")
    from eenet import AdaptiveModel, Bundle, TrainSettings, cascade, tiny_cnn
    from eenet.policies import ScorePolicy

    model, policy = tiny_cnn(exits=3), ScorePolicy("max_prob", [0.5, 0.9, -np.inf])
    assert repr(model).startswith("MultiExitModel of 3 exits") and "\n" not in repr(model)
    assert "leaves by the score max_prob" in repr(AdaptiveModel(model, policy))
    assert "3 exits" in repr(Bundle(model=model, policy=policy))
    settings = TrainSettings(epochs=3.0, batch_size=8, lr=0.1, ema=0.5)
    assert repr(settings) == "TrainSettings(epochs=3.0, batch_size=8, lr=0.1, ema=0.5)"
    members = [torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)]
    assert repr(cascade(members)).startswith("Cascade of ") and "2 exits" in repr(cascade(members))
