"""Outcome tables from columns, CSV files, Parquet files and frames; and the fallback as the last exit."""

import csv
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet import StoppingScheduler, certify, evaluate, replay
from eenet.errors import InputError, MissingExtraError, TableError
from eenet.policies import ConfidenceScorer, ScorePolicy
from eenet.schedulers import GeometricScheduler, JointScheduler
from eenet.tables import CostTable, ExitTable, outcome_groups, read_outcomes
from eenet.tables.outcomes import load_table
from eenet.testing import planted_outcomes, synthetic_table

WIDE = {
    "sample": ["a", "b", "c"],
    "group": ["x", "y", "x"],
    "small.utility": [1, 0, 0],
    "small.cost [ct]": [1.0, 2.0, 1.5],
    "small.score": [0.9, 0.4, 0.1],
    "large.utility": [1, 1, 0],
    "large.cost [ct]": [10.0, 12.0, 9.0],
    "question": ["why, then", "how", ""],
}
LONG = """sample,group,stage,utility,cost [ct],score
a,x,small,true,1,0.9
b,y,small,false,2,0.4
a,x,large,true,10,
c,x,small,False,1.5,.1
c,x,large,0,9,
b,y,large,1.0,12,
"""


def written(path, columns):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def check_by_hand(table):
    assert table.exit_names == ("small", "large") and table.feature_names == ("score",)
    assert table.utility.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert table.cost.tolist() == [[1, 11], [2, 14], [1.5, 10.5]]  # those of the stages, added up
    assert (table.costs.unit, table.costs.cumulative) == ("ct", (1.5, pytest.approx(35.5 / 3)))
    # the last stage has no score: it keeps that of the stage before
    assert table.features[:, :, 0] == pytest.approx(np.array([[0.9, 0.9], [0.4, 0.4], [0.1, 0.1]]))


def test_by_hand_from_columns_files_and_long_rows(tmp_path):
    check_by_hand(read_outcomes(WIDE))
    path = written(tmp_path / "evals.csv", WIDE)
    check_by_hand(read_outcomes(path))
    check_by_hand(read_outcomes(str(path)))
    assert load_table(path).split == "evals"
    assert outcome_groups(path).tolist() == ["x", "y", "x"]
    marked = tmp_path / "marked.CSV"  # as spreadsheets write it: a mark of byte order, other ends of lines, blank lines
    marked.write_bytes(b"\xef\xbb\xbf" + LONG.replace("\n", "\r\n").encode() + b"\r\n")
    check_by_hand(load_table(marked))
    assert outcome_groups(marked).tolist() == ["x", "y", "x"]
    assert outcome_groups({"label": [3, 4]} | {"a.utility": [1, 0]}).tolist() == ["3", "4"]
    assert outcome_groups({"a.utility": [1, 0]}) is None


def test_frames_and_parquet(tmp_path, monkeypatch):
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(WIDE).set_index(pandas.Index([7, 8, 9]))
    check_by_hand(read_outcomes(frame))
    check_by_hand(read_outcomes(frame.convert_dtypes()))
    check_by_hand(read_outcomes(pyarrow.table(WIDE)))
    path = tmp_path / "outcomes.parquet"
    frame.to_parquet(path)
    check_by_hand(load_table(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TableError, match=r"outcomes\.parquet cannot be read"):
        read_outcomes(path)
    with pytest.raises(TableError, match=r"'small.score' has no value in row 1"):
        read_outcomes(frame.assign(**{"small.score": [0.5, None, 0.5]}))


def test_parquet_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "outcomes.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match=r"eenet\[frames\]"):
        read_outcomes(path)


def test_costs_added_up_already_the_same_for_all_and_in_one_unit():
    columns = {"a.utility": [1, 0], "a.cumulative_cost": [1, 2], "a.score": [1, 2], "b.utility": [1, 1]}
    assert read_outcomes({**columns, "b.cumulative_cost": [3, 4]}).cost.tolist() == [[1, 3], [2, 4]]
    same = {"a.utility": [1, 0], "a.cost": [1, 1], "a.score": [1, 2], "b.utility": [1, 1], "b.cost": [3, 3]}
    table = read_outcomes(same, reference=3)
    assert table.cost is None and table.costs == CostTable((1.0, 4.0), "units", 3.0)


def test_blanks_in_a_heading_do_not_matter(tmp_path):
    path = tmp_path / "outcomes.csv"
    path.write_text("s.utility, s.cost[ms], s.score, l.utility, l.cost [ms]\n1, 2, 0.5, 1, 3\n0, 2, 0.1, 1, 3\n")
    table = read_outcomes(path)
    assert (table.exit_names, table.costs) == (("s", "l"), CostTable((2.0, 5.0), "ms"))


def test_a_feature_keeps_its_value_until_a_stage_has_it_again():
    columns = {}
    for name, features in {"a": {"x": 1}, "b.2": {"y.z": 2}, "c": {"x": 3}, "d": {"w": 9}}.items():
        columns |= {f"{name}.{key}": [value] for key, value in {"utility": 1, "cost": 1, **features}.items()}
    table = read_outcomes(columns)
    assert table.exit_names == ("a", "b.2", "c", "d") and table.feature_names == ("x", "y.z")
    assert table.features[0].tolist() == [[1, 0], [1, 2], [3, 2], [3, 2]]
    chosen = read_outcomes(columns, stages=["b.2", "a"])
    assert chosen.exit_names == ("b.2", "a") and chosen.feature_names == ("y.z",)


def slow_twin(columns, stages):
    """The same, cell by cell."""
    rows = len(columns[f"{stages[0]}.utility"])
    cost = [[sum(columns[f"{s}.cost"][i] for s in stages[: k + 1]) for k in range(len(stages))] for i in range(rows)]
    features = [[[columns[f"{s}.{f}"][i] for f in ("score", "length")] for s in stages] for i in range(rows)]
    return np.array(cost), np.array(features)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), samples=st.integers(2, 20), stages=st.integers(2, 4))
def test_slow_twin_and_the_order_of_rows_does_not_matter(seed, samples, stages):
    columns = planted_outcomes(samples, stages=stages, seed=seed)
    table = read_outcomes(columns)
    cost, features = slow_twin(columns, table.exit_names)
    assert table.cost == pytest.approx(cost) and table.features == pytest.approx(features, rel=1e-6)
    order = np.random.default_rng(seed).permutation(samples)
    mixed = read_outcomes({name: column[order] for name, column in columns.items()})
    assert np.array_equal(mixed.cost, table.cost[order]) and np.array_equal(mixed.utility, table.utility[order])
    names = ("utility", "cost", "score", "length")
    rows = [(i, k) for i in range(samples) for k in range(stages)]
    long = {"sample": [i for i, _ in rows], "stage": [f"stage{k}" for _, k in rows]}
    long |= {name: [columns[f"stage{k}.{name}"][i] for i, k in rows] for name in names}
    assert np.array_equal(read_outcomes(long).cost, table.cost)
    assert np.array_equal(read_outcomes(long).features, table.features)


def changed(**changes):
    """The columns of WIDE, some of them others; None leaves one out."""
    columns = WIDE | {name.replace("_", ".", 1).replace("_ct", " [ct]"): value for name, value in changes.items()}
    return {name: value for name, value in columns.items() if value is not None}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (changed(large_utility=None), r"'large.cost \[ct\]' belongs to no stage: there is no column 'large.utility'"),
        (changed(large_cost_ct=None), "stage 'large' has 0 columns of its cost: .* square brackets"),
        (changed(large_cost=[1, 1, 1]), "stage 'large' has 2 columns of its cost"),
        (changed(large_cost_ct=None, large_cost=[1, 1, 1]), "differ in their kind or unit"),
        (changed(large_cost_ct=None, **{"large_cumulative_cost_ct": [19, 19, 19]}), "differ in their kind or unit"),
        (changed(small_score=None), "no features"),
        (changed(small_utility=[1, None, 0]), "'small.utility' has no value in row 1: every stage has to be known"),
        (changed(small_utility=[1, "", 0]), "'small.utility' has no value in row 1"),
        (changed(small_score=[1, 2, float("nan")]), "'small.score' has no value in row 2"),
        (changed(small_score=[1, "good", 3]), "'small.score' has 'good' in row 1: a number"),
        (changed(small_score=[1, "0,5", 3]), "'0,5' in row 1: .* with a point"),
        (changed(small_utility=[1, "0 %", 3]), "'0 %' in row 1: .* without a unit or percent sign"),
        (changed(small_answer=["A", "B", "C"]), "'small.answer' has 'A' in row 0: .* rename it without a dot"),
        (changed(small_score=[1, float("inf"), 3]), "'small.score' has 'inf' in row 1"),
        (changed(large_utility=[1, 1, 1.5]), "'large.utility' has '1.5' in row 2: a number from 0 to 1"),
        (changed(large_utility=[-1, 1, 1]), "'large.utility' has '-1' in row 0"),
        (changed(small_cost_ct=[1, 0, 1]), r"'small.cost \[ct\]' has '0' in row 1"),
        (changed(small_cost_ct=[1, 1, -3]), r"'small.cost \[ct\]' has '-3' in row 2"),
        (changed(lage_score=[1, 2, 3]), "'lage.score' belongs to no stage"),
        ({name: value for name, value in WIDE.items() if "large" not in name}, "have the stages small: .* at least 2"),
        ({"score": [1, 2]}, "have the stages none"),
        ({}, "no rows"),
        ({name: [] for name in WIDE}, "no rows"),
        (changed(small_score=[1, 2]), "'small.score' of shape"),
        (changed(small_score=[[1, 2], [3, 4], [5, 6]]), "'small.score' of shape"),
        (3, "of type int are no table"),
        ({3: [1], "a.utility": [1]}, "names are texts"),
    ],
)
def test_what_is_no_table_is_refused(columns, said):
    with pytest.raises(TableError, match=said):
        read_outcomes(columns)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "it is empty"),
        (b"small.utility,small.cost\n", "no rows"),
        (b"small.utility,small.cost\n1\n", "have 1 values in row 0: the heading has 2"),
        (b"small.utility,small.utility\n1,1\n", "'small.utility' stands twice"),
        (b"a\xff.utility,b\n1,2\n", "cannot be read: .*codec"),
        (b'a.utility,b\n"1,2\n', "cannot be read"),
        (b"a.utility;a.cost\n1;0,5\n", r"';' between their columns: .*pandas.read_csv\(path, sep=';', decimal=','\)"),
        (b"a.utility\ta.cost\n1\t2\n", r"'\\t' between their columns"),
        (
            b"a.cumulative_cost,a.utility,a.s,b.utility,b.cumulative_cost\n5,1,1,1,5\n",
            "cost of row 0 is not positive and",
        ),
        (LONG.replace("c,x,large,0,9,\n", "").encode(), "sample 'c' lacks the stage 'large'"),
        (LONG.encode() + b"c,x,large,0,9,\n", "sample 'c' has the stage 'large' 2 times"),
        (LONG.replace(".1\n", "\n").encode(), "'small.score' has no value in row 2"),
        (b"a.utility;a.cost\n1;1\n", "have ';' between their columns"),
        (b"a.utility\ta.cost\n1\t1\n", "between their columns"),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, said):
    path = tmp_path / "outcomes.csv"
    path.write_bytes(text)
    with pytest.raises(TableError, match=said):
        read_outcomes(path)


def test_spaces_in_a_heading_are_no_part_of_names(tmp_path):
    path = tmp_path / "outcomes.csv"
    path.write_text("a.utility, a.cost , a.s, b.utility, b.cost\n1, 1, 2, 0, 3\n", encoding="utf-8")
    assert read_outcomes(path).cost is None and read_outcomes(path).costs.cumulative == (1.0, 4.0)


def long_columns(order):
    """Two samples of two stages, rows in some order."""
    columns = {"sample": list("xxyy"), "stage": list("abab"), "utility": [1, 0, 1, 1], "cost": [1, 5, 2, 6]}
    columns |= {"score": [0.1, 0.2, 0.3, 0.4], "group": list("ggkk")}
    return {name: [values[i] for i in order] for name, values in columns.items()}


def test_stages_whose_order_is_not_clear_are_refused():
    table = read_outcomes(long_columns([0, 1, 2, 3]))
    for order in ([0, 2, 1, 3], [2, 0, 1, 3], [2, 3, 0, 1]):  # samples mixed, their stages in order
        assert read_outcomes(long_columns(order)).exit_names == table.exit_names
    for order in ([0, 1, 3, 2], [1, 0, 2, 3], [3, 0, 1, 2]):
        with pytest.raises(TableError, match=r"stages of sample '[xy]' stand in the order .*not clear"):
            read_outcomes(long_columns(order))
        named = read_outcomes(long_columns(order), stages=["a", "b"])
        assert sorted(named.cost.tolist()) == sorted(table.cost.tolist()) and named.exit_names == ("a", "b")
        assert sorted(outcome_groups(long_columns(order))) == ["g", "k"]


def test_a_sample_of_two_groups_is_refused():
    with pytest.raises(TableError, match="'group' has 'g' and 'h' for one sample, in rows 0, 1"):
        read_outcomes(long_columns([0, 1, 2, 3]) | {"group": list("ghkk")})


@pytest.mark.parametrize("values", [np.array([1, 2, 3], "m8[ms]"), np.array([1j, 2, 3])])
def test_times_and_complex_numbers_are_no_numbers(values):
    for name in ("small.cost [ct]", "small.score"):
        with pytest.raises(TableError, match="does not fit: numbers"):
            read_outcomes(WIDE | {name: values})


def test_missing_files_and_unknown_stages_are_refused(tmp_path):
    with pytest.raises(TableError, match="no such file"):
        read_outcomes(tmp_path / "outcomes.csv")
    for stages in (["small", "medium"], ["small", "small"]):
        with pytest.raises(TableError, match=f"stages '{stages[1]}'"):
            read_outcomes(WIDE, stages=stages)
    with pytest.raises(TableError, match="stages small: "):
        read_outcomes(WIDE, stages=["small"])


def test_names_of_exits_are_kept(tmp_path):
    table = read_outcomes(planted_outcomes(20, stages=4))
    table.save(tmp_path / "table.npz")
    assert ExitTable.load(tmp_path / "table.npz").exit_names == ("stage0", "stage1", "stage2", "stage3")
    assert table.keeping([0, 3]).exit_names == ("stage0", "stage3")
    assert table.until(2).exit_names == ("stage0", "stage1")
    with pytest.raises(TableError, match="exit_names"):
        ExitTable(features=table.features, utility=table.utility, exit_names=("a", "a", "b", "c"))


def test_schedulers_work_on_outcomes_and_keep_the_budget():
    table = read_outcomes(planted_outcomes(1500))
    budget = table.costs.budget("50%").value
    random = np.interp(budget, table.costs.cumulative, table.utility.mean(axis=0))
    for scheduler in (
        StoppingScheduler(),
        JointScheduler(confidence="score"),
        GeometricScheduler(confidence="score"),
    ):
        report = evaluate(scheduler.fit(table, budget="50%"), table)
        assert report.expected_cost <= budget * (1 + 1e-9)
        if not isinstance(scheduler, GeometricScheduler):  # which spends all, wherever that leads
            assert report.expected_utility > random
    with pytest.raises(InputError, match="no column"):
        JointScheduler(confidence="scores").fit(table, budget="50%")


def test_costs_of_the_future_are_never_read():
    table = read_outcomes(planted_outcomes(400))
    policy = StoppingScheduler().fit(table, budget="50%")
    columns = planted_outcomes(400)
    dear = read_outcomes(
        {**columns, "stage2.cost": columns["stage2.cost"][::-1], "stage1.cost": columns["stage1.cost"] * 5}
    )
    assert np.array_equal(replay(policy, table).exit_index, replay(policy, dear).exit_index)


# the fallback


def test_a_fallback_by_hand():
    table = read_outcomes(WIDE).with_fallback(cost=50, name="human")
    assert table.exit_names == ("small", "large", "human")
    assert table.utility.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert table.cost.tolist() == [[1, 11, 61], [2, 14, 64], [1.5, 10.5, 60.5]] and table.costs.unit == "ct"
    varied = read_outcomes(WIDE).with_fallback(cost=[1, 2, 3], utility=[0.5, 1, 0])
    assert varied.cost[:, 2].tolist() == [12, 16, 13.5] and varied.utility[:, 2].tolist() == [0.5, 1, 0]


def test_a_fallback_of_a_table_with_classes_is_worth_what_is_given():
    table = synthetic_table(600)  # costs of 1 to 4 ms, the same for all
    known = table.with_fallback(cost=20, utility=0.98)
    assert known.cost is None and known.costs == CostTable((1.0, 2.0, 3.0, 4.0, 24.0), "ms")
    assert known.exit_names == ("exit 0", "exit 1", "exit 2", "exit 3", "fallback")
    assert np.array_equal(known.utility[:, :4], table.utility) and (known.utility[:, 4] == 0.98).all()
    assert np.array_equal(known.logits[:, 4], known.logits[:, 3]) and not known.combinable
    never = ScorePolicy(ConfidenceScorer("max_prob"), [np.inf] * 4 + [-np.inf])
    assert (replay(never, known).exit_index == 4).all() and evaluate(never, known).utility == pytest.approx(0.98)
    for scheduler in (StoppingScheduler(), JointScheduler(), GeometricScheduler()):
        policy = scheduler.fit(known, budget=6)
        assert evaluate(policy, known).expected_cost <= 6 * (1 + 1e-9)
        assert evaluate(policy, known).expected_utility > table.utility[:, 1].mean()
    varied = table.with_fallback(cost=np.linspace(1, 2, 600))
    assert varied.cost[:, 4] == pytest.approx(4 + np.linspace(1, 2, 600)) and varied.costs.unit == "ms"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"cost": 0}, TableError, "cost of row 0 is not positive and rising"),
        ({"cost": "much"}, TableError, "cost of shape"),
        ({"cost": [1, 2]}, TableError, r"cost of shape \(2,\)"),
        ({"cost": np.nan}, TableError, "cost of row 0"),
        ({"cost": 1, "utility": 1.5}, TableError, "utility of row 0 is out of range"),
        ({"cost": 1, "utility": None}, TableError, "utility of shape"),
        ({"cost": 1, "name": "large"}, TableError, "exit_names"),
    ],
)
def test_what_is_no_fallback_is_refused(changes, error, said):
    with pytest.raises(error, match=said):
        read_outcomes(WIDE).with_fallback(**changes)


def test_a_fallback_needs_costs_utility_and_a_plain_table():
    plain = ExitTable(logits=np.zeros((3, 2, 2)))
    with pytest.raises(TableError, match="costs are missing"):
        plain.with_fallback(cost=1)
    with pytest.raises(TableError, match="lacks labels"):
        ExitTable(logits=np.zeros((3, 2, 2)), costs=CostTable((1.0, 2.0), "ms")).with_fallback(cost=1)
    with pytest.raises(InputError, match="transformed"):
        synthetic_table(60).transformed(lambda seen: seen[:, -1]).with_fallback(cost=1)


def test_a_guarantee_with_a_fallback_says_how_many_are_wrong_and_go_to_it():
    table = read_outcomes(planted_outcomes(3000)).with_fallback(cost=30, name="review")
    certificate = certify(StoppingScheduler(), table, guarantee="accuracy", epsilon=0.02).certificate
    share = certificate.exit_distribution[-1]
    assert sum(certificate.exit_distribution) == pytest.approx(1) and 0 < share < 1
    assert certificate.at_most_wrong and certificate.full_utility == 1 and certificate.mean_utility > 0.98
    assert "With confidence 90 %" in certificate.statement
    assert "at most 2 % of the answers are wrong" in certificate.statement
    assert f"{share:.1%} go to review" in certificate.statement
    doubtful = read_outcomes(planted_outcomes(3000)).with_fallback(cost=30, utility=0.99)
    said = certify(StoppingScheduler(), doubtful, guarantee="accuracy", epsilon=0.02).certificate
    assert not said.at_most_wrong and "wrong" not in said.statement
    assert "go to" not in certify(StoppingScheduler(), synthetic_table(600), budget="60%").certificate.statement


@pytest.mark.slow
@pytest.mark.parametrize("guarantee", ["budget", "accuracy"])
def test_certificates_on_outcomes_hold_as_often_as_they_say(guarantee, unchecked):
    truth = read_outcomes(planted_outcomes(50_000)).with_fallback(cost=20)
    draws, broken = 300, 0
    for draw in range(draws):
        table = read_outcomes(planted_outcomes(400, seed=draw + 1)).with_fallback(cost=20)
        settings = {"budget": 6.0} if guarantee == "budget" else {"guarantee": "accuracy", "epsilon": 0.05}
        policy = certify(StoppingScheduler(), table, delta=0.1, seed=draw, **settings).policy
        report = evaluate(policy, truth)
        broken += report.expected_cost > 6 if guarantee == "budget" else 1 - report.expected_utility > 0.05
    assert broken / draws <= 0.1


@pytest.mark.slow
def test_a_large_file_is_read_and_fitted_in_seconds(tmp_path, unchecked):
    path = written(tmp_path / "large.csv", planted_outcomes(100_000, stages=5))
    started = time.process_time()
    table = read_outcomes(path)
    read = time.process_time() - started
    policy = StoppingScheduler().fit(table, budget="40%")
    assert read < 10 and time.process_time() - started - read < 15  # our limit, on an idle machine, is 10
    assert evaluate(policy, table).expected_cost <= table.costs.budget("40%").value


def test_frames_of_polars_are_read():
    polars = pytest.importorskip("polars", reason="polars is not installed")
    columns = planted_outcomes(50, stages=3)
    frame, table = polars.DataFrame(columns), read_outcomes(columns)
    found = read_outcomes(frame)
    assert np.array_equal(found.features, table.features) and np.array_equal(found.utility, table.utility)
    assert np.array_equal(found.cost, table.cost) and found.exit_names == table.exit_names
    with pytest.raises(TableError, match=r"'stage0\.score' has no value in row 0"):
        read_outcomes(frame.with_columns(polars.lit(None).alias("stage0.score")))
    with pytest.raises(TableError, match=r"LazyFrame .* collect\(\)"):
        read_outcomes(frame.lazy())
