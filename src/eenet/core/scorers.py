"""Scorers: what was seen of a sample, turned into one number that says how soon it may leave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from eenet.core import confidence as confidences
from eenet.core.alone import Row
from eenet.core.views import Viewed
from eenet.errors import InputError

__all__ = ["ConfidenceScorer", "Scorer", "StateScorer"]


class Scorer(Viewed, ABC):
    """Turns what was seen of a sample into a score; larger leaves first.

    A scorer must treat samples independently: the score of a row may not depend on the other rows.

    Attributes:
        newest_only: Whether the score depends on nothing but the newest exit and its number, so that earlier exits need
            not be worked out again.
        single: Whether `one`, in Python's numbers, and `few`, in numpy, are there, for scorers that look at the newest
            exit only. For few samples both take a fraction of torch's time.
        compares_classes: Whether the score compares the classes that exits chose: it means nothing where they name
            none, as the summaries of maps do.
    """

    newest_only: bool = False
    single: bool = False
    compares_classes: bool = False

    @abstractmethod
    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the score at the newest exit seen.

        Args:
            seen: float32 log-probabilities of the exits evaluated so far.
            features: Further features of those exits, for scorers that use them.
        """

    def one(self, newest: Row, k: int) -> float:
        """Return the score of a single sample at exit ``k``, in double; only where `single` says so.

        Args:
            newest: float32 log-probabilities of exit ``k``, few.
            k: Number of the exit.
        """
        raise InputError(f"scorer {type(self).__name__} scores batches only. Call it instead.")

    def read_few(self, newest: Float[np.ndarray, "sample class"]) -> Float[np.ndarray, "sample column"]:
        """Return what `few` reads off the newest exit; scorers that read alike have it worked out once."""
        return newest

    def reads_alike(self, other: Scorer) -> bool:
        """Return whether another scorer's `read_few` returns the same."""
        return type(self).read_few is Scorer.read_few and type(other).read_few is Scorer.read_few

    def few(self, read: Float[np.ndarray, "sample column"], k: int) -> Float[np.ndarray, " sample"]:
        """Return the scores of a small batch at exit ``k`` from what `read_few` returned; only where `single`."""
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
        self.compares_classes = confidence in ("vote_share", "streak")
        self.newest_only = not self.compares_classes
        self.single = confidence == "max_prob"

    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the confidence of the newest exit, or of the history for those that look at all exits."""
        return self.function(seen[:, -1] if self.newest_only else seen)

    def one(self, newest: Row, k: int) -> float:
        """Return the largest probability's log-odds of a single sample."""
        return confidences.max_prob_one(newest) if self.single else super().one(newest, k)

    def few(self, read: Float[np.ndarray, "sample class"], k: int) -> Float[np.ndarray, " sample"]:
        """Return the largest probabilities' log-odds of a small batch."""
        return confidences.max_prob_few(read) if self.single else super().few(read, k)

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
