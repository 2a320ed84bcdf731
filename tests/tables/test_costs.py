"""Costs and budgets: units, percentages, what is refused."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eenet.errors import BudgetError, InputError, TableError
from eenet.tables.costs import STANDARD_FRACTIONS, CostTable, standard_budgets

COSTS = CostTable((2.0, 4.0, 5.0), "ms", reference=4.0)


@pytest.mark.parametrize(
    ("asked", "value"),
    [
        (2.5, 2.5),
        (3, 3.0),
        ("2.5", 2.5),
        ("2.5ms", 2.5),
        ("2500 us", 2.5),
        ("2500µs", 2.5),
        ("2500μs", 2.5),
        (np.float32(2.5), 2.5),
        (np.int64(3), 3.0),
        (np.array(2.5), 2.5),
        (Fraction(5, 2), 2.5),
        (Decimal("2.5"), 2.5),
        ("0.0025s", 2.5),
        ("75%", 3.0),
        (" 50 % ", 2.0),
        ("1e1", 10.0),
    ],
)
def test_budgets_by_hand(asked, value):
    assert COSTS.budget(asked).value == pytest.approx(value)


def test_percentages_refer_to_the_original_model_where_it_is_known():
    assert COSTS.budget("100%").value == 4.0
    assert "original model" in COSTS.budget("100%").meaning
    bare = CostTable((2.0, 4.0, 5.0), "ms")
    assert bare.budget("100%").value == 5.0
    assert "last exit" in bare.budget("100%").meaning


def test_one_mac_is_two_flops():
    macs = CostTable((1.0, 2.0), "MMACs", reference=2.0)
    assert macs.convert("MFLOPs") == CostTable((2.0, 4.0), "MFLOPs", reference=4.0)
    assert macs.budget("3MFLOPs").value == 1.5
    assert macs.budget("2.4e-3 GFLOPs").value == pytest.approx(1.2)


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "much",
        "nan",
        "inf",
        "-inf",
        "60%%",
        "3 apples",
        "2.5 MFLOPs",
        "1,5",
        "%",
        True,
        float("nan"),
        math.inf,
        np.True_,
        np.array([3.0]),
    ],
)
def test_what_is_no_budget_is_refused(asked):
    with pytest.raises(BudgetError, match="budget"):
        COSTS.budget(asked)


@pytest.mark.parametrize("asked", [1.9, "40%", "-3", 0, "1999us"])
def test_a_budget_below_the_first_exit_names_the_reachable_range(asked):
    with pytest.raises(BudgetError, match=r"out of reach.*\[2, 5\] ms"):
        COSTS.budget(asked)


@pytest.mark.parametrize(("asked", "hint"), [(0.5, True), ("0.5", True), (0.3, False), ("0.5ms", False), (1, False)])
def test_a_number_that_would_be_a_share_in_reach_is_answered_with_the_percentage(asked, hint):
    with pytest.raises(BudgetError) as refused:
        COSTS.budget(asked)
    assert ("'50%'" in str(refused.value)) == hint


@pytest.mark.parametrize("cheapest", [1.0, 1 / 3, 0.7777, 2.9999])
def test_the_share_that_an_unreachable_budget_is_told_can_be_asked(cheapest):
    costs = CostTable((cheapest, 4.0), "ms", reference=3.0)
    with pytest.raises(BudgetError) as refused:
        costs.budget(cheapest / 2)
    told = re.search(r"from ([\d.]+%) upwards", str(refused.value))[1]
    assert cheapest <= costs.budget(told).value <= cheapest * 1.001


def test_what_another_table_read_is_that_amount_here_or_refused():
    small = CostTable((0.001, 0.009), "s")
    asked = small.budget("50%")
    assert COSTS.budget(asked).value == pytest.approx(4.5) and COSTS.budget(asked).text == "50%"
    assert COSTS.budget(COSTS.budget(3)) == COSTS.budget(3)
    with pytest.raises(BudgetError, match="out of reach"):
        COSTS.budget(small.budget("0.0015"))
    with pytest.raises(BudgetError, match="unit"):
        CostTable((1.0, 2.0), "MFLOPs").budget(asked)


def test_the_cheapest_cost_is_a_budget_whatever_its_rounding():
    low = 0.1 + 0.2
    assert CostTable((low, 1.0), "ms").budget("0.3").value == low


@pytest.mark.parametrize(
    "cumulative", [(1.0,), (), (1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_costs_that_cannot_be_are_refused(cumulative):
    with pytest.raises(TableError, match="cost"):
        CostTable(cumulative, "ms")


@pytest.mark.parametrize("reference", [0.0, -1.0, math.nan])
def test_a_reference_that_cannot_be_is_refused(reference):
    with pytest.raises(TableError, match="cost_reference"):
        CostTable((1.0, 2.0), "ms", reference=reference)


def test_free_units_do_not_convert():
    costs = CostTable((1.0, 2.0), "credits")
    assert costs.budget("1.5credits").value == 1.5
    with pytest.raises(InputError, match="unit 'ms' does not fit"):
        costs.convert("ms")


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6), st.floats(0, 1))
def test_stage_costs_add_up_and_budgets_survive_units(steps, fraction):
    total, cumulative = 0.0, []
    for step in steps:
        total += step
        cumulative.append(total)
    costs = CostTable(tuple(cumulative), "ms")
    assert sum(costs.stage_costs) == pytest.approx(costs.high)
    value = costs.low + fraction * (costs.high - costs.low)
    assert costs.convert("us").budget(f"{value}ms").value == pytest.approx(1000 * value)


def test_standard_budgets_by_hand():
    assert standard_budgets(CostTable((1.0, 11.0), "ms")) == pytest.approx([1 + 10 * f for f in STANDARD_FRACTIONS])


def test_costs_survive_json():
    assert CostTable.from_dict(COSTS.to_dict()) == COSTS
    with pytest.raises(TableError, match="incomplete"):
        CostTable.from_dict({"cumulative": [1, 2]})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", [math.nan, math.inf, True, None, np.float32("nan"), [2.0], "nan", "", "two ms"])
def test_what_is_no_budget_is_quoted_only_where_it_is_a_text(value):
    with pytest.raises(BudgetError) as raised:
        CostTable((1, 2, 4), "ms").budget(value)
    message = str(raised.value)
    assert message.startswith(f"budget {value!r} " if isinstance(value, str) else f"budget {value} ")
    assert "exit 0 costs 1 ms" in message and "[1, 4]" in message
