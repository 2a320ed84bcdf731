"""Confidences: functions of the log-probabilities seen so far; larger means surer.

Those of one exit take ``[sample, class]``, those of a history ``[sample, seen, class]``. All are worked out in double
and rounded to float32 at the end, row by row: a sample's confidence does not depend on its batch, to the bit.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32, Float64

__all__ = ["certainty", "margin", "max_prob", "streak", "vote_share"]

_LEAST_CHANCE = 1e-300  # keeps the log-odds finite, so that an infinite threshold stays out of reach
_LEAST_LOG = -700.0  # keeps p log p a number where p is 0
DOUBLE = np.dtype(np.float64)  # faster to convert to than the name of the type
SINGLE = np.dtype(np.float32)


def probabilities(log_probs: Float[np.ndarray, "*batch class"]) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and their logarithms in double, with finite products."""
    log_p = np.maximum(log_probs.astype(DOUBLE, order="C"), _LEAST_LOG)
    return np.exp(log_p), log_p


def log_odds(log_probs: Float[np.ndarray, "sample class"]) -> Float64[np.ndarray, " sample"]:
    """Return `max_prob` before it is rounded."""
    chances = np.exp(log_probs.astype(DOUBLE, order="C"))
    chances[np.arange(len(chances)), chances.argmax(axis=1)] = 0.0
    # the chance that another class is right, added up by itself: it stays above 0 where 1 - p would not
    others = np.minimum(np.maximum(np.add.reduce(chances, axis=1), _LEAST_CHANCE), 1.0)
    odds: np.ndarray = np.log(np.maximum(1.0 - others, _LEAST_CHANCE) / others)
    return odds


def max_prob(log_probs: Float[np.ndarray, "sample class"]) -> Float32[np.ndarray, " sample"]:
    """Log-odds of the most probable class.

    Orders samples as the largest probability does, but does not saturate: in float32 that probability is exactly 1.0
    for many samples of a well-trained network, while its log-odds, computed from the other classes, still differ.

    Source:
        MSDNet (Huang et al., ICLR 2018), the largest softmax probability.
    """
    return log_odds(log_probs).astype(SINGLE)


def unrounded_certainty(p: np.ndarray, log_p: np.ndarray) -> Float64[np.ndarray, "*batch"]:
    """Return `certainty` of `probabilities` before it is rounded."""
    return np.asarray(1.0 + np.add.reduce(p * log_p, axis=-1) / math.log(p.shape[-1]))


def certainty(log_probs: Float[np.ndarray, "sample class"]) -> Float32[np.ndarray, " sample"]:
    """One minus the entropy relative to that of the uniform distribution, in [0, 1].

    Source:
        BranchyNet (Teerapittayanon et al., ICPR 2016), entropy; EENet section 3 for the normalised form.
    """
    return unrounded_certainty(*probabilities(log_probs)).astype(SINGLE)


def margin(log_probs: Float[np.ndarray, "sample class"]) -> Float32[np.ndarray, " sample"]:
    """Probability of the first class minus that of the second, in [0, 1]."""
    second, first = np.exp(np.partition(log_probs, -2, axis=-1)[..., -2:].astype(DOUBLE)).T
    return np.asarray(first - second, dtype=SINGLE)


def squash(values: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Map any number into (0, 1), keeping the order."""
    return np.asarray(0.5 + 0.5 * values / (1.0 + np.abs(values)))


def vote_shares(seen: Float[np.ndarray, "sample seen class"]) -> Float64[np.ndarray, "sample seen"]:
    """Return, for every exit seen, the share of the exits up to it that voted for the most popular class."""
    votes = seen.argmax(axis=-1)
    counts = (votes[:, :, None] == votes[:, None, :]).cumsum(axis=2).max(axis=1)
    return np.asarray(counts / np.arange(1, seen.shape[1] + 1))


def vote_share(seen: Float[np.ndarray, "sample seen class"]) -> Float32[np.ndarray, " sample"]:
    """Share of the exits seen that voted for the most popular class, in (0, 1].

    Source:
        EENet (arXiv 2301.07099), section on exit scoring, third confidence.
    """
    return vote_shares(seen)[:, -1].astype(SINGLE)


def streak(seen: Float[np.ndarray, "sample seen class"]) -> Float32[np.ndarray, " sample"]:
    """Number of consecutive exits, up to the newest, that chose the newest exit's class (1 at the first exit).

    Source:
        PABEE (Zhou et al., NeurIPS 2020), patience counter plus one.
    """
    votes = seen.argmax(axis=-1)
    agrees = votes[:, ::-1] == votes[:, -1:]
    return np.asarray(agrees.cumprod(axis=1).sum(axis=1), dtype=SINGLE)
