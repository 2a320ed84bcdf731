"""Weights by the expected exit: mean 1, easy samples early, by hand, on any logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eenet.training import expected_exit_weights

TARGETS = torch.zeros(4, dtype=torch.int64)


def with_confidence(*tops: float) -> torch.Tensor:
    """Logits of two classes whose larger probability is as given."""
    top = torch.tensor(tops)
    return torch.stack((top.log(), (1 - top).log()), dim=1)


def test_by_hand_with_gates_as_sharp_as_a_threshold() -> None:
    sure = with_confidence(0.6, 0.9, 0.7, 0.8)  # the surer half leaves at the first of two exits
    weights = expected_exit_weights([sure, sure], TARGETS, share=1.0, softness=1e-6)
    assert weights[:, 0].tolist() == pytest.approx([0, 2, 0, 2])
    assert weights[:, 1].tolist() == pytest.approx([2, 0, 2, 0])


@given(st.integers(2, 5), st.integers(2, 40), st.floats(0, 1), st.integers(0, 99))
def test_mean_one_at_every_exit_whatever_the_logits(exits: int, samples: int, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    logits = [3 * torch.randn(samples, 4) for _ in range(exits)]
    weights = expected_exit_weights(logits, torch.zeros(samples, dtype=torch.int64), share=share)
    torch.testing.assert_close(weights.mean(dim=0), torch.ones(exits), rtol=1e-4, atol=1e-4)
    assert bool((weights >= 0).all())


def test_sure_samples_weigh_more_at_the_first_exit_and_less_at_the_last() -> None:
    logits = with_confidence(0.55, 0.6, 0.7, 0.8, 0.9, 0.99)
    weights = expected_exit_weights([logits] * 3, torch.zeros(6, dtype=torch.int64))
    assert bool((weights[:, 0].diff() > 0).all()) and bool((weights[:, 2].diff() < 0).all())


def test_share_zero_is_uniform() -> None:
    logits = [torch.randn(4, 3) for _ in range(3)]
    assert torch.equal(expected_exit_weights(logits, TARGETS, share=0.0), torch.ones(4, 3))


def test_dense_logits_count_by_their_mean_confidence() -> None:
    flat = [torch.randn(4, 3) for _ in range(2)]
    dense = [z[:, :, None, None].expand(-1, -1, 2, 5) for z in flat]
    torch.testing.assert_close(expected_exit_weights(dense, TARGETS), expected_exit_weights(flat, TARGETS))
