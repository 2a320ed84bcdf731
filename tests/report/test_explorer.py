"""What a reader turns on a page: every kind of comparison, and the numbers of every budget."""

import json
import re
import time

import numpy as np
import pytest
from tests.evaluation.tables import planted
from tests.report.test_report import Page

from eenet import report
from eenet.evaluation import StaticModel, compare
from eenet.report.clocks import clocks
from eenet.report.states import chosen_policy
from eenet.report.svg import Frame, Point, chart, halves
from eenet.schedulers import GeometricScheduler, PatienceScheduler, StoppingScheduler
from eenet.tables import ExitTable
from eenet.testing import synthetic_table


def compared(val, test, names=("max_prob",), budgets=("60%",), schedulers=None, **more):
    """A comparison as it comes back from a JSON file."""
    schedulers = schedulers or {name: GeometricScheduler() for name in names}
    found = compare(val, test, schedulers, budgets, **{"resamples": 20} | more)
    return json.loads(json.dumps(found.to_dict(), allow_nan=False))


def states_of(page, number=0):
    found = re.search(rf'<script type="application/json" id="states-{number}">(.*?)</script>', page, re.S)
    return json.loads(found[1])


def utilities_only(samples, seed):
    """No labels: utility alone."""
    table = synthetic_table(samples, seed=seed)
    return ExitTable(features=table.logits[:, :, :2], utility=np.asarray(table.utility) * 0.9, costs=table.costs)


KINDS = {
    "2 classes": (lambda seed: synthetic_table(80, num_classes=2, seed=seed), {}),
    "1000 classes": (lambda seed: synthetic_table(60, num_classes=1000, seed=seed), {}),
    "2 exits": (lambda seed: synthetic_table(80, num_exits=2, seed=seed), {}),
    "20 exits": (lambda seed: synthetic_table(80, num_exits=20, seed=seed), {}),
    "one sample per class": (
        lambda seed: ExitTable(
            logits=np.random.default_rng(seed).standard_normal((60, 3, 60)),
            labels=np.arange(60),
            costs=planted(2, 0).costs,
        ),
        {},
    ),
    "groups": (lambda seed: planted(80, seed), {"groups": ["<i>a</i>", "b"] * 40}),
    "statics": (lambda seed: planted(80, seed), {"statics": [StaticModel(name="<tiny>", cost=1.5, utility=0.9)]}),
    "several splits": (lambda seed: planted(80, seed), {"splits": 2}),
    "standard budgets": (lambda seed: planted(80, seed), {"budgets": ()}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_comparison_has_a_page(kind):
    make, more = KINDS[kind]
    comparison = compared(make(1), make(2), **more)
    html = report.comparison_page(comparison)
    page = Page(html)
    states = states_of(html)
    positions = comparison.get("dial", {}).get("positions")
    assert len(states) == (len(positions) if positions else 1)
    assert "What a budget saves and loses" in "".join(page.text) and len(html) < 3_000_000
    assert "<i>a</i>" not in html and "<tiny>" not in html
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_a_table_without_labels_has_a_page_without_scores():
    tables = utilities_only(80, 1), utilities_only(80, 2)
    found = compare(*tables, {"stopping": StoppingScheduler()}, ["60%"], resamples=20)
    page = report.comparison_page(json.loads(json.dumps(found.to_dict())))
    assert "By which score" not in page and "Who pays" not in page and "Who leaves where" in page


def test_every_state_has_the_numbers_of_its_position():
    comparison = compared(planted(100, 1), planted(100, 2))
    positions, full = comparison["dial"]["positions"], comparison["reference"]
    states = states_of(report.comparison_page(comparison))
    for state, one in zip(states, positions, strict=True):
        assert state["text"]["verdict"] == one["saving"]["sentence"]
        assert state["text"]["cost"] == f"{one['cost'] / full:.1%}"
        assert state["text"]["utility"] == f"{one['utility']:.2%}"
        for k, share in enumerate(one["exit_distribution"]):
            assert state["text"][f"share-{k}"] == f"{share:.1%}"
            assert state["draw"][f"bar-{k}"]["style"] == f"width:{100 * share:.2f}%"
    places = [float(state["draw"]["dot"]["cx"].rstrip("%")) for state in states]
    assert all(0 <= place <= 100 for place in places)


def test_the_page_is_written_in_the_state_of_the_budget_asked_for():
    comparison = compared(planted(100, 1), planted(100, 2), budgets=("80%",))
    (asked,) = [one for one in comparison["dial"]["positions"] if one["budget"] == comparison["rows"][0]["budget"]]
    html = report.comparison_page(comparison)
    text = "".join(Page(html).text)
    first = html.index('class="verdict')
    assert asked["saving"]["sentence"].split(";")[0].split(":")[-1] in text and first < html.index("<nav")
    assert f">{asked['cost'] / comparison['reference']:.1%}</span>" in html
    told = report.comparison_page(comparison, verdict="Twice as fast & so on.")
    assert "Twice as fast &amp; so on." in told
    said = [state["text"]["verdict"] for state in states_of(told)]
    assert said.count("Twice as fast & so on.") == 1


def test_where_it_does_not_pay_that_is_said_first():
    noise = ExitTable(
        logits=np.random.default_rng(0).standard_normal((300, 3, 4)),
        labels=np.random.default_rng(1).integers(4, size=300),
        costs=planted(2, 0).costs,
    )
    html = report.comparison_page(compared(noise, noise))
    assert re.search(r'class="verdict not">Do not bother: ', html)
    assert "VAL and TEST are the same data" in html.split("<nav")[0]


def test_names_cannot_end_the_data_or_the_page():
    name = "</script><!--<script>"
    html = report.comparison_page(compared(planted(60, 1), planted(60, 2), names=(name, "max_prob")))
    assert name not in html and html.count("</script>") == 2 and html.count("<!--") == 0
    assert name in "".join(Page(html).text)


def test_one_sample_has_a_page():
    comparison = compared(planted(2, 1), planted(1, 2))
    assert "± " not in "".join(state["text"]["lost_note"] for state in states_of(report.comparison_page(comparison)))


def test_a_comparison_of_an_older_edition_has_a_slider_over_the_asked_budgets():
    comparison = compared(planted(80, 1), planted(80, 2), budgets=("50%", "60%", "80%"))
    old = {key: value for key, value in comparison.items() if key not in ("dial", "groups", "family", "statics")}
    states = states_of(report.comparison_page(old))
    assert [state["text"]["cost"] for state in states] == [
        f"{row['test_cost'] / old['reference']:.1%}" for row in old["rows"] if row["policy"] == "max_prob"
    ]


def test_a_comparison_of_bounds_alone_has_nothing_to_turn():
    comparison = compared(planted(60, 1), planted(60, 2), names=())
    assert chosen_policy(comparison) is None
    assert "states-0" not in report.comparison_page(comparison, verdict="None was compared.")


def test_two_comparisons_on_one_page_do_not_share_a_slider():
    comparison = compared(planted(60, 1), planted(60, 2))
    parts = [section for number in (0, 1) for section in report.comparison_sections(comparison, number=number)]
    html = report.page("two", parts)
    assert states_of(html, 0) == states_of(html, 1) and 'data-turn="1"' in html


# time


def bench_of(speedup, exits):
    row = {"engine": "eager", "dtype": "float32", "batch_size": 1, "full_ms": 8.0, "adaptive_ms": 8.0 / speedup}
    return {"rows": [row | {"speedup": speedup, "exit_distribution": exits}]}


def profile_of(times, full):
    return {
        "latency": [
            {"engine": "eager", "dtype": "float32", "batch_size": 1, "cumulative": times, "full": {"median": full}}
        ]
    }


COSTS = {"unit": "MFLOPs", "reference": None, "exits": [{"cost": 1.0}, {"cost": 2.0}, {"cost": 4.0}]}


def test_estimated_times_agree_with_the_benchmark_where_it_was_run():
    exits = [0.5, 0.25, 0.25]
    for profile in (None, profile_of([2.0, 5.0, 9.0], 8.0)):
        (clock,) = clocks(COSTS, bench_of(1.4, exits), profile)
        assert clock.speedup(exits) == pytest.approx(1.4)
    assert clock.speedup([1.0, 0.0, 0.0]) > 1.4 > clock.speedup([0.0, 0.5, 0.5])


def test_times_by_hand():
    (clock,) = clocks(COSTS, None, profile_of([2.0, 4.0, 8.0], 8.0))
    assert clock.speedup([0.5, 0.5, 0.0]) == pytest.approx(8 / 3)
    (clock,) = clocks(COSTS | {"unit": "us"}, None, None)
    assert (clock.full_ms, clock.batch_size) == (pytest.approx(0.004), None)
    assert clocks(COSTS, None, None) == []
    assert clocks(COSTS, bench_of(1.4, [0.5, 0.5]), None) == []  # of another model
    assert clocks(COSTS, bench_of(1.0, [0.0, 0.0, 1.0]), None) == []  # nothing was to be saved


def test_times_that_were_estimated_are_called_about():
    comparison = compared(planted(900, 1), planted(900, 2), budgets=("60%",))
    exits = next(row["exit_distribution"] for row in comparison["rows"] if row["policy"] == "max_prob")
    bench = bench_of(2.0, exits) | {"device": "cpu", "threads": 1, "samples": 900, "passes": 3}
    for row in bench["rows"]:
        row |= {"ideal_speedup": 2.1, "efficiency": 0.9, "regrouped_efficiency": None, "flips": 0}
    page = report.comparison_page(comparison, bench=bench, verdict="2.0x faster, as timed.")
    said = [state["text"]["verdict"] for state in states_of(page)]
    assert said.count("2.0x faster, as timed.") == 1
    timed = [one for one in said if "faster at batch 1" in one and not one.startswith("Do not bother")]
    assert timed and all(one.startswith("About ") for one in timed)


# drawing


def test_places_by_hand():
    frame = Frame(full=4.0, costs=(1.0, 3.0), utilities=(50.0, 100.0))
    assert frame.at(2.0, 75.0) == ("50.00%", "50.00%")
    assert frame.path([1.0, 3.0], [50.0, 100.0]) == "M0.0 1000.0L1000.0 0.0"
    assert frame.ticks() == ([30.0, 40.0, 50.0, 60.0, 70.0], [50.0, 60.0, 70.0, 80.0, 90.0, 100.0])
    wide = Frame(full=100.0, costs=(1.0, 100.0), utilities=(50.0, 100.0))
    assert wide.logarithmic and wide.at(10.0, 100.0) == ("50.00%", "0.00%")


def test_names_of_points_have_room():
    frame = Frame.around(10.0, [1.0, 3.0], [50.0, 60.0])
    points = [Point(name=f"exit {k}", cost=1 + k / 10, utility=50.0) for k in range(21)]
    points.append(Point(name="model", cost=1.05, utility=55.0, of_exit=False))
    drawn = chart(frame, [], points, name="c", alt="", marker={})
    named = [int(k) for k in re.findall(r">exit (\d+)</text>", drawn)]
    assert named == [k for k in range(21) if k % 4 == 0] and ">model</text>" in drawn
    assert drawn.count("<title>") == len(points)


def test_halves_of_a_histogram_by_hand():
    assert halves([0, 2], up=True) == "M500 500h430v-480h-430z"
    assert halves([1, 2], up=False) == "M0 500h430v240h-430zM500 500h430v480h-430z"
    assert halves([0, 0], up=True) == ""


@pytest.mark.slow
def test_a_large_page_is_small_enough_and_quick():
    tables = [synthetic_table(10_000, num_exits=6, num_classes=10, seed=seed) for seed in (1, 2)]
    names = [f"max_prob {k}" for k in range(12)]
    schedulers = {name: GeometricScheduler() for name in names} | {"patience": PatienceScheduler()}
    comparison = compare(*tables, schedulers, resamples=20).to_dict()
    started = time.process_time()
    html = report.comparison_page(comparison)
    assert time.process_time() - started < 20 and len(html) < 3_000_000
