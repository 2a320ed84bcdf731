"""Policies: which samples leave at the newest exit seen, and what they are answered with."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet_runtime.confidence import SINGLE, Array, Floats
from eenet_runtime.errors import InputError, PolicyError
from eenet_runtime.scores import Ensemble, Scorer

__all__ = ["MixedPolicy", "Policy", "ScorePolicy", "TransformedPolicy", "coin", "toss"]

_WORD = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_IMPOSSIBLE = -math.inf
_SEED = 2862933555777941757

Flags = NDArray[np.bool_]
Ids = NDArray[np.int64]


class Policy(ABC):
    """A fixed rule that says, exit by exit, which samples leave. At the last exit all do.

    Attributes:
        num_exits: Number of exits.
        num_classes: Number of classes, None for any.
        newest_only: Whether it decides by the newest exit alone.
        any_output: Whether a single sample may hold -inf and NaN too; see `Scorer`.
    """

    num_exits: int
    num_classes: int | None
    newest_only: bool
    any_output: bool

    def leaves(self, seen: ArrayLike, sample_ids: ArrayLike) -> Flags:
        """Return which of the samples leave at the newest exit seen.

        Args:
            seen: float32 log-probabilities ``[sample, seen, class]`` of the exits evaluated so far.
            sample_ids: Whole numbers that stay with the samples; only mixed policies look at them.

        Raises:
            InputError: Outputs or ids do not fit.
        """
        outputs, ids = self._batch(seen, sample_ids)
        if outputs.shape[1] == self.num_exits:
            return np.ones(len(outputs), dtype=np.bool_)
        return self._many(outputs, outputs.shape[1] - 1, ids)

    def answers(self, seen: ArrayLike, sample_ids: ArrayLike) -> Floats:
        """Return the log-probabilities ``[sample, class]`` of samples that leave now.

        Args:
            seen: As of `leaves`.
            sample_ids: As of `leaves`.

        Raises:
            InputError: Outputs or ids do not fit.
        """
        return self._answers(*self._batch(seen, sample_ids))

    def decide(self, seen_one: ArrayLike, sample_id: int) -> bool:
        """Return whether a single sample leaves: `leaves` of one, in a fraction of the time.

        Args:
            seen_one: float32 log-probabilities ``[seen, class]`` of the exits evaluated so far.
            sample_id: As of `leaves`.

        Raises:
            InputError: The outputs do not fit.
        """
        seen = np.asarray(seen_one, SINGLE)
        if seen.shape not in self._fitting:
            self._require(seen, 2)
        k = len(seen) - 1
        if k + 1 == self.num_exits:
            return True
        if not (self.any_output or seen.item(seen.argmin()) > _IMPOSSIBLE):  # rare, and judged as in a batch
            return bool(self._many(seen[None], k, np.array([sample_id], dtype=np.int64))[0])
        return self._one(seen[k], seen, k, sample_id)

    def answer(self, seen_one: ArrayLike, sample_id: int) -> Floats:
        """Return the log-probabilities ``[class]`` of a single sample that leaves now: `answers` of one, sooner.

        Args:
            seen_one: As of `decide`.
            sample_id: As of `leaves`.

        Raises:
            InputError: The outputs do not fit.
        """
        seen = np.asarray(seen_one, SINGLE)
        if seen.shape not in self._fitting:
            self._require(seen, 2)
        return self._answer(seen, sample_id)

    @abstractmethod
    def _many(self, seen: Floats, k: int, ids: Ids) -> Flags:
        """Return which samples leave at exit ``k``, which is not the last."""

    @abstractmethod
    def _one(self, newest: Floats, seen: Floats, k: int, sample_id: int) -> bool:
        """Return whether a single sample leaves at exit ``k``, not the last; outputs are finite or `any_output`.

        Policies that decide by the newest exit alone look at ``newest`` only.
        """

    @abstractmethod
    def _answers(self, seen: Floats, ids: Ids) -> Floats:
        """Return the answers at the newest exit seen."""

    @abstractmethod
    def _answer(self, seen: Floats, sample_id: int) -> Floats:
        """Return the answer of a single sample."""

    @functools.cached_property
    def _fitting(self) -> frozenset[tuple[int, ...]]:
        """Shapes of a single sample that are known to fit."""
        return frozenset((k + 1, self.num_classes) for k in range(self.num_exits) if self.num_classes)

    def _batch(self, seen: ArrayLike, sample_ids: ArrayLike) -> tuple[Floats, Ids]:
        outputs, ids = np.asarray(seen, dtype=np.float32), np.asarray(sample_ids)
        self._require(outputs, 3)
        if ids.shape != outputs.shape[:1] or (ids.size and ids.dtype.kind not in "iu"):
            raise InputError(
                f"sample_ids of shape {ids.shape} and type {ids.dtype} do not fit: the batch holds {len(outputs)} "
                f"samples. Pass one whole number per sample."
            )
        return outputs, ids.astype(np.int64, copy=False)

    def _require(self, seen: Floats, dims: int) -> None:
        """Refuse outputs that do not fit."""
        shape = seen.shape
        if (
            len(shape) != dims
            or not 1 <= shape[-2] <= self.num_exits
            or (shape[-1] != self.num_classes if self.num_classes else shape[-1] < 2)
        ):
            axes = "[seen, class]" if dims == 2 else "[sample, seen, class]"
            raise InputError(
                f"seen of shape {shape} does not fit: the policy has {self.num_exits} exits and "
                f"{self.num_classes or 'at least 2'} classes. Pass {axes} of 1 to {self.num_exits} exits."
            )


class ScorePolicy(Policy):
    """A scorer and a threshold per exit: a sample leaves where its score reaches the threshold.

    Args:
        scorer: Gives the scores.
        thresholds: One per exit, the last ``-inf``.

    Raises:
        PolicyError: The thresholds are no rule, or are more than the scorer's exits.
    """

    def __init__(self, scorer: Scorer, thresholds: Array) -> None:
        if thresholds.ndim != 1 or len(thresholds) < 2 or np.isnan(thresholds).any() or thresholds[-1] != -math.inf:
            raise PolicyError(
                f"thresholds {thresholds.tolist()} are no rule: at least 2 are needed, none may be NaN and the last is "
                f"-inf. The policy is damaged; fit it again."
            )
        require_exits(scorer.num_exits, len(thresholds), type(scorer).__name__)
        self.num_exits, self.num_classes, self.newest_only = len(thresholds), scorer.num_classes, scorer.newest_only
        self.any_output = scorer.any_output
        self.scorer, self._score = scorer, scorer.one
        self._thresholds = thresholds.astype(np.float32)
        self._limits = [least_rounding_to(at) for at in self._thresholds.tolist()]

    def _many(self, seen: Floats, k: int, ids: Ids) -> Flags:
        leaving: Flags = self.scorer.many(seen, k) >= self._thresholds[k]
        return leaving

    def _one(self, newest: Floats, seen: Floats, k: int, sample_id: int) -> bool:
        return self._score(newest, seen, k) >= self._limits[k]

    def _answers(self, seen: Floats, ids: Ids) -> Floats:
        return seen[:, -1]

    def _answer(self, seen: Floats, sample_id: int) -> Floats:
        newest: Floats = seen[-1]
        return newest


class MixedPolicy(Policy):
    """Two policies and one coin per sample, a hash of seed and sample id: the coin that eenet tosses.

    Args:
        a: Followed with probability ``weight``.
        b: Followed otherwise.
        weight: In [0, 1].
        seed: Of the coin.

    Raises:
        PolicyError: The weight is no probability, or the policies do not fit together.
    """

    def __init__(self, a: Policy, b: Policy, weight: float, seed: int) -> None:
        if not 0 <= weight <= 1 or a.num_exits != b.num_exits:
            raise PolicyError(
                f"policies of {a.num_exits} and {b.num_exits} exits cannot be mixed with weight {weight:g}: exits must "
                f"be equal in number, the weight in [0, 1]. The policy is damaged; fit it again."
            )
        self.a, self.b = a, b
        self.weight, self.seed = float(weight), int(seed)
        self.num_exits, self.newest_only = a.num_exits, a.newest_only and b.newest_only
        self.num_classes = one_number(a.num_classes, b.num_classes)
        self.any_output = a.any_output and b.any_output

    def _many(self, seen: Floats, k: int, ids: Ids) -> Flags:
        first = coin(ids, self.seed) < self.weight
        leaving = np.empty(len(seen), dtype=np.bool_)
        for rows, side in ((first, self.a), (~first, self.b)):
            if rows.any():
                leaving[rows] = side._many(seen[rows], k, ids[rows])
        return leaving

    def _one(self, newest: Floats, seen: Floats, k: int, sample_id: int) -> bool:
        side = self.a if toss(sample_id, self.seed) < self.weight else self.b
        return side._one(newest, seen, k, sample_id)

    def _answers(self, seen: Floats, ids: Ids) -> Floats:
        first = (coin(ids, self.seed) < self.weight)[:, None]
        return np.where(first, self.a._answers(seen, ids), self.b._answers(seen, ids))

    def _answer(self, seen: Floats, sample_id: int) -> Floats:
        side = self.a if toss(sample_id, self.seed) < self.weight else self.b
        return side._answer(seen, sample_id)


class TransformedPolicy(Policy):
    """A policy that sees, and answers with, what a transform makes of the exits' outputs.

    Args:
        transform: Combines the exits seen.
        policy: Decides on what it returns.

    Raises:
        PolicyError: The policy is transformed already, or does not fit the transform.
    """

    def __init__(self, transform: Ensemble, policy: Policy) -> None:
        if _transforms(policy):
            raise PolicyError(
                "policy is transformed already: a second transform would see what the first one made. The policy is "
                "damaged; fit it again."
            )
        require_exits(transform.num_exits, policy.num_exits, type(transform).__name__)
        self.transform, self.policy = transform, policy
        self.num_exits, self.num_classes = policy.num_exits, one_number(policy.num_classes, transform.num_classes)
        self.newest_only, self.any_output = False, policy.any_output
        self._shows_newest, self._combine, self._inner = policy.newest_only, transform.one, policy._one

    def _many(self, seen: Floats, k: int, ids: Ids) -> Flags:
        if self._shows_newest:
            return self.policy._many(self.transform.many(seen)[:, None], k, ids)
        history = np.stack([self.transform.many(seen[:, : j + 1]) for j in range(k + 1)], axis=1)
        return self.policy._many(history, k, ids)

    def _one(self, newest: Floats, seen: Floats, k: int, sample_id: int) -> bool:
        if self._shows_newest:
            return self._inner(self._combine(seen), seen, k, sample_id)
        history = np.stack([self.transform.one(seen[: j + 1]) for j in range(k + 1)])
        return self.policy._one(history[k], history, k, sample_id)

    def _answers(self, seen: Floats, ids: Ids) -> Floats:
        return self.transform.many(seen)

    def _answer(self, seen: Floats, sample_id: int) -> Floats:
        together: Floats = self.transform.many(seen[None])[0]
        return together


def least_rounding_to(threshold: float) -> float:
    """Return the least double whose float32 is at least a float32 threshold: single scores need no rounding then."""
    if not math.isfinite(threshold):
        return threshold
    middle = (threshold + float(np.nextafter(np.float32(threshold), np.float32(-math.inf)))) / 2
    return middle if float(np.float32(middle)) >= threshold else math.nextafter(middle, math.inf)


def _transforms(policy: Policy) -> bool:
    """Tell whether a policy transforms what it sees."""
    if isinstance(policy, MixedPolicy):
        return _transforms(policy.a) or _transforms(policy.b)
    return isinstance(policy, TransformedPolicy)


def require_exits(known: int | None, asked: int, what: str) -> None:
    """Refuse a part that knows fewer exits than it will be asked at."""
    if known is not None and known < asked:
        raise PolicyError(
            f"{what} of {known} exits does not fit: the policy has {asked}. The policy is damaged; fit it again."
        )


def one_number(first: int | None, second: int | None) -> int | None:
    """Return the number of classes of parts that must agree on it."""
    if first is not None and second is not None and first != second:
        raise PolicyError(
            f"parts of {first} and {second} classes cannot decide together: both see the same outputs. The policy is "
            f"damaged; fit it again."
        )
    return second if first is None else first


def coin(sample_ids: Ids, seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each sample, a hash of seed and sample id.

    Source:
        The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), in wrapping 64-bit arithmetic.
    """
    x = (sample_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP) + np.uint64(seed * _SEED % (1 << 63))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def toss(sample_id: int, seed: int) -> float:
    """Return `coin` of one sample, to the bit."""
    x = ((int(sample_id) + 1) * _STEP + seed * _SEED % (1 << 63)) & _WORD
    x = ((x ^ (x >> 30)) * _FIRST) & _WORD
    x = ((x ^ (x >> 27)) * _SECOND) & _WORD
    return float((x ^ (x >> 31)) >> 11) * 2.0**-53
