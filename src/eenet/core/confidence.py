"""Confidences: functions of the log-probabilities seen so far; larger means surer.

Those of one exit take ``Float[Tensor, "*batch class"]``, those of a history ``Float[Tensor, "sample seen class"]``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.core.alone import Row

_LEAST_CHANCE = 1e-300  # keeps the log-odds finite, so that an infinite threshold stays out of reach

__all__ = ["certainty", "margin", "max_prob", "streak", "vote_share"]


def max_prob(log_probs: Float[Tensor, "*batch class"]) -> Float[Tensor, "*batch"]:
    """Log-odds of the most probable class.

    Orders samples as the largest probability does, but does not saturate: in float32 that probability is exactly 1.0
    for many samples of a well-trained network, while its log-odds, taken from the other classes, still tell them apart.

    Source:
        MSDNet (Huang et al., ICLR 2018), the largest softmax probability.
    """
    # the chance that another class is right, added up in double: it stays above 0 where 1 - p would not
    others = (
        log_probs.to(torch.float64, copy=True)
        .exp_()
        .scatter_(-1, log_probs.argmax(dim=-1, keepdim=True), 0.0)
        .sum(dim=-1)
    )
    return others.logit(eps=_LEAST_CHANCE).neg().to(log_probs.dtype)


def max_prob_one(log_probs: Row) -> float:
    """Return `max_prob` of a single sample, before it is rounded to float32."""
    best = log_probs.index(max(log_probs))
    others = sum([math.exp(value) for value in log_probs[:best]]) + sum(map(math.exp, log_probs[best + 1 :]))
    if others >= 1:
        return -math.inf
    return math.log(1 - others) - math.log(_LEAST_CHANCE if others <= _LEAST_CHANCE else others)


def max_prob_few(log_probs: Float[np.ndarray, "sample class"]) -> Float[np.ndarray, " sample"]:
    """Return `max_prob` of a small batch."""
    chances = np.exp(log_probs.astype(np.float64))
    chances[np.arange(len(chances)), log_probs.argmax(axis=1)] = 0.0
    others = np.add.reduce(chances, axis=1).clip(_LEAST_CHANCE, 1.0)
    with np.errstate(divide="ignore"):
        scores: np.ndarray = np.log((1 - others) / others).astype(np.float32)
    return scores


def certainty(log_probs: Float[Tensor, "*batch class"]) -> Float[Tensor, "*batch"]:
    """One minus the entropy relative to that of the uniform distribution, in [0, 1].

    Source:
        BranchyNet (Teerapittayanon et al., ICPR 2016), entropy; EENet section 3 for the normalised form.
    """
    return 1.0 + (log_probs.exp() * log_probs).sum(dim=-1) / math.log(log_probs.shape[-1])


def margin(log_probs: Float[Tensor, "*batch class"]) -> Float[Tensor, "*batch"]:
    """Probability of the first class minus that of the second, in [0, 1]."""
    top = log_probs.topk(2, dim=-1).values.exp()
    return top[..., 0] - top[..., 1]


def squash(values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Map any number into (0, 1), keeping the order.

    By arithmetic that is rounded exactly: the sigmoid rounds differently at the end of a batch than inside it.
    """
    return 0.5 + 0.5 * values / (1 + values.abs())


def _choices(seen: Float[Tensor, "sample seen class"]) -> Int[Tensor, "sample seen"]:
    return seen.argmax(dim=-1)


def vote_share(seen: Float[Tensor, "sample seen class"]) -> Float[Tensor, " sample"]:
    """Share of the exits seen that voted for the most popular class, in (0, 1].

    Source:
        EENet (arXiv 2301.07099), section on exit scoring, third confidence.
    """
    votes = _choices(seen)
    counts = (votes.unsqueeze(2) == votes.unsqueeze(1)).sum(dim=2)
    return counts.amax(dim=1).to(seen.dtype) / votes.shape[1]


def streak(seen: Float[Tensor, "sample seen class"]) -> Float[Tensor, " sample"]:
    """Number of consecutive exits, up to the newest, that chose the newest exit's class (1 at the first exit).

    Source:
        PABEE (Zhou et al., NeurIPS 2020), patience counter plus one.
    """
    votes = _choices(seen)
    agrees = (votes == votes[:, -1:]).flip(1).to(torch.int64)
    return agrees.cumprod(dim=1).sum(dim=1).to(seen.dtype)
