"""Maps for real: images leave the batch, decisions are those of replay, answers those of the exit they left at."""

import copy
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from replaying import MeanOfExits
from segmenting import SIZE, rectangles, segmenter, trained_segmenter
from torch import nn

from eenet.errors import InputError, ShapeError
from eenet.evaluation import CostParts
from eenet.models.model import MultiExitModel
from eenet.policies import (
    ColumnScorer,
    ConfidenceScorer,
    Ensemble,
    MixedPolicy,
    ScorePolicy,
    TransformedPolicy,
    VoteScorer,
    replay,
)
from eenet.policies.scorers import confidence_scorer
from eenet.running.adaptive import AdaptiveModel
from eenet.running.benchmark import bench
from eenet.running.engines import DenseEngine, EagerEngine, OnnxEngine, OpenVinoEngine, suited
from eenet.running.latency import measure_latency
from eenet.running.maps import label_map
from eenet.running.measuring import measure
from eenet.running.recording import record_dense
from eenet.schedulers import GeometricScheduler, JointScheduler, StoppingScheduler
from eenet.tables.costs import CostTable

SUPPORT = Path(__file__).parents[1] / "support"
COSTS = CostTable((1.0, 2.0, 4.0), "ms")


class Said(nn.Module):
    """A head that repeats recorded maps: pixel 0 of channel 0 is the number of the image."""

    def __init__(self, maps):
        super().__init__()
        self.maps, self.asked = maps, []

    def forward(self, images):
        self.asked.append(len(images))
        return self.maps[images[:, 0, 0, 0].long()]


def replaying(maps):
    """A model whose exits repeat ``maps[:, exit]``, and its images, twice as large as the maps."""
    images = torch.zeros(len(maps), 1, 2 * maps.shape[3], 2 * maps.shape[4])
    images[:, 0, 0, 0] = torch.arange(len(maps))
    exits = range(maps.shape[1])
    return MultiExitModel([nn.Identity() for _ in exits], [Said(maps[:, k]) for k in exits]), images


class Masked:
    """Images with masks that are all class 0."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batches(self, batch_size):
        for part in self.images.split(batch_size):
            yield part, torch.zeros(len(part), *part.shape[2:], dtype=torch.long)


@pytest.fixture(scope="module")
def maps():
    """Maps of 60 images at 3 exits, later ones surer; 5 classes, 4 x 6 pixels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 3, 5, 4, 6, generator=generator).cumsum(dim=1) * 1.5


def threshold_policy(table, confidence="max_prob", share=0.4):
    scorer = confidence_scorer(confidence, table.feature_names)
    scores = table.features[:, :-1, scorer.column]
    return ScorePolicy(scorer, np.array([*np.quantile(scores, 1 - share, axis=0), -math.inf]))


def test_three_images_by_hand():
    # two classes, one pixel each: chances of the larger class at exits 0 / 1
    chances = torch.tensor([[0.9, 0.9], [0.6, 0.8], [0.6, 0.7]])
    logits = torch.stack([chances.logit(), torch.zeros(3, 2)], dim=2)
    logits[2, 1] = logits[2, 1].flip(0)  # at exit 1 the third image is of class 1
    model, images = replaying(logits[:, :, :, None, None])
    policy = ScorePolicy(ColumnScorer(0, 5), np.array([math.log(4), -math.inf]))
    adaptive = AdaptiveModel(model, policy, CostTable((1.0, 3.0), "ms"), optimise=False)
    adaptive(images[:1])  # the first call finds out that the heads return maps
    for head in model.heads:
        head.asked.clear()
    found = adaptive(images)
    assert found.exit_index.tolist() == [0, 1, 1]
    assert found.cost.tolist() == [1, 3, 3]
    assert found.labels.shape == (3, 2, 2)
    assert found.labels.reshape(3, 4).tolist() == [[0] * 4, [0] * 4, [1] * 4]
    assert found.log_probs is None and found.outputs is found.labels
    # those that left were not computed; one and two samples were looked at before
    assert [head.asked for head in model.heads] == [[1, 2, 3], [1, 2, 2]]


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("kind", ["max_prob", "margin", "certainty", "mixed", "stopping", "joint"])
def test_decides_as_replay_on_the_recorded_table_to_the_bit(maps, size, kind, tmp_path):
    model, images = replaying(maps)
    table = record_dense(model, Masked(images), tmp_path / "a.npz", batch_size=16, costs=COSTS)
    schedulers = {
        "stopping": StoppingScheduler(),
        "joint": JointScheduler(),
        "mixed": GeometricScheduler(),
    }
    policy = schedulers[kind].fit(table, budget=2.1) if kind in schedulers else threshold_policy(table, kind)
    assert isinstance(policy, MixedPolicy) or kind not in ("mixed",)
    wanted = replay(policy, table)
    assert wanted.log_probs is None
    labels = label_map(maps[torch.arange(60), torch.from_numpy(wanted.exit_index)], (8, 12)).numpy()
    for regroup in (False, True):
        found = AdaptiveModel(model, policy, COSTS, optimise=False).predict_all(images.split(size), regroup=regroup)
        assert np.array_equal(found.exit_index, wanted.exit_index)
        assert np.array_equal(found.cost, wanted.cost)
        assert np.array_equal(found.labels, labels)
    assert len(np.unique(found.exit_index)) >= 2


def test_images_of_several_sizes_are_answered_each_at_its_own(maps):
    model, images = replaying(maps)
    wide = torch.nn.functional.pad(images, (0, 4))
    policy = ScorePolicy(ColumnScorer(0, 8), np.array([1.0, 1.0, -math.inf]))
    found = AdaptiveModel(model, policy).predict_all([images[:5], wide[5:10], images[10:12]])
    assert [one.shape for one in found.labels] == [(8, 12)] * 5 + [(8, 16)] * 5 + [(8, 12)] * 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model, images it has not seen, their table and a policy that uses every exit."""
    model, data = trained_segmenter(), rectangles(60, seed=7)
    path = tmp_path_factory.mktemp("tables") / "val.npz"
    table = record_dense(model, data, path, costs=COSTS, utility="miou", batch_size=60)
    return model, data, table, threshold_policy(table)


def test_a_trained_model_saves_work_and_answers_with_the_exit_it_left_at(trained):
    model, data, table, policy = trained
    calls = []
    watched = copy.deepcopy(model)
    for stage in watched.stages:
        stage.register_forward_hook(lambda module, given, output: calls.append(len(output)))
    adaptive = AdaptiveModel(watched, policy, COSTS, optimise=False)
    found = adaptive(data.images)
    assert calls[:7] == [2, 1, 2, 1, 2, 1, 2]  # of finding out that heads return maps, and that samples can be dropped
    del calls[:7]
    assert np.array_equal(found.exit_index, replay(policy, table).exit_index)
    counts = np.bincount(found.exit_index, minlength=3)
    assert counts.min() > 0
    assert calls == [60, 60 - int(counts[0]), int(counts[2])]
    with torch.no_grad():
        alone = model(data.images)
    for k in range(3):
        left = found.exit_index == k
        assert (found.labels[left] != label_map(alone[k][left], SIZE).numpy()).mean() < 1e-3
    assert not model.training


@pytest.mark.parametrize("name", ["eager", "onnxruntime", pytest.param("openvino", marks=pytest.mark.slow), "dense"])
def test_engines_run_maps(trained, name):
    model, data, table, _ = trained
    model, policy = model.without([1]), threshold_policy(table.keeping([0, 2]))
    if name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    make = {
        "eager": lambda: EagerEngine(model),
        "onnxruntime": lambda: OnnxEngine(model, data.images),
        "openvino": lambda: OpenVinoEngine(model, data.images),
        "dense": lambda: suited(EagerEngine(model), data.images),
    }
    engine = make[name]()
    wanted = AdaptiveModel(model, policy)(data.images)
    for size in (1, 17, 60):
        found = AdaptiveModel(engine, policy).predict_all(data.images.split(size), regroup=size == 17)
        assert int((found.exit_index != wanted.exit_index).sum()) <= 1  # other kernels round otherwise
        same = found.exit_index == wanted.exit_index
        assert (found.labels[same] != wanted.labels[same]).mean() < 2e-3
    full = DenseEngine(engine.inner if isinstance(engine, DenseEngine) else engine).full(data.images)
    with torch.no_grad():
        assert (full != label_map(model(data.images)[-1], SIZE).numpy()).mean() < 2e-3


COMPILED = """
import numpy as np
import torch
from segmenting import rectangles, segmenter
from eenet.policies import ColumnScorer, ScorePolicy
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines import CompiledEngine

model, images = segmenter(), rectangles(20).images
with torch.no_grad():
    middle = torch.softmax(model(images)[0], dim=1).amax(dim=1).mean(dim=(1, 2)).median().logit()
policy = ScorePolicy(ColumnScorer(0, 7), np.array([float(middle), 100.0, -np.inf]))
plain = AdaptiveModel(model, policy)(images)
compiled = AdaptiveModel(CompiledEngine(model, images), policy)(images)
assert set(plain.exit_index.tolist()) == {0, 2}
assert int((plain.exit_index != compiled.exit_index).sum()) <= 1
same = plain.exit_index == compiled.exit_index
assert (plain.labels[same] != compiled.labels[same]).mean() < 2e-3
"""


@pytest.mark.slow
def test_a_compiled_engine_runs_maps():
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler")
    # a process of its own: what checks types while tests run cannot be compiled
    ran = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, cwd=SUPPORT)
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_coins_follow_ids(trained):
    model, data, table, policy = trained
    last = ScorePolicy(policy.scorer, np.array([math.inf, math.inf, -math.inf]))
    mixed = MixedPolicy(policy, last, 0.5, seed=4)
    wanted = replay(mixed, table).exit_index
    adaptive = AdaptiveModel(model, mixed, optimise=False)
    first, second = adaptive(data.images[:25]), adaptive(data.images[25:])
    assert np.array_equal(np.concatenate([first.exit_index, second.exit_index]), wanted)
    order = np.arange(59, -1, -1)
    again = AdaptiveModel(model, mixed, optimise=False)(data.images[torch.from_numpy(order)], order)
    assert np.array_equal(again.exit_index, wanted[order])
    assert first.cost is None


def test_what_does_not_fit_is_refused(trained, tiny):
    model, data, _, policy = trained
    for scorer in (VoteScorer(), ConfidenceScorer("streak")):
        with pytest.raises(InputError, match="compares the classes"):
            AdaptiveModel(model, MixedPolicy(policy, ScorePolicy(scorer, policy.thresholds), 0.5))(data.images)
    plain = ScorePolicy(ConfidenceScorer("max_prob"), policy.thresholds)
    ensemble = Ensemble(weight=np.eye(3), bias=np.zeros((3, 7)))
    for together in (TransformedPolicy(ensemble, plain), MeanOfExits([0.5, 0.5, -math.inf])):
        with pytest.raises(InputError, match="several exits together"):
            AdaptiveModel(model, together)(data.images)
    with pytest.raises(ShapeError, match="policy with 3 exits"):
        AdaptiveModel(segmenter().without([0]), policy)
    with pytest.raises(ShapeError, match="maps are"):
        AdaptiveModel(DenseEngine(EagerEngine(tiny)), policy)(torch.randn(2, 1, 8, 8))
    with pytest.raises(InputError, match="no images"):
        AdaptiveModel(DenseEngine(EagerEngine(tiny)), policy)(torch.randn(2, 8))


def test_timings_count_the_answer_on_both_sides(trained):
    model, data, _, policy = trained
    (row,) = measure_latency(model, data.images, batch_sizes=(4,), passes=2, policy=policy)
    assert row.answer.median > 0
    assert row.computing[0] >= row.answer.median + row.stages[0].median
    profile = measure(model, data.images, batch_sizes=(1, 8), passes=1)
    assert [one.batch_size for one in profile.latency] == [1, 8]
    assert profile.costs().num_exits == 3
    costs = profile.costs(batch_size=8)
    parts = CostParts.of_profile(profile.to_dict(), costs)
    assert parts.cumulative((0, 1, 2)) == pytest.approx(costs.cumulative)
    assert profile.flops.uncounted == ()


def test_bench_on_maps(trained):
    model, data, table, policy = trained
    report = bench(model, policy, data.images, batch_sizes=(1, 20), passes=2, progress=False)
    wanted = np.bincount(replay(policy, table).exit_index, minlength=3) / 60
    for row in report.rows:
        assert row.flips <= 1
        assert np.allclose(row.exit_distribution, wanted, atol=0.02)
        assert row.full_ms > 0 and row.ideal_speedup_flops > 1


def test_only_models_of_maps_are_wrapped(tiny, images):
    engine = EagerEngine(tiny)
    assert suited(engine, images) is engine
