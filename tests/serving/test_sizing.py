"""Replicas per stage: the simulation against queueing theory and a slow twin, the sizes against hand and reason."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.cli import main
from eenet.errors import InputError
from eenet.running.latency import Latency, Spread
from eenet.serving.simulation import Pool, passed, simulate
from eenet.serving.sizing import likely_shares, load_latencies, size_stages, stage_seconds
from eenet.tables import CostTable
from eenet.tables.files import write_json


def spread(ms: float) -> Spread:
    return Spread(median=ms, low=ms, high=ms)


def latency(batch_size: int = 1, stages: tuple[float, ...] = (1.0, 1.0), **changes: object) -> Latency:
    """Times per sample in ms; heads, decisions and answers are free unless a change says otherwise."""
    nothing = tuple(spread(0.0) for _ in stages)
    values = {"engine": "onnxruntime", "dtype": "float32", "device": "cpu", "threads": 1, "batch_size": batch_size}
    values |= {"passes": 3, "full": spread(sum(stages)), "start": spread(0.0), "heads": nothing}
    values |= {"stages": tuple(map(spread, stages)), "decisions": nothing[1:]}
    return Latency(**(values | changes))


def twin(arrivals: list[float], pool: Pool) -> list[float]:
    """The rule word for word: batches one by one, every replica and every sample looked at."""
    idle, waiting, ends = [0.0] * pool.replicas, list(arrivals), []
    while waiting:
        most = len(pool.seconds)
        due = waiting[0] + pool.max_wait_s
        if len(waiting) >= most:
            due = min(due, waiting[most - 1])
        replica = min(range(pool.replicas), key=lambda i: idle[i])
        start = max(due, idle[replica])
        batch = [one for one in waiting if one <= start][:most]
        idle[replica] = start + pool.seconds[len(batch) - 1]
        ends += [idle[replica]] * len(batch)
        waiting = waiting[len(batch) :]
    return ends


def test_batches_by_hand() -> None:
    arrivals, seconds = np.array([0.0, 1.0, 2.0, 10.0]), np.array([2.0, 3.0])
    found = passed(arrivals, Pool(replicas=1, seconds=seconds))
    assert found.ends.tolist() == [2.0, 5.0, 5.0, 12.0]
    assert found.batches.tolist() == [1, 2, 1]
    assert found.busy_s == 7.0
    waited = passed(arrivals, Pool(replicas=1, seconds=seconds, max_wait_s=1.5))
    assert waited.ends.tolist() == [4.0, 4.0, 6.0, 13.5]  # the last two wait in vain
    two = passed(arrivals, Pool(replicas=2, seconds=seconds))
    assert two.ends.tolist() == [2.0, 3.0, 4.0, 12.0]


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=40),
    seconds=st.lists(st.floats(0.1, 5), min_size=1, max_size=5).map(sorted),
    replicas=st.integers(1, 4),
    wait=st.floats(0, 4),
)
def test_batches_are_those_of_a_slow_twin_and_nobody_is_lost(gaps, seconds, replicas, wait) -> None:
    arrivals = np.cumsum(gaps)
    pool = Pool(replicas=replicas, seconds=np.array(seconds), max_wait_s=wait)
    found = passed(arrivals, pool)
    assert found.ends.tolist() == twin(arrivals.tolist(), pool)
    assert found.batches.sum() == len(arrivals)
    assert (found.ends - arrivals >= seconds[0] - 1e-9).all()
    assert found.busy_s == pytest.approx(sum(seconds[one - 1] for one in found.batches))


@pytest.mark.parametrize("load", [0.5, 0.7, 0.9])
def test_one_replica_without_batches_is_the_queue_m_d_1(load: float) -> None:
    service = 1e-3
    pool = Pool(replicas=1, seconds=np.array([service]))
    arrivals = np.cumsum(np.random.default_rng(0).exponential(service / load, size=400_000))
    waited = (passed(arrivals, pool).ends - arrivals - service).mean()
    assert waited == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)  # Pollaczek and Khinchine


def test_batches_grow_to_what_arrives_while_one_runs() -> None:
    pool = Pool(replicas=1, seconds=np.full(32, 5e-3))
    found = passed(np.arange(1, 1001) * 1e-3 - 1e-9 * np.arange(1000), pool)
    assert np.median(found.batches) == 5


def test_alone_a_sample_takes_its_stages_and_hops() -> None:
    pools = [Pool(replicas=1, seconds=np.array([one])) for one in (1e-3, 2e-3)]
    found = simulate(pools, np.array([0.75, 0.25]), rate=0.01, slo_s=2e-3, requests=2000, hop_s=0.5e-3)
    assert found.p50_ms == pytest.approx(1.5)
    assert found.p99_ms == pytest.approx(4.0)
    assert found.within == pytest.approx(0.75, abs=0.03)
    nobody = simulate(pools, np.array([1.0, 0.0]), rate=0.01, slo_s=2e-3, requests=100)
    assert nobody.stages[1] is None


def test_sizes_by_hand() -> None:
    rows = [latency(stages=(1.0, 1.0))]
    found = size_stages(rows, (0.5, 0.5), rate=5000, slo_ms=50, max_batch=1, max_wait_ms=0)
    assert [stage.replicas for stage in found.stages] == [7, 4]  # 5000 and 2500 ms of work in 800 ms each
    assert [stage.rate for stage in found.stages] == [5000, 2500]
    assert found.full == 13  # 5000 times 2 ms
    assert found.servers == 10  # 5000 times 1.5 ms
    assert found.reached
    assert found.p99_ms < 50
    assert found.goodput == pytest.approx(5000, rel=0.01)
    assert "11 replicas (7 + 4 by stage)" in found.verdict


def test_a_replica_has_its_best_batch() -> None:
    rows = [latency(1, (1.0, 1.0)), latency(4, (0.4, 1.0)), latency(8, (0.5, 1.0))]
    found = size_stages(rows, (0.5, 0.5), rate=100, slo_ms=50, max_batch=8)
    assert [stage.max_batch for stage in found.stages] == [4, 1]
    assert found.stages[0].batch_ms == pytest.approx(1.6)
    short = size_stages(rows, (0.5, 0.5), rate=100, slo_ms=6, max_batch=8, max_wait_ms=0)
    assert short.stages[0].max_batch == 3  # three take 1.4 ms, four 1.6: more than a quarter of 6 ms
    assert short.stages[0].batch_ms <= 1.5


def test_a_tighter_target_takes_replicas_that_the_load_does_not() -> None:
    rows = [latency(1, (2.0, 2.0))]
    loose, tight = (
        size_stages(rows, (0.5, 0.5), rate=400, slo_ms=one, max_batch=1, max_wait_ms=0, load=0.95) for one in (100, 6)
    )
    assert loose.reached
    assert tight.reached
    assert tight.replicas > loose.replicas


def test_more_requests_never_need_fewer_replicas() -> None:
    rows = [latency(1, (1.0, 2.0)), latency(32, (0.2, 0.5))]
    found = [
        size_stages(rows, (0.7, 0.3), rate=rate, slo_ms=40).replicas for rate in (100, 1000, 5000, 20_000, 100_000)
    ]
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_a_million_requests_per_second() -> None:
    rows = [latency(1, (0.1, 0.1)), latency(32, (0.01, 0.02))]
    found = size_stages(rows, (0.6, 0.4), rate=1e6, slo_ms=50)
    assert found.reached
    assert found.requests >= 500_000
    assert found.stages[0].replicas == 13  # 10 s of work per second at 80 %


def test_parts_of_the_latency_are_counted_where_they_fall() -> None:
    row = latency(
        stages=(1.0, 2.0),
        start=spread(10.0),
        heads=(spread(0.1), spread(0.2)),
        decisions=(spread(0.01),),
        answer=spread(1.0),
    )
    first, second = stage_seconds([row], np.array([0.25, 0.75]), 2)
    assert first.tolist() == pytest.approx([11.36e-3, 22.72e-3])
    assert second.tolist() == pytest.approx([3.2e-3, 6.4e-3])


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"slo_ms": 1.5}, ("slo_ms 1.5", "2 ms")),
        ({"shares": (0.5, 0.4)}, ("shares", "2 exits")),
        ({"shares": (1.0,)}, ("shares", "2 exits")),
        ({"shares": (1.5, -0.5)}, ("share of exit 0", "1.5")),
        ({"rate": 0}, ("rate 0",)),
        ({"load": 1}, ("load 1",)),
        ({"latencies": []}, ("latencies are empty",)),
        ({"latencies": [latency(), latency(2, (1.0, 1.0, 1.0))]}, ("latencies",)),
    ],
)
def test_what_cannot_be_is_refused(changes, facts) -> None:
    values = {"latencies": [latency()], "shares": (0.5, 0.5), "rate": 100, "slo_ms": 50} | changes
    rows, shares = values.pop("latencies"), values.pop("shares")
    with pytest.raises(InputError) as refused:
        size_stages(rows, shares, **values)
    assert all(fact in str(refused.value) for fact in facts)


def test_a_target_that_only_the_last_percent_misses_is_not_refused() -> None:
    found = size_stages([latency(stages=(1.0, 100.0))], (0.995, 0.005), rate=10, slo_ms=50, max_wait_ms=0)
    assert found.reached
    assert found.full is None


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(st.floats(0.01, 10), min_size=2, max_size=6),
    where=st.floats(0, 1),
)
def test_likely_shares_have_the_mean_cost(steps, where) -> None:
    costs = CostTable(tuple(np.cumsum(steps)), "ms")
    mean = costs.low + where * (costs.high - costs.low)
    shares = likely_shares(costs, mean)
    assert sum(shares) == pytest.approx(1)
    assert np.dot(shares, costs.cumulative) == pytest.approx(mean, rel=2e-3)


def test_likely_shares_say_nothing_more() -> None:
    costs = CostTable((1.0, 2.0, 3.0), "ms")
    assert likely_shares(costs, 2.0) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert likely_shares(costs, 0.5) == (1.0, 0.0, 0.0)
    assert likely_shares(costs, 9.0) == (0.0, 0.0, 1.0)


@pytest.fixture
def profile(tmp_path):
    def write(*rows: Latency):
        write_json(tmp_path / "costs.json", {"latency": [row.to_dict() for row in rows]})
        return tmp_path / "costs.json"

    return write


def test_latencies_come_back_from_a_profile(profile) -> None:
    rows = (latency(1), latency(32, (0.2, 0.3)))
    path = profile(*rows[::-1], latency(1, engine="eager"))
    assert load_latencies(path, engine="onnxruntime") == rows
    with pytest.raises(InputError, match=r"not unique.*eager float32, onnxruntime float32"):
        load_latencies(path)
    with pytest.raises(InputError, match="was not measured"):
        load_latencies(path, dtype="bfloat16")
    write_json(path, {"latency": [rows[0].to_dict() | {"stages": [{"median": "1"}]}]})
    with pytest.raises(InputError, match="damaged"):
        load_latencies(path)


def test_the_command_says_the_verdict_first_and_fits_a_terminal(profile, capsys, monkeypatch) -> None:
    path = str(profile(latency(1, (1.0, 2.0)), latency(32, (0.2, 0.5))))
    monkeypatch.setenv("COLUMNS", "80")
    words = ["size", path, "--rate", "5000/s", "--slo-ms", "50"]
    assert main([*words, "--shares", "60%,40%"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("5,000 requests/s within 50 ms: ")
    assert max(map(len, shown.splitlines())) <= 80
    assert main([*words, "--budget", "60%", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["shares_from"] == "estimated from the mean cost"
    assert value["replicas"] == sum(stage["replicas"] for stage in value["stages"])
    assert value["reached"]


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        ((), ("--budget is missing",)),
        (("--rate", "many", "--budget", "60%"), ("--rate 'many'",)),
        (("--shares", "a,b"), ("--shares 'a,b'",)),
        (("--shares", "0.2,0.3"), ("shares", "2 exits")),
        (("--budget", "1%"), ("budget", "out of reach")),
        (("--budget", "60%", "--slo-ms", "0.5"), ("slo_ms 0.5",)),
        (("--budget", "60%", "--engine", "openvino"), ("engine openvino",)),
    ],
)
def test_the_command_refuses(profile, capsys, more, facts) -> None:
    given = {"--rate": "5000/s", "--slo-ms": "50"} | dict(zip(more[::2], more[1::2], strict=True))
    words = [word for pair in given.items() for word in pair]
    assert main(["size", str(profile(latency())), *words]) == 2
    said = capsys.readouterr().err
    assert all(fact in said for fact in facts), said


def test_a_table_needs_a_policy(profile, capsys, tmp_path) -> None:
    np.savez(tmp_path / "val.npz", a=np.zeros(1))
    words = ["--rate", "10", "--slo-ms", "50", "--table", str(tmp_path / "val.npz")]
    assert main(["size", str(profile(latency())), *words]) == 2
    assert "--table needs a policy" in capsys.readouterr().err
