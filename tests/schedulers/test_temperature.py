"""Temperatures by hand, in closed form, against a general optimiser, and at their ends."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.core import table as table_module
from eenet.core.table import ExitTable
from eenet.errors import TableError
from eenet.schedulers.temperature import fit_temperatures
from eenet.testing import synthetic_table


def loss(table, temperatures):
    """Mean negative log-likelihood of each exit."""
    scaled = table.logits.double() / torch.as_tensor(temperatures).double().reshape(1, -1, 1)
    log_probs = torch.log_softmax(scaled, dim=2)
    return -log_probs[torch.arange(table.num_samples), :, table.labels].mean(dim=0)


def test_by_hand():
    # of four samples with log-odds 2 three are right: sigmoid(2 / T) = 3/4, so T = 2 / log 3
    first = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    table = ExitTable(logits=torch.stack([first, 5 * first], dim=1), labels=labels)
    assert fit_temperatures(table).tolist() == pytest.approx([2 / math.log(3), 10 / math.log(3)], rel=1e-9)


def test_closed_form_calibrated_logits_times_a_factor_give_the_factor_back():
    # labels in exactly the proportions that the probabilities say
    probs = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    factors = torch.tensor([0.07, 0.5, 1.0, 3.0, 19.0], dtype=torch.float64)
    table = ExitTable(logits=(factors[:, None] * probs.log()).repeat(10, 1, 1), labels=labels)
    assert torch.allclose(fit_temperatures(table), factors, rtol=1e-9)


def test_planted_factors_are_recovered_from_draws():
    generator = torch.Generator().manual_seed(0)
    calibrated = 2 * torch.randn(20_000, 4, generator=generator)
    labels = torch.distributions.Gumbel(0.0, 1.0).icdf(torch.rand(20_000, 4, generator=generator).clamp_min(1e-12))
    factors = torch.tensor([0.4, 1.0, 2.5])
    table = ExitTable(logits=factors[:, None] * calibrated[:, None], labels=(calibrated + labels).argmax(dim=1))
    found = fit_temperatures(table) / factors
    assert torch.allclose(found, torch.ones(3).double(), atol=0.03)
    assert torch.allclose(found, found[:1].expand(3), rtol=1e-5)  # one draw, three scales (of float32 logits)


def slow_temperature(table, k):
    """A general optimiser on one exit's log-temperature."""
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [log_temperature], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )
    logits = table.logits[:, k].double()

    def closure():
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(logits / log_temperature.exp(), table.labels)
        value.backward()
        return value

    optimiser.step(closure)
    return float(log_temperature.detach().exp())


@pytest.mark.parametrize("seed", range(4))
def test_temperatures_equal_the_slow_twin(seed):
    table = synthetic_table(200, seed=seed)
    expected = [slow_temperature(table, k) for k in range(table.num_exits)]
    assert fit_temperatures(table).tolist() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(-3.0, 3.0))
def test_no_other_temperature_in_range_is_better(seed, n, log_scale):
    generator = torch.Generator().manual_seed(seed)
    logits = math.exp(log_scale) * torch.randn(n, 3, 4, generator=generator)
    table = ExitTable(logits=logits, labels=torch.randint(4, (n,), generator=generator))
    found = fit_temperatures(table)
    assert bool(((found >= 0.05) & (found <= 20)).all())
    best = loss(table, found)
    for other in (0.05, 0.3, 1.0, 3.0, 20.0):
        assert bool((best <= loss(table, [other] * 3) + 1e-9).all())
    for factor in (0.999, 1.001):
        assert bool((best <= loss(table, (found * factor).clamp(0.05, 20)) + 1e-9).all())


def test_ends_and_indifference():
    labels = torch.tensor([0, 1, 1])
    right = torch.nn.functional.one_hot(labels, 3).float() * 4
    wrong = torch.nn.functional.one_hot((labels + 1) % 3, 3).float() * 4
    flat = torch.full((3, 3), 3.3)
    sure = right * 1e6  # the likelihood is 1 at every temperature
    table = ExitTable(logits=torch.stack([right, wrong, flat, sure], dim=1), labels=labels)
    assert fit_temperatures(table).tolist() == pytest.approx([0.05, 20.0, 1.0, 1.0], rel=1e-12)


def test_one_sample_is_enough():
    table = ExitTable(logits=torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), labels=torch.tensor([0]))
    assert fit_temperatures(table).tolist() == pytest.approx([0.05, 20.0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 3.0))
def test_temperatures_scale_with_the_logits_and_ignore_shifts(seed, scale):
    table = synthetic_table(300, seed=seed)
    before = fit_temperatures(table)
    shifts = 10 * torch.randn(300, 4, 1, generator=torch.Generator().manual_seed(seed)).double()
    after = fit_temperatures(ExitTable(logits=scale * table.logits.double() + shifts, labels=table.labels))
    assert torch.allclose(after, scale * before, rtol=1e-6)


def test_chunks_order_and_storage_do_not_matter(monkeypatch, tmp_path):
    table = synthetic_table(500, seed=1)
    whole = fit_temperatures(table)
    shuffled = table.select(torch.randperm(500, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(fit_temperatures(shuffled), whole, rtol=1e-9)
    table.save(tmp_path / "mapped")
    mapped = ExitTable.load(tmp_path / "mapped")
    monkeypatch.setattr(table_module, "_CHUNK_BYTES", 4 * 4 * 5 * 7)
    assert sum(1 for _ in mapped.chunks()) == 72
    assert torch.allclose(fit_temperatures(mapped), whole, rtol=1e-9)
    half = ExitTable(logits=torch.from_numpy(table.logits.numpy().astype(np.float16)), labels=table.labels)
    assert torch.allclose(fit_temperatures(half), whole, rtol=1e-3)


def test_overconfident_exits_are_cooled_down_to_their_accuracy():
    table = synthetic_table(4000, seed=2)
    sharp = ExitTable(logits=4 * table.logits, labels=table.labels)
    temperatures = fit_temperatures(sharp)
    assert bool((temperatures > 1.5).all())
    assert bool((loss(sharp, temperatures) < loss(sharp, [1.0] * 4)).all())
    sureness = torch.softmax(sharp.logits / temperatures.reshape(1, -1, 1), dim=2).amax(dim=2).mean(dim=0)
    assert torch.allclose(sureness, sharp.utility.double().mean(dim=0), atol=0.03)


def test_labels_are_needed():
    table = synthetic_table(50)
    useful = ExitTable(logits=table.logits, utility=table.utility, split="val")
    with pytest.raises(TableError, match="table 'val' lacks labels: fitting temperatures needs 'labels'"):
        fit_temperatures(useful)
