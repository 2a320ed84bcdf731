"""Scorers whose weights are learnt: of optimal stopping, and of EENet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
from jaxtyping import Float, Float32, Float64

from eenet.errors import InputError
from eenet.policies.confidence import (
    DOUBLE,
    SINGLE,
    log_odds,
    probabilities,
    squash,
    unrounded_certainty,
    vote_shares,
)
from eenet.policies.scorers import Scorer, Scores, Seen, require_finite
from eenet.tables.checks import number

Kind: TypeAlias = Literal["curved", "summed", "features"]
Reads: TypeAlias = Literal["classes", "features"]


@final
@dataclass(frozen=True)
class StoppingState:
    """What the stopping rule knows of a sample at the newest exit.

    * ``"curved"``: the probabilities, their squares one by one (so that every class has a curve of its own), the
      largest probability, and the sum of ``p log p``;
    * ``"summed"``: the same with the sum of the squares in place of the squares;
    * ``"features"``: the features and their squares.

    Attributes:
        kind: One of these.
    """

    kind: Kind = "curved"

    def __post_init__(self) -> None:
        if self.kind not in ("curved", "summed", "features"):
            raise InputError(f"kind {self.kind!r} of the stopping state is unknown. Fit the policy again.")

    def width(self, num_columns: int) -> int:
        """Return the number of columns for a number of classes or features."""
        return {"curved": 2 * num_columns + 2, "summed": num_columns + 3, "features": 2 * num_columns}[self.kind]

    def __call__(self, newest: Float32[np.ndarray, "sample column"]) -> Float64[np.ndarray, "sample width"]:
        """Return the state that belongs to one exit's log-probabilities or features."""
        count, columns = newest.shape
        state = np.empty((count, self.width(columns)))
        if self.kind == "features":
            state[:, :columns] = newest
            np.square(state[:, :columns], out=state[:, columns:])
            return state
        p, log_p = probabilities(newest)
        state[:, :columns] = p
        if self.kind == "curved":
            np.square(p, out=state[:, columns:-2])
        else:
            state[:, columns] = np.add.reduce(p * p, axis=1)
        state[:, -2] = np.maximum.reduce(p, axis=1)
        state[:, -1] = np.add.reduce(p * log_p, axis=1)
        return state


@final
class StoppingScorer(Scorer):
    """Expected value of leaving minus expected value of going on: a linear function of the `StoppingState`.

    Args:
        weight: ``[early exit, width]``.
        bias: ``[early exit]``.
        num_columns: Classes or features that the state is made of.
        kind: Of the state.

    Raises:
        InputError: Weights and biases do not fit the columns, or are no finite numbers.
    """

    newest_only = True
    parameters = ("num_columns", "kind", "weight", "bias")

    def __init__(
        self,
        *,
        weight: Float[np.ndarray, "early width"],
        bias: Float[np.ndarray, " early"],
        num_columns: int,
        kind: Kind = "curved",
    ) -> None:
        self.state, self.kind = StoppingState(kind), kind
        num_columns = int(number(num_columns, "num_columns", 1, whole=True))
        if weight.ndim != 2 or weight.shape != (*bias.shape, self.state.width(num_columns)):
            raise InputError(
                f"weight of shape {weight.shape} and bias of shape {bias.shape} do not fit {num_columns} columns. Fit "
                "the policy again."
            )
        require_finite(weight, bias)
        self.num_exits, self.num_columns = len(bias) + 1, num_columns
        self.weight, self.bias = np.ascontiguousarray(weight, DOUBLE), bias.astype(DOUBLE)

    def __call__(self, seen: Seen) -> Scores:
        return self._read(self.state(seen[:, -1]), seen.shape[1] - 1)

    def shared(self, seen: Seen, known: dict[Any, Any]) -> np.ndarray:
        if self.state not in known:
            known[self.state] = self.state(seen[:, -1])
        return self._read(known[self.state], seen.shape[1] - 1)

    def _read(self, state: np.ndarray, k: int) -> np.ndarray:
        return np.asarray(np.einsum("ij,j->i", state, self.weight[k]) + self.bias[k], dtype=SINGLE)


def exit_features(seen: Float32[np.ndarray, "sample seen class"]) -> Float64[np.ndarray, "sample seen feature"]:
    """Return EENet's features of every exit seen: the probabilities and three confidences.

    The confidences are the largest probability, one minus the normalised entropy, and the share of the exits up to
    here that voted for the most popular class; at exit 0 that is always 1, and fitting gives it no weight.

    Source:
        EENet (WACV 2024), section 3.2.
    """
    p, log_p = probabilities(seen)
    classes = p.shape[2]
    features = np.empty((*p.shape[:2], classes + 3))
    features[..., :classes] = p
    features[..., classes] = np.maximum.reduce(p, axis=2)
    features[..., classes + 1] = unrounded_certainty(p, log_p)
    features[..., classes + 2] = vote_shares(seen)
    return features


@final
class EENetScorer(Scorer):
    """EENet's linear exit score ``q_k = clip(w_k . [p, a, b], 0, 1)``, in training and at inference alike.

    ``b`` are the earlier scores. Where ``q`` is clipped it ties; ties are broken by the largest probability, outside
    [0, 1], so that the order of untied samples stays as it is. Where exits say features, ``x`` stands for ``[p, a]``
    with a constant 1 beside it, and the unclipped score breaks ties.

    Args:
        weight: ``[exit, own + K - 1]``, the exit's own features first (`exit_features`), then earlier scores.
        num_columns: Number of classes or features.
        kind: ``"classes"`` or ``"features"``.

    Raises:
        InputError: The weights do not fit, or are no finite numbers.
    """

    parameters = ("num_columns", "kind", "weight")

    def __init__(self, *, weight: Float[np.ndarray, "exit input"], num_columns: int, kind: Reads = "classes") -> None:
        num_columns = int(number(num_columns, "num_columns", 1, whole=True))
        self._own = num_columns + (3 if kind == "classes" else 1)
        if weight.ndim != 2 or kind not in ("classes", "features") or weight.shape[1] != self._own + len(weight) - 1:
            raise InputError(
                f"weight of shape {weight.shape} does not fit {num_columns} columns. Fit the policy again."
            )
        require_finite(weight)
        self.kind: Reads = kind
        self.num_exits, self.num_columns = len(weight), num_columns
        self.weight = weight.astype(DOUBLE)

    def __call__(self, seen: Seen) -> Scores:
        x = exit_features(seen) if self.kind == "classes" else constant_beside(seen)
        own = self._own
        linear = np.add.reduce(x * self.weight[: seen.shape[1], :own], axis=2)
        earlier: list[np.ndarray] = []
        for j in range(seen.shape[1]):
            score = linear[:, j]
            for value, weight in zip(earlier, self.weight[j, own:].tolist(), strict=False):
                score = score + value * weight
            earlier.append(np.minimum(np.maximum(score, 0.0), 1.0))
        clipped = earlier[-1]
        tie = squash(log_odds(seen[:, -1]) if self.kind == "classes" else score)
        return np.where(clipped <= 0, tie - 1, np.where(clipped >= 1, 1 + tie, clipped)).astype(SINGLE)


def constant_beside(features: Float32[np.ndarray, "sample seen column"]) -> Float64[np.ndarray, "sample seen input"]:
    """Return features with a constant 1 as the last column."""
    return np.concatenate([features.astype(DOUBLE), np.ones((*features.shape[:2], 1))], axis=2)
