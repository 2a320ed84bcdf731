"""A service answers as replay does, whatever runs beside, and loses nothing."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait

import numpy as np
import pytest
from exporting import COSTS, digits, exported, model
from hypothesis import given, settings
from hypothesis import strategies as st
from replaying import POLICIES, ReplayEngine, policies, rows

from eenet import AdaptiveModel, CostTable, Dial, ExitTable, replay
from eenet.errors import BudgetError, InputError, RunError, ShapeError
from eenet.policies.mixture import UpTo, coin
from eenet.running.loop import Loop
from eenet.schedulers import GeometricScheduler
from eenet.serving import Answer, QueueFull, Service, Stopped
from eenet.serving.worker import _SALT, Worker
from eenet.tables.arrays import log_softmax

COUNT = 120
FOUR = CostTable((1.0, 2.0, 3.0, 4.0), "ms")


def random_logits(seed: int = 0, count: int = COUNT) -> np.ndarray:
    """Logits of samples at 4 exits, later exits surer."""
    values = 1.5 * np.random.default_rng(seed).standard_normal((count, 4, 6)).cumsum(axis=1)
    return values.astype(np.float32)


LOGITS = random_logits()
LABELS = LOGITS[:, -1].argmax(axis=1)
TABLE = ExitTable(logits=LOGITS, labels=LABELS, costs=FOUR)


@pytest.fixture(scope="module")
def dial() -> Dial:
    return GeometricScheduler().sweep(TABLE)


def served(policy, engine=None, dial=None, costs=FOUR, **settings) -> Service:
    return Service(AdaptiveModel(engine or ReplayEngine(LOGITS), policy, costs, dial=dial), **settings)


class Gated(ReplayEngine):
    """Waits before every stage until it is let through; some rows cannot be run."""

    def __init__(self, outputs: np.ndarray, bad: tuple[int, ...] = (), *, is_open: bool = True) -> None:
        super().__init__(outputs)
        self.gate, self.bad, self.entered, self.ran = threading.Event(), bad, threading.Event(), []
        if is_open:
            self.gate.set()

    def stage(self, index: int, state: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(10)
        self.ran.append((index, state[:, 0].tolist()))
        if set(self.bad) & set(state[:, 0].tolist()):
            raise ZeroDivisionError("a bad row")
        return state


def parts(sizes: list[int]) -> Iterator[slice]:
    """Cut the samples into requests of these sizes, in turn."""
    first = 0
    while first < COUNT:
        for size in sizes:
            yield slice(first, min(first + size, COUNT))
            first += size
            if first >= COUNT:
                return


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_answers_as_replay(name: str) -> None:
    policy = policies(LOGITS)[name]
    trace = replay(policy, TABLE)
    with served(policy, max_batch=7) as service:
        sent = [(at, service.submit(rows(COUNT)[at], sample_ids=np.arange(COUNT)[at])) for at in parts([1, 3, 2])]
        for at, future in sent:
            answer = future.result(10)
            assert np.array_equal(answer.exit, trace.exit_index[at])
            assert np.array_equal(answer.probabilities, np.exp(trace.log_probs[at]))
            assert np.array_equal(answer.label, trace.log_probs[at].argmax(axis=1))
            assert np.array_equal(answer.cost, trace.cost[at])
            assert np.array_equal(answer.score, answer.probabilities.max(axis=1))
        seen = service.snapshot()
    assert seen.samples == COUNT and sum(seen.exits) == COUNT and seen.answered == len(sent)
    assert seen.mean_cost == pytest.approx(trace.cost.mean())
    assert seen.waiting == (0, 0, 0, 0)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    max_batch=st.integers(1, 40),
    max_wait_ms=st.sampled_from([0.0, 0.5]),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_any_interleaving_of_budgets_decides_as_replay(
    dial: Dial, seed: int, max_batch: int, max_wait_ms: float, sizes: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    asked = [None, 1.5, "50%", "75%", 3.6]
    with served(dial.at(2.2), dial=dial, max_batch=max_batch, max_wait_ms=max_wait_ms) as service:
        sent = []
        for at in rng.permutation(np.array(list(parts(sizes)), dtype=object)):
            budget, most = asked[rng.integers(len(asked))], rng.choice([None, 0, 1, 2, 3])
            ids = rng.integers(0, 10**6, at.stop - at.start)
            sent.append(
                (at, budget, most, ids, service.submit(rows(COUNT)[at], sample_ids=ids, budget=budget, max_exit=most))
            )
            if rng.random() < 0.05:
                time.sleep(0.001)
        for at, budget, most, ids, future in sent:
            policy = dial.at(2.2 if budget is None else budget)
            policy = policy if most is None else UpTo(policy, most)
            check(future.result(10), policy, LOGITS[at], ids)


def check(answer: Answer, policy, logits: np.ndarray, ids: np.ndarray) -> None:
    """Compare an answer with what the policy says, sample by sample."""
    seen = log_softmax(logits)
    for row in range(len(ids)):
        one, of = seen[row : row + 1], ids[row : row + 1]
        exits = [k for k in range(seen.shape[1] - 1) if policy.leaves(one[:, : k + 1], of)[0]]
        k = exits[0] if exits else seen.shape[1] - 1
        assert answer.exit[row] == k
        assert np.array_equal(answer.probabilities[row], np.exp(policy.answers(one[:, : k + 1], of)[0]))


def test_ids_come_from_the_contents(dial: Dial) -> None:
    with served(dial.at(2.2), dial=dial) as service:
        twice = [service.submit(rows(COUNT)).result(10) for _ in range(2)]
        one_by_one = [service.submit(rows(COUNT)[[row]]) for row in range(COUNT)]
        alone = np.concatenate([future.result(10).exit for future in one_by_one])
    assert np.array_equal(twice[0].exit, twice[1].exit) and np.array_equal(twice[0].exit, alone)


def test_inputs_are_copied() -> None:
    engine = Gated(LOGITS, is_open=False)
    with served(policies(LOGITS)["max_prob"], engine) as service:
        inputs = rows(4).copy()
        future = service.submit(inputs, sample_ids=range(4))
        inputs[:] = 50
        engine.gate.set()
        assert np.array_equal(future.result(10).exit, replay(policies(LOGITS)["max_prob"], TABLE).exit_index[:4])


@pytest.mark.parametrize("kind", ["eager", "onnxruntime"])
def test_real_engines_under_32_threads_while_the_dial_turns(kind: str) -> None:
    made = exported("onnxruntime").path if kind == "onnxruntime" else model()
    logits = log_softmax(np.stack(all_logits(kind, made), axis=1))
    fitted = GeometricScheduler().sweep(ExitTable(logits=logits, labels=digits().labels[: len(logits)], costs=COSTS))
    adaptive = AdaptiveModel(made, fitted.at(2.0), COSTS, dial=fitted, check_source=False)
    images = np.asarray(digits().inputs(slice(0, len(logits))))
    found: list[tuple[int, int, float, Future]] = []
    low, high = fitted.fit_costs[0], fitted.fit_costs[-1]

    def send(first: int) -> None:
        for row in range(first, len(logits), 32):
            found.append((row, row, 0, service.submit(images[[row]])))
            time.sleep(0.001)

    with Service(adaptive, max_batch=16) as service:
        threads = [threading.Thread(target=send, args=(first,)) for first in range(32)]
        for thread in threads:
            thread.start()
        for i in range(100):
            service.set_budget(low + (high - low) * (i % 7) / 6)
        for thread in threads:
            thread.join()
        answers = {row: future.result(30) for row, _, _, future in found}
        seen = service.snapshot()
    assert len(answers) == len(logits) == seen.samples and seen.failures == 0
    answered = np.array([answers[row].exit[0] for row in range(len(logits))])
    classes = np.array([answers[row].label[0] for row in range(len(logits))])
    assert np.array_equal(classes, logits[np.arange(len(logits)), answered].argmax(axis=1))  # of one exit, and its own


def all_logits(kind: str, made) -> list[np.ndarray]:
    """What every exit says about some samples, from the engine itself."""
    from eenet.running.engines import as_engine
    from eenet.running.engines.base import each_exit
    from eenet.running.exports import open_export

    engine = open_export(made).engine if kind == "onnxruntime" else as_engine(made, optimise=True)
    with engine.session():
        return [seen.copy() for seen, _ in each_exit(engine, np.asarray(digits().inputs(slice(0, 320))))]


def test_a_sample_that_cannot_be_run_fails_alone() -> None:
    logits = LOGITS.copy()
    logits[17, 1:] = np.nan
    policy = policies(LOGITS)["nobody leaves early"]
    with served(policy, Gated(logits, bad=(5,)), max_batch=40, max_wait_ms=20) as service:
        futures = [service.submit(rows(40)[[row]]) for row in range(40)]
        wait(futures, 10)
        failed = {row: future.exception() for row, future in enumerate(futures) if future.exception()}
        assert set(failed) == {5, 17}
        assert "ZeroDivisionError" in str(failed[5]) and "NaN" in str(failed[17])
        assert all(isinstance(error, RunError) for error in failed.values())
        rest = [row for row in range(40) if row not in failed]
        assert [futures[row].result().label[0] for row in rest] == LABELS[rest].tolist()
        assert service.submit(rows(1)).result(10).label[0] == LABELS[0]  # the next one runs
        seen = service.snapshot()
    assert (seen.failures, seen.samples) == (2, 39)


def test_a_request_fails_as_a_whole_with_its_sample() -> None:
    with served(policies(LOGITS)["max_prob"], Gated(LOGITS, bad=(3,)), max_batch=4) as service:
        bad, good = service.submit(rows(10)), service.submit(rows(30)[20:])
        assert isinstance(bad.exception(10), RunError)
        assert np.array_equal(good.result(10).exit, replay(policies(LOGITS)["max_prob"], TABLE).exit_index[20:30])
        assert service.drain(10)


def test_the_queue_is_bounded() -> None:
    engine = Gated(LOGITS, is_open=False)
    with served(policies(LOGITS)["max_prob"], engine, queue_limit=5) as service:
        first = service.submit(rows(3))
        with pytest.raises(QueueFull, match="queue of 5 samples is full: 3 more") as caught:
            service.submit(rows(3))
        assert caught.value.retry_after_s > 0
        second = service.submit(rows(2))
        with pytest.raises(InputError, match="inputs of 6 samples"):
            service.submit(rows(6))
        engine.gate.set()
        assert len(first.result(10).label) == 3 and len(second.result(10).label) == 2
        assert service.submit(rows(5)).result(10)
        assert service.snapshot().refused == 1


def test_draining_answers_all_that_was_accepted() -> None:
    engine = Gated(LOGITS, is_open=False)
    with served(policies(LOGITS)["max_prob"], engine, max_batch=8) as service:
        futures = [service.submit(rows(COUNT)[[row]]) for row in range(COUNT)]
        assert not service.drain(0.01) and not service.ready
        with pytest.raises(Stopped):
            service.submit(rows(1))
        engine.gate.set()
        assert service.drain(10)
        assert all(future.done() and not future.exception() for future in futures)


def test_closing_fails_what_has_no_answer() -> None:
    engine = Gated(LOGITS, is_open=False)
    service = served(policies(LOGITS)["nobody leaves early"], engine, max_batch=1)
    futures = [service.submit(rows(COUNT)[[row]]) for row in range(20)]
    closing = threading.Thread(target=service.close)
    closing.start()
    engine.gate.set()
    closing.join(10)
    assert not wait(futures, 10).not_done
    assert {type(future.exception()) for future in futures} <= {Stopped, type(None)}
    assert any(future.exception() for future in futures)
    service.close()  # again


def test_nobody_waits_for_a_thread_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "_step", lambda *_: 1 / 0)
    with served(policies(LOGITS)["max_prob"]) as service:
        with pytest.raises(Stopped, match="ZeroDivisionError"):
            service.submit(rows(3)).result(10)
        assert not service.ready
        with pytest.raises(Stopped):
            service.submit(rows(1))
        assert service.drain(1)


def test_a_cancelled_request_is_dropped() -> None:
    engine = Gated(LOGITS, is_open=False)
    with served(policies(LOGITS)["max_prob"], engine, max_batch=1) as service:
        blocking, dropped = service.submit(rows(1)), service.submit(rows(10)[5:6])
        assert engine.entered.wait(10) and dropped.cancel()
        engine.gate.set()
        assert blocking.result(10) and service.drain(10)
        assert service.snapshot().cancelled == 1
    assert [5] not in [of for _, of in engine.ran]


def test_the_earliest_deadline_goes_first() -> None:
    engine = Gated(LOGITS, is_open=False)
    with served(policies(LOGITS)["all leave at once"], engine, max_batch=1) as service:
        futures = [service.submit(rows(1))]
        assert engine.entered.wait(10)
        futures += [service.submit(rows(9)[[row]], deadline_ms=ms) for row, ms in ((1, 9e4), (2, 3e4), (3, 6e4))]
        engine.gate.set()
        wait(futures, 10)
    assert [of for _, of in engine.ran] == [[0], [2], [3], [1]]


def test_samples_leave_in_time_for_their_deadline() -> None:
    class Slow(ReplayEngine):
        def stage(self, index: int, state: np.ndarray) -> np.ndarray:
            time.sleep(0.02)
            return state

    with served(policies(LOGITS)["nobody leaves early"], Slow(LOGITS)) as service:
        assert service.submit(rows(1)).result(10).exit[0] == 3  # and it is known by now how long stages take
        assert service.submit(rows(1), deadline_ms=1).result(10).exit[0] == 0
        answer = service.submit(rows(1), deadline_ms=50).result(10)
        assert 0 <= answer.exit[0] < 3 and answer.label[0] == LOGITS[0, answer.exit[0]].argmax()
        assert service.submit(rows(1), deadline_ms=5000).result(10).exit[0] == 3


def test_the_mean_cost_stays_at_the_budget_when_samples_become_harder(dial: Dial) -> None:
    hard = (LOGITS * 0.4).astype(np.float32)  # less sure: they would stay longer
    with served(dial.at(2.0), ReplayEngine(hard), dial=dial, max_batch=40) as service:
        fixed = [service.submit(rows(COUNT), sample_ids=np.arange(COUNT)) for _ in range(3)]
        drifted = np.mean([future.result(10).cost.mean() for future in fixed])
        service.set_budget(2.0)
        assert service.budget is not None and service.budget.value == 2.0
        costs = []
        for at in range(25):
            costs += service.submit(rows(COUNT), sample_ids=at * COUNT + np.arange(COUNT)).result(10).cost.tolist()
        seen = service.snapshot()
    assert drifted > 2.2
    assert np.mean(costs[-1500:]) == pytest.approx(2.0, abs=0.08)
    assert seen.target < 1.9 and seen.in_force == 2.0  # asked of the dial, so that the budget is met


def test_shadows_run_to_the_last_exit_and_are_always_the_same(dial: Dial) -> None:
    sampled = coin(np.arange(COUNT), 1 + _SALT) < 0.3
    chosen = int(sampled.sum())
    for max_batch in (3, 50):
        with served(dial.at(2.0), dial=dial, shadow=0.3, seed=1, max_batch=max_batch) as service:
            futures = [service.submit(rows(COUNT)[[row]], sample_ids=[row]) for row in range(COUNT)]
            answers = [future.result(10) for future in futures]
            until = time.monotonic() + 10
            while service.snapshot().shadows < chosen and time.monotonic() < until:
                time.sleep(0.002)
            seen = service.snapshot()
        exits = np.array([answer.exit[0] for answer in answers])
        classes = np.array([answer.label[0] for answer in answers])
        assert sum(seen.exits) == COUNT == seen.samples  # shadows are no answers
        assert np.array_equal(exits, replay(dial.at(2.0), TABLE).exit_index)
        assert seen.shadows == chosen
        assert seen.agreement == (classes == LABELS)[sampled].mean() < 1


def test_what_cannot_be_served_is_refused_at_the_door(dial: Dial) -> None:
    with served(dial.at(2.0), dial=dial) as service:
        for kept, error, text in (
            ({"budget": "5%"}, BudgetError, "out of reach"),
            ({"max_exit": 4}, InputError, "max_exit 4"),
            ({"deadline_ms": 0}, InputError, "deadline_ms 0"),
            ({"sample_ids": [1, 2]}, ShapeError, "sample_ids"),
        ):
            with pytest.raises(error, match=text):
                service.submit(rows(1), **kept)
        with pytest.raises(BudgetError):
            service.set_budget("1%")
        assert service.budget is None and service.snapshot().requests == 0
    with served(dial.at(2.0)) as service, pytest.raises(InputError, match="no dial"):
        service.submit(rows(1), budget="50%")
    with pytest.raises(InputError, match="floor"):
        served(dial.at(2.0), dial=dial, floor=0.5)
    with pytest.raises(InputError, match="slo_ms 5"):
        served(dial.at(2.0), slo_ms=5)


def test_an_export_checks_inputs_at_the_door() -> None:
    images = np.asarray(digits().inputs(slice(0, 3)))
    with Service(AdaptiveModel(exported("onnxruntime").path)) as service:
        with pytest.raises(ShapeError):
            service.submit(images[:, :, :5])
        with pytest.raises(InputError, match="float64"):
            service.submit(images.astype(np.float64))
        named = service.submit({"input": images}).result(30)
        assert np.array_equal(named.label, service.submit(images).result(30).label)


def test_policies_of_a_group_decide_and_answer_each_for_its_samples() -> None:
    from eenet.running.loop import Group

    several = [policies(LOGITS)[name] for name in ("max_prob", "with an ensemble", "nobody leaves early")]
    own = np.empty(COUNT, dtype=object)
    own[:] = [several[row % 3] for row in range(COUNT)]
    loop = Loop(ReplayEngine(LOGITS), several[0])
    loop.through(Group(rows(COUNT), np.arange(COUNT), np.arange(COUNT), several[0], own=own))
    found = loop.finish()
    for i, policy in enumerate(several):
        trace = replay(policy, TABLE)
        assert np.array_equal(found.exit_index[i::3], trace.exit_index[i::3])
        assert np.array_equal(found.log_probs[i::3], trace.log_probs[i::3])
