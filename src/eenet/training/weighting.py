"""Weighting samples by where they are expected to leave, so that each exit is trained on those it will answer for.

Sources: F. Regol, J. Chataoui, M. Coates, *Jointly-learned exit and inference for a dynamic neural network*, ICLR 2024
(arXiv 2310.09163); Y. Han et al., *Learning to weight samples for dynamic early-exiting networks*, ECCV 2022 (arXiv
2209.08310).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

SampleWeighting: TypeAlias = Callable[[Sequence[Tensor], Tensor], Tensor]
"""From the detached logits of every exit and the targets to a weight ``[sample, exit]`` on each sample's loss."""


def expected_exit_weights(
    logits: Sequence[Float[Tensor, "sample class ..."]],
    targets: Int[Tensor, "sample ..."],
    share: float = 0.5,
    softness: float = 0.1,
) -> Float[Tensor, "sample exit"]:
    """Return weights that grow with a sample's chance to leave at an exit, mean 1 over the samples of every exit.

    A soft rule stands for the policy, which is not known yet: of K exits, exit k lets go the most confident
    ``1 / (K - k)`` of the batch, with a gate that is a sigmoid of the sample's rank by confidence. The chance to leave
    at an exit is that of passing every gate before and not this one; the last exit takes the rest.

    As in the papers, easy samples weigh more at early exits and hard ones at late exits. Unlike them, nothing is learnt
    for it: JEI-DNN learns the gates beside the classifiers and for a price of computing, L2W-DEN a network that
    predicts the weights, tuned on further batches. Ranks need a batch of some dozens to mean something.

    Args:
        logits: one tensor per exit; of dense ones the mean confidence over pixels counts.
        targets: the true classes; not needed here.
        share: of the expected exits in the weights, from 0 (all weights 1) to 1; the rest is uniform.
        softness: width of the gates, as a share of the batch.
    """
    num_exits, samples = len(logits), len(logits[0])
    inside = logits[0].new_ones(samples)
    weights: list[Tensor] = []
    for k, exit_logits in enumerate(logits):
        if k == num_exits - 1:
            chance = inside
        else:
            rank = (_confidence(exit_logits).argsort().argsort() + 0.5) / samples  # near 0 for the least confident
            gate = torch.sigmoid((rank - (1 - 1 / (num_exits - k))) / softness)
            chance, inside = inside * gate, inside * (1 - gate)
        weights.append(1 - share + share * chance / chance.mean())
    return torch.stack(weights, dim=1)


def _confidence(logits: Tensor) -> Float[Tensor, " sample"]:
    """Return each sample's largest class probability, the mean over pixels."""
    return logits.softmax(dim=1).amax(dim=1).flatten(1).mean(dim=1) if logits.dim() > 2 else logits.softmax(1).amax(1)
