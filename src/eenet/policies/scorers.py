"""Scorers: one number for what was seen of a sample; samples with larger scores leave earlier.

A score depends on its own sample alone, to the bit, whatever the batch: so nothing here goes through matrix products of
a library, whose rounding depends on the number of rows. Sums run over the last axis, products are `numpy.einsum`
without ``optimize``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
from jaxtyping import Float, Float32

from eenet.errors import InputError
from eenet.policies import confidence as confidences
from eenet.policies.confidence import DOUBLE, SINGLE, log_odds, squash, vote_shares
from eenet.tables.checks import number

Seen: TypeAlias = Float32[np.ndarray, "sample seen column"]
"""Log-probabilities (or features) of the exits evaluated so far."""
Scores: TypeAlias = Float32[np.ndarray, " sample"]
_LARGEST = 1e150  # times squares of what single precision can hold, it is far from overflowing
Confidence: TypeAlias = str | Callable[[np.ndarray], np.ndarray]
"""Name of a function in `eenet.policies.confidence`, or a function of the same form."""


class Part:
    """What policies are made of: a scorer or a transform. It must treat samples independently.

    Attributes:
        parameters: Names of the attributes that, as keyword arguments, rebuild it.
        num_exits: How many exits it knows; at others it must not be asked. None: any.
        num_columns: How many classes or features it reads; None: any.
    """

    parameters: ClassVar[tuple[str, ...]] = ()
    num_exits: int | None = None
    num_columns: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments (JSON values) that rebuild this part; its `arrays` are stored beside them."""
        return {name: getattr(self, name) for name in self.parameters if name not in self.arrays()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the other keyword arguments that rebuild this part."""
        values = {name: getattr(self, name) for name in self.parameters}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def require_finite(*weights: np.ndarray) -> None:
    """Refuse weights of a fitted part that are no numbers, or so large that sums of products might overflow."""
    if not all(array.dtype.kind == "f" and (np.abs(array.astype(DOUBLE)) <= _LARGEST).all() for array in weights):
        raise InputError("weights contain a value that is no finite number: nothing follows from them. Fit again.")


class Scorer(Part, ABC):
    """Turns what was seen of a sample into a score; larger leaves first.

    The score of a row may not depend on the other rows.

    Attributes:
        newest_only: Whether the score depends on nothing but the newest exit and its number.
        compares_classes: Whether the score compares the classes that exits chose: features name none.
    """

    newest_only: bool = False
    compares_classes: bool = False

    @abstractmethod
    def __call__(self, seen: Seen) -> Scores:
        """Return the score at the newest exit seen."""

    def shared(self, seen: Seen, known: dict[Any, Any]) -> np.ndarray:
        """Return the same; scorers asked about the same samples one after the other share their work in ``known``."""
        return self(seen)


@final
class ConfidenceScorer(Scorer):
    """Scores by a function of `eenet.policies.confidence`, or any function of the same form.

    Args:
        confidence: A name, or a function of log-probabilities ``[sample, class] -> [sample]``. Only named ones can be
            saved.

    Raises:
        InputError: There is no confidence of that name.
    """

    def __init__(self, confidence: Confidence) -> None:
        if confidence not in confidences.__all__ if isinstance(confidence, str) else not callable(confidence):
            raise InputError(
                f"confidence {confidence!r} is unknown: there are {', '.join(confidences.__all__)}. Use one of them."
            )
        self.confidence = confidence
        self._function = getattr(confidences, confidence) if isinstance(confidence, str) else confidence
        self.compares_classes = confidence in ("vote_share", "streak")
        self.newest_only = not self.compares_classes

    def __call__(self, seen: Seen) -> Scores:
        found = self._function(seen[:, -1] if self.newest_only else seen)
        return np.asarray(found, dtype=SINGLE)

    def settings(self) -> dict[str, Any]:
        if not isinstance(self.confidence, str):
            raise InputError(
                "policy cannot be saved: its confidence is a function of yours. Pass the name of a built-in one."
            )
        return {"confidence": self.confidence}


@final
class ColumnScorer(Scorer):
    """Scores by one column of the newest exit's features.

    Args:
        column: Number of the column.
        num_columns: How many there are.

    Raises:
        InputError: There is no such column.
    """

    newest_only = True
    parameters = ("column", "num_columns")

    def __init__(self, column: int, num_columns: int) -> None:
        self.num_columns = int(number(num_columns, "num_columns", 1, whole=True))
        self.column = int(number(column, "column", 0, self.num_columns - 1, whole=True))

    def __call__(self, seen: Seen) -> Scores:
        return seen[:, -1, self.column]


def confidence_scorer(confidence: Confidence, feature_names: Sequence[str] | None) -> Scorer:
    """Return what scores by a confidence: a function of probabilities, or the column of that name among features.

    ``feature_names`` are those of a table of features; None for tables with classes.

    Raises:
        InputError: There is no such confidence or column.
    """
    if feature_names is None:
        return ConfidenceScorer(confidence)
    if not isinstance(confidence, str) or confidence not in feature_names:
        known = ", ".join(feature_names) or "no names"
        raise InputError(
            f"confidence {confidence!r} is no column: the table's features have {known}. Name the column to decide by."
        )
    return ColumnScorer(list(feature_names).index(confidence), len(feature_names))


@final
class VoteScorer(Scorer):
    """Share of the exits seen that agree, ties broken by the newest exit's largest probability."""

    compares_classes = True

    def __call__(self, seen: Seen) -> Scores:
        # the number of votes, plus a tie-breaker smaller than one vote
        votes = vote_shares(seen)[:, -1] * seen.shape[1]
        return np.asarray(votes + squash(log_odds(seen[:, -1])) / 2, dtype=SINGLE)


@final
class PceeScorer(Scorer):
    """Scores by the utility that samples of similar confidence had at the newest exit, on the fitting data.

    Inside a bin the confidence breaks ties: it adds less than half the way to the next larger mean utility of any bin
    of any exit, so that bins keep their order. (In the most useful bins it adds less than one half.)

    Args:
        inner: The confidence: a name, or a scorer of its own.
        edges: Lower edges ``[early exit, bin]``, the first ``-inf``, missing ones ``inf``.
        means: Mean utilities ``[early exit, bin]``.
        confidence: In place of ``inner``, as stored.

    Raises:
        InputError: There is no confidence of that name, or edges and means do not fit together.
    """

    parameters = ("confidence", "edges", "means")

    def __init__(
        self,
        *,
        edges: Float[np.ndarray, "early bin"],
        means: Float[np.ndarray, "early bin"],
        inner: Scorer | None = None,
        confidence: Confidence | dict[str, int] | None = None,
    ) -> None:
        if inner is None:
            inner = ColumnScorer(**confidence) if isinstance(confidence, dict) else ConfidenceScorer(confidence or "")
        rising = edges.dtype.kind == "f" and edges.ndim == 2 and (edges[:, 1:] >= edges[:, :-1]).all()
        if edges.shape != means.shape or not rising or not edges.size or not np.isneginf(edges[:, 0]).all():
            raise InputError(
                f"edges of shape {edges.shape} and means of shape {means.shape} are no diagrams: both are numbers "
                "[early exit, bin], and edges rise from -inf. Fit the policy again."
            )
        require_finite(means)
        self.inner = inner
        self.num_exits, self.num_columns = len(edges) + 1, inner.num_columns
        self.newest_only, self.compares_classes = inner.newest_only, inner.compares_classes
        self.edges, self.means = edges.astype(SINGLE), means.astype(DOUBLE)
        # half the distance from each mean to the next larger one; one half for the largest
        levels = np.unique(self.means)
        levels = np.append(levels, levels[-1] + 1)
        self._widths = (levels[np.searchsorted(levels, self.means, "right")] - self.means) / 2

    def __call__(self, seen: Seen) -> Scores:
        k = seen.shape[1] - 1
        confidence = self.inner(seen)
        place = (confidence[:, None] >= self.edges[k]).sum(axis=1) - 1
        tie = squash(confidence.astype(DOUBLE)) * self._widths[k][place]
        return np.asarray(self.means[k][place] + tie, dtype=SINGLE)

    @property
    def confidence(self) -> Any:  # noqa: ANN401 - a JSON value
        """The name of the confidence, or the settings of the column."""
        settings = self.inner.settings()
        return settings.get("confidence", settings)
