"""Policies on disk: what comes back decides alike, and what was damaged or edited is refused."""

import json
import pickle

import numpy as np
import pytest

from eenet.errors import BundleError, InputError, ShapeError
from eenet.policies import Dial, ScorePolicy, Scorer, load_policy, replay, save_policy, store
from eenet.schedulers import GeometricScheduler, StoppingScheduler
from eenet.tables.files import read_json, write_json
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


def test_a_rule_edited_by_hand_is_refused(tmp_path):
    save_policy(GeometricScheduler().fit(synthetic_table(80), budget=2.5), tmp_path / "p")
    path = tmp_path / "p" / "policy.json"
    whole = json.loads(path.read_text())
    for key, value in (("rule", whole["rule"] | {"weight": 0.99}), ("parts", []), ("info", {"x": 1}), ("exits", [0])):
        write_json(path, whole | {key: value})
        with pytest.raises(BundleError, match="changed since"):
            load_policy(tmp_path / "p")
    write_json(path, dict(reversed(whole.items())))  # laid out anew, the same content
    load_policy(tmp_path / "p")


@pytest.mark.parametrize(
    "change",
    [
        {"rule": {"scorer": 7, "thresholds": "thresholds0"}},
        {"rule": {"scorer": 0, "thresholds": "none"}},
        {"rule": {"mixed": {"a": {"scorer": 0, "thresholds": "thresholds0"}}, "weight": 0.5, "seed": 0}},
        {"parts": [{"class": "Popen", "settings": {}}]},
        {"parts": [{"class": "ConfidenceScorer", "settings": {"confidence": "__all__"}}]},
        {"parts": "none"},
        {"exits": [0, 1]},
        {"exits": [0, 1, 2, "3"]},
        {"costs": {"cumulative": [2, 1], "unit": "ms"}},
    ],
)
def test_values_are_checked_even_where_the_checksum_is_right(tmp_path, change):
    save_policy(GeometricScheduler().fit(synthetic_table(80), budget=4.0), tmp_path / "p")
    stored = read_json(tmp_path / "p" / "policy.json", "policy") | change
    del stored["checksum"]
    write_json(tmp_path / "p" / "policy.json", stored | {"checksum": store._checksum(stored)})
    with pytest.raises(BundleError) as error:
        load_policy(tmp_path / "p")
    assert "\n" not in str(error.value)


def test_other_formats_and_foreign_classes_are_refused(tmp_path):
    class Own(Scorer):
        def __call__(self, seen):
            return seen[:, -1, 0]

    with pytest.raises(InputError, match="Own is a class of yours"):
        save_policy(ScorePolicy(Own(), np.array([0.0, -np.inf])), tmp_path / "p")
    assert not (tmp_path / "p").exists()
    save_policy(GeometricScheduler().fit(synthetic_table(50), budget=2.0), tmp_path / "p")
    stored = read_json(tmp_path / "p" / "policy.json", "policy")
    write_json(tmp_path / "p" / "policy.json", stored | {"format": 2})
    with pytest.raises(BundleError, match="format 2"):
        load_policy(tmp_path / "p")


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
    write_json(tmp_path / "policy" / "policy.json", stored | {"exits": [1, 3]})
    with pytest.raises(BundleError, match="was changed since"):
        load_policy(tmp_path / "policy")


def test_a_policy_does_not_overwrite_other_folders(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    policy = GeometricScheduler().fit(synthetic_table(50), budget=2.0)
    with pytest.raises(InputError, match="taken"):
        save_policy(policy, tmp_path / "notes")
    with pytest.raises(BundleError, match="missing"):
        load_policy(tmp_path / "none")
