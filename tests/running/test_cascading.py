"""Cascades: models that exist already, one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from eenet import AdaptiveModel, CostTable, StoppingScheduler, cascade, record, replay
from eenet.errors import InputError, RunError, ShapeError, TableError
from eenet.experiments.zoo import tiny_cnn
from eenet.running.inputs import copy_of

COSTS = CostTable((1.0, 3.0, 10.0), "ms", 7.0)


def table_of(probs: list[float]) -> Any:
    """Return a function that answers every sample alike."""
    return lambda x: np.tile(np.array(probs), (len(x), 1))


class Counting:
    """A member that counts the samples it is called for."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __call__(self, x: Any) -> Any:
        self.calls += len(x)
        return self.function(x)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    return x, (x[:, 0] + 0.5 * x[:, 1] > 0).astype(np.int64)


def mixed(data: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Counting]:
    """Return a cascade of an estimator, a torch module and a function, and the last of them."""
    x, y = data
    torch.manual_seed(0)
    linear = LogisticRegression().fit(x[:, :1], y)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    last = Counting(
        lambda rows: np.stack(
            [1 - 1 / (1 + np.exp(-9 * (rows @ [1, 0.5, 0, 0]))), 1 / (1 + np.exp(-9 * (rows @ [1, 0.5, 0, 0])))], 1
        )
    )
    both = cascade([("linear", linear), ("net", net), ("last", last)], prepare={"linear": lambda rows: rows[:, :1]})
    return both, last


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_replay_is_run_and_members_are_called_for_who_is_left(data: Any, batch_size: int) -> None:
    both, last = mixed(data)
    table = record(both, data, costs=COSTS, progress=False)
    policy = StoppingScheduler(seed=0).fit(table, budget="60%")
    trace = replay(policy, table)
    last.calls = 0
    found = AdaptiveModel(both, policy, COSTS).predict_all(data[0], batch_size=batch_size)
    assert np.array_equal(found.exit_index, trace.exit_index)
    assert np.allclose(found.log_probs, trace.log_probs, atol=1e-5)
    assert 0 < last.calls == (trace.exit_index == 2).sum() < 300


def test_classes_are_aligned_by_name() -> None:
    one, two = table_of([0.7, 0.2, 0.1]), table_of([0.1, 0.3, 0.6])
    both = cascade([one, two], classes={0: ["dog", "cat", "eel"], 1: ["eel", "cat", "dog"]})
    table = record(both, (np.zeros((2, 1)), both.encoded(["dog", "eel"])), progress=False)
    assert np.allclose(np.exp(table.seen()[0]), [[0.1, 0.2, 0.7], [0.1, 0.3, 0.6]])
    assert table.utility.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("members", "settings", "error", "facts"),
    [
        ([len], {}, InputError, "1 exit"),
        ([len, 3], {}, InputError, "int"),
        ([("a", len), ("a", len)], {}, InputError, "a"),
        ([len, len], {"prepare": {"other": len}}, InputError, "other"),
        ([("a", len), ("b", len)], {"classes": {"a": ["x", "y"]}}, InputError, "b"),
        ([("a", len), ("b", len)], {"prepare": {"a": len, 0: len}}, InputError, "prepare of a stands twice"),
        ([("a", len), ("b", len)], {"classes": {"a": [[0], [1]], "b": [[0], [1]]}}, InputError, "names or numbers"),
        ([("len 1", len), len, len], {}, InputError, "occur more than once"),
        ([("a", len), ("b", len)], {"classes": {"a": ["x", "y"], "b": ["x", "z"]}}, InputError, "z"),
    ],
)
def test_bad_members_are_refused_at_once(members: Any, settings: Any, error: type, facts: str) -> None:
    with pytest.raises(error, match=facts):
        cascade(members, **settings)


@pytest.mark.parametrize(
    ("member", "error", "facts"),
    [
        (table_of([0.7, 0.7]), TableError, r"member bad: .*1\.4"),
        (lambda x: np.zeros(len(x)), ShapeError, "member bad"),
        (lambda x: 1 / 0, RunError, "member bad failed on a batch of 2 samples"),
        (table_of([0.2, 0.3, 0.5]), ShapeError, "3"),
    ],
)
def test_a_member_that_fails_is_named(member: Any, error: type, facts: str) -> None:
    both = cascade([("good", table_of([0.5, 0.5])), ("bad", member)])
    with pytest.raises(error, match=facts):
        record(both, (np.zeros((2, 1)), np.zeros(2, int)), progress=False)


def test_exits_of_a_member_become_exits(data: Any) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    labels = np.arange(40) % 10
    inner, small = tiny_cnn(exits=3), Counting(table_of([0.1] * 10))
    both = cascade([("small", small), ("net", inner)])
    assert both.exit_names == ("small", "net 0", "net 1", "net 2")
    table = record(both, (images, labels), costs=CostTable((1, 2, 3, 4), "ms", 3), progress=False)
    alone = record(inner, (images, labels), progress=False)
    assert np.allclose(table.outputs[:, 1:], alone.outputs, atol=1e-5)
    policy = StoppingScheduler(seed=0).fit(table, budget="70%")
    trace = replay(policy, table)
    for batch_size in (1, 16):
        found = AdaptiveModel(both, policy).predict_all(images, batch_size=batch_size)
        assert (found.exit_index == trace.exit_index).mean() > 0.97
    assert np.allclose(both.full(images), alone.outputs[:, -1], atol=1e-4)


def test_texts_are_prepared_for_who_needs_them() -> None:
    texts = ["a", "bb", "ccc", "dddd"] * 10
    seen: list[str] = []

    def lengths(batch: list[str]) -> np.ndarray:
        seen.extend(batch)
        return np.array([[len(text)] for text in batch], dtype=np.float32)

    first = lambda batch: np.array([[0.9, 0.1] if len(text) < 3 else [0.5, 0.5] for text in batch])  # noqa: E731
    net = nn.Linear(1, 2)
    both = cascade([("first", first), ("net", net)], prepare={"net": lengths})
    labels = np.array([len(text) > 2 for text in texts]).astype(int)
    table = record(both, (texts, labels), costs=CostTable((1, 5), "ms", 4), progress=False)
    policy = StoppingScheduler(seed=0).fit(table, budget=3.0)
    seen.clear()
    found = AdaptiveModel(both, policy).predict_all(texts, batch_size=8)
    assert len(seen) == (found.exit_index == 1).sum()


def writing(x: Any) -> np.ndarray:
    """A member that writes into what it is given."""
    found = np.stack([1 - 1 / (1 + np.exp(-x[:, 0])), 1 / (1 + np.exp(-x[:, 0]))], axis=1)
    x[:] = 0
    return found


def overwriting(x: Any) -> Any:
    """A preparation that writes into what it is given."""
    x *= 2
    return x


@pytest.mark.parametrize("prepare", [None, {"first": overwriting}])
def test_what_a_member_writes_into_its_inputs_no_other_sees(data: Any, prepare: Any) -> None:
    x = data[0].copy()
    both = cascade([("first", writing), ("second", lambda rows: writing(rows.copy()))], prepare=prepare)
    table = record(both, (x, data[1]), costs=CostTable((1, 3), "ms"), progress=False)
    policy = StoppingScheduler(seed=0).fit(table, budget="60%")
    assert np.array_equal(x, data[0])
    p = 1 / (1 + np.exp(-x[:, 0].astype(np.float64)))
    assert np.allclose(np.exp(table.seen()[:, 1, 1]), p, atol=1e-5)
    found = AdaptiveModel(both, policy).predict_all(x, batch_size=7)
    assert np.array_equal(x, data[0]) and np.array_equal(found.exit_index, replay(policy, table).exit_index)


def test_copies_are_of_any_form() -> None:
    batch = {
        "ids": torch.ones(2, 3),
        "more": [np.ones(2), {"deep": np.ones(1)}],
        "texts": ["a", "b"],
        "n": (np.ones(1),),
    }
    copied = copy_of(batch)
    copied["ids"][:] = 0
    copied["more"][0][:] = 0
    copied["more"][1]["deep"][:] = 0
    copied["n"][0][:] = 0
    assert copied["texts"] == batch["texts"]
    assert batch["ids"].all() and batch["more"][0].all() and batch["more"][1]["deep"].all() and batch["n"][0].all()


def test_labels_that_are_no_class_are_named() -> None:
    both = cascade([len, len], classes={0: ["a", "b"], 1: ["a", "b"]})
    for labels in (["a", None], [["a"], ["b"]], ["a", "c"]):
        with pytest.raises(InputError, match="is no class"):
            both.encoded(labels)


def test_numbered_classes_of_another_order_are_aligned() -> None:
    one, two = table_of([0.7, 0.2, 0.1]), table_of([0.1, 0.2, 0.7])
    both = cascade([one, two], classes={0: [2, 1, 0], 1: [0, 1, 2]})
    table = record(both, (np.zeros((1, 1)), [2]), progress=False)
    assert np.allclose(np.exp(table.seen()[0]), [[0.1, 0.2, 0.7]] * 2)


def test_a_source_that_is_no_text_is_refused(unchecked: None) -> None:
    with pytest.raises(InputError, match="source of type int"):
        cascade([len, len], source=3)  # type: ignore[arg-type]
