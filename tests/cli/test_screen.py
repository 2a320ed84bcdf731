"""What a newcomer sees: the verdict, a curve and a short table, on one screen."""

import numpy as np
import pytest

from eenet.cli.curve import Curve
from eenet.cli.demo import _shown
from eenet.cli.output import Output
from eenet.cli.screen import bench_parts, comparison_parts
from eenet.evaluation import compare
from eenet.schedulers import GeometricScheduler
from eenet.testing.planted import synthetic_table

QUICK = ("-p", "max_prob", "-p", "patience", "-p", "margin")


def test_a_curve_is_drawn_where_its_points_are():
    shown = Curve(lines={"policy": [(0, 0), (10, 1)]}, points={"exits": [(0, 0), (10, 1)]}, unit="ms").drawn(80, 8)
    *rows, axis, ends, legend = shown.splitlines()
    assert len(rows) == 5 and rows[0].startswith("100.0% |") and rows[4].startswith("  0.0% |x")
    assert rows[0].endswith("x") and rows[4].count("*") > 1
    middle = rows[2].index("*"), rows[2].rindex("*")
    assert abs(sum(middle) / 2 - (8 + 68 / 2)) < 2  # a straight line is half way up in the middle
    assert ends.split() == ["0", "ms", "per", "sample", "10"] and legend.split() == ["*", "policy", "x", "exits"]
    assert max(map(len, shown.splitlines())) <= 80 and set(axis) <= set(" +-")


def test_a_wide_range_of_costs_is_drawn_on_a_log_scale():
    shown = Curve(lines={"a": [(1, 0.0), (100, 1.0)]}, points={"b": [(10, 0.0)]}, unit="ms").drawn(80)
    assert "log scale" in shown
    bottom = next(line for line in shown.splitlines() if "x" in line)
    assert abs(bottom.index("x") - (8 + 68 / 2)) <= 1  # 10 lies half way between 1 and 100


@pytest.mark.parametrize(
    ("curve", "width", "height"),
    [
        (Curve(lines={"a": [(1, 0.5), (2, 0.6)]}, points={}, unit="ms"), 80, 7),
        (Curve(lines={"a": [(1, 0.5), (2, 0.6)]}, points={}, unit="ms"), 30, 20),
        (Curve(lines={"a": [(1, 0.5)]}, points={}, unit="ms"), 80, 20),
        (Curve(lines={}, points={}, unit="ms"), 80, 20),
    ],
)
def test_what_cannot_be_drawn_is_left_out(curve, width, height):
    assert curve.drawn(width, height) == ""


@pytest.mark.parametrize("words", [(), ("-b", "60%"), ("-b", "60%", "-b", "2.5", "-b", "3"), ("--splits", "2")])
def test_a_comparison_fills_one_screen_at_most(words, eenet, write_table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran = eenet("compare", write_table("val.npz", seed=1), write_table("test.npz", seed=2), *QUICK, *words)
    lines = ran.stdout.splitlines() + ran.stderr.splitlines()
    assert ran.code == 0 and len(lines) < 24 and max(map(len, lines)) <= 80
    policies = [
        line.split()[0] for line in ran.stdout.splitlines() if line.startswith((" max_prob", " random", " best"))
    ]
    assert policies == ["max_prob", "random", "best"] and "oracle" not in ran.stdout
    assert "* max_prob   - static mix   x each exit alone" in ran.stdout


def test_advice_fills_one_screen_at_most_and_says_where_the_rest_is(eenet, write_table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran, full = (eenet("advise", write_table(samples=400), "-q", *more) for more in ((), ("--all",)))
    assert ran.stdout.count("\n") < 24 and max(map(len, ran.stdout.splitlines())) <= 80
    assert "--all prints" in ran.stdout and "Note:" not in ran.stdout
    assert "Note:" in full.stdout and "Without early exits" in full.stdout and "--all" not in full.stdout


def test_the_best_exit_alone_is_one_that_the_budget_pays_for():
    val, test = (synthetic_table(num_samples=300, seed=seed) for seed in (0, 1))
    found = compare(val, test, {"max_prob": GeometricScheduler()}, ["40%", "90%"], resamples=50)
    value = found.to_dict()
    *_, table, _ = comparison_parts(value, value["verdict"], everything=False)
    alone = table.rows[-1]
    for place, budget in enumerate(sorted({row.budget for row in found.rows}), start=1):
        worth = [one["utility_test"] for one in value["exits"] if one["cost"] <= budget]
        assert alone[place] == (f"{100 * max(worth):.2f}" if worth else "-")
    assert [row[0] for row in table.rows] == ["max_prob", "random (static mix)", "best exit alone"]


def test_the_demo_prints_its_sentence_first():
    val, test = (synthetic_table(num_samples=200, seed=seed) for seed in (0, 1))
    value = compare(val, test, {"auto": GeometricScheduler()}, ["50%"], resamples=50).to_dict()
    parts = _shown({"comparison": value, "saving": {"sentence": "It saves."}, "fit": {}, "run": {}, "bench": {}}, False)
    assert parts[0] == "It saves." and not any("--out" in str(part) for part in parts)


def test_many_rows_of_times_are_left_to_all():
    row = {"engine": "eager", "dtype": "float32", "batch_size": 1, "full_ms": 1.0, "adaptive_ms": 0.5, "speedup": 2.0}
    row |= {"ideal_speedup": 2.5, "efficiency": 0.8, "regrouped_efficiency": None, "flips": 0}
    value = {"rows": [row] * 14, "device": "cpu", "threads": 1, "verdict": "Twice as fast."}
    first, section, last = bench_parts(value, everything=False)
    assert first == "Twice as fast." and len(section.blocks[1].rows) == 10 and "4 more rows" in last
    assert len(bench_parts(value, everything=True)) == 2


def test_a_curve_takes_what_the_screen_leaves(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    curve = Curve(lines={"a": list(zip(range(9), np.linspace(0, 1, 9), strict=True))}, points={}, unit="ms")
    heights = []
    for count in (2, 13, 16):
        Output().result({}, ["line"] * count + [curve])
        heights.append(capsys.readouterr().out.count("\n") - count)
    assert heights == [13, 10, 0]  # as tall as it likes, what is left, and nothing
