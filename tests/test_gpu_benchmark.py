"""The benchmark of GPUs: its logic on the CPU, with two tiny nets; graphs are then calls of what they would capture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from eenet import AdaptiveModel
from eenet.experiments.zoo.tiny import tiny_cnn, tiny_resnet
from eenet.running.engines import EagerEngine
from eenet.running.recording import outputs

NETS = {
    "Tiny, 3 exits": lambda: (tiny_cnn(), torch.randn(192, 1, 8, 8)),
    "Tiny ResNet": lambda: (tiny_resnet(), torch.randn(192, 1, 8, 8)),
}
SIZES = {1: 2, 5: 10}


@pytest.fixture
def gpu(benchmark) -> ModuleType:
    return benchmark("gpu")


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(work=tmp_path / "work", out=tmp_path, minutes=1.0, passes=1, seed=0)


@pytest.fixture
def engines(gpu: ModuleType) -> dict:
    return {name: gpu.ENGINES[name] for name in ("eager", "graphs")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(gpu, tmp_path, capsys) -> None:
    gpu.main(["--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    assert "no GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("title", NETS)
def test_graphs_answer_as_eager_does_whatever_the_batch_size(gpu, title) -> None:
    subject = gpu.Subject(NETS[title], 0, "cpu")
    model, inputs = subject.made
    eager, graphs = EagerEngine(model), gpu.GraphedEngine(model)
    for size in (1, 2, 3, 7, 8, 5, 1):  # 5 and 7 are filled up to 8
        batch = inputs[:size]
        np.testing.assert_allclose(outputs(graphs, batch), outputs(eager, batch), atol=1e-5)
        np.testing.assert_allclose(graphs.full(batch), eager.full(batch), atol=1e-5)
    assert {size for _, size, _ in graphs._captured} == {1, 2, 4, 8}
    one, other = (AdaptiveModel(engine, subject.policy, check_source=False)(inputs[:50]) for engine in (eager, graphs))
    assert 0 < (one.exit_index == 0).sum() < 50
    assert np.array_equal(one.exit_index, other.exit_index)
    batches = [inputs[i : i + 8] for i in range(0, 48, 8)]  # states of some wait while others run
    again = AdaptiveModel(graphs, subject.policy, check_source=False).predict_all(batches)
    np.testing.assert_allclose(again.log_probs, one.log_probs[:48], atol=1e-5)


def test_steps_are_kept_and_the_page_shows_them(gpu, options, engines) -> None:
    found = gpu.measured(NETS, engines, SIZES, options, device="cpu")
    assert [(row["engine"], row["batch_size"]) for row in found["Tiny, 3 exits"]] == [
        ("eager", 1),
        ("eager", 5),
        ("graphs", 1),
        ("graphs", 5),
    ]
    assert all(row["flips"] == 0 and row["full_ms"] > 0 for rows in found.values() for row in rows)
    files = sorted(options.work.iterdir())
    assert len(files) == 4

    def never() -> None:
        raise AssertionError("made again")

    assert gpu.measured(dict.fromkeys(NETS, never), engines, SIZES, options, device="cpu") == found
    text = gpu.gpu_page(found, options, "test device").read_text(encoding="utf-8")
    assert "## Tiny, 3 exits" in text and "On one test device" in text and "| graphs | 5 |" in text


def test_a_step_that_would_begin_too_late_is_left_for_the_next_call(gpu, options, engines, capsys) -> None:
    ticks = iter([0.0, 1.0, 61.0, 62.0, 63.0])
    sizes = {2: 4}
    assert gpu.measured(NETS, engines, sizes, options, device="cpu", clock=lambda: next(ticks)) is None
    assert len(list(options.work.iterdir())) == 1
    assert "3 steps are left" in capsys.readouterr().err
    assert gpu.measured(NETS, engines, sizes, options, device="cpu") is not None


def test_an_engine_that_cannot_be_had_is_a_row_with_the_reason(gpu, options) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no kernel for this\nat all")

    found = gpu.measured({"Tiny": NETS["Tiny, 3 exits"]}, {"odd": refuse}, SIZES, options, device="cpu")
    assert found == {"Tiny": [{"engine": "odd", "error": "no kernel for this"}]}
    assert json.loads(next(options.work.iterdir()).read_text(encoding="utf-8")) == found["Tiny"]
    assert "no kernel for this" in gpu.gpu_page(found, options, "device").read_text(encoding="utf-8")
