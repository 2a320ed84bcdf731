"""An engine that repeats recorded outputs, and policies of every kind for them. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eenet.policies import (
    ConfidenceScorer,
    EENetScorer,
    Ensemble,
    MatrixCombination,
    MixedPolicy,
    PceeScorer,
    Policy,
    ScorePolicy,
    StoppingScorer,
    TransformedPolicy,
    VoteScorer,
)
from eenet.running.engines.base import Engine
from eenet.tables.arrays import as_array, log_softmax


class ReplayEngine(Engine):
    """Its inputs are row numbers ``[sample, 1]``, and its exits repeat what was recorded for them.

    Args:
        outputs: ``[sample, exit, column]``.
        answers: ``[sample, exit, ...]``: what exits answer, where they say features.
    """

    name = "replay"

    def __init__(self, outputs: np.ndarray, answers: Any = None) -> None:
        self.outputs, self.answers = outputs, answers
        self.num_exits = outputs.shape[1]
        self.asked: list[list[int]] = [[] for _ in range(self.num_exits)]

    def start(self, inputs: np.ndarray) -> np.ndarray:
        return inputs

    def stage(self, index: int, state: np.ndarray) -> np.ndarray:
        return state

    def head(self, index: int, state: np.ndarray) -> tuple[np.ndarray, Any]:
        self.asked[index].append(len(state))
        rows = state[:, 0]
        return self.outputs[rows, index], None if self.answers is None else self.answers[rows, index]

    def select(self, state: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return state[rows]

    def join(self, states: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(states)

    def full(self, inputs: np.ndarray) -> np.ndarray:
        return self.outputs[inputs[:, 0], -1]


def rows(count: int) -> np.ndarray:
    """The inputs of the first samples."""
    return np.arange(count)[:, None]


def batches(count: int, size: int) -> list[np.ndarray]:
    """The inputs of the first samples, in batches."""
    return [rows(count)[first : first + size] for first in range(0, count, size)]


class MeanOfExits(Policy):
    """A policy of a user's own: scores by the top log-probability and answers with the mean of all exits seen."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds, self.num_exits = list(thresholds), len(thresholds)

    def leaves(self, seen: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
        return seen[:, -1].max(axis=1) >= self.thresholds[seen.shape[1] - 1]

    def answers(self, seen: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
        return log_softmax(np.add.reduce(seen, axis=1) / np.float32(seen.shape[1]))


def quantile_policy(logits: Any, confidence: str | Any, share: float = 0.3) -> ScorePolicy:
    """A policy that lets about ``share`` of all samples leave at each exit by their score."""
    scorer = ConfidenceScorer(confidence) if isinstance(confidence, str) else confidence
    seen = log_softmax(as_array(logits))
    scores = [scorer(seen[:, : k + 1]) for k in range(seen.shape[1] - 1)]
    return ScorePolicy(scorer, np.array([*(np.quantile(score, 1 - share) for score in scores), -np.inf]))


def policies(logits: Any, seed: int = 0) -> dict[str, Policy]:
    """Policies of every kind, fitted to these logits so that samples leave everywhere."""
    rng = np.random.default_rng(seed)
    _, exits, classes = logits.shape
    a, b = quantile_policy(logits, "max_prob", 0.2), quantile_policy(logits, "max_prob", 0.6)
    vote = quantile_policy(logits, "vote_share", 0.5)
    own = MeanOfExits([-0.5] * (exits - 1) + [-np.inf])
    weight = rng.standard_normal((exits - 1, 2 * classes + 2))
    stopping = quantile_policy(logits, StoppingScorer(weight=weight, bias=weight[:, 0], num_columns=classes), 0.4)
    eenet = EENetScorer(weight=rng.random((exits, classes + exits + 2)) - 0.3, num_columns=classes)
    edges = np.sort(rng.standard_normal((exits - 1, 4)), axis=1)
    edges[:, 0] = -np.inf
    pcee = PceeScorer(edges=edges, means=np.round(rng.random((exits - 1, 4)), 1), confidence="max_prob")
    ensemble = Ensemble(weight=rng.random((exits, exits)), bias=rng.standard_normal((exits, classes)))
    behind = TransformedPolicy(ensemble, quantile_policy(logits, "max_prob", 0.4))
    inside = TransformedPolicy(ensemble, MixedPolicy(stopping, vote, 0.4, seed=seed))
    matrices = MatrixCombination(
        weight=ensemble.weight, bias=ensemble.bias, matrix=rng.standard_normal((exits, exits, classes, classes)) / 8
    )
    return {
        "max_prob": a,
        "certainty": quantile_policy(logits, "certainty"),
        "margin": quantile_policy(logits, "margin"),
        "streak": ScorePolicy(ConfidenceScorer("streak"), np.array([2.0] * (exits - 1) + [-np.inf])),
        "vote": quantile_policy(logits, VoteScorer(), 0.3),
        "pcee": quantile_policy(logits, pcee, 0.3),
        "stopping": stopping,
        "eenet": quantile_policy(logits, eenet, 0.3),
        "mixed on one scorer": MixedPolicy(a, b, 0.4, seed=seed + 3),
        "mixed on two scorers": MixedPolicy(a, vote, 0.5, seed=seed + 1),
        "mixed twice": MixedPolicy(MixedPolicy(a, vote, 0.5, seed=seed + 1), b, 0.5, seed=seed + 2),
        "of one's own": own,
        "mixed with one's own": MixedPolicy(own, b, 0.5),
        "with an ensemble": behind,
        "with matrices": TransformedPolicy(matrices, quantile_policy(logits, "max_prob", 0.4)),
        "mixed inside matrices": TransformedPolicy(matrices, MixedPolicy(stopping, vote, 0.4, seed=seed)),
        "mixed, with an ensemble": MixedPolicy(behind, a, 0.6, seed=seed),
        "mixed inside an ensemble": inside,
        "mixed with mixed inside": MixedPolicy(
            inside, MixedPolicy(behind, eenet_policy(logits, eenet), 0.3), 0.5, seed=5
        ),
        "nobody leaves early": ScorePolicy(a.scorer, np.array([np.inf] * (exits - 1) + [-np.inf])),
        "all leave at once": ScorePolicy(a.scorer, np.full(exits, -np.inf)),
    }


def eenet_policy(logits: Any, scorer: EENetScorer) -> ScorePolicy:
    """A policy on EENet's score that keeps most samples."""
    return quantile_policy(logits, scorer, 0.1)


POLICIES = tuple(policies(np.random.default_rng(0).standard_normal((6, 3, 3)).astype(np.float32)))
