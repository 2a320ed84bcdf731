"""Members of a cascade as scikit-learn fits them: what they are given, and what they say of unseen samples."""

# ruff: noqa: ANN401  # samples and settings are whatever scikit-learn and its users pass

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float32
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils import Bunch, _safe_indexing
from sklearn.utils.validation import _check_method_params, _num_samples, check_is_fitted, has_fit_parameter

from eenet.errors import InputError, RunError
from eenet.tables.checks import logits_of


def are_pairs(members: object) -> bool:
    """Return whether something is a list of pairs."""
    pairs = isinstance(members, list | tuple) and all(isinstance(one, tuple) and len(one) == 2 for one in members)
    return bool(members) and pairs


def check_members(members: Any, *, fitted: bool) -> None:
    """Refuse what is no list of at least two named classifiers with probabilities.

    Raises:
        InputError: It is not; or a member is not fitted, where ``fitted``.
    """
    if not are_pairs(members) or len(members) < 2 or not all(isinstance(name, str) for name, _ in members):
        raise InputError(
            f"members {members!r} are no cascade: at least 2 pairs of a name and a classifier are needed. Pass for "
            "example [('small', LogisticRegression()), ('large', RandomForestClassifier())]."
        )
    for name, member in members:
        if not hasattr(member, "predict_proba") or isinstance(member, type):
            raise InputError(
                f"member {name} of type {type(member).__name__} has no predict_proba: samples leave by probabilities. "
                "Wrap it in CalibratedClassifierCV, or choose its setting that gives them."
            )
        if fitted:
            try:
                check_is_fitted(member)
            except NotFittedError as error:
                raise InputError(
                    f"member {name} is not fitted: with prefit=True members are used as they are. Fit it, or pass "
                    "prefit=False."
                ) from error


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise what a member says of its input as it is, as all estimators of scikit-learn do."""
    try:
        yield
    except RunError as error:
        if isinstance(error.__cause__, ValueError | TypeError):
            raise error.__cause__ from None
        raise


def with_weights(members: Sequence[tuple[str, Any]], params: dict[str, Any]) -> Bunch:
    """Return by member what its fit is given: the sample weights, where it takes them.

    Raises:
        InputError: There are some, and no member takes them.
    """
    takers = [name for name, member in members if has_fit_parameter(member, "sample_weight")]
    if params and not takers:
        raise InputError("sample_weight is of no use: no member takes it. Leave it out.")
    return Bunch(**{name: Bunch(fit=params if name in takers else {}) for name, _ in members})


def out_of_fold(
    members: Sequence[tuple[str, Any]], X: Any, codes: np.ndarray, routed: Bunch, *, cv: Any, seed: int
) -> tuple[Float32[np.ndarray, "sample exit class"], list[Float32[np.ndarray, "_ exit class"]]]:
    """Return what clones of the members say of all samples, each of those on which it was not fitted.

    The same folds for all members. Second: what the clones of each fold say of the samples on which they were fitted.

    Raises:
        InputError: The test parts of the folds do not have every sample once.
    """
    folds = StratifiedKFold(cv, shuffle=True, random_state=seed) if isinstance(cv, int) else check_cv(cv, codes)
    splits = list(folds.split(X, codes))
    if not np.array_equal(np.sort(np.concatenate([test for _, test in splits])), np.arange(len(codes))):
        raise InputError(
            f"cv {cv!r} does not fit: every sample has to be in the test part of one fold. Use StratifiedKFold, or "
            "pass calibration=0.25."
        )
    classes, seen = int(codes.max()) + 1, []
    unseen = np.empty((len(codes), len(members), classes), dtype=np.float32)
    for train, test in splits:
        own = list(fitted(members, X, codes, routed, train).values())
        unseen[test] = said(own, _safe_indexing(X, test), classes)
        seen.append(said(own, _safe_indexing(X, train), classes))
    return unseen, seen


def said(members: Sequence[Any], X: Any, classes: int) -> Float32[np.ndarray, "sample exit class"]:
    """Return what fitted members say of samples, as log-probabilities; a class that one was not fitted on has none."""
    probs = np.zeros((_num_samples(X), len(members), classes))
    for k, member in enumerate(members):
        probs[:, k, member.classes_] = member.predict_proba(X)
    return logits_of(probs)


def fitted(
    members: Sequence[tuple[str, Any]], X: Any, codes: np.ndarray, routed: Bunch, rows: np.ndarray | None
) -> Bunch:
    """Return clones of the members by name, fitted on some samples; None: on all."""
    found = Bunch()
    some, labels = (X, codes) if rows is None else (_safe_indexing(X, rows), codes[rows])
    for name, member in members:
        found[name] = clone(member).fit(some, labels, **_check_method_params(X, routed[name].fit, indices=rows))
    return found
