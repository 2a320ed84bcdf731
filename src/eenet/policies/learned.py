"""Scorers whose weights are learnt: of optimal stopping, and of EENet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
from jaxtyping import Float, Float32, Float64

from eenet.errors import InputError
from eenet.policies.confidence import DOUBLE, LEAST_LOG, SINGLE, log_odds, squash, vote_shares
from eenet.policies.scorers import Scorer, Scores, Seen

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
        """Refuse a kind that is none."""
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
        log_p = np.maximum(newest.astype(DOUBLE, order="C"), LEAST_LOG)
        p = np.exp(log_p)
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
    """What leaving is expected to be worth, minus what going on is: a linear function of the `StoppingState`.

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
        if weight.ndim != 2 or weight.shape != (*bias.shape, self.state.width(num_columns)):
            raise InputError(
                f"weight of shape {weight.shape} and bias of shape {bias.shape} do not fit {num_columns} columns. Fit "
                "the policy again."
            )
        _require_finite(weight, bias)
        self.num_exits, self.num_columns = len(bias) + 1, num_columns
        self.weight, self.bias = np.ascontiguousarray(weight, DOUBLE), bias.astype(DOUBLE)

    def __call__(self, seen: Seen) -> Scores:
        """Return the score at the newest exit seen."""
        return self._read(self.state(seen[:, -1]), seen.shape[1] - 1)

    def shared(self, seen: Seen, known: dict[Any, Any]) -> np.ndarray:
        """Return the same; the state is worked out once for all scorers that read it."""
        if self.state not in known:
            known[self.state] = self.state(seen[:, -1])
        return self._read(known[self.state], seen.shape[1] - 1)

    def _read(self, state: np.ndarray, k: int) -> np.ndarray:
        return (np.einsum("ij,j->i", state, self.weight[k]) + self.bias[k]).astype(SINGLE)

    def widened(self, num_exits: int) -> StoppingScorer:
        """Return a scorer with weights 0 for more exits."""
        more = num_exits - len(self.bias) - 1
        weight, bias = np.pad(self.weight, ((0, more), (0, 0))), np.pad(self.bias, (0, more))
        return StoppingScorer(weight=weight, bias=bias, **self.settings())


def exit_features(seen: Float32[np.ndarray, "sample seen class"]) -> Float64[np.ndarray, "sample seen feature"]:
    """Return EENet's features of every exit seen: the probabilities and three confidences.

    The confidences are the largest probability, one minus the normalised entropy, and the share of the exits up to
    here that voted for the most popular class.

    Source:
        EENet (arXiv 2301.07099), section on exit scoring.
    """
    log_p = np.maximum(seen.astype(DOUBLE, order="C"), LEAST_LOG)
    p = np.exp(log_p)
    classes = p.shape[2]
    features = np.empty((*p.shape[:2], classes + 3))
    features[..., :classes] = p
    features[..., classes] = np.maximum.reduce(p, axis=2)
    features[..., classes + 1] = 1.0 + np.add.reduce(p * log_p, axis=2) / math.log(classes)
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
        self._own = num_columns + (3 if kind == "classes" else 1)
        if weight.ndim != 2 or kind not in ("classes", "features") or weight.shape[1] != self._own + len(weight) - 1:
            raise InputError(
                f"weight of shape {weight.shape} does not fit {num_columns} columns. Fit the policy again."
            )
        _require_finite(weight)
        self.kind: Reads = kind
        self.num_exits, self.num_columns = len(weight), num_columns
        self.weight = weight.astype(DOUBLE)

    def __call__(self, seen: Seen) -> Scores:
        """Return the score at the newest exit seen."""
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

    def widened(self, num_exits: int) -> EENetScorer:
        """Return a scorer with weights 0 for more exits."""
        more = num_exits - len(self.weight)
        return EENetScorer(weight=np.pad(self.weight, ((0, more), (0, more))), **self.settings())


def constant_beside(features: Float32[np.ndarray, "sample seen column"]) -> Float64[np.ndarray, "sample seen input"]:
    """Return features with a constant 1 as the last column."""
    return np.concatenate([features.astype(DOUBLE), np.ones((*features.shape[:2], 1))], axis=2)


def _require_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise InputError("weights hold what is no finite number: no score can be made of them. Fit the policy again.")
