"""How the learning rate falls once the warm-up is over, as plain functions of the progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

LearningRate: TypeAlias = Callable[[float], float]
"""From the share of the steps after the warm-up that is done, 0 to 1, to a factor on the peak learning rate."""


def constant(done: float) -> float:
    """Return 1: the rate stays at its peak."""
    return 1.0


def cosine_decay(done: float) -> float:
    """Return a factor that falls from 1 to 0 along half a cosine.

    Example:
        >>> [round(cosine_decay(done), 3) for done in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]

    Source: I. Loshchilov, F. Hutter, *SGDR: stochastic gradient descent with warm restarts*, ICLR 2017.
    """
    return 0.5 + 0.5 * math.cos(math.pi * done)


def step_decay(done: float, milestones: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> float:
    """Return a factor that is 1 at first and falls by ``factor`` at every milestone.

    Other milestones: ``functools.partial(step_decay, milestones=(0.3, 0.6, 0.9))``.

    Args:
        done: share of the steps that is done.
        milestones: shares at which the rate falls.
        factor: by which it falls.

    Example:
        >>> [round(step_decay(done), 3) for done in (0.4, 0.5, 0.9)]
        [1.0, 0.1, 0.01]

    Source: K. He et al., *Deep residual learning for image recognition*, CVPR 2016, section 4.2; DenseNet and MSDNet
    have these milestones.
    """
    return factor ** sum(done >= milestone for milestone in milestones)
