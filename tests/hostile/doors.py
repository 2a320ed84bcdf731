"""Random tables, good ones and odd ones, and what may come of them: a right result, or one sentence."""

from __future__ import annotations

import json
import math
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eenet import CostTable, ExitTable, advise, certify, compare, replay
from eenet.cli import names
from eenet.errors import EenetError
from eenet.policies import Policy, Replayer
from eenet.schedulers import DeadlineScheduler

LONGEST = 600
FAST = ("max_prob", "certainty", "margin", "patience", "vote", "geometric", "pcee", "eero", "stopping", "joint")
OF_CLASSES = ("certainty", "margin", "patience", "vote")
SLOW = ("eenet", "auto", "ztw", "eenet_published")


class Refused(Exception):
    """Something was refused as it should be."""


@contextmanager
def judged() -> Iterator[None]:
    """Let nothing pass but results and refusals of one sentence, without a warning that is not eenet's own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except EenetError as error:
            text = str(error)
            assert len(text) < LONGEST, f"{len(text)} characters: {text[:LONGEST]}"
            assert text.isprintable(), f"more than a line: {text!r}"
            assert text.rstrip().endswith((".", "?")), f"no sentence: {text!r}"
            raise Refused(text) from error
        finally:
            for one in caught:
                assert one.category is UserWarning, f"{one.category.__name__}: {one.message} ({one.filename})"
                assert "\n" not in str(one.message)


def chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def pick(rng: np.random.Generator, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def outputs(rng: np.random.Generator, odd: float) -> np.ndarray:
    """Return logits or features: ties, copies and extremes among them, and with probability ``odd`` what is wrong."""
    n, exits, columns = pick(rng, 40, 60, 110, 130), pick(rng, 2, 3, 4), pick(rng, 2, 3, 10)
    if chance(rng, odd):
        n, exits, columns = (
            pick(rng, 0, 1, 2, 3, 4, n),
            pick(rng, 0, 1, exits, exits),
            pick(rng, 0, 1, columns, columns),
        )
    values = rng.normal(size=(n, exits, columns)) * pick(rng, 0.1, 1, 1, 10, 100)
    if chance(rng, 0.3):
        values = np.round(values)  # ties
    if chance(rng, 0.1):
        values[:] = values[:1]  # all samples alike
    if chance(rng, 0.1):
        values[:] = values[:, :1]  # all exits alike
    kind = pick(rng, "f4", "f4", "f8", "f2", ">f4", "g")
    if chance(rng, 0.2):
        values *= pick(rng, 0, 1e-40, 1e3, 1e4, 1e28, -1e28, 1e35)
        kind = pick(rng, "f4", "f8")
    if chance(rng, 0.1) and columns > 1:
        values[..., 1:][rng.random(values[..., 1:].shape) < 0.3] = pick(rng, -np.inf, 1e30, -1e30, 3.4e38, -3.4e38, 0)
    if chance(rng, odd):
        values[rng.random(values.shape) < pick(rng, 0.01, 0.3, 1)] = pick(rng, np.nan, np.inf, -np.inf, 1e300)
    if chance(rng, odd):
        kind = pick(rng, "i8", "u1", "?", "O", "c8", "U5", "M8[s]", "f8,f8", "S3")
    values = values.astype(kind)
    if chance(rng, 0.1):
        values = pick(rng, np.asfortranarray(values), values[::-1], np.ma.masked_array(values))
    if chance(rng, odd):
        values = pick(
            rng,
            values[..., None],
            values[None],
            values.T,
            np.array(5.0),
            np.ma.masked_array(values, np.arange(values.size).reshape(values.shape) == 0),
        )
    return values


def labels(rng: np.random.Generator, shape: tuple[int, ...], odd: float) -> Any:
    n, classes = (*shape, 1, 1, 1)[0], (*shape, 1, 1, 1)[2] if len(shape) > 2 else 2
    found: Any = rng.integers(0, max(classes, 1), n)
    if chance(rng, 0.1):
        found[:] = 0
    if chance(rng, odd):
        return pick(
            rng, None, -found, found + 1, found + 0.5, found.astype("u8") + 2**63, found.astype(bool), found[:-1],
            found[:, None], found.astype(str), found.astype(object), "cat", list(map(str, found)), 2**63, [[0], [1, 2]],
        )  # fmt: skip
    return found.astype(pick(rng, "i8", "i4", "u1", "u8", ">i2"))


def costs_of(rng: np.random.Generator, exits: int, odd: float) -> dict[str, Any]:
    values: Any = np.cumsum(rng.uniform(0.5, 2, max(exits, 1)))
    unit, reference = pick(rng, "ms", "FLOPs", "MACs", "apples"), pick(rng, None, None, 1.5, 40)
    if chance(rng, 0.15):
        values = pick(
            rng, values * 1e300, values * 1e-300, values * 1e30, values * 1e-30, 1 + values * 1e-16, 1e15 + values
        )
    if chance(rng, 0.05):
        unit, reference = (
            pick(rng, "ms[/x]", "\x1b[31m\n", "x" * 3000, "$\\frac$"),
            pick(rng, 1e-300, 1e300, 1e-30, 1e30),
        )
    if chance(rng, odd):
        values = pick(
            rng, values[::-1], values * 0, np.ones(exits), -values, [*values, math.nan][1:], [*values, math.inf][1:],
            values[:-1], [True, *values[1:]], list(map(str, values)), [*values[1:], "x"], 5, None, "123",
            [10**400, 10**401],
        )  # fmt: skip
    if chance(rng, odd):
        unit = pick(rng, "", 5, None, ["ms"])
    if chance(rng, odd):
        reference = pick(rng, 0, -1, math.nan, math.inf, "3", True, [3])
    return {"cumulative": values, "unit": unit, "reference": reference}


def utility(rng: np.random.Generator, shape: tuple[int, ...], odd: float) -> Any:
    found = rng.random((*shape, 1, 1)[:2])
    if chance(rng, 0.3):
        found = pick(
            rng, np.round(found), found * 0, found * 0 + 1, found.astype("f2"), found * 0 + 0.5, found * 1e-300,
            found > 0.5, np.round(found).astype(int),
        )  # fmt: skip
    if chance(rng, odd):
        return pick(
            rng, found + 0.6, found * -1.0 - 0.1, found * np.nan, found[:, :1], found.T, found.astype("c8"),
            found.astype(object), found.tolist(), "good",
        )  # fmt: skip
    return found


def cost(rng: np.random.Generator, shape: tuple[int, ...], odd: float) -> Any:
    found = rng.uniform(0.5, 2, (*shape, 1, 1)[:2]).cumsum(axis=1)
    if chance(rng, 0.3):
        found = pick(
            rng, found * 1e300, found * 1e-300, found * 1e30, found.astype("f2"), found[:1].repeat(len(found), 0)
        )
    if chance(rng, odd):
        return pick(
            rng, found[:, ::-1], found * 0 + 1, found * np.nan, found[0], np.round(found).astype(int),
            found.astype("M8[s]"), -found,
        )  # fmt: skip
    return found


def random_arguments(rng: np.random.Generator, odd: float = 0.03) -> dict[str, Any]:
    """Return what a table is made from, under ``probs`` where it is made from these."""
    seen = outputs(rng, odd)
    shape = np.shape(seen)
    exits = (*shape, 1, 1)[1] if shape else 2
    given: dict[str, Any] = {"costs": costs_of(rng, exits, odd)}
    if chance(rng, 0.15):
        given["utility"] = utility(rng, shape, odd)
    if chance(rng, 0.15):
        given["cost"] = cost(rng, shape, odd)
    if chance(rng, 0.2):
        named = ["max_prob", *(f"f{i}" for i in range(1, (*shape, 1, 1, 1)[2]))]
        given |= {"features": seen, "utility": utility(rng, shape, odd), "feature_names": named}
        if chance(rng, odd):
            given["feature_names"] = pick(rng, ["a", "a"], "", "ab", [5], named[1:], None, ["\x1b"] * len(named))
    else:
        given["labels"] = labels(rng, shape, odd)
        if chance(rng, 0.1) and seen.dtype.kind == "f" and seen.ndim == 3 and seen.size:
            shifted = np.exp(seen - seen.max(axis=-1, keepdims=True))
            given["probs"] = shifted / shifted.sum(axis=-1, keepdims=True)
        else:
            given["logits"] = seen.tolist() if seen.dtype.kind == "f" and chance(rng, 0.1) else seen
    if chance(rng, odd) and "probs" not in given:
        given["logits"] = seen
    return given


def budget(rng: np.random.Generator, costs: CostTable, odd: float = 0.15) -> Any:
    if chance(rng, odd):
        return pick(
            rng, 0, -1, "-5%", math.nan, math.inf, "1e400", "nan", "abc", "", "%", None, True, "5 apples", 10**400,
            "9" * 5000 + "%", [1], 3j, "٦0%", "60%\n", "\x1b[31m", np.array([1.0, 2.0]), b"60%", Fraction(10**400),
            "1" + "0" * 308 + "%", 1e308,
        )  # fmt: skip
    value = costs.low + rng.random() * (costs.high - costs.low)
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return pick(rng, "60%", "100%", value, single, costs.low, costs.high, Fraction(3), "1e3%", np.float64(value))


def within(policy: Policy, table: ExitTable, asked: Any) -> None:
    """Check that a policy fitted on a table keeps its budget there, and what replaying it says."""
    trace = replay(policy, table)
    assert len(trace.exit_index) == table.num_samples
    assert trace.exit_index.min() >= 0 and trace.exit_index.max() < table.num_exits
    assert np.isfinite(trace.cost).all()
    if table.has_classes:
        assert trace.log_probs is not None and np.isfinite(trace.log_probs).all()
        assert np.allclose(np.exp(trace.log_probs.astype(float)).sum(axis=1), 1, atol=1e-3)
    spent, gained = Replayer(table).expected(policy)
    assert spent <= table.require_costs().budget(asked).value * (1 + 1e-6), (spent, asked)
    assert -1e-9 <= gained <= 1 + 1e-9


def finite(value: object) -> None:
    """Check that a result is JSON without NaN and infinity."""
    json.dumps(value, allow_nan=False)


def fitted(rng: np.random.Generator, table: ExitTable, asked: Any, name: str) -> None:
    policy = names.scheduler(name, int(rng.integers(3))).fit(table, budget=asked)
    within(policy, table, asked)


def dialled(rng: np.random.Generator, table: ExitTable, asked: Any, name: str) -> None:
    dial = names.scheduler(name, 0).sweep(table)
    within(dial.at(asked), table, asked)


def with_deadline(rng: np.random.Generator, table: ExitTable, asked: Any, name: str) -> None:
    limit = budget(rng, table.require_costs())
    policy = DeadlineScheduler(scheduler=names.scheduler(name, 0), deadline=limit).fit(table, budget=asked)
    within(policy, table, asked)
    assert replay(policy, table).cost.max() <= table.require_costs().budget(limit).value * (1 + 1e-9)


def certified(rng: np.random.Generator, table: ExitTable, asked: Any, name: str) -> None:
    promise, delta, epsilon = pick(rng, "budget", "accuracy"), pick(rng, 0.1, 0.4, 1e-9), pick(rng, 0.01, 0.3)
    if chance(rng, 0.1):
        delta = pick(rng, 0, 1, math.nan, -1)
    scheduler = names.scheduler(name, 0)
    found = certify(scheduler, table, budget=asked, guarantee=promise, delta=delta, epsilon=epsilon, seed=3)
    certificate = found.certificate
    finite(certificate.to_dict())
    check_certificate(found.policy, certificate, table, seed=3)


def check_certificate(policy: Policy, certificate: Any, table: ExitTable, seed: int) -> None:
    """Check that what is promised does not contradict the samples that certify it."""
    order = np.random.default_rng(seed).permutation(table.num_samples)[: table.num_samples // 2]
    part = Replayer(table.select(order))
    spent, gained = part.expected(policy)
    assert math.isclose(spent, certificate.mean_cost, rel_tol=1e-9)
    assert math.isclose(gained, certificate.mean_utility, rel_tol=1e-9, abs_tol=1e-12)
    full = float(part.table.require_utility("judging")[:, -1].mean())
    mean, limit = (
        (spent, certificate.budget) if certificate.guarantee == "budget" else (full - gained, certificate.epsilon)
    )
    assert mean <= certificate.bound + 1e-9 * abs(certificate.bound), (mean, certificate)
    assert certificate.bound <= limit * (1 + 1e-9), certificate


def compared(rng: np.random.Generator, table: ExitTable, asked: Any, name: str) -> None:
    rows = rng.permutation(table.num_samples)
    middle = max(1, table.num_samples // 2)
    val, test = table.select(rows[:middle]), table.select(rows[middle:])
    splits = pick(rng, 1, 1, 2)
    value = compare(val, test, {name: names.scheduler(name, 0)}, [asked], splits=splits, resamples=20).to_dict()
    finite(value)
    for row in value["rows"]:
        assert math.isclose(sum(row["exit_distribution"]), 1, rel_tol=1e-6)
        assert -1e-9 <= row["test_utility"] <= 1 + 1e-9
        assert 0 < row["test_cost"] <= table.leaving_costs.max() * (1 + 1e-9)


def advised(rng: np.random.Generator, table: ExitTable, asked: Any, name: str) -> None:
    confidence = pick(rng, "max_prob", "max_prob", "margin", "f1")
    advice = advise(table, budgets=pick(rng, [], [asked]), resamples=20, folds=pick(rng, 2, 5), confidence=confidence)
    finite(advice.to_dict())
    assert advice.kept[-1] == table.num_exits - 1 and advice.verdict


WAYS: tuple[Callable[..., None], ...] = (
    fitted,
    fitted,
    dialled,
    with_deadline,
    compared,
    advised,
    certified,
    certified,
)


def one_table(seed: int, slow: int, ways: Sequence[Callable[..., None]] = WAYS) -> str:
    """Push one random table through the door; return what became of it. One in so many meets a slow scheduler."""
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = random_arguments(rng)
    try:
        with judged():
            given["costs"] = CostTable(**given["costs"])
            table = ExitTable.from_probs(**given) if "probs" in given else ExitTable(**given)
            way = pick(rng, *ways)
            if way is certified and table.num_samples < 100 and chance(rng, 0.9):
                table = ExitTable.concat([table] * 3)  # enough for a promise
            suited = FAST if table.has_classes else tuple(name for name in FAST if name not in OF_CLASSES)
            name = pick(rng, *suited) if rng.integers(slow) else pick(rng, *SLOW)
            way(rng, table, budget(rng, table.require_costs()), name)
    except Refused as refused:
        return f"{type(refused.__cause__).__name__} refused"
    return f"{way.__name__} done"


def tried(one: Callable[[int], str], start: int, stop: int) -> None:
    """Try seeds one after the other, and print as JSON how often what came of them, and the failures."""
    counts: Counter[str] = Counter()
    failures = []
    for seed in range(start, stop):
        try:
            counts[one(seed)] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "eenet" in frame.filename]
            where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-3:]))
            failures.append(f"seed {seed}: {type(error).__name__} {error} at {where}")
    print(json.dumps({"counts": counts, "failures": failures}))


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    ways = WAYS if name == "any" else [one for one in WAYS if one.__name__ == name]
    tried(partial(one_table, slow=int(numbers[0]), ways=ways), *map(int, numbers[1:]))
