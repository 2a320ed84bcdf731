"""The parts of the benchmark of cascades that need neither its data nor trained models."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from eenet import CostTable, ExitTable, evaluate
from eenet.testing import synthetic_table

COSTS = CostTable((1.0, 10.0), "ms", 9.0)


@pytest.fixture
def cascades(benchmark) -> ModuleType:
    return benchmark("cascades")


def test_the_single_threshold_is_the_best_there_is(cascades: ModuleType) -> None:
    table = synthetic_table(300, num_exits=2, num_classes=4, seed=0).with_costs(COSTS)
    target = float(table.utility[:, -1].mean()) - 0.02
    policy = cascades.threshold(table, target)
    found = evaluate(policy, table)
    scores = np.sort(np.exp(table.seen_at(slice(None), 0)).max(axis=1))
    order = np.argsort(-np.exp(table.seen_at(slice(None), 0)).max(axis=1), kind="stable")
    utility = [np.append(table.utility[order[:n], 0], table.utility[order[n:], 1]).mean() for n in range(301)]
    most = max(n for n, value in enumerate(utility) if value >= target)
    assert len(np.unique(scores)) == 300 and found.utility >= target
    assert found.cost <= 10.0 - 9.0 * (most - 3) / 300  # thresholds lie on a grid of 400 quantiles
    assert evaluate(cascades.cheapest(table, target, 0), table).utility >= target - 1e-9


def test_the_page_says_what_was_reached(cascades: ModuleType, tmp_path: Path) -> None:
    row = {
        "full_ms": 10.0,
        "full_spread": (9.0, 11.0),
        "adaptive_ms": 4.0,
        "adaptive_spread": (3.9, 4.1),
        "speedup": 2.5,
    }
    outcome = {"accuracy": 0.9, "lost": 0.001, "error": 0.002, "shares": [80, 20], "bench": [row, row]}
    one = {"costs": [0.5, 10.5], "policies": {"stopping": outcome, "threshold": outcome | {"lost": 0.004}}}
    texts = {
        "samples": {"train": 1, "calibration": 2, "test": 3},
        "timed": {"samples": 3, "passes": 5, "threads": 1},
        "accuracy": {"linear": 0.8, "MiniLM": 0.9},
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
    assert "+0.10 ± 0.39" in text and "80.00 (25%), 90.00 (105%)" in text and "| - " in text


def test_names_of_runs_are_checked(cascades: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cascades.main(["--out", str(tmp_path), "--minilm", "news=run"])
    assert "agnews, sst2" in capsys.readouterr().err


def test_tables_of_texts_keep_their_order(cascades: ModuleType, tmp_path: Path) -> None:
    from eenet import cascade
    from eenet.experiments.data.texts import Texts

    long = lambda texts: np.array([[1.0, 0.0] if len(text) > 2 else [0.0, 1.0] for text in texts])  # noqa: E731
    texts = Texts(("aaa", "b", "cccc", "dd"), (0, 1, 0, 0))
    table = cascades.text_table(cascade([long, long]), texts, tmp_path, "t")
    assert isinstance(table, ExitTable) and table.labels.tolist() == [0, 1, 0, 0]
    assert table.utility[:, 0].tolist() == [1, 1, 1, 0]
