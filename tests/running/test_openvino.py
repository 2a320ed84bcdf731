"""OpenVINO: the same outputs stage by stage, samples dropped between compiled models, the same decisions as replay."""

import numpy as np
import pytest
import torch
from foreign import FAMILIES, check_engine
from torch import nn

from eenet.errors import InputError
from eenet.experiments.zoo import tiny_cnn
from eenet.models.attach import attach
from eenet.models.model import MultiExitModel
from eenet.running.engines import OpenVinoEngine
from eenet.running.latency import measure_latency
from eenet.running.recording import outputs

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def images():
    return torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_cnn(exits=3).train()


@pytest.fixture(scope="module")
def compiled():
    """What the engine of the next fixture had compiled, noted on the way."""
    return []


@pytest.fixture(scope="module")
def engine(model, images, compiled):
    compile_model = openvino.Core.compile_model

    def noting(self, *args, **kwargs):
        compiled.append(compile_model(self, *args, **kwargs))
        return compiled[-1]

    with pytest.MonkeyPatch.context() as patch:  # making an engine takes seconds: one for all tests
        patch.setattr(openvino.Core, "compile_model", noting)
        return OpenVinoEngine(model, images)


def test_outputs_are_the_models(engine, model, images):
    assert model.training and all(module.training for module in model.modules())  # flags are restored
    check_engine(engine, model.eval(), images[:3])


class Passing(nn.Module):
    """Keeps a tensor that no later graph reads, one that is passed on as it is, and a flag."""

    def forward(self, state):
        x, kept, flag = state
        return x + 1, kept, flag


class Begin(nn.Module):
    def forward(self, x):
        return x.float(), x * 2, x > 0


class First(nn.Module):
    def forward(self, state):
        return state[0]


class Flagged(nn.Module):
    def forward(self, state):
        return state[0] * state[2]


def test_states_are_passed_on_whatever_they_hold():
    model = MultiExitModel([Passing(), Passing()], [First(), Flagged()], start=Begin())
    whole = torch.arange(-4, 8).reshape(4, 3)
    engine = OpenVinoEngine(model, whole)
    wanted = [logits.numpy() for logits in model(whole)]
    np.testing.assert_array_equal(outputs(engine, whole), np.stack(wanted, axis=1))
    state = engine.stage(0, engine.start(whole))
    assert sorted(leaf.dtype.name for leaf in state.state) == ["bool", "float32"]  # nobody reads the other one
    joined = engine.join([engine.select(state, np.array([1, 3])), state])
    assert [len(leaf) for leaf in joined.state] == [6, 6]
    found, answer = engine.head(1, engine.stage(1, joined))
    np.testing.assert_array_equal(found, np.concatenate((wanted[1][[1, 3]], wanted[1])))
    assert answer is None and found.dtype == np.float32


def test_what_was_returned_stays_when_the_engine_runs_again(engine, images):
    state = engine.stage(0, engine.start(images[:5]))
    before = [leaf.copy() for leaf in (state.extra, *state.state)]
    engine.stage(0, engine.start(images[5:10]))
    full = engine.full(images[:5])
    again = full.copy()
    engine.full(images[5:10])
    assert all((a == b).all() for a, b in zip(before, (state.extra, *state.state), strict=True))
    np.testing.assert_array_equal(full, again)


def test_threads_and_precision_are_the_ones_asked_for(engine, compiled, images):
    names = ("INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT", "NUM_STREAMS")
    used = [tuple(one.get_property(name) for name in names) for one in compiled]
    assert used == [(1, openvino.Type.f32, 1)] * 4  # three stages and the whole model
    assert engine.threads == torch.get_num_threads() == 1
    (row,) = measure_latency(engine, images, batch_sizes=(2,), passes=1, progress=False)
    assert (row.engine, row.dtype, row.threads) == ("openvino", "float32", 1)


def test_bfloat16_is_served_or_refused_never_ignored(model, images, engine):
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" in able:
        fast = OpenVinoEngine(model, images, dtype="bfloat16")
        assert fast.dtype == "bfloat16"
        assert np.allclose(outputs(fast, images), outputs(engine, images), atol=0.1)
        assert fast.source != engine.source
    else:
        with pytest.raises(InputError, match=r"dtype 'bfloat16' .*openvino.*FP32"):
            OpenVinoEngine(model, images, dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gated", "transformers BERT"])
def test_models_of_others_run(family):
    model, inputs = FAMILIES[family]()
    attached = attach(model, inputs, exits=3).eval()
    check_engine(OpenVinoEngine(attached, inputs), attached, inputs)
