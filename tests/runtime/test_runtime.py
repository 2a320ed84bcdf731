"""The runtime without torch decides as the policies it was saved from: every scheduler, batches and single samples."""

import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import eenet
from eenet import (
    DeadlineScheduler,
    EENetScheduler,
    EeroScheduler,
    GeometricScheduler,
    JointScheduler,
    PatienceScheduler,
    PceeScheduler,
    StoppingScheduler,
    TransformedScheduler,
    VoteScheduler,
)
from eenet.core.coins import coin as torch_coin
from eenet.core.combined import MixedPolicy, TransformedPolicy, unmixed
from eenet.core.confidence import __all__ as confidence_names
from eenet.core.files import sha256
from eenet.core.policy import ScorePolicy
from eenet.core.scorers import ConfidenceScorer
from eenet.schedulers import EENetScorer, Ensemble, fit_ensemble, fit_geometric_ensemble
from eenet.schedulers.stopping import StoppingScorer
from eenet.testing import synthetic_table
from eenet_runtime import EenetRuntimeError, InputError, PolicyError, load_policy
from eenet_runtime.policy import MixedPolicy as RuntimeMixed
from eenet_runtime.policy import coin, least_rounding_to, toss

ROOT = Path(__file__).parents[2]
EXITS, CLASSES = 4, 5
TABLE = synthetic_table(400, num_exits=EXITS, num_classes=CLASSES)
FRESH = synthetic_table(300, num_exits=EXITS, num_classes=CLASSES, seed=1)
IDS = torch.arange(FRESH.num_samples) * 7919 - 100
EENET = EENetScheduler(epochs=1)
ROUNDED = ("certainty", "margin", "eenet", "eenet, transformed")  # scored in float32 by torch

SCHEDULERS = {
    **{name: GeometricScheduler(confidence=name) for name in ("max_prob", "certainty", "margin")},
    "joint": JointScheduler(),
    "patience": PatienceScheduler(),
    "vote": VoteScheduler(),
    "pcee": PceeScheduler(),
    "pcee of votes": PceeScheduler(confidence="vote_share"),
    "eero": EeroScheduler(),
    "eenet": EENET,
    "stopping": StoppingScheduler(),
    "stopping, no ensemble": StoppingScheduler(ensemble=False),
    "ztw": TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_geometric_ensemble),
    "patience, transformed": TransformedScheduler(scheduler=PatienceScheduler(), fit_transform=fit_ensemble),
    "vote, transformed": TransformedScheduler(scheduler=VoteScheduler(), fit_transform=fit_ensemble),
    "eenet, transformed": TransformedScheduler(scheduler=EENET, fit_transform=fit_ensemble),
}


@functools.cache
def dial_of(name):
    return SCHEDULERS[name].sweep(TABLE, TABLE.costs)


def reloaded(policy, folder):
    eenet.save_policy(policy, folder / "policy")
    return load_policy(folder / "policy")


def close_calls(policy, seen):
    """Samples whose score lies within a few roundings of a threshold."""
    close = torch.zeros(len(seen), dtype=torch.bool)
    for _, part in unmixed(policy):
        at = part.thresholds[seen.shape[1] - 1]
        close |= at.isfinite() & ((part.score(seen) - at).abs() <= 1e-6 * (1 + at.abs()))
    return close.numpy()


def assert_alike(policy, runtime, *, exact=True, table=FRESH, ids=IDS):
    """Same decisions at every exit, in a batch and one by one; same answers."""
    outputs = table.log_probs(slice(None))
    assert runtime.num_exits == policy.num_exits == table.num_exits
    for k in range(table.num_exits):
        seen = outputs[:, : k + 1]
        given_out, numbers = seen.numpy(), ids.numpy()
        decided = runtime.leaves(given_out, numbers)
        assert decided.dtype == np.bool_
        single = [runtime.decide(one, number) for one, number in zip(given_out, numbers.tolist(), strict=True)]
        assert all(type(one) is bool for one in single)
        if k == table.num_exits - 1:
            assert decided.all() and all(single)
        else:
            wanted = policy.leaves(seen, ids).numpy()
            forgiven = np.zeros_like(wanted) if exact else close_calls(policy, seen)
            assert forgiven.mean() < 0.02
            assert ((decided == wanted) | forgiven).all()
            assert ((np.array(single) == wanted) | forgiven).all()
        answers = runtime.answers(given_out, numbers)
        assert answers.dtype == np.float32
        one_by_one = [runtime.answer(one, number) for one, number in zip(given_out, numbers.tolist(), strict=True)]
        np.testing.assert_array_equal(one_by_one, answers)
        np.testing.assert_allclose(answers, policy.answers(seen, ids).numpy(), rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_decides_as_in_torch(name, tmp_path):
    dial = dial_of(name)
    mixed = 0
    for i, budget in enumerate(("30%", "45%", "70%")):
        policy = dial.at(budget)
        mixed += len(unmixed(policy)) > 1
        (tmp_path / str(i)).mkdir()
        assert_alike(policy, reloaded(policy, tmp_path / str(i)), exact=name not in ROUNDED)
    assert mixed


@pytest.mark.parametrize("name", confidence_names)
def test_scores_are_torchs(name, tmp_path):
    policy = ScorePolicy(ConfidenceScorer(name), torch.tensor([0.5] * (EXITS - 1) + [-math.inf]))
    scorer = reloaded(policy, tmp_path).scorer
    for k in range(EXITS):
        seen = FRESH.log_probs(slice(None))[:, : k + 1]
        wanted = policy.score(seen).numpy()
        np.testing.assert_allclose(scorer.many(seen.numpy(), k), wanted, rtol=2e-7, atol=2e-7)
        np.testing.assert_allclose([scorer.one(one[k], one, k) for one in seen.numpy()], wanted, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_scores_of_eenet_are_torchs(scale, tmp_path):
    weight = scale * torch.randn(EXITS, CLASSES + EXITS + 2, generator=torch.Generator().manual_seed(0))
    policy = ScorePolicy(EENetScorer(EXITS, CLASSES, weight), torch.tensor([0.5] * (EXITS - 1) + [-math.inf]))
    scorer, seen = reloaded(policy, tmp_path).scorer, FRESH.log_probs(slice(None))
    for k in range(EXITS):
        wanted = policy.score(seen[:, : k + 1]).numpy()
        single = [scorer.one(one[k], one[: k + 1], k) for one in seen.numpy()]
        np.testing.assert_allclose(scorer.many(seen[:, : k + 1].numpy(), k), wanted, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(single, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 70])
def test_many_classes_and_few(classes, tmp_path):
    table = synthetic_table(300, num_exits=3, num_classes=classes)
    for i, scheduler in enumerate((StoppingScheduler(ensemble=False), StoppingScheduler(), VoteScheduler())):
        policy = scheduler.fit(table, budget="60%")
        (tmp_path / str(i)).mkdir()
        assert_alike(policy, reloaded(policy, tmp_path / str(i)), table=table, ids=torch.arange(300))


def test_a_policy_under_a_deadline(tmp_path):
    policy = DeadlineScheduler(scheduler=StoppingScheduler(), deadline="3ms").fit(TABLE, budget="50%")
    assert_alike(policy, reloaded(policy, tmp_path))


def test_coins_within_coins_and_transforms_on_either_side(tmp_path):
    last = [-math.inf]
    a, b = (ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([at] * (EXITS - 1) + last)) for at in (0.5, 2.0))
    votes = ScorePolicy(ConfidenceScorer("streak"), torch.tensor([1.5] * (EXITS - 1) + last))
    together = fit_ensemble(TABLE)
    mixed = MixedPolicy(a, MixedPolicy(votes, b, 0.5, 3), 0.4, 12345678901234567)
    whole = TransformedPolicy(together, mixed)
    for i, policy in enumerate((mixed, whole, MixedPolicy(whole, a, 0.3, 5), MixedPolicy(votes, whole, 0.6, -2))):
        (tmp_path / str(i)).mkdir()
        assert_alike(policy, reloaded(policy, tmp_path / str(i)))


def test_by_hand(tmp_path):
    # exit 0 leaves from log-odds log 4 = 1.386 on, which is a largest probability of 0.8
    policy = ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([math.log(4), -math.inf]))
    runtime = reloaded(policy, tmp_path)
    seen = np.log(np.array([[[0.81, 0.1, 0.09]], [[0.79, 0.2, 0.01]]], dtype=np.float32))
    assert runtime.leaves(seen, [0, 1]).tolist() == [True, False]
    assert [runtime.decide(one, 0) for one in seen] == [True, False]
    assert (runtime.num_exits, runtime.num_classes) == (2, None)
    np.testing.assert_array_equal(runtime.answers(seen, [0, 1]), seen[:, 0])


def test_a_single_decision_of_stopping_by_hand(tmp_path):
    weight = torch.tensor([[0.0, 0, 0, 0, 1, -0.6]], dtype=torch.float64)  # max p + 0.6 entropy, of 2 classes
    scorer = StoppingScorer(2, 6, weight=weight, bias=torch.tensor([-1.2]).double())
    runtime = reloaded(ScorePolicy(scorer, torch.tensor([0.0, -math.inf])), tmp_path)
    # at p = 1/2: 0.5 + 0.6 x 0.693 - 1.2 < 0; at p = 0.74: 0.74 + 0.6 x 0.573 - 1.2 < 0; nothing reaches 1.2
    assert [runtime.decide(np.log(np.float32([[p, 1 - p]])), 0) for p in (0.5, 0.74)] == [False, False]
    scorer.bias += 0.2  # 0.74 + 0.344 - 1 > 0, but 0.5 + 0.416 - 1 < 0
    runtime = reloaded(ScorePolicy(scorer, torch.tensor([0.0, -math.inf])), tmp_path)
    assert [runtime.decide(np.log(np.float32([[p, 1 - p]])), 0) for p in (0.5, 0.74)] == [False, True]


@pytest.mark.parametrize("name", ["stopping", "max_prob", "certainty", "vote", "eenet", "ztw"])
@pytest.mark.parametrize(
    "logits",
    [
        [math.nan] * CLASSES,
        [3.0, 0.0, -math.inf, 0.0, 0.0],
        [0.0, -math.inf] + [math.nan] * 3,
        [400.0, 0.0, 0.0, 0.0, -9.0],
    ],
)
def test_odd_outputs_are_judged_alike_and_in_silence(name, logits, tmp_path):
    policy = dial_of(name).at("45%")
    runtime, seen = reloaded(policy, tmp_path), torch.log_softmax(torch.tensor(logits), 0).expand(1, 2, CLASSES)
    wanted = policy.leaves(seen.repeat(2, 1, 1), torch.tensor([3, 3])).tolist()
    assert runtime.leaves(seen.repeat(2, 1, 1).numpy(), [3, 3]).tolist() == wanted
    assert [runtime.decide(seen[0].numpy(), 3)] * 2 == wanted


@given(st.lists(st.integers(-(2**63), 2**63 - 2), min_size=1, max_size=5), st.integers(-(2**62), 2**62))
def test_the_coin_is_eenets_coin(ids, seed):
    wanted = torch_coin(torch.tensor(ids), seed).tolist()
    assert coin(np.array(ids), seed).tolist() == wanted
    assert [toss(one, seed) for one in ids] == wanted


def test_ids_of_other_whole_types_and_empty_batches(tmp_path):
    runtime = reloaded(dial_of("stopping").at("45%"), tmp_path)
    seen = FRESH.log_probs(slice(0, 9))[:, :2].numpy()
    wanted = runtime.leaves(seen, np.arange(9))
    for kind in (np.int32, np.uint8, np.uint64):
        np.testing.assert_array_equal(runtime.leaves(seen, np.arange(9, dtype=kind)), wanted)
    assert [runtime.decide(one, np.int64(i)) for i, one in enumerate(seen)] == wanted.tolist()
    assert runtime.leaves(seen[:0], []).shape == (0,)
    np.testing.assert_array_equal(runtime.leaves(seen.astype(np.float64), np.arange(9)), wanted)


def test_torch_stays_out():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'runtime' / 'src')!r}); import eenet_runtime; "
        "print([name for name in ('torch', 'eenet', 'jaxtyping', 'scipy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# --- what cannot be served --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    policy = dial_of("pcee").at("45%")
    assert isinstance(reloaded(policy, tmp_path), RuntimeMixed)
    return tmp_path / "policy"


def edit(folder, change=None, tensors=None):
    """Change the JSON and the tensors of a policy, with a fitting checksum."""
    if tensors is not None:
        content = load_file(folder / "policy.safetensors")
        tensors(content)
        save_file(content, folder / "policy.safetensors")
    stored = json.loads((folder / "policy.json").read_text())
    stored["sha256"] = sha256(folder / "policy.safetensors")
    if change is not None:
        change(stored)
    (folder / "policy.json").write_text(json.dumps(stored))


def test_missing_folders_and_files(folder):
    with pytest.raises(PolicyError, match="there is no such folder"):
        load_policy(folder / "nowhere")
    (folder / "policy.safetensors").rename(folder / "moved")
    with pytest.raises(PolicyError, match=r"policy\.safetensors is missing"):
        load_policy(folder)
    (folder / "policy.json").unlink()
    with pytest.raises(PolicyError, match=r"policy\.json is missing"):
        load_policy(folder)


def test_changed_tensors_and_broken_json(folder):
    content = bytearray((folder / "policy.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "policy.safetensors").write_bytes(content)
    with pytest.raises(PolicyError, match="the checksum of its tensors differs"):
        load_policy(folder)
    (folder / "policy.json").write_text("{")
    with pytest.raises(PolicyError, match="it is not JSON"):
        load_policy(folder)


def test_tensors_that_are_none(folder):
    (folder / "policy.safetensors").write_bytes(b"nothing")
    edit(folder)
    with pytest.raises(PolicyError, match="cannot be rebuilt: SafetensorError"):
        load_policy(folder)


CHANGES = {
    "is of format 3": lambda stored: stored.update(format=3),
    "class 'Mine' is unknown": lambda stored: stored["parts"][0].update({"class": "Mine"}),
    "confidence 'sure' is unknown": lambda stored: stored["parts"][0]["settings"].update(confidence="sure"),
    "edges of PceeScorer of shape": lambda stored: stored["parts"][0]["settings"].update(bins=3),
    "cannot be rebuilt: KeyError": lambda stored: stored["rule"]["mixed"].pop("b"),
    "cannot be rebuilt: IndexError": lambda stored: stored["rule"]["mixed"]["a"].update(scorer=4),
    "cannot be rebuilt: TypeError": lambda stored: stored["parts"][0]["settings"].update(more=1),
    "is no transform": lambda stored: stored.update(rule={"transformed": stored["rule"], "transform": 0}),
    "with weight 2": lambda stored: stored["rule"].update(weight=2),
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_is_unknown_or_damaged(folder, said):
    edit(folder, CHANGES[said])
    with pytest.raises(PolicyError, match=said):
        load_policy(folder)


@pytest.mark.parametrize(
    ("said", "tensors"),
    [
        ("are no rule", lambda content: content.update({"rule.a.thresholds": np.zeros(EXITS, dtype=np.float32)})),
        ("cannot be rebuilt: KeyError", lambda content: content.pop("rule.b.thresholds")),
        ("cannot be rebuilt: TypeError", lambda content: content.pop("part0.means")),
        (
            "PceeScorer of 4 exits does not fit",
            lambda content: content.update({"rule.a.thresholds": np.float32([0, 0, 0, 0, -math.inf])}),
        ),
    ],
)
def test_tensors_that_do_not_fit(folder, said, tensors):
    edit(folder, tensors=tensors)
    with pytest.raises(PolicyError, match=said):
        load_policy(folder)


def test_policies_on_features_are_refused(tmp_path):
    scorer = StoppingScorer(3, 2 * CLASSES + 4, with_features=True)
    with pytest.raises(PolicyError, match="policy reads features"):
        reloaded(ScorePolicy(scorer, torch.tensor([0.0, 0.0, -math.inf])), tmp_path)


def test_parts_of_different_classes_are_refused(tmp_path):
    policy = ScorePolicy(StoppingScorer(3, 2 * 4 + 2), torch.tensor([0.0, 0.0, -math.inf]))
    with pytest.raises(PolicyError, match="parts of 4 and 5 classes"):
        reloaded(TransformedPolicy(Ensemble(3, 5), policy), tmp_path)


def test_outputs_and_ids_that_do_not_fit(tmp_path):
    runtime = reloaded(dial_of("stopping").at("45%"), tmp_path)
    seen = FRESH.log_probs(slice(0, 3)).numpy()
    for wrong in (seen[0], seen[:, :0], np.zeros((3, 5, CLASSES)), np.zeros((3, 2, CLASSES + 1))):
        with pytest.raises(InputError, match="does not fit"):
            runtime.leaves(wrong, [0, 1, 2])
    for wrong in (seen, seen[0, 0], np.zeros((5, CLASSES)), np.zeros((2, CLASSES + 1))):
        with pytest.raises(InputError, match="does not fit"):
            runtime.decide(wrong, 0)
        with pytest.raises(InputError, match="does not fit"):
            runtime.answer(wrong, 0)
    for ids in ([0, 1], [0.5, 1.0, 2.0], 3):
        with pytest.raises(InputError, match="Pass one whole number per sample"):
            runtime.answers(seen, ids)
    assert issubclass(InputError, EenetRuntimeError) and issubclass(InputError, ValueError)


@given(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), st.integers(-3, 3))
def test_unrounded_scores_are_held_against_the_edge_of_rounding(threshold, steps):
    limit = least_rounding_to(threshold)
    score = limit
    for _ in range(abs(steps)):
        score = math.nextafter(score, math.copysign(math.inf, steps))
    assert (score >= limit) == (np.float32(score) >= np.float32(threshold))
