"""Temperatures by hand, in closed form, against a general optimiser, and at their ends."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.schedulers.ensemble import fit_calibration, fit_temperatures
from eenet.tables import ExitTable
from eenet.tables import table as table_module
from eenet.testing import synthetic_table

ENDS = pytest.mark.filterwarnings("ignore:temperatures end at a limit")


def loss(table, temperatures):
    """Mean negative log-likelihood of each exit."""
    scaled = table.logits.astype(float) / np.reshape(temperatures, (1, -1, 1))
    scaled -= scaled.max(axis=2, keepdims=True)
    log_probs = scaled - np.log(np.exp(scaled).sum(axis=2, keepdims=True))
    return -log_probs[np.arange(table.num_samples), :, table.labels].mean(axis=0)


def test_by_hand():
    # of four samples with log-odds 2 three are right: sigmoid(2 / T) = 3/4, so T = 2 / log 3
    first = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    table = ExitTable(logits=np.stack([first, 5 * first], axis=1), labels=[0, 0, 1, 1])
    assert fit_temperatures(table).tolist() == pytest.approx([2 / math.log(3), 10 / math.log(3)], rel=1e-9)


def test_closed_form_calibrated_logits_times_a_factor_give_the_factor_back():
    # labels in exactly the proportions that the probabilities say
    labels = [0] * 5 + [1] * 3 + [2] * 2
    factors = np.array([0.07, 0.5, 1.0, 3.0, 19.0])
    table = ExitTable(logits=np.tile(factors[:, None] * np.log([0.5, 0.3, 0.2]), (10, 1, 1)), labels=labels)
    assert np.allclose(fit_temperatures(table), factors, rtol=1e-9)


@ENDS
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(-3.0, 3.0))
def test_no_other_temperature_in_range_is_better(seed, n, log_scale):
    generator = np.random.default_rng(seed)
    logits = math.exp(log_scale) * generator.normal(size=(n, 3, 4))
    table = ExitTable(logits=logits, labels=generator.integers(4, size=n))
    found = fit_temperatures(table)
    assert ((found >= 0.05) & (found <= 20)).all()
    best = loss(table, found)
    for other in (0.05, 0.3, 1.0, 3.0, 20.0):
        assert (best <= loss(table, [other] * 3) + 1e-9).all()
    for factor in (0.999, 1.001):
        assert (best <= loss(table, (found * factor).clip(0.05, 20)) + 1e-9).all()


def test_ends_and_indifference():
    labels = np.array([0, 1, 1])
    right, wrong = 4.0 * np.eye(3)[labels], 4.0 * np.eye(3)[labels + 1]
    flat = np.full((3, 3), 3.3)
    sure = right * 1e6  # the likelihood is 1 at every temperature
    table = ExitTable(logits=np.stack([right, wrong, flat, sure], axis=1), labels=labels)
    with pytest.warns(UserWarning, match=r"0\.05 to 20: 0\.05 at exit 0, 20 at exit 1\."):
        assert fit_temperatures(table).tolist() == pytest.approx([0.05, 20.0, 1.0, 1.0], rel=1e-12)
    with pytest.warns(UserWarning, match="exit 0"):  # one sample is enough
        assert fit_temperatures(table.select(slice(1))).tolist() == pytest.approx([0.05, 20.0, 1.0, 1.0])


@pytest.mark.parametrize("scale", [1.0, 0.01, 100.0])
def test_an_optimum_beyond_the_range_is_never_silent(scale):
    table = synthetic_table(2000)
    inside = fit_temperatures(table)
    scaled = ExitTable(logits=scale * table.logits.astype(float), labels=table.labels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fit_calibration(scaled).weight.diagonal() ** -1
    if scale == 1.0:
        assert not caught and np.allclose(found, inside)
    else:
        (message,) = (str(one.message) for one in caught)
        assert all(f"{value:g} at exit {k}" in message for k, value in enumerate(found))


@ENDS
def test_logits_of_any_size_become_numbers():
    # two of three samples are right by more than any number: at every temperature in range the third decides
    huge = 1e30 * np.array([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    mixed = np.array([[1e30, -1e30], [0.5, 0.0], [1e30, 0.0]])
    table = ExitTable(logits=np.stack([huge, mixed], axis=1), labels=[0, 0, 1])
    assert fit_temperatures(table).tolist() == [20.0, 20.0]
    right = table.select(slice(0, 2))
    assert fit_temperatures(right).tolist() == [1.0, 0.05]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 3.0))
def test_temperatures_scale_with_the_logits_and_ignore_shifts(seed, scale):
    table = synthetic_table(300, seed=seed)
    before = fit_temperatures(table)
    shifts = 10 * np.random.default_rng(seed).normal(size=(300, 4, 1))
    after = fit_temperatures(ExitTable(logits=scale * table.logits.astype(float) + shifts, labels=table.labels))
    assert np.allclose(after, scale * before, rtol=1e-6)


def test_chunks_order_and_storage_do_not_matter(monkeypatch, tmp_path):
    table = synthetic_table(500, seed=1)
    whole = fit_temperatures(table)
    shuffled = table.select(np.random.default_rng(0).permutation(500))
    assert np.allclose(fit_temperatures(shuffled), whole, rtol=1e-9)
    table.save(tmp_path / "mapped")
    mapped = ExitTable.load(tmp_path / "mapped")
    monkeypatch.setattr(table_module, "CHUNK", 4 * 5 * 7)
    assert sum(1 for _ in mapped.chunks()) == 72
    assert np.allclose(fit_temperatures(mapped), whole, rtol=1e-9)
    half = ExitTable(logits=table.logits.astype(np.float16), labels=table.labels)
    assert np.allclose(fit_temperatures(half), whole, rtol=1e-3)
