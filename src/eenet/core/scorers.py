"""Scorers: what was seen of a sample, turned into one number that says how soon it may leave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from eenet.core import confidence as confidences
from eenet.core.views import Viewed
from eenet.errors import InputError

__all__ = ["ConfidenceScorer", "Scorer", "StateScorer"]


class Scorer(Viewed, ABC):
    """Turns what was seen of a sample into a score; larger leaves first.

    A scorer must treat samples independently: the score of a row may not depend on the other rows.

    Attributes:
        newest_only: Whether the score depends on nothing but the newest exit and its number, so that earlier exits need
            not be worked out again.
        single: Whether `one` and `few` are there, for scorers that look at the newest exit only: numpy takes a fraction
            of the time that torch takes for few samples.
    """

    newest_only: bool = False
    single: bool = False

    @abstractmethod
    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the score at the newest exit seen.

        Args:
            seen: float32 log-probabilities of the exits evaluated so far.
            features: Further features of those exits, for scorers that use them.
        """

    def one(self, newest: Float[np.ndarray, " class"], k: int) -> np.float32:
        """Return the score of a single sample at exit ``k``, the same as for a batch; only where `single` says so.

        Args:
            newest: float32 log-probabilities of exit ``k``.
            k: Number of the exit.
        """
        raise InputError(f"scorer {type(self).__name__} scores batches only. Call it instead.")

    def few(self, newest: Float[np.ndarray, "sample class"], k: int) -> Float[np.ndarray, " sample"]:
        """Return the scores of a small batch at exit ``k``; only where `single` says so."""
        raise InputError(f"scorer {type(self).__name__} scores in torch only. Call it instead.")

    def settings(self) -> dict[str, object]:
        """Return the keyword arguments (JSON values) that rebuild this scorer; its tensors are stored beside them."""
        return {}

    def widened(self, num_exits: int) -> Scorer:
        """Return a scorer that may be asked at more exits than it was fitted for; its scores there mean nothing.

        Scorers that know nothing of the number of exits serve as they are.
        """
        return self


class ConfidenceScorer(Scorer):
    """Scores by a function of `eenet.core.confidence`, or any function of the same form.

    Args:
        confidence: Name of a function in `eenet.core.confidence`, or a function of log-probabilities
            ``[sample, class] -> [sample]``. Only named ones can be saved.

    Raises:
        InputError: There is no confidence of that name.
    """

    def __init__(self, confidence: str | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if isinstance(confidence, str) and confidence not in confidences.__all__:
            raise InputError(
                f"confidence {confidence!r} is unknown: there are {', '.join(confidences.__all__)}. Use one of them."
            )
        self.confidence = confidence
        self.function: Callable[[Tensor], Tensor] = (
            getattr(confidences, confidence) if isinstance(confidence, str) else confidence
        )
        self.newest_only = confidence not in ("vote_share", "streak")

    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the confidence of the newest exit, or of the history for those that look at all exits."""
        return self.function(seen[:, -1] if self.newest_only else seen)

    def settings(self) -> dict[str, object]:
        """Return the name of the confidence."""
        if not isinstance(self.confidence, str):
            raise InputError(
                "policy cannot be saved: its confidence is a function of yours. Pass the name of a built-in one."
            )
        return {"confidence": self.confidence}


class StateScorer(Scorer):
    """Scores by a state that several scorers may share; replayed together, they have it worked out once.

    Args:
        state: A module like a scorer that returns ``[sample, column]`` instead of one number.
    """

    def __init__(self, state: nn.Module) -> None:
        super().__init__()
        self.state = state

    @abstractmethod
    def read(self, state: Float[Tensor, "sample column"], k: int) -> Float[Tensor, " sample"]:
        """Return the score that belongs to a state at exit ``k``."""

    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the score at the newest exit seen."""
        return self.read(self.state(seen, features), seen.shape[1] - 1)
