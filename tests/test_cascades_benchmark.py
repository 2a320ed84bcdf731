"""The parts of the benchmark of cascades that need neither its data nor trained models."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from eenet import CostTable, ExitTable, StoppingScheduler, evaluate
from eenet.testing import synthetic_table

COSTS = CostTable((1.0, 10.0), "ms", 9.0)


@pytest.fixture
def cascades(benchmark) -> ModuleType:
    return benchmark("cascades")


def planted(samples: int, seed: int = 0) -> ExitTable:
    return synthetic_table(samples, num_exits=2, num_classes=4, seed=seed).with_costs(COSTS)


def test_a_choice_is_safe_if_all_that_cost_more_are(cascades: ModuleType) -> None:
    costs = np.array([1.0, 2.0, 3.0, 4.0])
    none, much, hardly = np.zeros(1000), np.tile([1.0, -0.9], 500), np.eye(1000)[0]
    assert cascades.safe(costs, np.stack([none, much, hardly, none], axis=1)) == 2  # 1: its standard error is 3 points
    assert cascades.safe(costs, np.stack([none, none, none, none], axis=1)) == 0
    assert cascades.safe(costs, np.stack([none, none, none, much], axis=1)) == 3  # none is, so the most expensive
    assert cascades.safe(costs[::-1], np.stack([none, hardly, much, none], axis=1)) == 1  # in any order


def test_thresholds_cost_what_replay_says(cascades: ModuleType) -> None:
    table = planted(300)
    values, costs, utility = cascades.by_threshold(table)
    for i in (0, len(values) // 2, len(values) - 1):
        found = evaluate(cascades.threshold(table, values[i]), table)
        assert found.cost == pytest.approx(costs[:, i].mean()) and found.utility == pytest.approx(utility[:, i].mean())
    assert costs[:, -1].min() == 10.0  # the last one keeps all samples


def test_the_threshold_within_a_budget_is_the_best_there_is(cascades: ModuleType) -> None:
    table = planted(300)
    found = evaluate(cascades.threshold_within(table, 5.0), table)
    scores = np.exp(table.seen_at(slice(None), 0)).max(axis=1)
    order = np.argsort(-scores, kind="stable")
    utility = [np.append(table.utility[order[:n], 0], table.utility[order[n:], 1]).mean() for n in range(301)]
    assert len(np.unique(scores)) == 300 and found.cost <= 5.0
    affordable = [value for n, value in enumerate(utility) if 10.0 - 9.0 * n / 300 <= 5.0]
    assert max(affordable) - 2 / 300 <= found.utility <= max(affordable)  # thresholds lie on a grid of quantiles


def test_safe_policies_keep_their_word_on_samples_they_have_not_seen(
    cascades: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascades, "BUDGETS", 8)
    table = planted(3000)
    fitting, rest = table.select(np.arange(1000)), table.select(np.arange(1000, 3000))
    found = evaluate(cascades.safest(StoppingScheduler(), fitting, seed=0), rest)
    assert rest.utility[:, -1].mean() - found.expected_utility < 3 * cascades.LOSS and found.expected_cost <= 10.0


def test_one_model_alone_need_not_run_the_first(cascades: ModuleType) -> None:
    table = planted(300)
    assert [cascades.alone_within(table, budget) for budget in (1.0, 8.9, 9.0)] == [0, 0, 1]
    rows = cascades.at_budget(StoppingScheduler(), table, table, full=9.0, goal=1.0)
    assert [row["policy"] for row in rows] == ["auto", "threshold", "alone"]
    assert rows[2] == rows[2] | {"exit": 1, "speed": 1.0, "lost": 0.0, "error": 0.0}
    assert cascades.at_budget(StoppingScheduler(), table, table, full=9.0, goal=20.0) == []  # exit 0 costs more


def test_held_out_sentences_leave_no_phrase_in_training(cascades: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from eenet.experiments.data.texts import Texts

    def some(*texts: str) -> Texts:
        return Texts(texts, (0,) * len(texts))

    train = some("a fine film", "a fine", "fine", "so dull", "dull", "so dull indeed", "twice", "Dev One")
    monkeypatch.setattr(cascades, "HELD_OUT", 1)
    monkeypatch.setattr(
        cascades, "read_sst2", lambda root: {"train": train, "dev": some("dev one"), "test": some("test one")}
    )
    found = cascades.texts_of("sst2", Path())
    dev, held_out = found["calibration"].texts
    kept = {
        "a fine film": ("so dull", "dull", "so dull indeed", "twice"),
        "so dull indeed": ("a fine film", "a fine", "fine", "twice"),
        "twice": ("a fine film", "a fine", "fine", "so dull", "dull", "so dull indeed"),
    }
    assert dev == "dev one" and found["train"].texts == kept[held_out] and found["test"].texts == ("test one",)


def test_the_page_says_what_was_reached(cascades: ModuleType, tmp_path: Path) -> None:
    row = {
        "full_ms": 10.0,
        "full_spread": (9.0, 11.0),
        "adaptive_ms": 4.0,
        "adaptive_spread": (3.9, 4.1),
        "speedup": 2.5,
    }
    outcome = {"accuracy": 0.9, "lost": 0.001, "error": 0.002, "shares": [80, 20], "bench": [row, row]}
    budget = {"goal": 5.0, "policy": "alone", "exit": 1, "speed": 4.9, "accuracy": 0.9, "lost": 0.0, "error": 0.001}
    one = {
        "costs": [0.5, 10.5],
        "policies": {"auto": outcome, "threshold": outcome | {"lost": 0.004}},
        "budgets": [budget, budget | {"policy": "auto", "exit": None, "lost": 0.0321}],
    }
    texts = {
        "samples": {"train": 1, "calibration": 2, "test": 3},
        "timed": {"samples": 3, "passes": 5, "threads": 1},
        "accuracy": {"linear": 0.8, "MiniLM": 0.9},
        "linear_ms": {"function": 0.07, "scikit-learn": 0.62},
        "goals": (2.5, 5.0),
        "cascades": {"plain": one, "inside": one},
    }
    curve = {
        "setup": "both",
        "batch_size": 1,
        "full": 2.0,
        "costs": [0.5, 2.1],
        "accuracy": [0.8, 0.9],
        "curve": [None, 0.9],
    }
    images = {
        "samples": {"calibration": 2, "test": 3},
        "shares": [0.1, 0.5],
        "passes": 3,
        "threads": 1,
        "curves": [curve],
    }
    page = cascades.cascades_page({"agnews": texts, "sst2": texts, "cifar10": images}, Namespace(page=tmp_path))
    text = page.read_text(encoding="utf-8")
    assert text.count("2.5: reached") == 2 and text.count("5: missed") == 4 + 2
    assert text.count("MiniLM alone | 90.00") == 4 and text.count("+3.21 ± 0.20") == 4
    assert "+0.10 ± 0.39" in text and "80.00 (25%), 90.00 (105%)" in text and "| - " in text


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_model_as_a_function_says_the_same(cascades: ModuleType, classes: int) -> None:
    from eenet.experiments.data.texts import Texts

    words = ("red", "green", "blue", "sky", "grass", "blood")
    texts = tuple(" ".join(words[(i * j + i) % 6] for j in range(1 + i % 5)) for i in range(60))
    fitted = cascades.linear_model(Texts(texts, tuple(i % classes for i in range(60))))
    asked = [*texts, "red red sky sky sky", "unknown", ""]
    assert np.allclose(cascades.as_function(fitted)(asked), fitted.predict_proba(asked), rtol=0, atol=1e-12)


def test_tables_of_texts_keep_their_order(cascades: ModuleType, tmp_path: Path) -> None:
    from eenet import cascade
    from eenet.experiments.data.texts import Texts

    long = lambda texts: np.array([[1.0, 0.0] if len(text) > 2 else [0.0, 1.0] for text in texts])  # noqa: E731
    texts = Texts(("aaa", "b", "cccc", "dd"), (0, 1, 0, 0))
    table = cascades.text_table(cascade([long, long]), texts, tmp_path, "t")
    assert isinstance(table, ExitTable) and table.labels.tolist() == [0, 1, 0, 0]
    assert table.utility[:, 0].tolist() == [1, 1, 1, 0]
