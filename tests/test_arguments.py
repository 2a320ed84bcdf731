"""Arguments of the wrong kind are refused in one sentence that names them, wherever a public function takes them.

The checks of shapes are off: without them, nothing but the functions themselves stands between a user and a raw error.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from eenet.errors import EenetError
from eenet.evaluation import compare, evaluate
from eenet.policies import (
    ConfidenceScorer,
    Dial,
    MixedPolicy,
    Policy,
    ScorePolicy,
    load_policy,
    replay,
    save_policy,
)
from eenet.schedulers import BudgetController, JointScheduler, certify, oracle, static_mix
from eenet.schedulers.betting import betting_bound
from eenet.tables import CostTable, ExitTable, log_softmax, standard_budgets
from eenet.testing import synthetic_table

pytestmark = pytest.mark.usefixtures("unchecked")

OBJECT = object()
JOINT = JointScheduler()


@cache
def table() -> ExitTable:
    return synthetic_table(120)


@cache
def dial() -> Dial:
    return JOINT.sweep(table())


def policy() -> Policy:
    return dial().policies[0]


def controller() -> BudgetController:
    return BudgetController(dial(), "60%")


def mapped(**changes: Any) -> dict[str, float]:
    return controller().state_dict() | changes


def saving(**values: Any) -> None:
    save_policy(values.pop("policy", policy()), "never", **values)


COUNTS = ("a", 1.5, True, -1, 0, math.nan, OBJECT, [1])
CHANCES = ("a", None, 0, 1, -0.5, math.nan, OBJECT, [0.5], 10**400)
SEEDS = ("a", 1.5, True, None, -1, math.nan, OBJECT, [1])
OTHERS = ("a", 1.5, True, None, OBJECT, [1], {"a": 1})
GIVEN = ("a", 1.5, True, OBJECT, [1], {"a": 1})
LISTS = ("60%", 60, 1.5, True, OBJECT, {"a": 1}, np.array(3.0))
PATHS = (3, 1.5, True, None, OBJECT, [1])

CALLS: dict[str, tuple[Callable[[Any], object], tuple[Any, ...], str]] = {
    "certify seed": (lambda x: certify(JOINT, table(), budget="60%", seed=x), SEEDS, "seed"),
    "certify delta": (lambda x: certify(JOINT, table(), budget="60%", delta=x), CHANCES, "delta"),
    "certify epsilon": (lambda x: certify(JOINT, table(), guarantee="accuracy", epsilon=x), CHANCES, "epsilon"),
    "certify scheduler": (lambda x: certify(x, table(), budget="60%"), OTHERS, "scheduler"),
    "certify table": (lambda x: certify(JOINT, x, budget="60%"), OTHERS, "table"),
    "certify costs": (lambda x: certify(JOINT, table(), x, budget="60%"), GIVEN, "costs"),
    "betting delta": (lambda x: betting_bound(np.zeros(9), x), CHANCES, "delta"),
    "betting values": (lambda x: betting_bound(x, 0.1), ("a", 1.5, None, OBJECT, [[1.0]]), "values"),
    "controller dial": (lambda x: BudgetController(x, "60%"), OTHERS, "dial"),
    "horizon": (lambda x: BudgetController(dial(), "60%", horizon=x), ("a", True, None, 0, math.nan), "horizon"),
    "controller batch_size": (lambda x: controller().replay(table(), batch_size=x), (*COUNTS, 2.5), "batch_size"),
    "controller table": (lambda x: controller().replay(x), OTHERS, "table"),
    "controller costs": (lambda x: controller().replay(table(), x), GIVEN, "costs"),
    "update": (lambda x: controller().update(x), ("a", None, OBJECT, ["a"], True, math.nan, 10**400), "costs"),
    "update samples": (lambda x: controller().update(1.0, x), COUNTS, "samples"),
    "worst_debt": (lambda x: controller().worst_debt(x), ("a", True, None, math.nan), "highest_cost"),
    "worst_debt batch": (lambda x: controller().worst_debt(1.0, x), COUNTS, "batch_size"),
    "state": (lambda x: controller().load_state_dict(x), ("a", 1.5, None, [1], {}), "state"),
    "state samples": (lambda x: controller().load_state_dict(mapped(samples=x)), ("a", None, -1, math.nan), "samples"),
    "state span": (lambda x: controller().load_state_dict(mapped(span=x)), ("a", True, 0, -1, math.inf), "span"),
    "select": (lambda x: table().select(x), ("a", 5, None, OBJECT, ["a"], [0.5], [[0]], slice("a", 3)), "rows"),
    "select rows": (lambda x: table().select(x), ([120], [0, -121], [10**6], [], slice(200, 300)), "rows"),
    "select mask": (lambda x: table().select(x), (np.ones(7, bool), np.zeros(120, bool)), "rows"),
    "until": (lambda x: table().until(x), (*COUNTS, 1, 9), "exits"),
    "keeping": (lambda x: table().keeping(x), ("ab", 3, None, [0.5, 3], ["a", 3], [True, 3], [[0], 3]), "exits"),
    "concat": (ExitTable.concat, ("a", None, 3, [], ["a"], [3]), "table"),
    "load": (ExitTable.load, PATHS, "path"),
    "save": (lambda x: table().save(x), PATHS, "path"),
    "transformed": (lambda x: table().transformed(x), OTHERS, "transform"),
    "with_costs": (lambda x: table().with_costs(x), GIVEN, "costs"),
    "convert": (lambda x: CostTable((1, 2), "ms").convert(x), (1.5, None, [1], "apples"), "unit"),
    "standard_budgets": (standard_budgets, OTHERS, "costs"),
    "log_softmax": (log_softmax, ("a", None, OBJECT, ["a"], 1.5), "logits"),
    "replay policy": (lambda x: replay(x, table()), OTHERS, "policy"),
    "replay table": (lambda x: replay(policy(), x), OTHERS, "table"),
    "replay costs": (lambda x: replay(policy(), table(), x), GIVEN, "costs"),
    "load_policy": (load_policy, PATHS, "path"),
    "save_policy path": (lambda x: save_policy(policy(), x), PATHS, "path"),
    "save_policy": (lambda x: saving(policy=x), OTHERS, "policy"),
    "save_policy costs": (lambda x: saving(costs=x), GIVEN, "costs"),
    "save_policy dial": (lambda x: saving(dial=x), GIVEN, "dial"),
    "save_policy exits": (lambda x: saving(exits=x), ("abcd", 3, True, ["a"] * 4, [0.5] * 4), "exit"),
    "sweep table": (JOINT.sweep, OTHERS, "table"),
    "sweep costs": (lambda x: JOINT.sweep(table(), x), GIVEN, "costs"),
    "sweep budgets": (lambda x: JOINT.sweep(table(), budgets=x), LISTS, "budget"),
    "fit table": (lambda x: JOINT.fit(x, budget="60%"), OTHERS, "table"),
    "dial policies": (lambda x: Dial(x, (1.0,), (1.0,), table().costs), (*OTHERS, ["a"]), "polic"),
    "dial costs": (lambda x: Dial((policy(),), (1.0,), (1.0,), x), OTHERS, "costs"),
    "dial fit_costs": (lambda x: Dial((policy(),), x, (1.0,), table().costs), ("a", 1.5, None, ["a"]), "fit_costs"),
    "mixed": (lambda x: MixedPolicy(policy(), x, 0.5), OTHERS, "policy"),
    "mixed weight": (lambda x: MixedPolicy(policy(), policy(), x), ("a", None, True, 2, math.nan), "weight"),
    "scorer": (lambda x: ScorePolicy(x, [0.0, -math.inf]), (1.5, None, OBJECT, [1]), "scorer"),
    "thresholds": (lambda x: ScorePolicy(ConfidenceScorer("margin"), x), ("a", 1.5, None, ["a", "b"]), "thresholds"),
    "compare val": (lambda x: compare(x, table(), {"a": JOINT}), OTHERS, "val"),
    "compare test": (lambda x: compare(table(), x, {"a": JOINT}), OTHERS, "test"),
    "compare schedulers": (lambda x: compare(table(), table(), x), ("a", 1.5, None, ["a"], {"a": 1}), "scheduler"),
    "compare budgets": (lambda x: compare(table(), table(), {"a": JOINT}, x), LISTS, "budget"),
    "compare costs": (lambda x: compare(table(), table(), {"a": JOINT}, costs=x), GIVEN, "costs"),
    "compare confusion": (lambda x: compare(table(), table(), {"a": JOINT}, confusion=x), GIVEN, "confusion"),
    "evaluate policy": (lambda x: evaluate(x, table()), OTHERS, "policy"),
    "evaluate table": (lambda x: evaluate(policy(), x), OTHERS, "table"),
    "oracle": (lambda x: oracle(x, table().costs, 2), OTHERS, "table"),
    "static_mix": (lambda x: static_mix(table(), table(), x, 2), OTHERS, "costs"),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_kind_is_named(name: str) -> None:
    call, values, said = CALLS[name]
    for value in values:
        with pytest.raises(EenetError) as raised:
            call(value)
        message = str(raised.value)
        assert message.startswith(said) or f" {said}" in message, (value, message)
        assert message.endswith(".") and len(message) < 400, (value, message)


def test_what_fits_is_taken() -> None:
    rows = table().select(np.array([3, -1], np.int8)).logits
    assert np.array_equal(rows, table().logits[[3, 119]])
    assert table().select(range(5)).num_samples == table().select(np.arange(120) < 5).num_samples == 5
    assert JOINT.sweep(table(), budgets=np.array([2.0, 3.0])).costs == table().costs
    assert len(compare(table(), table(), {"a": JOINT}, (b for b in ("60%",)), resamples=2).rows) == 3
    assert table().until(np.int64(2)).num_exits == table().keeping(np.array([0, 3])).num_exits == 2
    assert BudgetController(dial(), "60%").replay(table(), batch_size=np.int32(7)).cost.shape == (120,)
