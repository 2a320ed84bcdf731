"""What a map says as a whole, the class of every pixel, and counts of right and wrong ones: by hand and by property."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from eenet.errors import DataError
from eenet.models.inputs import IGNORED
from eenet.policies import confidence
from eenet.running import maps
from eenet.running.maps import confusions, label_map, map_columns, summary


def test_a_summary_by_hand():
    # one image of two pixels: chances (0.7, 0.2, 0.1) and (0.1, 0.3, 0.6)
    probs = torch.tensor([[0.7, 0.1], [0.2, 0.3], [0.1, 0.6]])
    found = summary(probs.log().view(1, 3, 1, 2))
    p = np.array([0.65, 0.25, 0.1])
    certainty = 1 + (p * np.log(p)).sum() / math.log(3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[math.log(0.65 / 0.35), 0.4, certainty, *p]], atol=1e-6)
    assert map_columns(3) == ("max_prob", "margin", "certainty", "p0", "p1", "p2")


def test_a_pixel_that_is_sure_beyond_float32_leaves_finite_numbers():
    found = summary(torch.tensor([500.0, 0.0, -500.0]).view(1, 3, 1, 1))
    assert np.isfinite(found).all() and found[0, 0] > 500
    assert found[0, 1:].tolist() == [1, 1, 1, 0, 0]


def random_maps(seed, shape=(3, 4, 5, 6)):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 7), samples=st.integers(1, 4))
def test_properties_of_summaries(seed, classes, samples):
    logits = random_maps(seed, (samples, classes, 4, 5))
    found = summary(logits)
    p = found[:, 3:]
    chances = torch.softmax(logits, dim=1)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    assert (np.diff(p, axis=1) <= 0).all()
    np.testing.assert_allclose(p[:, 0], chances.amax(dim=1).mean(dim=(1, 2)), atol=1e-6)
    slow = torch.stack([chances[n].flatten(1).sort(dim=0, descending=True).values.mean(dim=1) for n in range(samples)])
    np.testing.assert_allclose(p, slow, atol=1e-5)
    for k, name in enumerate(("max_prob", "margin", "certainty")):  # as the confidences of these probabilities
        wanted = getattr(confidence, name)(np.log(np.maximum(p, 1e-30)))
        np.testing.assert_allclose(found[:, k], wanted, rtol=1e-4, atol=1e-5)
    pixels = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    shuffled = logits.flatten(2)[:, :, pixels].view(logits.shape)
    np.testing.assert_allclose(summary(shuffled), found, rtol=1e-4, atol=1e-5)
    named_otherwise = logits[:, torch.randperm(classes, generator=torch.Generator().manual_seed(seed))]
    np.testing.assert_allclose(summary(named_otherwise), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entries", [1, 100, 1 << 22])
def test_batches_and_layouts_do_not_matter_to_the_bit(entries, monkeypatch):
    logits = random_maps(0, (7, 5, 9, 11))
    whole = summary(logits)
    monkeypatch.setattr(maps, "_ENTRIES", entries)
    assert np.array_equal(summary(logits), whole)
    assert np.array_equal(np.concatenate([summary(one) for one in logits.split(1)]), whole)
    assert np.array_equal(summary(logits.contiguous(memory_format=torch.channels_last)), whole)
    assert torch.equal(label_map(logits, (18, 22)), torch.cat([label_map(one, (18, 22)) for one in logits.split(2)]))


def test_the_other_way_of_sorting_agrees(monkeypatch):
    logits = random_maps(1)
    found = summary(logits)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False))
    assert np.array_equal(summary(logits), found)


def test_label_maps_are_the_largest_after_upsampling():
    logits = random_maps(2, (2, 3, 4, 6))
    wanted = F.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=False).argmax(dim=1)
    assert torch.equal(label_map(logits, (16, 24)), wanted)
    assert torch.equal(label_map(logits, (4, 6)), logits.argmax(dim=1))
    assert label_map(logits.bfloat16(), (16, 24)).dtype == torch.int64


def test_counts_by_hand():
    targets = np.array([[[0, 0, 1]], [[1, IGNORED, 1]]])
    answers = torch.tensor([[[0, 1, 1]], [[0, 0, 1]]])
    assert confusions(answers, targets, 2).tolist() == [[[1, 1], [0, 1]], [[0, 0], [1, 1]]]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_counts_agree_with_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    targets, answers = (torch.randint(4, (3, 5, 6), generator=generator) for _ in range(2))
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = IGNORED
    slow = torch.zeros(3, 4, 4, dtype=torch.int64)
    for n in range(3):
        for true, said in zip(targets[n].flatten().tolist(), answers[n].flatten().tolist(), strict=True):
            if true != IGNORED:
                slow[n, true, said] += 1
    assert np.array_equal(confusions(answers, targets.numpy(), 4), slow.numpy())


@pytest.mark.parametrize("wrong", [4, 255, -1])
def test_targets_that_are_no_class_are_refused(wrong):
    targets = np.zeros((2, 3, 3), dtype=np.int64)
    targets[1, 0, 0] = wrong
    with pytest.raises(DataError, match=f"targets hold {wrong} in image 1"):
        confusions(torch.zeros(2, 3, 3, dtype=torch.long), targets, 4)
