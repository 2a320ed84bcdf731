"""Scores and transforms: the arithmetic of eenet's scorers in numpy, for batches and, faster, for single samples.

What eenet works out in double is worked out in double here and rounded to float32 at the same places, so that scores
agree but for a rounding that falls on the edge between two float32 numbers. What eenet works out in float32
(`certainty`, `margin`, the features of `EENetScorer`) depends on how an exponential is rounded, and agrees within a few
units of the last place.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet_runtime import confidence as confidences
from eenet_runtime.confidence import DOUBLE, SINGLE, Array, Doubles, Floats, squash
from eenet_runtime.errors import PolicyError

_IMPOSSIBLE = -math.inf
_SMALL, _LARGE = 1e-12, 1e12  # between them a sum of exponentials loses nothing

__all__ = ["ConfidenceScorer", "EENetScorer", "Ensemble", "PceeScorer", "Scorer", "StoppingScorer", "VoteScorer"]


class Scorer(ABC):
    """Turns what was seen of samples into scores; larger leaves first.

    Attributes:
        newest_only: Whether the score depends on nothing but the newest exit and its number. A batch may then hold
            the newest exit only.
        any_output: Whether -inf and NaN make the score of a single sample NaN as they do in a batch, also behind an
            ensemble. Others are not asked for the score of such a sample.
        num_exits: Number of exits it was fitted for, None for any.
        num_classes: Number of classes it was fitted for, None for any.
    """

    newest_only: bool = False
    any_output: bool = False
    num_exits: int | None = None
    num_classes: int | None = None

    @abstractmethod
    def many(self, seen: Floats, k: int) -> Floats:
        """Return the scores ``[sample]`` at exit ``k`` of log-probabilities ``[sample, seen, class]``."""

    @abstractmethod
    def one(self, newest: Floats, seen: Floats, k: int) -> float:
        """Return the score of a single sample, before it is rounded to float32.

        Args:
            newest: Log-probabilities ``[class]`` of exit ``k``; finite, or `any_output`.
            seen: Those of all exits seen, ``[seen, class]``; not looked at if `newest_only`.
            k: Number of the exit.
        """


class ConfidenceScorer(Scorer):
    """A confidence by name.

    Args:
        confidence: Name of a function of `eenet.core.confidence`.
    """

    def __init__(self, confidence: str) -> None:
        if confidence not in confidences.NAMES:
            raise PolicyError(
                f"confidence {confidence!r} is unknown: there are {', '.join(confidences.NAMES)}. Update eenet-runtime "
                f"to the version of eenet that fitted the policy."
            )
        self.newest_only = confidence not in ("vote_share", "streak")
        self._many = getattr(confidences, confidence)
        self._one = getattr(confidences, f"{confidence}_one")

    def many(self, seen: Floats, k: int) -> Floats:
        """Return the confidence of the newest exit, or of the history for those that look at all exits."""
        scores: Floats = self._many(seen[:, -1] if self.newest_only else seen)
        return scores

    def one(self, newest: Floats, seen: Floats, k: int) -> float:
        """Return the same for a single sample."""
        return float(self._one(newest if self.newest_only else seen))


class VoteScorer(Scorer):
    """Share of the exits seen that agree, ties broken by the newest exit's largest probability."""

    def many(self, seen: Floats, k: int) -> Floats:
        """Return the vote share plus a tie-breaker smaller than the least difference between two shares."""
        exits, tie = np.float32(seen.shape[1]), squash(confidences.max_prob(seen[:, -1])) / np.float32(2)
        scores: Floats = confidences.vote_share(seen) * exits + tie
        return scores

    def one(self, newest: Floats, seen: Floats, k: int) -> float:
        """Return the same for a single sample."""
        tie = squash(confidences.max_prob_one(newest)) / np.float32(2)
        return float(confidences.vote_share_one(seen) * np.float32(len(seen)) + tie)


class PceeScorer(Scorer):
    """The utility that samples of similar confidence had at the newest exit, plus a tie-breaker.

    Args:
        num_exits: Number of exits.
        bins: Bins of each early exit's reliability diagram.
        confidence: As of `ConfidenceScorer`.
        edges: Lower edges ``[early exit, bin]``, increasing.
        means: Mean utilities ``[early exit, bin]``.
        widths: Of the tie-breaker ``[early exit, bin]``.
    """

    def __init__(
        self, num_exits: int, bins: int, confidence: str, *, edges: Array, means: Array, widths: Array
    ) -> None:
        for name, value in (("edges", edges), ("means", means), ("widths", widths)):
            require_shape(f"{name} of PceeScorer", value, (num_exits - 1, bins))
        self.num_exits = num_exits
        self.confidence = ConfidenceScorer(confidence)
        self.newest_only = self.confidence.newest_only
        self._edges, self._means, self._widths = edges.astype(SINGLE), doubles(means), doubles(widths)
        self._rows = list(zip(self._edges.tolist(), self._means.tolist(), self._widths.tolist(), strict=True))

    def many(self, seen: Floats, k: int) -> Floats:
        """Return the mean utility of the sample's bin, plus the tie-breaker."""
        confidence = self.confidence.many(seen, k)
        place = (confidence[:, None] >= self._edges[k]).sum(axis=1) - 1
        tie = squash(confidence.astype(DOUBLE)) * self._widths[k][place]
        scores: Floats = (self._means[k][place] + tie).astype(SINGLE)
        return scores

    def one(self, newest: Floats, seen: Floats, k: int) -> float:
        """Return the same for a single sample."""
        edges, means, widths = self._rows[k]
        confidence = self.confidence.one(newest, seen, k)
        place = bisect_right(edges, confidence) - 1
        tie = (0.5 + 0.5 * confidence / (1 + abs(confidence))) * widths[place]
        score: float = means[place] + tie
        return score


class StoppingScorer(Scorer):
    """What leaving is expected to be worth, minus what going on is: linear in what sums up the newest exit.

    The columns are the probabilities, their squares (one by one, or only their sum), the largest probability, and the
    sum of ``p log p``.

    Args:
        num_exits: Number of exits.
        num_columns: Of the weights.
        curved: Whether the squares stand one by one.
        with_features: Must be false: features are not served here.
        weight: ``[early exit, column]``.
        bias: ``[early exit]``.
    """

    newest_only = True
    any_output = True  # p log p is NaN

    def __init__(
        self,
        num_exits: int,
        num_columns: int,
        curved: bool = True,
        with_features: bool = False,
        *,
        weight: Array,
        bias: Array,
    ) -> None:
        if with_features:
            raise PolicyError(
                "policy reads features: eenet-runtime serves policies that look at the outputs only. Fit with "
                "use_features=False."
            )
        require_shape("weight of StoppingScorer", weight, (num_exits - 1, num_columns))
        require_shape("bias of StoppingScorer", bias, (num_exits - 1,))
        classes = (num_columns - 2) // 2 if curved else num_columns - 3
        if classes < 1 or num_columns != (2 * classes + 2 if curved else classes + 3):
            raise PolicyError(
                f"num_columns {num_columns} of StoppingScorer does not fit: no number of classes has so many. Fit the "
                f"policy again."
            )
        self.num_exits, self.num_classes = num_exits, classes
        self._rows: list[tuple[Doubles, Doubles, float, float, float]] = []
        for row, constant in zip(doubles(weight), doubles(bias), strict=True):
            squares = row[classes:-2] if curved else np.full(classes, row[classes])
            self._rows.append((row[:classes].copy(), squares.copy(), float(row[-2]), float(row[-1]), float(constant)))

    def many(self, seen: Floats, k: int) -> Floats:
        """Return what the weights make of the newest exit."""
        linear, squares, largest, entropy, bias = self._rows[k]
        log_p = seen[:, -1].astype(DOUBLE)
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            products = (p * log_p).sum(axis=1)
            score = p @ linear + (p * p) @ squares + p.max(axis=1) * largest + products * entropy + bias
        rounded: Floats = score.astype(SINGLE)
        return rounded

    def one(self, newest: Floats, seen: Floats, k: int) -> float:
        """Return the same for a single sample."""
        linear, squares, largest, entropy, bias = self._rows[k]
        log_p = newest.astype(DOUBLE)
        if not log_p.item(log_p.argmin()) > _IMPOSSIBLE:
            return math.nan
        p = np.exp(log_p)
        curve = squares * p
        curve += linear
        top = p.item(p.argmax())
        score: float = float(p.dot(curve)) + top * largest + float(p.dot(log_p)) * entropy + bias
        return score


class EENetScorer(Scorer):
    """EENet's linear exit score of every exit seen; ties where it is clipped are broken by the largest probability.

    Args:
        num_exits: Number of exits.
        num_classes: Number of classes.
        weight: ``[exit, C + 3 + K - 1]``.
    """

    def __init__(self, num_exits: int, num_classes: int, *, weight: Array) -> None:
        require_shape("weight of EENetScorer", weight, (num_exits, num_classes + 3 + num_exits - 1))
        self.num_exits, self.num_classes = num_exits, num_classes
        own = num_classes + 3
        self._own = np.ascontiguousarray(doubles(weight)[:, :own])
        self._earlier = [row[:j].tolist() for j, row in enumerate(doubles(weight)[:, own:])]

    def many(self, seen: Floats, k: int) -> Floats:
        """Return the score at the newest exit seen."""
        linear = (self._features(seen, confidences.shares(seen)) * self._own[: k + 1]).sum(axis=-1)
        earlier: list[Doubles] = []
        for j in range(k + 1):
            score = linear[:, j] + sum(a * w for a, w in zip(earlier, self._earlier[j], strict=True))
            earlier.append(np.clip(score, 0.0, 1.0))
        clipped, tie = earlier[-1], squash(confidences.max_prob(seen[:, -1]))
        one = np.float32(1)
        broken = np.where(clipped <= 0, tie - one, np.where(clipped >= 1, one + tie, clipped))
        return broken.astype(SINGLE)

    def one(self, newest: Floats, seen: Floats, k: int) -> float:
        """Return the same for a single sample."""
        linear = np.einsum("ij,ij->i", self._features(seen, confidences.shares_one(seen)), self._own[: k + 1]).tolist()
        earlier: list[float] = []
        for own, weights in zip(linear, self._earlier, strict=False):
            score = own + sum(a * w for a, w in zip(earlier, weights, strict=True))
            earlier.append(min(max(score, 0.0), 1.0))
        clipped = earlier[-1]
        if 0 < clipped < 1 or math.isnan(clipped):
            return clipped
        tie = squash(confidences.max_prob_one(newest))
        return float(tie - np.float32(1) if clipped <= 0 else np.float32(1) + tie)

    def _features(self, seen: Floats, shares: Floats) -> Doubles:
        """Return probabilities, the largest, certainty and vote share of every exit seen: float32 numbers in double."""
        p = confidences.exp(seen)
        own = p.shape[-1]
        features = np.empty((*p.shape[:-1], own + 3))
        features[..., :own] = p
        features[..., own] = p.max(axis=-1)
        features[..., own + 1] = confidences.certainty(seen, p)
        features[..., own + 2] = shares
        return features


class Ensemble:
    """Log-probabilities of the exits seen so far, weighted per exit, plus a bias per class, normalised.

    Args:
        num_exits: Number of exits.
        num_classes: Number of classes.
        weight: ``[exit, exit]``: row ``k`` weighs exits ``0..k``.
        bias: ``[exit, class]``.
    """

    def __init__(self, num_exits: int, num_classes: int, *, weight: Array, bias: Array) -> None:
        require_shape("weight of Ensemble", weight, (num_exits, num_exits))
        require_shape("bias of Ensemble", bias, (num_exits, num_classes))
        self.num_exits, self.num_classes = num_exits, num_classes
        self._ones = np.ones(num_classes)  # a product with it is a sum, in half the time
        rows = [row[: k + 1].copy() for k, row in enumerate(doubles(weight))]
        self._rows = list(zip(rows, [row.copy() for row in doubles(bias)], strict=True))

    def many(self, seen: Floats) -> Floats:
        """Return the log-probabilities ``[sample, class]`` of the exits seen so far together."""
        weight, bias = self._rows[seen.shape[1] - 1]
        with np.errstate(invalid="ignore"):
            together = np.matmul(weight, seen.astype(DOUBLE)) + bias
            together -= together.max(axis=1, keepdims=True)
            together -= np.log(np.exp(together).sum(axis=1, keepdims=True))
        log_probs: Floats = together.astype(SINGLE)
        return log_probs

    def one(self, seen: Floats) -> Floats:
        """Return the same for a single sample ``[seen, class] -> [class]``."""
        weight, bias = self._rows[len(seen) - 1]
        together = weight.dot(seen.astype(DOUBLE))
        together += bias
        total = float(np.exp(together).dot(self._ones))
        if not _SMALL < total < _LARGE:  # rare: then as for batches, where the largest is taken off first
            together = self.many(seen[None])[0]
        else:
            together -= math.log(total)
        log_probs: Floats = together.astype(SINGLE)
        return log_probs


def require_shape(name: str, value: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape than the settings say."""
    if value.shape != shape:
        raise PolicyError(
            f"{name} of shape {value.shape} does not fit: its settings ask for {shape}. The policy is damaged; fit it "
            f"again."
        )


def doubles(value: NDArray[Any]) -> Doubles:
    """Return a tensor in double, contiguous."""
    return np.ascontiguousarray(value, dtype=np.float64)
