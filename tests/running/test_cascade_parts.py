"""Cascades beyond recording and running: costs, benches, one model of all, what is shipped, and bad input."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from eenet import (
    AdaptiveModel,
    CostTable,
    ExitTable,
    MultiExitModel,
    bench,
    cascade,
    measure,
    record,
)
from eenet.errors import EenetError, InputError, RunError, ShapeError, TableError
from eenet.evaluation import advise
from eenet.experiments.zoo import tiny_cnn
from eenet.policies import Policy, load_policy, save_policy
from eenet.policies.policy import ScorePolicy
from eenet.policies.scorers import ConfidenceScorer
from eenet.running import Bundle, Cascade, export, load_costs
from eenet.running.engines import EagerEngine
from eenet.running.measuring import measure_flops

CLASSES = 10
X = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)


def at(threshold: float, exits: int, source: str = "") -> Policy:
    """Return a policy of one threshold on the largest probability, whose log-odds are its score."""
    odds = np.log(threshold / (1 - threshold))
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([odds] * (exits - 1) + [-np.inf]))
    return policy.from_source(source)


def nets() -> tuple[nn.Module, MultiExitModel, nn.Module]:
    torch.manual_seed(0)
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    large = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, CLASSES)
    ).eval()
    return small, tiny_cnn(exits=3), large


def of_torch() -> Cascade:
    return cascade([("small", nets()[0]), ("inner", nets()[1]), ("large", nets()[2])])


def of_functions() -> Cascade:
    sure = lambda x: np.tile([0.6, 0.4], (len(x), 1))  # noqa: E731
    return cascade([("one", sure), ("two", lambda x: np.tile([0.1, 0.9], (len(x), 1)))], source="mine")


# --- costs and benches ------------------------------------------------------------------------------------------------


def test_costs_of_functions_are_times(tmp_path: Path) -> None:
    texts = ["a", "bb", "ccc"]
    profile = measure(of_functions(), texts, batch_sizes=(1, 4), passes=2, progress=False)
    costs = profile.costs(4)
    assert costs.unit == "ms" and costs.num_exits == 2
    assert profile.latency[0].full.median < profile.latency[0].cumulative[1]
    with pytest.raises(InputError, match=r"batch size 1, 4"):
        profile.costs()
    profile.save(tmp_path / "costs.json")
    assert load_costs(tmp_path / "costs.json", 4) == costs
    with pytest.raises(InputError, match="batch size"):
        load_costs(tmp_path / "costs.json")
    with pytest.raises(InputError, match="batch_sizes"):
        measure(of_functions(), texts, batch_sizes=(), progress=False)


def test_operations_of_models_of_torch_are_counted() -> None:
    small, inner, large = nets()
    both = cascade([small, inner, large])
    found = measure_flops(both, X)
    own = measure_flops(inner, X)
    fewer = measure_flops(MultiExitModel([nn.Identity(), large], [small, nn.Identity()]), X)
    assert found.cumulative[0] == fewer.cumulative[0] and found.reference == fewer.stages[1]
    assert found.cumulative[3] - found.cumulative[0] == own.cumulative[-1]
    assert found.costs().reference == found.reference < found.cumulative[-1]


def test_a_bench_takes_any_engine() -> None:
    policy = at(0.5, 2)
    report = bench(of_functions(), policy, ["a", "bb", "ccc"], batch_sizes=(1, 2), passes=2, progress=False)
    row = report.to_dict()["rows"][0]
    assert row["engine"] == "cascade" and row["ideal_speedup_flops"] is None and row["flips"] == 0
    assert row["exit_distribution"] == (1.0, 0.0) and row["speedup"] > 0
    [row] = bench(of_torch(), at(0.2, 5), X, batch_sizes=(8,), passes=1, progress=False).rows
    assert row.ideal_speedup_flops is not None and row.ideal_speedup_flops > 0


# --- one model --------------------------------------------------------------------------------------------------------


def test_as_model_is_the_cascade() -> None:
    both = of_torch()
    model = both.as_model()
    assert model.begins == (0, 1, 4) and model.original == 4
    table, again = (record(one, (X, np.arange(40) % 10), progress=False) for one in (both, model))
    assert np.allclose(table.outputs, again.outputs, atol=1e-5)
    assert table.source == again.source == both.source != ""
    engine = EagerEngine(model)
    assert np.allclose(engine.full(X), both.full(X), atol=1e-5)
    policy = at(0.25, 5, table.source)
    ran = [AdaptiveModel(one, policy).predict_all(X, batch_size=8) for one in (both, model)]
    assert np.array_equal(ran[0].exit_index, ran[1].exit_index) and len(set(ran[0].exit_index)) > 1


def test_only_the_last_model_is_run_in_full() -> None:
    small, _, large = nets()
    model = cascade([small, large]).as_model()
    calls: list[str] = []
    for k, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *_, k=k: calls.append(f"stage {k}"))
    engine = EagerEngine(model, optimise=False)
    engine.full(X)
    assert calls == ["stage 1"]


def test_a_dropped_exit_drops_its_model() -> None:
    small, inner, large = nets()
    model = cascade([small, inner, large]).as_model()
    without = model.without([1, 2, 3])
    assert without.begins == (0, 1)
    found, wanted = measure_flops(without, X), measure_flops(cascade([small, large]), X)
    assert found.cumulative == wanted.cumulative and found.reference == wanted.reference
    assert without.without([0] if without.num_exits > 2 else []).num_exits == 2
    inside = model.without([1, 3])  # the stages of exits 1 and 2 are one, exit 3 ended its model
    assert measure_flops(inside, X).stages[1] == sum(measure_flops(model, X).stages[1:3])
    with torch.no_grad():
        kept = [output for k, output in enumerate(model(torch.from_numpy(X))) if k not in (1, 3)]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(inside(torch.from_numpy(X)), kept, strict=True))


def test_a_stage_that_writes_into_its_inputs_changes_none_for_later_models() -> None:
    class Writing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(0).flatten(1)[:, :CLASSES]

    small, _, large = nets()
    plain = cascade([small, large]).as_model()
    model = cascade([Writing(), large]).as_model()
    for engine in (EagerEngine(model), EagerEngine(model, optimise=False), EagerEngine(plain)):
        table = record(engine, (X, np.arange(40) % 10), progress=False)
        assert np.allclose(table.outputs[:, 1], large(torch.from_numpy(X)).detach(), atol=1e-5)


def test_columns_follow_the_classes() -> None:
    one, two = nn.Linear(4, 2), nn.Linear(4, 2)
    both = cascade([one, two], classes={0: ["no", "yes"], 1: ["yes", "no"]})
    x = torch.randn(5, 4)
    with torch.no_grad():
        outputs = both.as_model()(x)
        assert torch.equal(outputs[0], one(x)[:, [1, 0]]) and torch.equal(outputs[1], two(x))


def test_batch_norms_of_a_whole_model_are_folded() -> None:
    [stage, _] = EagerEngine(cascade([nets()[0], nets()[2]]).as_model()).model.stages
    assert not any(isinstance(part, nn.BatchNorm2d) for part in stage.modules())
    member = EagerEngine(cascade([nets()[0], nets()[2]]).as_model()).model.stages[1]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in member.modules())


def test_a_bundle_holds_the_models(tmp_path: Path) -> None:
    both, again = of_torch(), of_torch()
    with torch.no_grad():
        for parameter in again.as_model().parameters():
            parameter.add_(1)
    policy = at(0.25, 5, both.source)
    Bundle(model=both, policy=policy).save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle", lambda info: again.as_model())
    found, wanted = loaded.adaptive()(X), AdaptiveModel(both, policy)(X)
    assert np.array_equal(found.exit_index, wanted.exit_index)
    assert np.allclose(found.log_probs, wanted.log_probs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_export_runs_the_cascade_and_its_last_model_alone(tmp_path: Path, engine: Any) -> None:
    pytest.importorskip("onnxscript"), pytest.importorskip(engine)
    both = of_torch()
    policy = at(0.25, 5, both.source)
    export(both, policy, torch.from_numpy(X[:4]), tmp_path / "export", engine=engine)
    adaptive = AdaptiveModel(tmp_path / "export")
    found, wanted = adaptive(X), AdaptiveModel(both, policy)(X)
    assert np.array_equal(found.exit_index, wanted.exit_index)
    ran: list[int] = []
    stages = adaptive.engine._stages
    adaptive.engine._stages = [lambda x, k=k, run=run: (ran.append(k), run(x))[1] for k, run in enumerate(stages)]
    assert np.allclose(adaptive.engine.full(X), both.full(X), atol=1e-4) and ran == [4]
    from eenet.running import CompiledEngine, OnnxEngine, OpenVinoEngine

    made = {"onnxruntime": OnnxEngine, "openvino": OpenVinoEngine}[engine](both, torch.from_numpy(X[:4]))
    assert np.allclose(made.full(X), both.full(X), atol=1e-4)
    assert CompiledEngine is not None


@pytest.mark.parametrize("reason", ["member one is none", "prepared"])
def test_what_is_no_model_of_torch_says_what_to_do(reason: str, tmp_path: Path) -> None:
    both = of_functions() if reason.startswith("member") else cascade([nets()[0], nets()[2]], prepare={0: np.asarray})
    ways = (
        both.as_model,
        lambda: Bundle(model=both, policy=at(0.5, 2)),
        lambda: export(both, at(0.5, 2), X[:4], tmp_path / "no"),
        lambda: measure_flops(both, X),
    )
    for way in ways:
        with pytest.raises(InputError, match=f"{reason}.*save_policy.*AdaptiveModel"):
            way()
    assert not (tmp_path / "no").exists()


PROCESS = """
    import numpy as np, sys
    from eenet import AdaptiveModel, cascade
    from eenet.policies import load_policy
    one = lambda x: np.stack([1 - x[:, 0], x[:, 0]], 1)
    both = cascade([("one", one), ("two", lambda x: np.tile([0.1, 0.9], (len(x), 1)))], source=sys.argv[2])
    saved = load_policy(sys.argv[1])
    print(*AdaptiveModel(both, saved.policy, saved.costs)(np.linspace(0, 1, 11)[:, None]).exit_index)
    assert "torch" not in sys.modules
"""


def test_a_policy_is_enough_where_the_members_are_made_again(tmp_path: Path) -> None:
    one = lambda x: np.stack([1 - x[:, 0], x[:, 0]], 1)  # noqa: E731
    both = cascade([("one", one), ("two", lambda x: np.tile([0.1, 0.9], (len(x), 1)))], source="mine 1")
    x = np.linspace(0, 1, 11)[:, None]
    table = record(both, (x, np.ones(11, int)), costs=CostTable((1, 2), "ms", 1), progress=False)
    save_policy(at(0.85, 2, table.source), tmp_path / "policy", costs=table.costs)
    expected = AdaptiveModel(both, load_policy(tmp_path / "policy").policy)(x).exit_index
    assert len(set(expected)) == 2

    def run(source: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path / "policy"), source]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    again = run("mine 1")
    assert again.stdout.split() == [str(k) for k in expected], again.stderr
    assert "InputError: policy of source" in run("mine 2").stderr


# --- bad input --------------------------------------------------------------------------------------------------------


def cut(x: Any) -> Any:
    return x[:1]


@pytest.mark.parametrize("way", ["record", "one", "many", "full"])
@pytest.mark.parametrize(
    ("bad", "prepare", "error", "facts"),
    [
        (lambda x: 1 / 0, None, RunError, "member bad failed on a batch of .*division"),
        (lambda x: np.full((len(x), 2), np.nan), None, TableError, "member bad: .*NaN"),
        (lambda x: np.full((len(x), 2), 0.7), None, TableError, r"member bad: .*sum to 1\.4"),
        (lambda x: np.full((len(x), 1), 0.7), None, ShapeError, r"member bad: .*1 - p"),
        (lambda x: np.full((len(x) + 1, 2), 0.5), None, ShapeError, "member bad: .*samples"),
        (
            nn.Sequential(nn.Linear(4, 2), nn.LogSoftmax(0), nn.Threshold(1e9, np.nan)),
            None,
            RunError,
            "member bad: .*NaN",
        ),
        (nn.Linear(4, 1), None, ShapeError, "member bad: .*2 classes"),
        (nn.Linear(3, 2), None, InputError, "member bad: .*do not fit"),
        (nn.Linear(4, 2), lambda x: 1 / 0, RunError, "member bad: prepare failed"),
        (nn.Linear(4, 2), lambda x: (row for row in x), InputError, "member bad: prepare: inputs of type generator"),
        (nn.Linear(4, 2), lambda x: np.zeros((9, 4)), ShapeError, "member bad: prepare: it returns 9 samples"),
    ],
)
def test_a_member_that_fails_is_named(bad: Any, prepare: Any, error: type[EenetError], facts: str, way: str) -> None:
    both = cascade(
        [("good", lambda x: np.full((len(x), 2), 0.5)), ("bad", bad)], prepare={"bad": prepare} if prepare else None
    )
    x = np.zeros((1 if way == "one" else 4, 4), np.float32)
    adaptive = AdaptiveModel(both, at(0.9, 2))
    ways = {
        "record": lambda: record(both, (x, np.zeros(len(x), int)), progress=False),
        "one": lambda: adaptive(x),
        "many": lambda: adaptive.predict_all(x, batch_size=2),
        "full": lambda: measure(both, x, batch_sizes=(2,), passes=1, progress=False),
    }
    with pytest.raises(error, match=facts):
        ways[way]()


def test_estimators_that_cannot_be_used_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="member LogisticRegression is not fitted"):
        cascade([LogisticRegression(), len])
    from sklearn.neighbors import KNeighborsClassifier

    several = KNeighborsClassifier(1).fit(np.eye(3), np.array([[0, 1], [1, 0], [1, 1]]))
    with pytest.raises(InputError, match="member KNeighborsClassifier answers 2 questions"):
        cascade([several, len])


def test_inputs_of_no_use_are_refused() -> None:
    adaptive = AdaptiveModel(of_functions(), at(0.5, 2))
    with pytest.raises(InputError, match="0"):
        adaptive([])
    with pytest.raises(InputError, match="generator"):
        adaptive(text for text in ["a", "b"])
    with pytest.raises(InputError, match="str"):
        adaptive("a text")
    with pytest.raises(InputError):
        adaptive([{"title": "a"}, {"title": "b"}])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_sparse_matrices_are_batches(batch_size: int) -> None:
    rng = np.random.default_rng(0)
    x = scipy.sparse.csr_matrix(rng.integers(0, 3, (30, 6)).astype(float))
    y = rng.integers(0, 2, 30)
    both = cascade(
        [("few", LogisticRegression().fit(x[:, :2], y)), ("all", LogisticRegression(C=9.0).fit(x, y))],
        prepare={"few": lambda batch: batch[:, :2]},
    )
    table = record(both, (x, y), batch_size=7, progress=False)
    policy = at(0.55, 2)
    found = AdaptiveModel(both, policy).predict_all(x, batch_size=batch_size)
    assert np.array_equal(found.exit_index, (np.exp(table.seen_at(slice(None), 0)).max(axis=1) < 0.55).astype(int))
    assert 0 < found.exit_index.sum() < 30


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_frames_are_batches(batch_size: int) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(20) / 20, "b": list("xy") * 10})
    both = cascade(
        [
            lambda rows: np.stack([1 - rows["a"], rows["a"]], 1),
            lambda rows: np.stack([rows["b"] == "x", rows["b"] == "y"], 1).astype(float),
        ]
    )
    labels = pandas.Series([0, 1] * 10)
    table = record(both, (frame, labels), batch_size=7, progress=False)
    assert table.utility[:, 1].all()
    found = AdaptiveModel(both, at(0.8, 2)).predict_all(frame, batch_size=batch_size)
    assert np.array_equal(found.exit_index, ((frame["a"] > 0.2) & (frame["a"] < 0.8)).astype(int))


def test_mappings_of_a_tokenizer_and_texts_in_dictionaries() -> None:
    from collections import UserDict

    class Encoding(UserDict[str, Any]):
        """As transformers' BatchEncoding."""

    given = Encoding(input_ids=torch.tensor([[1, 2], [3, 0], [5, 6]]), attention_mask=torch.ones(3, 2))

    class Net(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return torch.stack([input_ids[:, 0], attention_mask.sum(1)], 1).float()

    both = cascade([("one", Net()), ("two", lambda batch: np.tile([0.2, 0.8], (len(batch["input_ids"]), 1)))])
    table = record(both, (given, np.array([1, 0, 0])), progress=False)
    assert table.outputs[:, 0].tolist() == [[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]
    assert AdaptiveModel(both, at(0.9, 2))(given).exit_index.tolist() == [1, 1, 0]


def test_a_cascade_within_a_cascade() -> None:
    small, inner, large = nets()
    front = cascade([("small", small), ("inner", inner)])
    outer, flat = cascade([("front", front), ("large", large)]), cascade([small, inner, large])
    labels = np.arange(40) % 10
    tables = [record(one, (X, labels), progress=False) for one in (outer, flat, outer.as_model())]
    assert all(np.allclose(tables[0].outputs, other.outputs, atol=1e-5) for other in tables[1:])
    assert outer.as_model().begins == flat.as_model().begins
    last = cascade([("large", large), ("front", front)])
    assert np.allclose(last.full(X), front.full(X)) and last.as_model().original == 2
    for batch_size in (1, 16):
        runs = [
            AdaptiveModel(one, at(0.25, 5)).predict_all(X, batch_size=batch_size).exit_index for one in (outer, flat)
        ]
        assert np.array_equal(*runs) and len(set(runs[0])) > 1


def test_two_adaptive_models_in_two_threads() -> None:
    both = of_torch()
    adaptive = [AdaptiveModel(both, at(threshold, 5)) for threshold in (0.2, 0.3)]
    wanted = [one.predict_all(X, batch_size=8).exit_index for one in adaptive]
    found: dict[int, list[np.ndarray]] = {0: [], 1: []}

    def work(i: int) -> None:
        for _ in range(10):
            found[i].append(adaptive[i].predict_all(X, batch_size=8).exit_index)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, wanted[i]) for i in (0, 1) for one in found[i])
    assert [len(found[i]) for i in (0, 1)] == [10, 10]


# --- advice -----------------------------------------------------------------------------------------------------------


def test_a_more_expensive_member_that_is_worse_is_dropped() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 800)
    strengths = np.array([2.0, 0.7, 5.0])  # of small, bad, large
    logits = rng.normal(size=(800, 3, 4)) + strengths[:, None] * np.eye(4)[labels][:, None]
    members = [(name, lambda x: np.full((len(x), 4), 0.25)) for name in ("small", "bad", "large")]
    both = cascade(members)
    costs = CostTable((1.0, 4.0, 10.0), "ms", 6.0)
    parts = both.parts(costs)
    assert parts.cumulative((0, 1, 2)) == costs.cumulative
    found = advise(ExitTable(logits=logits, labels=labels, costs=costs), parts=parts)
    assert found.dropped == (1,) and found.costs.cumulative == (1.0, 7.0)
    assert [one.cost for one in found.statics] == [1.0, 3.0, 6.0]
    assert found.statics[1].utility < found.statics[0].utility


def test_parts_of_a_last_member_with_exits_of_its_own() -> None:
    both = cascade([nets()[0], nets()[1]])
    costs = CostTable((1.0, 3.0, 6.0, 10.0), "ms")
    parts = both.parts(costs)
    assert parts.cumulative((0, 1, 2, 3)) == costs.cumulative
    assert parts.cumulative((1, 3)) == (2.0, 9.0) and parts.cumulative((0, 3)) == (1.0, 10.0)
    with pytest.raises(ShapeError, match="2"):
        both.parts(CostTable((1.0, 2.0), "ms"))


WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())  # scipy takes offence at None in sys.modules
import numpy as np
from sklearn.linear_model import LogisticRegression
from eenet import AdaptiveModel, StoppingScheduler, bench, cascade, evaluate, measure, record

x = np.random.default_rng(0).normal(size=(300, 4))
y = (x[:, 0] > 0).astype(int)
small, large = (LogisticRegression().fit(x[:100, :], y[:100]) for _ in range(2))
both = cascade([("small", small), ("large", large)])
costs = measure(both, x[:8], batch_sizes=(1,), passes=1, progress=False).costs(1)
table = record(both, (x[100:], y[100:]), costs=costs, progress=False)
policy = StoppingScheduler(seed=0).fit(table, budget=costs.high)
assert evaluate(policy, table).cost <= costs.high
assert len(AdaptiveModel(both, policy, costs)(x).labels) == 300
assert bench(both, policy, x[:8], batch_sizes=(1,), passes=1, progress=False).rows
"""


def test_estimators_are_measured_recorded_run_and_benched_where_there_is_no_torch() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, timeout=300)
