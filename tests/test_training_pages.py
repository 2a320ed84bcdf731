"""The pages of trainings say what their differences allow to say: paired, in operations and in time."""

import argparse
import math

import pytest

from eenet import __version__

AREAS = {
    "plain": (0.70, 0.72, 0.71),
    "good": (0.72, 0.735, 0.73),
    "bad": (0.69, 0.71, 0.70),
    "luck": (0.72, 0.70, 0.71),
}


@pytest.fixture
def page(benchmark):
    pytest.importorskip("torch")
    return benchmark("pages.training")


@pytest.fixture
def methods():
    return [
        {
            "method": name,
            "seed": seed,
            "areas": [area],
            "accuracy": [area - 0.1, area],
            "costs": [1.0, 3.0],
            "reference": 2.0,
        }
        for name, areas in AREAS.items()
        for seed, area in enumerate(areas)
    ]


def test_differences_are_paired_by_seed_with_students_interval(page, methods):
    mean, low, high = page.differences(methods)["good"]
    half = 4.302653 * math.sqrt(((2 - 11 / 6) ** 2 + (1.5 - 11 / 6) ** 2 + (2 - 11 / 6) ** 2) / 2) / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((11 / 6, 11 / 6 - half, 11 / 6 + half), abs=1e-5)


def test_what_adds_nothing_is_said_to_add_nothing(page, methods):
    said = page.verdict(methods)
    assert "* Better than plain: good." in said
    assert "* Worse than plain: bad." in said
    assert "could show: luck." in said


def test_the_table_has_accuracy_cost_and_area_of_every_method(page, methods):
    table = page.methods_table(methods)
    assert "| plain | 61.0 / 71.0 | 150 | 71.00 |  |" in table
    assert "| luck |" in table and "+0.00 (-4.97 to +4.97)" in table


def test_the_page_is_written_from_the_results(page, methods, tmp_path):
    path = page.methods_page(methods, argparse.Namespace(out=tmp_path), (0.5, 1.0), steps=7, size=64)
    said = path.read_text(encoding="utf-8")
    assert said.startswith(f"# What each training method adds\n\nMeasured with eenet {__version__}.\n\n")
    assert "7 steps of 64 images" in said and "over 2 budgets from 50% to 100%" in said
    assert "--seed 0 --seed 1 --seed 2" in said


def judged(areas, unit):
    return {
        "unit": unit,
        "reference": 4.0,
        "costs": [1.0, 5.0],
        "accuracy": [0.6, 0.9],
        "areas": areas,
        "sides": [10, 10],
    }


def test_gains_are_paired_by_half_in_operations_and_in_time(page):
    plain, best = [0.70, 0.80], [0.72, 0.82]
    in_flops = {"plain": judged(plain, "MFLOPs"), "best": judged(best, "MFLOPs")}
    in_time = [
        {"recipe": "plain", "batch_size": 1, **judged(plain, "ms")},
        {"recipe": "best", "batch_size": 1, **judged([0.71, 0.83], "ms")},
    ]
    table = page.areas_table(in_flops, in_time)
    assert "| operations | 75.00 | 77.00 | +2.00 (+2.00 to +2.00) |" in table
    timed = next(line for line in table.splitlines() if line.startswith("| measured time, batch size 1 |"))
    assert "+2.00 (-" in timed  # one half gains 1 point, the other 3: the interval is wide


def test_every_exit_of_both_recipes_is_told(page):
    table = page.exits_table({"plain": judged([0.7], "MFLOPs"), "best": judged([0.8], "MFLOPs")})
    assert "| plain | 0 | 1.0 | 25 | 60.00 |" in table and "| best | 1 | 5.0 | 125 | 90.00 |" in table
