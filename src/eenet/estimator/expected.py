"""What policies cost new samples, where they were fitted on outputs of other members than those that are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64

from eenet.policies import Dial, Replayer
from eenet.tables import ExitTable


def with_expected_costs(
    dial: Dial,
    seen: Float32[np.ndarray, "sample exit class"],
    seen_by_folds: Sequence[Float32[np.ndarray, "_ exit class"]],
) -> Dial:
    """Return the same dial with what its policies are expected to cost with members that were fitted on all samples.

    These answer otherwise than the members of the folds: they are surer, and where a member knows few probabilities, as
    a small tree does, it knows others. So what counts is the cost with them on the samples that they were fitted on,
    and on top of that, by how much more unseen samples cost than seen ones with the members of the folds.

    Args:
        dial: Fitted on out-of-fold outputs: its costs are those of unseen samples with the members of the folds.
        seen: What the members say of all samples, on which they were fitted.
        seen_by_folds: What the members of each fold say of those samples on which these were fitted.

    Source:
        Efron, JASA 1983: an apparent error is mended by its optimism, which is estimated on samples left out.
    """
    change = _mean_costs(dial, seen) - np.mean([_mean_costs(dial, logits) for logits in seen_by_folds], axis=0)
    costs = np.clip(dial.fit_costs + change, dial.costs.low, dial.costs.high).tolist()
    found = list(zip(costs, dial.fit_utilities, dial.policies, strict=True))
    return replace(Dial.of_candidates(found, dial.costs, dial.seed), reason=dial.reason)


def _mean_costs(dial: Dial, logits: Float32[np.ndarray, "sample exit class"]) -> Float64[np.ndarray, " policy"]:
    """Return what the policies of a dial cost on some outputs, in expectation over the coins of mixed ones."""
    replayer = Replayer(ExitTable(logits=logits))
    replayer.prepare(dial.policies)
    return np.array([replayer.expected_shares(policy) @ dial.costs.cumulative for policy in dial.policies])
