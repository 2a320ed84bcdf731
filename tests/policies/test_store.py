"""Policies on disk: what comes back decides alike, and what was damaged or edited is refused."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eenet.errors import BundleError, InputError, ShapeError
from eenet.policies import (
    ConfidenceScorer,
    Dial,
    MixedPolicy,
    PceeScorer,
    Policy,
    ScorePolicy,
    Scorer,
    StoppingScorer,
    load_policy,
    replay,
    save_policy,
    static_policy,
)
from eenet.policies.learned import StoppingState
from eenet.policies.store import own_parts, policy_size
from eenet.schedulers import GeometricScheduler, StoppingScheduler
from eenet.tables.costs import CostTable
from eenet.tables.files import read_json, sha256, write_json
from eenet.tables.tensors import load_arrays, save_arrays
from eenet.testing import synthetic_table


def test_a_policy_and_its_dial_come_back_to_the_bit(tmp_path):
    val, test = synthetic_table(600), synthetic_table(500, seed=1)
    dial = StoppingScheduler().sweep(val)
    policy = dial.at("55%")
    save_policy(policy, tmp_path / "p", costs=val.costs, dial=dial, info={"budget": "55%"}, source="abc")
    saved = load_policy(tmp_path / "p")
    assert (saved.costs, saved.info, saved.source) == (val.costs, {"budget": "55%"}, "abc")
    assert isinstance(saved.dial, Dial) and saved.dial.fit_costs == dial.fit_costs
    for ours, theirs in ((policy, saved.policy), *((dial.at(b), saved.dial.at(b)) for b in ("30%", "70%", "100%"))):
        a, b = replay(ours, test), replay(theirs, test)
        assert np.array_equal(a.exit_index, b.exit_index) and a.log_probs.tobytes() == b.log_probs.tobytes()
    again = pickle.loads(pickle.dumps(policy))  # noqa: S301 - our own bytes
    assert np.array_equal(replay(again, test).exit_index, replay(policy, test).exit_index)


def edited(folder: Path, **changes: Any) -> None:
    """Change the values of a saved policy, whose checksum then fits them."""
    write_json(folder / "policy.json", read_json(folder / "policy.json", "policy") | changes, sealed=True)


def test_the_numbers_of_a_policy_are_those_that_are_saved_and_shared_parts_count_once():
    width = StoppingState("curved").width(3)
    scorer = StoppingScorer(weight=np.zeros((1, width)), bias=np.zeros(1), num_columns=3)
    a, b = (ScorePolicy(scorer, [threshold, -np.inf]) for threshold in (0.2, 0.4))
    assert policy_size(a) == width + 1 + 2
    assert policy_size(MixedPolicy(a, b, 0.5, 0)) == width + 1 + 2 + 2


def test_a_rule_edited_by_hand_is_refused(tmp_path):
    save_policy(GeometricScheduler().fit(synthetic_table(80), budget=2.5), tmp_path / "p")
    path = tmp_path / "p" / "policy.json"
    whole = json.loads(path.read_text())
    for key, value in (("rule", whole["rule"] | {"weight": 0.99}), ("parts", []), ("info", {"x": 1}), ("exits", [0])):
        path.write_text(json.dumps(whole | {key: value}))
        with pytest.raises(BundleError, match="changed or damaged since"):
            load_policy(tmp_path / "p")
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != "checksum"}))
    with pytest.raises(BundleError, match="changed or damaged since"):
        load_policy(tmp_path / "p")
    path.write_text(json.dumps(dict(reversed(whole.items()))))  # laid out anew, the same content
    load_policy(tmp_path / "p")


RULE = {"scorer": 0, "thresholds": "thresholds0"}
COLUMN = {"class": "ColumnScorer", "settings": {"column": 0, "num_columns": 10}}


@pytest.mark.parametrize(
    "change",
    [
        {"rule": RULE | {"scorer": 7}},
        {"rule": RULE | {"scorer": -1}},
        {"rule": RULE | {"scorer": True}},
        {"rule": RULE | {"scorer": 0.0}},
        {"rule": RULE | {"thresholds": "none"}},
        {"rule": RULE | {"thresholds": ["thresholds0"]}},
        {"rule": "scorer"},
        {"rule": {"mixed": "ab", "weight": 0.5, "seed": 0}},
        {"rule": {"mixed": {"a": RULE}, "weight": 0.5, "seed": 0}},
        *(
            {"rule": {"mixed": {"a": RULE, "b": RULE}, "weight": 0.5, "seed": 0} | one}
            for one in ({"weight": True}, {"weight": "0.5"}, {"weight": 1e308}, {"seed": True}, {"seed": 1.7})
        ),
        {"rule": {"transformed": RULE, "transform": 0}},
        {"parts": [{"class": "Popen", "settings": {}}]},
        {"parts": [{"class": ["ConfidenceScorer"], "settings": {}}]},
        *(
            {"parts": [{"class": "ConfidenceScorer", "settings": settings}]}
            for settings in ({"confidence": "__all__"}, {"confidence": 5}, {"confidence": ["max_prob"]}, {}, "max_prob")
        ),
        *({"parts": [COLUMN | {"settings": {"column": k, "num_columns": 10}}]} for k in (True, 0.5, -1, 10, "0")),
        *({"parts": [COLUMN | {"settings": {"column": 0, "num_columns": n}}]} for n in (True, 2.5, 0, 1e308, None)),
        {"parts": [COLUMN | {"settings": {"column": 0, "num_columns": 10, "other": 1}}]},
        {"parts": [{"class": "StoppingScorer", "settings": {"num_columns": 10, "kind": ["curved"]}}]},
        {"parts": "none"},
        {"parts": {}},
        *({"exits": exits} for exits in ([0, 1], [0, 1, 2, "3"], [0, 0, 1, 3], [3, 2, 1, 0], [-4, -3, -2, -1], "0123")),
        *({"exits": exits} for exits in ([False, True, 2, 3], [0, 1, 2.5, 3], 4, {"0": 0})),
        *(
            {"costs": {"cumulative": [1, 2, 3, 4], "unit": "ms"} | one}
            for one in (
                {"cumulative": [2, 1, 3, 4]},
                {"cumulative": [1, 2, 3]},
                {"cumulative": [True, 2, 3, 4]},
                {"cumulative": ["1", 2, 3, 4]},
                {"cumulative": [1, 2, 3, 1e308]},
                {"cumulative": "1234"},
                {"unit": 5},
                {"unit": ""},
                {"unit": ["ms"]},
                {"reference": True},
                {"reference": -1},
            )
        ),
        *({"info": info} for info in ([1, 2], [["a", 1]], 5, None, "budget")),
        *({"source": source} for source in (None, 5, ["a"])),
        {"dial": {}},
        {"dial": 5},
    ],
    ids=str,
)
def test_values_are_checked_even_where_the_checksum_is_right(tmp_path, change):
    save_policy(GeometricScheduler().fit(synthetic_table(80), budget=4.0), tmp_path / "p")
    edited(tmp_path / "p", **change)
    with pytest.raises(BundleError) as error:
        load_policy(tmp_path / "p")
    assert str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "change",
    [
        {"fit_costs": [True, 2]},
        {"fit_costs": ["1", 2]},
        {"fit_costs": [2, 1]},
        {"fit_costs": [1, 1]},
        {"fit_costs": [1]},
        {"fit_costs": []},
        {"fit_costs": {"1": 1, "2": 2}},
        {"fit_utilities": [None, 1]},
        {"seed": 0.5},
        {"seed": None},
        {"reason": 5},
        {"costs": {"cumulative": [1, 2, 3], "unit": "ms"}},
        {"costs": None},
        {"rules": []},
        {"rules": [RULE, {"scorer": 0, "thresholds": "short"}]},
    ],
    ids=str,
)
def test_a_dial_is_checked_too(tmp_path, change):
    static = [static_policy(ConfidenceScorer("max_prob"), k, 4) for k in (0, 3)]
    dial = Dial(tuple(static), (1.0, 4.0), (0.5, 0.9), CostTable((1, 2, 3, 4), "ms"))
    save_policy(static[0], tmp_path / "p", dial=dial)
    stored = read_json(tmp_path / "p" / "policy.json", "policy")["dial"]
    edited(tmp_path / "p", dial=stored)
    assert load_policy(tmp_path / "p").dial.fit_costs == (1, 4)
    edited(tmp_path / "p", dial=stored | change)
    with pytest.raises(BundleError, match=r"dial|number|exits|list|str|costs|policies|rules|thresholds|short"):
        load_policy(tmp_path / "p")


@pytest.mark.parametrize(
    "change",
    [
        {"thresholds0": np.array([0.5, np.nan, 0, -np.inf], np.float32)},
        {"thresholds0": np.array([0.5, 1e308, 0, -np.inf])},
        {"thresholds0": np.array([0.5, -1e308, 0, -np.inf])},
        {"thresholds0": np.array([0.5, 0, 0, 0], np.float32)},
        {"thresholds0": np.array([True, False, True, False])},
        {"thresholds0": np.array([3, 2, 1, 0])},
        {"thresholds0": np.array([[0.5, -np.inf]], np.float32)},
        {"thresholds0": np.array([-np.inf], np.float32)},
        {"thresholds0": np.array([0.5, 0.5, -np.inf], np.float32)},
        {"part0.weight": np.full((3, 22), np.nan)},
        {"part0.weight": np.full((3, 22), 1e308)},
        {"part0.weight": np.ones((3, 22), bool)},
        {"part0.weight": np.ones((3, 21))},
        {"part0.weight": np.ones((2, 22))},
        {"part0.weight": np.ones(22)},
        {"part0.bias": np.array([0, np.inf, 0])},
        {"part0.bias": np.zeros((3, 1))},
        {"part0.other": np.zeros(3)},
    ],
    ids=lambda change: f"{next(iter(change))} {next(iter(change.values())).tolist()}"[:50],
)
def test_arrays_are_checked_too(tmp_path, change):
    folder = tmp_path / "p"
    scorer = StoppingScorer(weight=np.ones((3, 22)), bias=np.ones(3), num_columns=10)
    costs = CostTable((1, 2, 3, 4), "ms")
    save_policy(ScorePolicy(scorer, [0.5, 0.5, 0.5, -np.inf]), folder, costs=costs)
    arrays = load_arrays(folder / "policy.safetensors", "policy")
    save_arrays(folder / "policy.safetensors", arrays)
    edited(folder, sha256=sha256(folder / "policy.safetensors"))
    load_policy(folder)
    save_arrays(folder / "policy.safetensors", arrays | change)
    with pytest.raises(BundleError, match="belongs to another"):
        load_policy(folder)
    edited(folder, sha256=sha256(folder / "policy.safetensors"))
    with pytest.raises(BundleError, match="incomplete or damaged"):
        load_policy(folder)


@pytest.mark.parametrize(
    "edges",
    [[[0.0, 1.0]], [[-np.inf, np.nan]], [[-np.inf, 2.0, 1.0]], [[]], [[-np.inf, 0.0], [0.0, 1.0]]],
    ids=str,
)
def test_edges_of_bins_rise_from_minus_infinity(edges):
    edges = np.array(edges)
    with pytest.raises(InputError, match="no diagrams"):
        PceeScorer(edges=edges, means=np.full(edges.shape, 0.5), confidence="max_prob")


def test_mixtures_inside_mixtures_have_an_end(tmp_path):
    mixed: Policy = static_policy(ConfidenceScorer("max_prob"), 0, 3)
    with pytest.raises(InputError, match="inside 20 mixtures"):
        for _ in range(10_000):
            mixed = MixedPolicy(mixed, mixed, 0.5) if mixed.depth < 3 else MixedPolicy(mixed, mixed.b, 0.5)
    assert mixed.depth == 20
    save_policy(mixed, tmp_path / "p")  # what can be made can be saved
    loaded = load_policy(tmp_path / "p").policy
    assert loaded.depth == 20 and loaded.seeds == mixed.seeds
    rule = read_json(tmp_path / "p" / "policy.json", "policy")["rule"]
    edited(tmp_path / "p", rule={"mixed": {"a": rule, "b": rule}, "weight": 0.5, "seed": 0})
    with pytest.raises(BundleError, match="inside 20 mixtures"):
        load_policy(tmp_path / "p")
    text = (tmp_path / "p" / "policy.json").read_text()
    deep = '{"mixed": {"a": ' * 10_000 + "0" + "}}" * 10_000
    (tmp_path / "p" / "policy.json").write_text(text.replace('"dial": null', f'"dial": {deep}'))
    with pytest.raises(BundleError, match="not JSON"):
        load_policy(tmp_path / "p")


@pytest.mark.parametrize("info", [{"x": float("nan")}, {"x": {1, 2}}, {"x": 10**30}, {"x": "\ud800"}])
def test_what_could_not_be_read_again_is_not_saved(tmp_path, info):
    policy = static_policy(ConfidenceScorer("max_prob"), 0, 3)
    save_policy(policy, tmp_path / "p", info={"x": 1})
    with pytest.raises(InputError, match="policy cannot be saved"):
        save_policy(policy, tmp_path / "p", info=info)
    assert load_policy(tmp_path / "p").info == {"x": 1}
    with pytest.raises(ShapeError, match="costs of 2 exits"):
        save_policy(policy, tmp_path / "q", costs=CostTable((1, 2), "ms"))
    with pytest.raises(ShapeError, match="increasing order"):
        save_policy(policy, tmp_path / "q", exits=[2, 1, 3])
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


class Scaled(Scorer):
    """A scorer of the user's own: the first class's log-probability, scaled."""

    parameters = ("scale", "shifts")

    def __init__(self, scale, shifts):
        self.scale, self.shifts = scale, shifts

    def __call__(self, seen):
        return seen[:, -1, 0] * np.float32(self.scale) + self.shifts[seen.shape[1] - 1]


def test_classes_of_ones_own_are_named_when_they_are_loaded(tmp_path, monkeypatch):
    scorer = Scaled(2.0, np.array([0.5, 0.0, 0.0, 0.0], dtype=np.float32))
    policy = MixedPolicy(
        ScorePolicy(scorer, np.array([-4.0, -3.0, -2.0, -np.inf])), static_policy(scorer, 1, 4), 0.5, seed=3
    )
    save_policy(policy, tmp_path / "p", info={"x": 1})
    loaded = load_policy(tmp_path / "p", parts=[Scaled])
    table = synthetic_table(200)
    assert np.array_equal(replay(loaded.policy, table).exit_index, replay(policy, table).exit_index)
    assert own_parts(policy) == [Scaled] and own_parts(static_policy(ConfidenceScorer("max_prob"), 0, 3)) == []
    monkeypatch.setattr("importlib.import_module", None)  # nothing is imported by a name from a file
    spec = re.escape(f"{__name__}:Scaled")
    for parts in ([], [ConfidenceScorer]):
        with pytest.raises(InputError, match=rf"a class of yours: .*parts=\[Scaled\], .* --parts {spec},") as refused:
            load_policy(tmp_path / "p", parts=parts)
        assert not isinstance(refused.value, BundleError)


def test_other_formats_and_parts_that_cannot_be_made_again_are_refused(tmp_path):
    class Own(Scorer):
        def __init__(self, scale):
            self.scale = scale

        def __call__(self, seen):
            return seen[:, -1, 0]

    with pytest.raises(InputError, match=r"Own cannot be made again .* in its parameters"):
        save_policy(ScorePolicy(Own(1.0), np.array([0.0, -np.inf])), tmp_path / "p")
    assert not (tmp_path / "p").exists()
    save_policy(GeometricScheduler().fit(synthetic_table(50), budget=2.0), tmp_path / "p")
    stored = read_json(tmp_path / "p" / "policy.json", "policy")
    write_json(tmp_path / "p" / "policy.json", stored | {"format": 2}, sealed=True)
    with pytest.raises(BundleError, match="format 2"):
        load_policy(tmp_path / "p")


def test_a_part_of_another_package_is_no_damage(tmp_path):
    save_policy(ScorePolicy(ConfidenceScorer("margin"), [0.5, -np.inf]), tmp_path / "p")
    parts = [{"class": "RatioScorer", "settings": {"scale": 2.0}}]
    edited(tmp_path / "p", parts=parts)
    with pytest.raises(BundleError, match="part 'RatioScorer': this version of eenet knows no such class") as raised:
        load_policy(tmp_path / "p")
    assert "damaged" not in str(raised.value)


def test_what_is_damaged_is_said_without_names_of_exceptions(tmp_path):
    save_policy(ScorePolicy(ConfidenceScorer("margin"), [0.5, -np.inf]), tmp_path / "p")
    for change in ({"rule": {}}, {"rule": 3}, {"parts": [3]}, {"source": 3}, {"exits": 3}, {"parts": [{"class": []}]}):
        edited(tmp_path / "p", **change)
        with pytest.raises(BundleError, match="incomplete or damaged") as raised:
            load_policy(tmp_path / "p")
        assert "Error" not in str(raised.value)


@pytest.mark.parametrize("file", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_policy_is_refused(tmp_path, file, damage):
    save_policy(GeometricScheduler().fit(synthetic_table(50), budget=2.0), tmp_path / "policy")
    target = tmp_path / "policy" / file
    content = bytearray(target.read_bytes())
    if damage == "gone":
        target.unlink()
    elif damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    else:
        position = content.rindex(b"scorer") if file == "policy.json" else len(content) - 1
        content[position] ^= 1
        target.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_policy(tmp_path / "policy")
    assert "\n" not in str(error.value)


def test_a_policy_knows_which_exits_it_is_for(tmp_path):
    policy = GeometricScheduler().fit(synthetic_table(50), budget=2.0)
    save_policy(policy, tmp_path / "policy", exits=[1, 3, 4, 7])
    assert load_policy(tmp_path / "policy").exits == (1, 3, 4, 7)
    with pytest.raises(ShapeError, match="decides over 4 exits"):
        save_policy(policy, tmp_path / "policy", exits=[1, 3])
    stored = read_json(tmp_path / "policy" / "policy.json", "policy")
    write_json(tmp_path / "policy" / "policy.json", stored | {"exits": [1, 3]}, sealed=True)
    with pytest.raises(BundleError, match="decides over 4 exits"):
        load_policy(tmp_path / "policy")


def test_a_policy_does_not_overwrite_other_folders(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    policy = GeometricScheduler().fit(synthetic_table(50), budget=2.0)
    with pytest.raises(InputError, match="taken"):
        save_policy(policy, tmp_path / "notes")
    with pytest.raises(BundleError, match="missing"):
        load_policy(tmp_path / "none")
