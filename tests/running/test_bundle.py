"""Bundles: everything comes back, and nothing that was changed is accepted."""

import json
import shutil
import stat

import numpy as np
import pytest
import torch
from foreign import attached_copy, said
from replaying import quantile_policy

from eenet.errors import BundleError, InputError, ShapeError
from eenet.experiments.zoo.tiny import tiny_cnn
from eenet.policies import ConfidenceScorer, Dial, MixedPolicy, ScorePolicy
from eenet.running.bundle import Bundle
from eenet.running.engines import EagerEngine
from eenet.tables.costs import CostTable

FILES = ("model.safetensors", "info.json", "policy/policy.json", "policy/policy.safetensors", "manifest.json")


def build(info):
    return tiny_cnn(width=info["width"])


@pytest.fixture
def bundle(tiny, images) -> Bundle:
    logits = said(EagerEngine(tiny, optimise=False), images)
    a, b = quantile_policy(logits, "max_prob", 0.2), quantile_policy(logits, "max_prob", 0.6)
    costs = CostTable(cumulative=(1.0, 2.0, 3.0), unit="ms", reference=2.9)
    dial = Dial.of_candidates([(1.5, 0.6, b), (2.5, 0.8, a)], costs, seed=4)
    return Bundle(model=tiny, policy=MixedPolicy(a, b, 0.5, seed=4), costs=costs, info={"width": 8}, dial=dial)


@pytest.fixture
def folder(bundle, tmp_path):
    bundle.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_the_same_predictions_come_back(bundle, folder, images):
    loaded = Bundle.load(folder, build)
    before, after = bundle.adaptive()(images), loaded.adaptive()(images)
    assert np.array_equal(before.exit_index, after.exit_index)
    assert np.array_equal(before.log_probs, after.log_probs)
    assert np.array_equal(before.cost, after.cost)
    assert (loaded.costs, loaded.info) == (bundle.costs, bundle.info)
    assert not loaded.model.training
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(FILES)


def test_a_loaded_bundle_runs_at_other_budgets(bundle, folder, images):
    loaded = Bundle.load(folder, build).adaptive()
    for budget in (1.6, 2.4):
        wanted = bundle.adaptive().at(budget)(images, range(96))
        found = loaded.at(budget)(images, range(96))
        assert np.array_equal(wanted.exit_index, found.exit_index)
        assert np.array_equal(wanted.cost, found.cost)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attached_models_in_any_memory_order(memory_format, tmp_path):
    model, inputs = attached_copy("conv")[2], torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([0.0, 0.0, -np.inf]))
    Bundle(model=model.to(memory_format=memory_format), policy=policy).save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle", lambda info: attached_copy("conv")[2]).model
    with torch.no_grad():
        for found, wanted in zip(loaded(inputs), model.eval()(inputs), strict=True):
            torch.testing.assert_close(found, wanted)


def test_tied_weights_survive(bundle, tmp_path):
    tied = tiny_cnn(width=8)
    tied.stages[2][1].weight = tied.stages[2][4].weight

    def build_tied(info):
        model = tiny_cnn(width=8)
        model.stages[2][1].weight = model.stages[2][4].weight
        return model

    Bundle(model=tied, policy=bundle.policy, info={}).save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b", build_tied)
    assert loaded.costs is None
    assert torch.equal(loaded.model.stages[2][1].weight, tied.stages[2][4].weight)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_damage_is_refused_in_one_line(folder, name, damage):
    file = folder / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    if damage == "changed" and name == "manifest.json":
        value = {"format": "eenet bundle", "version": 1, "sha256": {}}
        file.write_text(json.dumps(value))
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder, lambda _: pytest.fail("the model was built from a damaged bundle"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "manifest", [[], {"format": "x"}, {"format": "eenet bundle", "version": 2, "sha256": {}}, {"sha256": "x"}]
)
def test_a_foreign_manifest_is_refused(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        Bundle.load(folder, build)


def test_a_manifest_cannot_point_outside(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["../outside"] = "0" * 64
    (folder.parent / "outside").write_text("secret")
    del manifest["checksum"]  # as after a change on purpose
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside is missing"):
        Bundle.load(folder, build)


def test_another_model_is_refused(folder, tmp_path):
    with pytest.raises(BundleError, match="does not fit the model") as caught:
        Bundle.load(folder, lambda info: tiny_cnn(width=4))
    assert "\n" not in str(caught.value)
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.load(tmp_path / "none", build)


def test_saving_replaces_a_bundle_and_nothing_else(bundle, folder, tmp_path):
    Bundle(model=bundle.model, policy=bundle.policy, info={"width": 8, "again": True}).save(folder)
    assert Bundle.load(folder, build).info["again"]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no part of a bundle"):
        bundle.save(folder)
    assert (folder / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["thesis.txt", "policy/thesis.txt", "data/thesis.txt"])
def test_what_somebody_put_into_a_bundle_is_not_deleted(bundle, folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt|data"):
        bundle.save(folder)
    assert (folder / name).exists()


@pytest.mark.parametrize("text", ['{"name": "my app"}', '{"format": "eenet export", "sha256": {}}', "[]", "no JSON"])
def test_a_folder_with_another_manifest_is_not_replaced(bundle, tmp_path, text):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="no part of a bundle"):
        bundle.save(tmp_path / "app")
    assert (tmp_path / "app" / "manifest.json").read_text() == text


def test_whoever_may_read_one_file_may_read_all(folder):
    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in FILES}
    assert len(set(modes.values())) == 1, modes


def test_parts_that_do_not_fit_are_refused_and_the_older_bundle_stays(bundle, folder):
    before_it = {name: (folder / name).read_bytes() for name in FILES}
    other = quantile_policy(np.random.randn(9, 4, 10), "max_prob")
    with pytest.raises(ShapeError, match="policy with 4 exits does not fit: there are 3"):
        Bundle(model=bundle.model, policy=other).save(folder)
    with pytest.raises(ShapeError, match="costs with 2 exits do not fit"):
        Bundle(model=bundle.model, policy=bundle.policy, costs=CostTable((1.0, 2.0), "ms")).save(folder)
    for value in (torch.zeros(2), float("nan")):
        with pytest.raises(InputError, match="info cannot be saved: it is no JSON"):
            Bundle(model=bundle.model, policy=bundle.policy, info={"width": value}).save(folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == before_it
