"""The benchmark of an encoder's depth, on an encoder of random weights and texts that are made up."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from eenet import StoppingScheduler, replay


@pytest.fixture
def depth(benchmark) -> ModuleType:
    return benchmark("encoder_depth")


def test_ranks_by_hand(depth: ModuleType) -> None:
    scores = np.array([[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]], [[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]]], dtype=np.float32)
    assert depth.reciprocal_rank(scores, np.array([0, 1])).tolist() == [[1, 1 / 3], [0.5, 1]]  # ties count as worse


def test_features_do_not_depend_on_the_order_of_candidates(depth: ModuleType) -> None:
    scores = np.random.default_rng(0).normal(size=(20, 3, 7)).astype(np.float32)
    temperatures = np.array([0.5, 1.0, 2.0])
    found = depth.features(scores, temperatures)
    other = depth.features(scores[:, :, np.random.default_rng(1).permutation(7)], temperatures)
    assert np.allclose(found, other, atol=1e-6) and not found[:, 0, 3].any()  # nothing is before the first layer
    assert np.array_equal(depth.features(scores[:, :2], temperatures), found[:, :2])  # known when the layer is done


def test_candidates_are_of_one_section(depth: ModuleType) -> None:
    sections = ["a"] * 6 + ["b"] * 8
    candidates, relevant = depth.among(sections, 4, np.random.default_rng(0))
    assert (candidates[np.arange(14), relevant] == np.arange(14)).all()
    assert all(len(set(row)) == 4 and {sections[i] for i in row} == {sections[q]} for q, row in enumerate(candidates))


def test_running_stops_where_replay_says(depth: ModuleType) -> None:
    transformers = pytest.importorskip("transformers")
    from eenet.experiments.zoo import bert_classifier

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32
    )
    model = bert_classifier(transformers.BertModel(config, add_pooling_layer=False), 2, exits=(2, 4))

    def cut(texts: list[str]) -> torch.Tensor:
        rows = [torch.tensor([int(word) for word in text.split()]) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(1, 60, size=rng.integers(4, 9)))) for _ in range(60)]
    titles = [" ".join(text.split()[:2]) for text in texts]  # the first words of a text
    encoder, sections = depth.Encoder(model, cut), ["a"] * 60
    part = depth.Articles(titles, texts, sections, *depth.among(sections, 5, rng))
    vectors = encoder.vectors(titles, batch=16), encoder.vectors(texts, batch=16)
    heads = depth.trained_heads(*vectors, seed=0)
    scores = depth.scored(heads, *vectors, part)
    temperatures = depth.calibrated(scores, part.relevant)
    before, after = (depth.likelihoods(scores, part.relevant, t) for t in (np.ones(3), temperatures))
    assert (after <= before + 1e-9).all()
    table = depth.table_of(scores, part.relevant, temperatures)
    policy = StoppingScheduler().fit(table, budget=4.0)
    ranker, left = depth.Ranker(encoder, heads, temperatures), replay(policy, table).exit_index
    for i in range(0, 60, 6):
        k, found = ranker.answer(i, titles[i], [texts[row] for row in part.candidates[i]], policy)
        assert k == left[i] and found == scores[i, k].argmax()
    assert depth.judged(policy, table)["cost"] <= 4.0 + 0.4  # the coin of a mixed policy may fall otherwise
    assert depth.judged(depth.one_threshold(table, 4.0), table)["cost"] <= 4.0


def test_the_best_mix_of_fixed_depths_is_beaten_or_not(depth: ModuleType) -> None:
    scores = np.zeros((40, 3, 2), dtype=np.float32)
    scores[:20, 1, 0], scores[20:, 1, 0] = 1, -1  # layer 4: half of the queries right; layers 2 and 6: see below
    scores[:, 0, 0], scores[:, 2, 0] = np.where(np.arange(40) < 20, 2, -1), 2  # layer 2 is as good, and knows it
    table = depth.table_of(scores, np.zeros(40, dtype=np.int64), np.ones(3))
    found = depth.judged(depth.ScorePolicy(depth.ColumnScorer(0, 4), np.array([0.8, 2.0, -np.inf])), table)
    assert found["cost"] == 4.0 and found["utility"] == 1.0 and found["shares"] == [0.5, 0, 0.5]
    assert found["gain"] == pytest.approx(1 - (0.75 + 1) / 2)  # beside depths 2 and 6 mixed, not beside depth 4


def test_fixed_depths_gain_nothing_over_themselves(depth: ModuleType) -> None:
    scores = np.random.default_rng(0).normal(size=(60, 3, 4)).astype(np.float32)
    table = depth.table_of(scores, np.zeros(60, dtype=np.int64), np.ones(3))
    never = depth.ScorePolicy(depth.ColumnScorer(0, 4), np.array([2.0, 2.0, -np.inf]))
    found = depth.judged(never, table)
    assert found["cost"] == 6.0 and found["gain"] == 0.0 and found["shares"] == [0, 0, 1]
