"""The page of the best recipe: gains are those of the same halves, and told in operations and in time."""

import pytest


@pytest.fixture
def frontier(benchmark):
    return benchmark("frontier")


def judged(areas, unit):
    return {
        "unit": unit,
        "reference": 4.0,
        "costs": [1.0, 5.0],
        "accuracy": [0.6, 0.9],
        "areas": areas,
        "sides": [10, 10],
    }


def test_gains_are_paired_by_half_in_operations_and_in_time(frontier):
    plain, best = [0.70, 0.80], [0.72, 0.82]
    in_flops = {"plain": judged(plain, "MFLOPs"), "best": judged(best, "MFLOPs")}
    in_time = [
        {"recipe": "plain", "batch_size": 1, **judged(plain, "ms")},
        {"recipe": "best", "batch_size": 1, **judged([0.71, 0.83], "ms")},
    ]
    table = frontier.areas_table(in_flops, in_time)
    assert "| operations | 75.00 | 77.00 | +2.00 (+2.00 to +2.00) |" in table
    timed = next(line for line in table.splitlines() if line.startswith("| measured time, batch size 1 |"))
    assert "+2.00 (-" in timed  # one half gains 1 point, the other 3: the interval is wide


def test_every_exit_of_both_recipes_is_told(frontier):
    table = frontier.exits_table({"plain": judged([0.7], "MFLOPs"), "best": judged([0.8], "MFLOPs")})
    assert "| plain | 0 | 1.0 | 25 | 60.00 |" in table and "| best | 1 | 5.0 | 125 | 90.00 |" in table
