"""Texts of any length: engines and exports take them, short and long ones run apart, and nothing else changes."""

from dataclasses import replace

import exporting
import numpy as np
import pytest
import torch
from foreign import TEXTS, Reader, check_engine, of_length, rows_of
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from eenet.errors import InputError, ShapeError
from eenet.models.attach import attach
from eenet.policies import replay
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines import EagerEngine, OnnxEngine, OpenVinoEngine
from eenet.running.engines.base import EngineAround
from eenet.running.exporting import export
from eenet.running.exports import open_export
from eenet.running.manifest import Manifest
from eenet.running.measuring import load_costs, measure
from eenet.tables import CostTable, ExitTable, log_softmax

IDS = torch.randint(50, (24, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return attach(Reader().eval(), IDS[:3], exits=["layers.0", "layers.1"]).eval()


@pytest.fixture(scope="module")
def policy(model):
    """Half of the samples leave at each exit, whatever their length."""
    return exporting.quantile_policy(exporting.log_probs(model, IDS), "max_prob", 0.5)


def answers(model, policy, ids):
    """Return what the original outputs and the policy's rule say, every length by itself."""
    with torch.no_grad():
        logits = torch.stack(model(ids), dim=1)
    table = ExitTable(logits=logits, costs=CostTable(tuple(range(1, model.num_exits + 1)), "ms"))
    return replay(policy, table).exit_index, log_softmax(table.logits)


def check_adaptive(adaptive, model, policy):
    """Check decisions and answers at several lengths."""
    for length in (2, 11, 40):
        ids = of_length(IDS, length)
        wanted, seen = answers(model, policy, ids)
        found = adaptive(ids)
        assert (found.exit_index != wanted).sum() <= 1  # next to a threshold
        assert np.allclose(found.log_probs, seen[np.arange(len(ids)), found.exit_index], atol=1e-4)


@pytest.mark.parametrize("optimise", [True, False])
def test_a_model_decides_at_every_length(model, policy, optimise):
    check_adaptive(AdaptiveModel(model, policy, optimise=optimise), model, policy)


class Counting(EngineAround):
    """Notes what its stages run on."""

    def __init__(self, inner):
        super().__init__(inner)
        self.asked = []

    def start(self, inputs):
        return self.inner.start(inputs)

    def stage(self, index, state):
        self.asked.append((index, *next(leaf for leaf in _leaves(state)).shape[:2]))
        return self.inner.stage(index, state)

    def head(self, index, state):
        return self.inner.head(index, state)

    def select(self, state, rows):
        return self.inner.select(state, rows)

    def join(self, states):
        return self.inner.join(states)

    def misfit(self, state, count):
        return self.inner.misfit(state, count)

    def constants(self, state):
        return self.inner.constants(state)


def _leaves(state):
    return [state] if isinstance(state, torch.Tensor) else list(state)


def test_short_and_long_texts_are_run_apart_in_full_batches(model, policy):
    lengths = [5, 30] * 6
    batches = [of_length(rows_of(IDS, slice(2 * i, 2 * i + 2)), length) for i, length in enumerate(lengths)]
    batches = [torch.cat(batches[:3:2]), *batches[1:2], *batches[3:]]  # the first one is of four, and short
    engine = Counting(EagerEngine(model, optimise=False))
    adaptive = AdaptiveModel(engine, policy)
    found = adaptive.predict_all(batches)
    wanted = AdaptiveModel(model, policy, optimise=False).predict_all(batches, regroup=False)
    assert np.array_equal(found.exit_index, wanted.exit_index)
    assert np.allclose(found.log_probs, wanted.log_probs, atol=1e-5)
    first = [(count, length) for stage, count, length in engine.asked if stage == 0 and count > 1]
    assert first.pop(0)[0] == 2  # of finding out that samples can be dropped
    assert {length for _, length in first} == {5, 30}
    assert all(count >= 4 for count, _ in first)  # batches of two waited for others of their length
    later = [length for stage, _, length in engine.asked if stage > 0]
    assert set(later) <= {6, 31}  # the model adds a token


def test_a_loader_that_pads_batch_by_batch():
    backbone, inputs = TEXTS["DistilBERT"]()
    model = attach(backbone.eval(), inputs, exits=2).eval()
    texts = [torch.randint(1, 50, (length,)) for length in (4, 9, 30, 17, 2, 2, 50)]

    def padded(batch):
        ids = pad_sequence(batch, batch_first=True)
        return {"input_ids": ids, "attention_mask": pad_sequence([torch.ones_like(one) for one in batch], True)}

    whole = padded(texts)
    policy = exporting.quantile_policy(exporting.log_probs(model, whole), "max_prob", 0.5)
    wanted, seen = answers(model, policy, whole)
    for regroup in (True, False):
        adaptive = AdaptiveModel(model, policy)
        found = adaptive.predict_all(DataLoader(texts, batch_size=2, collate_fn=padded), regroup=regroup)
        assert np.array_equal(found.exit_index, wanted)
        assert np.allclose(found.log_probs, seen[np.arange(7), wanted], atol=1e-4)


def test_times_by_length(model, tmp_path):
    profile = measure(model, IDS, batch_sizes=(1, 4), lengths=(3, 40), passes=2, progress=False)
    assert [(row.length, row.batch_size) for row in profile.latency] == [(3, 1), (3, 4), (40, 1), (40, 4)]
    profile.save(tmp_path / "costs.json")
    for length in (3, 40):
        costs = load_costs(tmp_path / "costs.json", batch_size=4, length=length)
        assert costs == profile.costs(batch_size=4, length=length)
    with pytest.raises(InputError, match=r"batch_size 4 is not unique: .* eager float32 at batch size 1 and length 3"):
        profile.costs(batch_size=4)
    with pytest.raises(InputError, match=r"lengths 3 do not fit: .* whole numbers"):
        measure(model, torch.randn(4, 12), lengths=(3,))
    with pytest.raises(ShapeError, match="token 41 do not fit"):
        measure(model, IDS, batch_sizes=(1,), lengths=(41,), passes=1)


# --- graphs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_an_export_takes_every_length(engine, model, tmp_path):
    exporting.need(engine)
    model = model.without([1])  # every graph takes its time
    policy = exporting.quantile_policy(exporting.log_probs(model, IDS), "max_prob", 0.5)
    made = export(model, policy, IDS[:4, :9], tmp_path / "out", engine=engine)
    assert made.error < 1e-5
    free = {"axis": 1, "name": "token", "low": 2, "high": 40}
    assert made.manifest["inputs"] == [{"name": "input", "dtype": "int64", "shape": [None, None], "free": [free]}]
    assert open_export(made.path).manifest.to_dict()["inputs"] == made.manifest["inputs"]
    adaptive = AdaptiveModel(made.path)
    check_adaptive(adaptive, model, policy)
    batches = [of_length(IDS[first : first + 6], 5 + first) for first in range(0, 24, 6)]
    wanted = AdaptiveModel(model, policy).predict_all(batches)
    assert (adaptive.predict_all(batches).exit_index != wanted.exit_index).sum() <= 1
    for length in (1, 41):
        with pytest.raises(ShapeError, match=rf"'input' of token {length} does not fit: the model takes 2 to 40"):
            adaptive(of_length(IDS, length))
    with pytest.raises(
        ShapeError, match=r"'input' of shape \(24, 12, 1\) does not fit: the model takes \(sample, token\)"
    ):
        adaptive(IDS[:, :, None])
    manifest = Manifest.read(made.path)
    for change in ({"free": ()}, {"shape": (9,)}, {"shape": (None, None)}):
        strange = replace(manifest, inputs=(replace(manifest.inputs[0], **change),))
        with pytest.raises(ValueError, match="and not free"):
            strange.require_consistent()


@pytest.mark.slow
@pytest.mark.parametrize("engine", [OnnxEngine, OpenVinoEngine])
@pytest.mark.parametrize("name", TEXTS)
def test_graphs_of_encoders_take_every_length(name, engine):
    pytest.importorskip("onnxscript")
    backbone, inputs = TEXTS[name]()
    model = attach(backbone.eval(), inputs, exits=3).eval()
    made = engine(model, inputs)
    assert [spec.shape for spec in made.inputs] == [(None,)] * 2
    for length in (2, 17, 128):
        check_engine(made, model, of_length(inputs, length))
    mask = of_length(inputs["attention_mask"], 9)
    with pytest.raises(ShapeError, match="token 16 and 9 do not fit together"):
        made.start(inputs | {"attention_mask": mask})
    if (most := made.inputs[0].free[0].high) is not None:
        with pytest.raises(ShapeError, match=f"token {most + 1} does not fit"):
            made.start(of_length(inputs, most + 1))


@pytest.mark.slow
def test_graphs_of_one_length_say_so(model, monkeypatch):
    exporting.need("onnxruntime")
    monkeypatch.setattr("eenet.running.engines.programs.torch.export.Dim.AUTO", torch.export.Dim.STATIC)
    with pytest.warns(UserWarning, match=r"graphs take inputs of the example's sizes only.*stage 0"):
        engine = OnnxEngine(model, IDS[:3])
    assert [(spec.shape, spec.free) for spec in engine.inputs] == [((12,), ())]
    check_engine(engine, model, IDS[:3])
    with pytest.raises(ShapeError, match=r"the model takes \(sample, 12\)"):
        engine.start(IDS[:3, :9])
