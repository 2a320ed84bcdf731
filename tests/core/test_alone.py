"""A single sample in Python's numbers is judged as torch judges it in a batch."""

import copy
import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from eenet.core import confidence
from eenet.core.alone import least_doubles, normalised, rounded, tensor_of
from eenet.core.views import Viewed

FINITE = st.floats(-60, 60, width=32)
ROWS = st.lists(st.one_of(FINITE, st.just(-math.inf)), min_size=2, max_size=12).filter(lambda row: max(row) > -math.inf)


@given(ROWS)
def test_normalised_as_in_torch(row):
    wanted = torch.log_softmax(torch.tensor(row, dtype=torch.float64), dim=0).float()
    np.testing.assert_allclose(normalised(row), wanted, rtol=2e-7, atol=1e-14)


@given(ROWS)
def test_max_prob_as_in_torch(row):
    log_probs = torch.log_softmax(torch.tensor(row), dim=0)
    wanted = confidence.max_prob(log_probs).item()
    (one,) = rounded([confidence.max_prob_one(log_probs.tolist())])
    (few,) = confidence.max_prob_few(log_probs.numpy()[None]).tolist()
    np.testing.assert_allclose([one, few], wanted, rtol=2e-7, atol=1e-14)


def test_no_answer_is_no_answer_anywhere():
    row = [math.nan] * 3
    assert math.isnan(confidence.max_prob(torch.tensor(row)).item())
    assert math.isnan(confidence.max_prob_one(row))
    assert np.isnan(confidence.max_prob_few(np.full((1, 3), np.nan, dtype=np.float32))).all()
    assert all(map(math.isnan, normalised([0.0, math.nan, 1.0])))
    assert all(map(math.isnan, normalised([math.inf, 0.0])))


@given(st.one_of(st.floats(-1e3, 1e3, width=32), st.sampled_from([-math.inf, math.inf])), st.floats(-1e3, 1e3))
def test_a_score_reaches_the_double_where_it_reaches_the_float32(threshold, score):
    (least,) = least_doubles(torch.tensor([threshold]))
    assert (score >= least) == (float(np.float32(score)) >= threshold)
    if math.isfinite(threshold):
        assert float(np.float32(least)) >= threshold
        assert float(np.float32(math.nextafter(least, -math.inf))) < threshold


def test_one_row_is_a_batch_of_one():
    batch = tensor_of([0.5, -1.5])
    assert batch.dtype == torch.float32
    assert batch.tolist() == [[0.5, -1.5]]


def test_views_follow_their_buffers():
    module = Viewed()
    module.register_buffer("weight", torch.tensor([1.0, 2.0]))
    assert module.listed("weight") is module.listed("weight")
    assert module.view("weight").tolist() == [1.0, 2.0]
    module.weight[0] = 3.0  # written to
    assert module.listed("weight") == module.view("weight").tolist() == [3.0, 2.0]
    module.weight = torch.tensor([4.0])  # replaced
    assert module.listed("weight") == [4.0]
    other = copy.deepcopy(module)
    other.weight[0] = 5.0
    assert (module.listed("weight"), other.listed("weight")) == ([4.0], [5.0])
    with torch.inference_mode():
        module.weight = torch.tensor([6.0])
    assert module.listed("weight") == [6.0]
