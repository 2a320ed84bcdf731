"""Confidences in numpy: functions of log-probabilities; larger means surer. Those named ``_one`` take a single sample.

Exponentials of float32 numbers are worked out in double and rounded: the same on every machine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DOUBLE",
    "NAMES",
    "SINGLE",
    "certainty",
    "certainty_one",
    "exp",
    "margin",
    "margin_one",
    "max_prob",
    "max_prob_one",
    "shares",
    "shares_one",
    "squash",
    "streak",
    "streak_one",
    "vote_share",
    "vote_share_one",
]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Array = NDArray[Any]

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)  # quicker to convert to than the names of the types

NAMES = ("certainty", "margin", "max_prob", "streak", "vote_share")

_LEAST_CHANCE = 1e-300  # keeps the log-odds finite, so that an infinite threshold stays out of reach
_HALF, _ONE = np.float32(0.5), np.float32(1)  # exact in double too, and never turn float32 into double


def exp(log_probs: Floats) -> Floats:
    """Return the probabilities, in float32."""
    return np.exp(log_probs.astype(DOUBLE)).astype(SINGLE)


def squash(values: Any) -> Any:  # noqa: ANN401
    """Map any number into (0, 1), keeping the order and the type."""
    return _HALF + _HALF * values / (_ONE + abs(values))


def max_prob(log_probs: Floats) -> Floats:
    """Return the log-odds ``[sample]`` of the most probable class, taken from the other classes."""
    p = np.exp(log_probs.astype(DOUBLE))
    np.put_along_axis(p, log_probs.argmax(axis=-1)[..., None], 0.0, axis=-1)
    others = np.clip(p.sum(axis=-1), _LEAST_CHANCE, 1.0)
    with np.errstate(divide="ignore"):
        odds: Floats = -np.log(others / (1 - others)).astype(SINGLE)
    return odds


def max_prob_one(log_probs: Floats) -> np.float32:
    """Return the same for one sample ``[class]``."""
    p = np.exp(log_probs.astype(DOUBLE))
    p[log_probs.argmax()] = 0.0
    others = max(float(np.add.reduce(p)), _LEAST_CHANCE)
    return np.float32(-math.inf if others >= 1 else -math.log(others / (1 - others)))


def certainty(log_probs: Floats, p: Floats | None = None) -> Floats:
    """Return one minus the relative entropy; ``p`` are the probabilities, where they are known already."""
    p = exp(log_probs) if p is None else p
    with np.errstate(invalid="ignore"):  # of impossible classes comes NaN, which never leaves early
        total = (p * log_probs).sum(axis=-1, dtype=np.float64).astype(SINGLE)
    result: Floats = _ONE + total / np.float32(math.log(log_probs.shape[-1]))
    return result


def certainty_one(log_probs: Floats) -> np.float32:
    """Return the same for one sample ``[class]``."""
    total = np.float32(np.add.reduce(exp(log_probs) * log_probs, dtype=np.float64))
    return np.float32(_ONE + total / np.float32(math.log(len(log_probs))))


def margin(log_probs: Floats) -> Floats:
    """Return the probability of the first class minus that of the second."""
    top = exp(np.partition(log_probs, -2, axis=-1)[..., -2:])
    result: Floats = top[..., 1] - top[..., 0]
    return result


def margin_one(log_probs: Floats) -> np.float32:
    """Return the same for one sample ``[class]``."""
    top = exp(np.partition(log_probs, -2)[-2:])
    return np.float32(top[1] - top[0])


def shares(seen: Floats) -> Floats:
    """Return, for every exit seen, the share of the exits up to it that voted for the most popular class."""
    votes = seen.argmax(axis=-1)
    counts = (votes[:, :, None] == votes[:, None, :]).cumsum(axis=2).max(axis=1)
    result: Floats = counts.astype(SINGLE) / np.arange(1, seen.shape[1] + 1, dtype=np.float32)
    return result


def shares_one(seen: Floats) -> Floats:
    """Return the same for one sample ``[seen, class] -> [seen]``."""
    counts: dict[int, int] = {}
    most, best = 0, []
    for vote in seen.argmax(axis=1).tolist():
        counts[vote] = counts.get(vote, 0) + 1
        most = max(most, counts[vote])
        best.append(most)
    return (np.array(best) / np.arange(1, len(seen) + 1)).astype(SINGLE)


def vote_share(seen: Floats) -> Floats:
    """Return the share of the exits seen that voted for the most popular class."""
    votes = seen.argmax(axis=-1)
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2).max(axis=1)
    result: Floats = counts.astype(SINGLE) / np.float32(votes.shape[1])
    return result


def vote_share_one(seen: Floats) -> np.float32:
    """Return the same for one sample ``[seen, class]``."""
    votes = seen.argmax(axis=1).tolist()
    return np.float32(np.float32(max(map(votes.count, votes))) / np.float32(len(votes)))


def streak(seen: Floats) -> Floats:
    """Return the number of consecutive exits, up to the newest, that chose the newest exit's class."""
    votes = seen.argmax(axis=-1)
    agrees = votes[:, ::-1] == votes[:, -1:]
    lengths: Floats = agrees.cumprod(axis=1).sum(axis=1).astype(SINGLE)
    return lengths


def streak_one(seen: Floats) -> np.float32:
    """Return the same for one sample ``[seen, class]``."""
    votes = seen.argmax(axis=1).tolist()
    return np.float32(next((i for i, vote in enumerate(reversed(votes)) if vote != votes[-1]), len(votes)))
