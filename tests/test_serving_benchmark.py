"""The parts of the benchmark of the server that need neither trained models nor a server of HTTP."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from replaying import ReplayEngine, rows

from eenet import AdaptiveModel
from eenet.serving import Service


@pytest.fixture
def load(benchmark) -> ModuleType:
    return benchmark("load")


def test_times_of_sending(load: ModuleType) -> None:
    times = load.poisson(200, 10, seed=0)
    assert len(times) == 2000 and (np.diff(times) > 0).all() and times[-1] == pytest.approx(10, rel=0.1)
    assert load.bursts(100, 2, 50).tolist() == [at for at in (0.0, 0.5, 1.0, 1.5) for _ in range(50)]


def test_what_became_of_requests(load: ModuleType) -> None:
    body = b'{"outputs": [{"name": "label", "data": [3]}, {"name": "exit", "data": [1]}]}'
    head = b'{"outputs": [{"name": "exit", "parameters": {"binary_data_size": 8}}, '
    head += b'{"name": "label", "parameters": {"binary_data_size": 8}}]}'
    binary = head + np.array([2, 7], dtype="<i8").tobytes()
    found = [(0.1, 200, body, None), (0.3, 200, binary, len(head)), (0.2, 429, b"", None), (np.inf, 0, b"", None)]
    shots = load._shots(found, 2, seconds=2.0)
    assert shots.label.tolist() == [3, 7, -1, -1] and shots.exit.tolist() == [1, 2, -1, -1]
    assert shots.row.tolist() == [0, 1, 0, 1] and shots.rate == 2.0
    assert shots.within(0.15) == 0.5 and shots.quantile_ms(1) == pytest.approx(300)
    assert shots.quantile_ms(0.5, exit_index=1) == pytest.approx(100) and shots.quantile_ms(0.5, exit_index=5) is None


def test_the_full_model_is_served_in_the_same_way(load: ModuleType) -> None:
    logits = np.random.default_rng(0).standard_normal((20, 3, 4)).astype(np.float32)
    whole = AdaptiveModel(load.Whole(ReplayEngine(logits)), load.Everybody())
    with Service(whole, max_batch=8) as service:
        answers = [service.submit(rows(20)[[row]]).result(10) for row in range(20)]
        seen = service.snapshot()
    assert [answer.label[0] for answer in answers] == logits[:, -1].argmax(axis=1).tolist()
    assert seen.exits == (20,)
