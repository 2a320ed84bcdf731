"""Whether a policy belongs to a model: as many exits, as many classes, and the features it was fitted with."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from eenet.core.costs import CostTable
from eenet.core.policy import Policy
from eenet.core.scorers import Scorer
from eenet.core.transform import Transform
from eenet.errors import InputError, ShapeError
from eenet.schedulers.ensemble import Ensemble
from eenet.schedulers.stopping import StoppingScorer, StoppingState

__all__ = ["classes_of", "require_classes", "require_exits", "require_no_features"]


def require_exits(num_exits: int, policy: Policy, costs: CostTable | None = None) -> None:
    """Refuse a policy, and costs, of another number of exits than the model has.

    Raises:
        ShapeError: They disagree.
    """
    for name, part in (("policy", policy), ("costs", costs)):
        if part is not None and part.num_exits != num_exits:
            raise ShapeError(
                f"{name} with {part.num_exits} exits does not fit: the model has {num_exits} exits. "
                f"Use {name} made for this model."
            )


def classes_of(policy: Policy) -> int | None:
    """Return the number of classes a policy was fitted for; None if it takes any, or that depends on its features.

    Raises:
        ShapeError: Its parts were fitted for different numbers of classes.
    """
    known = sorted({classes for classes in map(_classes, policy.modules()) if classes is not None})
    if len(known) > 1:
        raise ShapeError(
            f"policy with parts for {' and '.join(map(str, known))} classes cannot be used: all parts read the same "
            "exits. Combine policies fitted on one table."
        )
    return known[0] if known else None


def require_classes(policy: Policy, classes: int, features: int | None = None) -> None:
    """Refuse a policy that was fitted for other outputs than it is shown.

    Args:
        policy: Where to leave.
        classes: What the model's logits have.
        features: How many there are per sample and exit; None: none are given.

    Raises:
        ShapeError: It was fitted for another number of classes, or of classes and features together.
    """
    fitted = classes_of(policy)
    if fitted not in (None, classes):
        raise ShapeError(
            f"policy fitted for {fitted} classes does not fit: the model's logits have {classes}. "
            "Use a policy made for this model."
        )
    for scorer, state in _featured(policy):
        wanted = scorer.weight.shape[1]
        if features is not None and state.own_columns(classes) + features != wanted:
            raise ShapeError(
                f"features of {features} numbers per exit do not fit: with {classes} classes they make "
                f"{state.own_columns(classes) + features} columns, and the policy was fitted with {wanted}. "
                "Use model, policy and features of one table."
            )


def require_no_features(policy: Policy, instead: str) -> None:
    """Refuse a policy that reads features where there are none to give it.

    Args:
        policy: Where to leave.
        instead: What to do about it, for the message.

    Raises:
        InputError: It reads features.
    """
    if any(True for _ in _featured(policy)):
        raise InputError(
            f"features None are missing: the policy was fitted on a table with features, and none are taken here. "
            f"{instead}"
        )


def _classes(part: nn.Module) -> int | None:
    """Return the number of classes that one part of a policy was fitted for."""
    if isinstance(part, Ensemble):
        return part.bias.shape[1]
    if isinstance(part, StoppingScorer):
        state = part.state
        if part.with_features or not isinstance(state, StoppingState):
            return None
        none, one = state.own_columns(0), state.own_columns(1)  # the columns grow in proportion to the classes
        return (part.weight.shape[1] - none) // (one - none)
    found = getattr(part, "num_classes", None) if isinstance(part, Scorer | Transform | Policy) else None
    return found if isinstance(found, int) else None


def _featured(policy: Policy) -> Iterator[tuple[StoppingScorer, StoppingState]]:
    """Yield the scorers of a policy that read features, with their states."""
    for part in policy.modules():
        if isinstance(part, StoppingScorer) and isinstance(part.state, StoppingState) and part.with_features:
            yield part, part.state
