"""What an experiment is: a recipe at one of two scales, how its exits are judged, and what has to be known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from eenet.recipes import Recipe

__all__ = ["SCALES", "Experiment", "Scale"]

Scale: TypeAlias = Literal["small", "paper"]
SCALES: tuple[Scale, ...] = ("small", "paper")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A row of the paper, or one of ours beside it.

    Attributes:
        name: What users call it.
        title: For the page.
        recipes: What is trained at each scale: ``small`` is cut down for two cores, ``paper`` follows the paper and
            needs a GPU and the full data.
        loss: Utility that may be lost against the full model at the budget whose speed-up is measured.
        budgets: At which policies are compared, besides the ten standard ones.
        splits: How often calibration and test side are pooled and drawn anew for the comparison.
        caveats: What a reader has to know, by scale.
    """

    name: str
    title: str
    recipes: Mapping[Scale, Recipe]
    loss: float = 0.01
    budgets: tuple[str, ...] = ("40%", "60%", "80%")
    splits: int = 10
    caveats: Mapping[Scale, tuple[str, ...]] = field(default_factory=dict)
