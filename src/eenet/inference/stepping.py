"""What every loop over stages does between them: read an exit, part those who leave from those who stay, answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eenet.core.policy import Policy
from eenet.core.views import FEW
from eenet.errors import ShapeError
from eenet.inference.engines import Engine
from eenet.models.inputs import State

__all__ = ["Left", "gathered", "log_probs", "look", "part", "split_leaving", "vectors"]


class Left(NamedTuple):
    """Samples that left at one exit.

    Attributes:
        exit_index: Where.
        rows: Which samples, by their places; None: all.
        answers: Their log-probabilities.
    """

    exit_index: int
    rows: Tensor | None
    answers: Tensor


def look(engine: Engine, index: int, state: State, seen: Tensor | None) -> Tensor:
    """Return what was seen before and what exit ``index`` says, ``[sample, index + 1, class]``.

    Raises:
        ShapeError: The exit says something else than one vector per sample.
    """
    newest = log_probs(engine.head(index, state), index).unsqueeze(1)
    return newest if seen is None else torch.cat((seen, newest), dim=1)


def log_probs(logits: Tensor, index: int) -> Tensor:
    """Return the log-probabilities of exit ``index``, one vector per sample.

    Raises:
        ShapeError: The exit says something else.
    """
    return torch.log_softmax(vectors(logits, index), dim=-1, dtype=torch.float32)


def vectors(logits: Tensor, index: int) -> Tensor:
    """Return the logits of exit ``index``, which must be one vector per sample.

    Raises:
        ShapeError: They are something else.
    """
    if logits.dim() != 2:
        raise ShapeError(
            f"logits of exit {index} of shape {tuple(logits.shape)} do not fit: a policy reads [sample, class]. "
            "Use heads that return one vector per sample; for maps there are DenseAdaptiveModel and record_dense."
        )
    return logits


def part(
    policy: Policy, seen: Tensor, ids: Tensor, features: Tensor | None = None, drawn: np.ndarray | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the rows that leave, those that stay (None for an empty side), and the answers of those that leave.

    Args:
        policy: Where to leave.
        seen: What the exits so far said; not asked at the last one.
        ids: Names of the samples.
        features: Of the exits so far, for policies that read them.
        drawn: What the policy has `drawn` for these ids, where that is known already.
    """
    if features is None and seen.is_cpu and len(seen) <= FEW and policy.quick:
        drawn = policy.drawn(ids.long().numpy()) if drawn is None else drawn
        leaves, shown = policy.few(seen.numpy(), drawn, seen.shape[1] - 1)
        gone = np.flatnonzero(leaves)
        if not len(gone):
            return None, None, None
        if len(gone) == len(leaves):
            return torch.from_numpy(gone), None, torch.from_numpy(shown)
        stay = np.flatnonzero(~leaves)
        return torch.from_numpy(gone), torch.from_numpy(stay), torch.from_numpy(shown[gone])
    gone_rows, stay_rows = split_leaving(policy.leaves(seen, ids, features))
    if gone_rows is None:
        return None, None, None
    if stay_rows is None:
        return gone_rows, None, policy.answers(seen, ids, features)
    of_gone = None if features is None else features[gone_rows]
    return gone_rows, stay_rows, policy.answers(seen[gone_rows], ids[gone_rows], of_gone)


def split_leaving(leaves: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the rows that leave and those that stay, None for an empty side; the one synchronisation of a stage."""
    flags = leaves.cpu()
    gone = flags.nonzero().squeeze(1)
    if not len(gone):
        return None, None
    gone = gone.to(leaves.device, non_blocking=True)
    if len(gone) == len(flags):
        return gone, None
    return gone, flags.logical_not().nonzero().squeeze(1).to(leaves.device, non_blocking=True)


def gathered(left: Sequence[Left]) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and exits of all samples, in the order of their places."""
    device = left[0][2].device
    exit_index, whose, answers = left[0]
    if whose is None:  # all of them
        return answers, torch.full((len(answers),), exit_index, device=device)
    order = torch.cat([rows for _, rows, _ in left if rows is not None])
    answers = torch.cat([part for _, _, part in left])
    exits = torch.tensor([k for k, _, _ in left]).repeat_interleave(torch.tensor([len(part) for _, _, part in left]))
    log_probs = torch.empty_like(answers).index_copy_(0, order, answers)
    return log_probs, torch.empty_like(order).index_copy_(0, order, exits.to(device))
