"""What the scores of a policy are made of, how well they tell right from wrong, and how well exits are calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from eenet.errors import InputError
from eenet.evaluation.paired import require_right
from eenet.policies.learned import EENetScorer, StoppingScorer
from eenet.policies.mixture import TransformedPolicy
from eenet.policies.policy import Policy, ScorePolicy
from eenet.policies.replay import Replayer
from eenet.policies.scorers import ConfidenceScorer, Scorer
from eenet.policies.transforms import Transform
from eenet.tables.checks import instance, number
from eenet.tables.table import ExitTable

_FRACTIONS = ("certainty", "margin", "vote_share")  # confidences in [0, 1]


@dataclass(frozen=True, kw_only=True)
class MainScore:
    """The score that a policy decides by; of a mixture with several, the one that most samples follow.

    Attributes:
        scorer: What scores.
        transform: What the scorer reads the exits through, if anything.
        share: Share of the samples that follow it.
        early_exits: At how many exits it is compared with a threshold: not at the last open one, where all leave.
        thresholds: Those that most of its samples follow, at as many exits or fewer.
    """

    scorer: Scorer
    transform: Transform | None
    share: float
    early_exits: int
    thresholds: tuple[float, ...]

    def at_exits(
        self, table: ExitTable
    ) -> tuple[Float32[np.ndarray, "sample early"], Bool[np.ndarray, "sample early"]]:
        """Return the scores at every early exit, and whether the exit, as the policy reads it, is right."""
        return self.replayed(Replayer(table))

    def replayed(
        self, replayer: Replayer
    ) -> tuple[Float32[np.ndarray, "sample early"], Bool[np.ndarray, "sample early"]]:
        """Return the same of the samples of a replayer, which may know the scores already."""
        replayer = replayer if self.transform is None else replayer.transformed(self.transform)
        right = require_right(replayer.table, "judging scores")
        return replayer.scores(self.scorer)[:, : self.early_exits], right[:, : self.early_exits]


def main_score(policy: Policy) -> MainScore:
    """Return the score that a policy decides by, through transforms and mixtures.

    Raises:
        InputError: It has none, because its class is one of yours, or because all leave at exit 0.
    """
    shares: dict[tuple[Scorer, Transform | None], float] = {}
    early: dict[tuple[Scorer, Transform | None], int] = {}
    largest: dict[tuple[Scorer, Transform | None], tuple[float, tuple[float, ...]]] = {}
    instance(policy, Policy, "policy")
    for share, part in policy.components():
        rule, transform = (part.policy, part.transform) if isinstance(part, TransformedPolicy) else (part, None)
        if isinstance(rule, ScorePolicy):
            key = rule.scorer, transform
            shares[key] = shares.get(key, 0.0) + share
            here = (rule.num_open or rule.num_exits) - 1
            early[key] = max(early.get(key, 0), here)
            if here and share > largest.get(key, (0.0, ()))[0]:
                largest[key] = share, tuple(rule.thresholds[:here].tolist())
    shares = {key: share for key, share in shares.items() if early[key]}
    if not shares:
        raise InputError(
            f"policy of class {type(policy).__name__} has no score: all leave at exit 0, or only its own class knows "
            "how it decides. Pass a policy for a larger budget, made of ScorePolicy."
        )
    key = max(shares, key=lambda one: shares[one])
    return MainScore(
        scorer=key[0], transform=key[1], share=shares[key], early_exits=early[key], thresholds=largest[key][1]
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Separation:
    """How well scores tell samples that are right at an exit from those that are wrong there.

    Numbers are areas under the ROC curve: the chance that of a right and a wrong sample, taken at random, the right one
    has the larger score, ties counted half. NaN where all are right or all are wrong.

    Attributes:
        overall: Of all samples, at every exit where scores decide.
        by_class: Among the samples of each class; empty where labels are not known.
    """

    overall: Float64[np.ndarray, " early"]
    by_class: Float64[np.ndarray, "class early"]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; None where all samples are right or all are wrong."""

        def plain(values: np.ndarray) -> list[float | None]:
            return [None if np.isnan(value) else value for value in values.tolist()]

        return {"overall": plain(self.overall), "by_class": [plain(row) for row in self.by_class]}


def separation(policy: Policy, table: ExitTable) -> Separation:
    """Return how well a policy's score tells right from wrong at each exit: on all samples, and within each class.

    All samples count at every exit, those too that would have left before.

    Raises:
        InputError: The policy has no score; see `main_score`.
        TableError: Which answers are right is not known.
        ShapeError: Policy and table do not belong together.

    Example:
        >>> from eenet.schedulers import GeometricScheduler
        >>> from eenet.testing import synthetic_table
        >>> table = synthetic_table(1000)
        >>> separation(GeometricScheduler().fit(table, budget="60%"), table).overall.round(2)
        array([0.65, 0.77, 0.84])
    """
    instance(policy, Policy, "policy").require(instance(table, ExitTable, "table").num_exits, table.num_columns)
    scores, right = main_score(policy).at_exits(table)
    labels = table.labels if table.has_classes else None
    rows = [] if labels is None else [np.flatnonzero(labels == label) for label in range(table.num_columns)]
    exits = range(scores.shape[1])
    by_class = [[auroc(scores[of, k], right[of, k]) for k in exits] for of in rows]
    return Separation(
        overall=np.array([auroc(scores[:, k], right[:, k]) for k in exits]),
        by_class=np.array(by_class, dtype=np.float64).reshape(len(rows), len(exits)),
    )


def auroc(scores: Float[np.ndarray, " sample"], right: Bool[np.ndarray, " sample"]) -> float:
    """Return the chance that a right sample has a larger score than a wrong one, ties counted half, by mid-ranks.

    NaN where there are not both.
    """
    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return float("nan")
    sum_of_ranks = mid_ranks(scores)[right].sum()
    return float((sum_of_ranks - positives * (positives + 1) / 2) / (positives * negatives))


def mid_ranks(values: Float[np.ndarray, " sample"]) -> Float64[np.ndarray, " sample"]:
    """Return ranks from 1 by rising value; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[inverse])


def on_unit_scale(scorer: Scorer, scores: Float32[np.ndarray, " sample"]) -> tuple[Float64[np.ndarray, " sample"], str]:
    """Return scores between 0 and 1, and what they then are: a chance, a share or, of any other score, the rank."""
    values = scores.astype(np.float64)
    if isinstance(scorer, EENetScorer) and scorer.kind == "classes":
        return values.clip(0, 1), "learned score"
    name = getattr(scorer, "confidence", None) if isinstance(scorer, ConfidenceScorer) else None
    if name == "max_prob":
        return 0.5 + 0.5 * np.tanh(values / 2), "largest probability"
    if name in _FRACTIONS:
        return values.clip(0, 1), str(name)
    what = "value of leaving minus that of going on" if isinstance(scorer, StoppingScorer) else "score"
    return (mid_ranks(values) - 0.5) / len(values), f"{what}\nby rank among all samples: 0 lowest, 1 highest"


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreWeights:
    """The weights of a linear score.

    Attributes:
        by_column: What is read once per class or feature, each with weights ``[early exit, class]``.
        named: Everything else that is read, each with weights ``[early exit]``, NaN where an exit does not read it.
        columns: What the columns are: ``class`` or ``feature``.
        share: Share of the samples whose policy has these weights.
        transformed: Whether the exits are read through a transform.
    """

    by_column: Mapping[str, Float64[np.ndarray, "early column"]]
    named: Mapping[str, Float64[np.ndarray, " early"]]
    columns: str
    share: float
    transformed: bool


def score_weights(policy: Policy) -> ScoreWeights:
    """Return the weights of a policy's score, through transforms and mixtures: of EENet, or of optimal stopping.

    Raises:
        InputError: The policy's score has no weights.
    """
    main = main_score(policy)
    scorer, early = main.scorer, main.early_exits
    if isinstance(scorer, EENetScorer):
        by_column, named = _eenet_weights(scorer, early)
    elif isinstance(scorer, StoppingScorer):
        by_column, named = _stopping_weights(scorer, early)
    else:
        raise InputError(
            f"policy that scores by {type(scorer).__name__} has no weights: only scores of EENetScheduler and "
            "StoppingScheduler are sums with weights. Pass a policy of one of these."
        )
    columns = "feature" if scorer.kind == "features" else "class"
    transformed = main.transform is not None
    return ScoreWeights(by_column=by_column, named=named, columns=columns, share=main.share, transformed=transformed)


def _eenet_weights(scorer: EENetScorer, early: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return weights in the order of `exit_features`, then those of earlier scores."""
    columns, weight = scorer.num_columns or 0, scorer.weight[:early]
    classes = scorer.kind == "classes"
    names = ["largest probability", "1 - entropy", "vote"] if classes else ["constant"]
    named = {name: weight[:, columns + i] for i, name in enumerate(names)}
    start = columns + len(names)
    for j in range(early - 1):
        named[f"score of exit {j}"] = np.where(np.arange(early) > j, weight[:, start + j], np.nan)
    return {"probability" if classes else "value": weight[:, :columns]}, named


def _stopping_weights(scorer: StoppingScorer, early: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return weights in the order of `StoppingState`, and the constant."""
    columns, weight, constant = scorer.num_columns or 0, scorer.weight[:early], {"constant": scorer.bias[:early]}
    if scorer.kind == "features":
        return {"value": weight[:, :columns], "its square": weight[:, columns:]}, constant
    by_column = {"probability": weight[:, :columns]}
    named = {"largest probability": weight[:, -2], "sum of p log p": weight[:, -1]} | constant
    if scorer.kind == "curved":
        return by_column | {"its square": weight[:, columns:-2]}, named
    return by_column, {"sum of squares": weight[:, columns]} | named


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Largest probability and share of right answers, in bins of equal width.

    Attributes:
        edges: Of the bins, from 0 to 1.
        count: Samples in each bin.
        confidence: Their mean largest probability, NaN in empty bins.
        accuracy: Their share of right answers, NaN in empty bins.
        error: Expected calibration error of each exit: the mean of ``|accuracy - confidence|`` over samples' bins.
    """

    edges: Float64[np.ndarray, " edge"]
    count: Int[np.ndarray, "exit bin"]
    confidence: Float64[np.ndarray, "exit bin"]
    accuracy: Float64[np.ndarray, "exit bin"]
    error: Float64[np.ndarray, " exit"]


def calibration(table: ExitTable, bins: int = 15) -> Calibration:
    """Return how well the largest probability of each exit tells the chance of being right.

    Args:
        table: With logits and labels.
        bins: Number of bins.

    Raises:
        TableError: The table has no labels, or features in place of logits.
        InputError: ``bins`` is no whole number from 1.

    Source:
        *On Calibration of Modern Neural Networks* (Guo et al., ICML 2017), expected calibration error.
    """
    bins = int(number(bins, "bins", 1, whole=True))
    labels = instance(table, ExitTable, "table").require_labels(
        "calibration", "'utility' does not say which class is right"
    )
    count, sure, right = np.zeros((3, table.num_exits, bins))
    for rows in table.chunks():
        seen = table.seen(rows)
        largest = np.exp(seen.max(axis=2).astype(np.float64)).clip(0, 1)
        correct = seen.argmax(axis=2) == labels[rows, None]
        # a bin holds its upper edge, as in the paper
        place = np.ceil(largest * bins).astype(np.int64).clip(1, bins) - 1
        for k in range(table.num_exits):
            count[k] += np.bincount(place[:, k], minlength=bins)
            sure[k] += np.bincount(place[:, k], weights=largest[:, k], minlength=bins)
            right[k] += np.bincount(place[:, k], weights=correct[:, k], minlength=bins)
    empty = np.where(count > 0, count, np.nan)
    return Calibration(
        edges=np.linspace(0, 1, bins + 1),
        count=count.astype(np.int64),
        confidence=sure / empty,
        accuracy=right / empty,
        error=np.abs(right - sure).sum(axis=1) / table.num_samples,
    )
