"""`CascadeClassifier`: a cascade that is fitted, searched and piped as any estimator of scikit-learn."""

# ruff: noqa: ANN401  # samples, labels and settings are whatever scikit-learn and its users pass

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import Bunch, _safe_indexing, check_array, check_random_state, get_tags, indexable
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    _raise_for_params,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _num_samples, check_consistent_length, check_is_fitted, column_or_1d, validate_data

from eenet.errors import InputError, ShapeError
from eenet.estimator.expected import with_expected_costs
from eenet.estimator.members import are_pairs, check_members, fitted, out_of_fold, own_errors, said, with_weights
from eenet.imports import known
from eenet.policies import Replayer
from eenet.running import Prediction, cascade
from eenet.running.latency import measure_latency
from eenet.running.loop import Loop
from eenet.running.recording import outputs
from eenet.running.row_ids import row_ids
from eenet.schedulers import Scheduler
from eenet.schedulers.base import LEAST_SAMPLES
from eenet.schedulers.names import POLICIES
from eenet.schedulers.names import scheduler as by_name
from eenet.tables import CostTable, ExitTable
from eenet.tables.arrays import axes_of
from eenet.tables.checks import listed, logits_of, number
from eenet.tables.costs import BudgetLike, standard_budgets

_LEAST = 2 * LEAST_SAMPLES  # with fewer, the mean cost of new samples is uncertain by over 5 % of what exits differ by
_MADE = ("costs_", "cascade_", "table_", "dial_", "policy_", "expected_cost_")
_FITTED = (*_MADE, "calibration_rows_", "exit_index_", "cost_", "_ids")
_PASSES = 5  # timed, of every member


def _is_plain(X: Any) -> bool:
    """Return whether something is an array of finite numbers ``[sample, feature]``."""
    if not (type(X) is np.ndarray and X.ndim == 2 and X.size and X.dtype.kind in "fiub"):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(X, axis=None)))  # NaN and infinity stay in a sum


class CascadeClassifier(ClassifierMixin, _BaseComposition):  # type: ignore[misc]  # scikit-learn has no types
    """Classifiers, the least expensive one first, of which each is asked only about samples that no earlier answered.

    `fit` fits the members, measures what they cost, and learns where samples leave, so that the mean cost per sample
    is the budget. `predict` and `predict_proba` call a member only for the samples that are left.

    The default calibrates on out-of-fold outputs, as `CalibratedClassifierCV` and `StackingClassifier` do: members are
    fitted on all samples, and the policy on all of them too. A share that is held out costs one fit per member in place
    of ``cv + 1``, and both members and policy have fewer samples to learn from.

    What a sample is answered with depends on its content only, not on the other samples or their order: where a policy
    tosses a coin, it does so by a hash of the row.

    With fewer than 100 calibration samples, or of one class, there is nothing to learn a policy from: `fit` warns, and
    the last member alone is fitted and answers everything (`fallback_`).

    Args:
        members: At least two pairs of a name and a classifier with ``predict_proba``.
        budget: A mean cost per sample: ``"30%"`` of the last member alone, ``"0.2ms"``, or a number in the unit of the
            costs.
        policy: A name, such as ``"stopping"`` or ``"auto"``, which chooses by cross-validation; or a `Scheduler`.
        calibration: Share of the samples that is held out for the policy, stratified; members are fitted on the others.
            None: out-of-fold outputs of all samples, by ``cv``.
        cv: Number of folds (stratified, at random), or a splitter or splits of scikit-learn.
        costs: What each member costs by itself, per sample, in any unit: in the order of the members, or by their
            names; None: the time of ``predict_proba`` is measured.
        prefit: The members are fitted already, and are used as they are: all samples given to `fit` are calibration
            samples, which the members must not have seen.
        batch_size: Samples per call at which members are timed.
        random_state: Of folds, and of all that a scheduler named by ``policy`` draws. Members have their own.

    Attributes:
        classes_: The labels, sorted; with ``prefit`` in the order of the last member.
        n_features_in_: Number of features, where the samples have some.
        feature_names_in_: Their names, where the samples are a frame.
        members_: The fitted members; they were fitted on, and answer with, the numbers of the classes. Only the last
            one in a fallback.
        named_members_: The same by name.
        fallback_: Why the last member answers everything; empty: the cascade does.
        costs_: What leaving after each member costs, with the last member alone as reference. This and all below is
            None in a fallback.
        cascade_: The engine.
        table_: The outputs of all members for the calibration samples: `compare`, `advise` and `certify` take it.
        calibration_rows_: Which of the samples given to `fit` these are.
        dial_: Policies for all budgets.
        policy_: The policy for the budget.
        expected_cost_: What new samples are expected to cost in the mean: the budget, or less where no policy spends
            that much.
        exit_index_: After which member each calibration sample leaves, from 0, by outputs of members that had not seen
            it: by default those of the folds.
        cost_: What that costs.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.ensemble import RandomForestClassifier
        >>> from sklearn.naive_bayes import GaussianNB
        >>> X, y = load_digits(return_X_y=True)
        >>> small, large = GaussianNB(), RandomForestClassifier(random_state=0)
        >>> model = CascadeClassifier([("bayes", small), ("forest", large)], costs=[1, 40], random_state=0).fit(X, y)
        >>> model.set_budget("20%").predict(X[:3])
        array([0, 1, 2])
        >>> model.expected_cost_
        8.0
    """

    def __init__(
        self,
        members: Any,
        *,
        budget: Any = "50%",
        policy: Any = "auto",
        calibration: Any = None,
        cv: Any = 5,
        costs: Any = None,
        prefit: Any = False,
        batch_size: Any = 1000,
        random_state: Any = None,
    ) -> None:
        self.members = members
        self.budget = budget
        self.policy = policy
        self.calibration = calibration
        self.cv = cv
        self.costs = costs
        self.prefit = prefit
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any, **params: Any) -> CascadeClassifier:
        """Fit the members, measure their costs, and learn where samples leave.

        Args:
            X: What the members take: an array, a sparse matrix, a frame, or a list such as of texts.
            y: The label of every sample.
            params: ``sample_weight``, for the members that take it; with the metadata routing of scikit-learn, what
                was requested. The policy counts every sample once.

        Raises:
            InputError: A setting is wrong, a member has no ``predict_proba``, or is not fitted where it should be.
            BudgetError: The budget is below the cost of the first member.
        """
        params = {name: value for name, value in params.items() if value is not None}
        _raise_for_params(params, self, "fit", allow=["sample_weight"])
        self._check_settings()
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        scheduler = by_name(self.policy, seed) if isinstance(self.policy, str) else self.policy
        self._takes: tuple[bool, bool] | None = None
        takes = get_tags(self).input_tags
        self._takes = takes.sparse, takes.allow_nan  # asking all members takes longer than many predictions
        X = self._batch(X)
        validate_data(self, X, y, skip_check_array=True)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        codes, routed = self._encoded(y), self._routed(params)
        for name in _FITTED:  # of an earlier fit
            setattr(self, name, None)
        self.fallback_ = self._reason(len(codes))
        if self.fallback_:
            warnings.warn(f"{self.fallback_} The last member answers everything.", UserWarning, stacklevel=2)
            self._take(self.members[-1:], X, codes, routed)
            return self
        self.calibration_rows_, logits, seen_by_folds = self._calibrated(X, codes, routed, seed)
        own = _safe_indexing(X, self.calibration_rows_)
        self.costs_ = self._cost_table(own)
        asked = self.costs_.budget(self.budget)
        names = tuple(name for name, _ in self.members)
        labels = codes[self.calibration_rows_]
        self.table_ = ExitTable(logits=logits, labels=labels, costs=self.costs_, exit_names=names)
        self._ids = row_ids(own)
        dial = scheduler.sweep(self.table_, budgets=[*standard_budgets(self.costs_), asked])
        seen = said(self.members_, X, len(self.classes_)) if seen_by_folds else None
        self.dial_ = dial if seen is None else with_expected_costs(dial, seen, seen_by_folds)
        self._turn(asked)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of every sample."""
        probs = self.predict_proba(X)
        return np.asarray(self.classes_[probs.argmax(axis=1)])

    def predict_proba(self, X: Any) -> Float64[np.ndarray, "sample class"]:
        """Return the probabilities of `classes_`, of the members up to that after which a sample leaves.

        They are those of that member, unless the policy combines several.
        """
        log_probs = self.decide(X).log_probs
        assert log_probs is not None
        return np.exp(log_probs.astype(np.float64))

    def decide(self, X: Any) -> Prediction:
        """Return the answers with the member that gave each, and what it cost.

        Raises:
            RunError: A member fails; what it says of its input is raised as it is.
        """
        check_is_fitted(self)
        X = self._batch(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        if self.fallback_:
            return self._last_alone(X)
        loop = Loop(self.cascade_, self.policy_)
        with own_errors():
            loop.feed(X, row_ids(X))
        return loop.finish(np.array(self.costs_.cumulative))

    def set_budget(self, budget: BudgetLike) -> CascadeClassifier:
        """Turn the fitted cascade to another budget, without fitting again, and return it.

        Raises:
            BudgetError: The budget cannot be read, or is below the cost of the first member.
        """
        check_is_fitted(self)
        if not self.fallback_:
            self._turn(budget)
        self.budget = budget
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings; deep: with those of the members, as ``name__setting``."""
        return dict(self._get_params("members", deep=deep))

    def set_params(self, **params: Any) -> CascadeClassifier:
        """Change settings, or those of members by ``name__setting``; the next `fit` heeds them."""
        self._set_params("members", **params)
        return self

    def get_metadata_routing(self) -> MetadataRouter:
        """Return who asks for what metadata: every member for its fit."""
        router = MetadataRouter(owner=self)
        for name, member in self.members:
            router.add(**{name: member}, method_mapping=MethodMapping().add(callee="fit", caller="fit"))
        return router

    def __sklearn_tags__(self) -> Any:
        """Return what the estimator takes: what all members take."""
        tags = super().__sklearn_tags__()
        if (known := getattr(self, "_takes", None)) is None and are_pairs(self.members):
            own = [get_tags(member).input_tags for _, member in self.members]
            known = all(one.sparse for one in own), all(one.allow_nan for one in own)
        if known is not None:
            tags.input_tags.sparse, tags.input_tags.allow_nan = known
        return tags

    # --- what `fit` consists of ---------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """Refuse what is wrong before any member is fitted."""
        check_members(self.members, fitted=self.prefit)
        self._validate_names([name for name, _ in self.members])
        if isinstance(self.policy, str):
            known("policy", self.policy, POLICIES)
        elif not isinstance(self.policy, Scheduler):
            raise InputError(
                f"policy {self.policy!r} is none: a name or a Scheduler is needed. Pass one of {', '.join(POLICIES)}, "
                "or for example StoppingScheduler()."
            )
        if self.calibration is not None:
            number(self.calibration, "calibration", above=0, below=1)
        number(self.batch_size, "batch_size", 1, whole=True)
        if self.costs is not None:
            self._given_costs().budget(self.budget)

    def _batch(self, X: Any) -> Any:
        """Return samples in a form from which some can be taken by number; refuse arrays that a member would refuse.

        Members do not see the samples that left earlier, so that they cannot refuse all that they would.
        """
        if _is_plain(X):  # what follows finds nothing, and takes long beside members that take little
            return X
        (found,) = indexable(X)
        if isinstance(found, list) and axes_of(found) == 2:
            found = np.asarray(found)
        if issparse(found) or (isinstance(found, np.ndarray) and found.dtype.kind in "fiubc"):
            sparse, nan = self._takes or (False, False)
            finite = "allow-nan" if nan else True
            check_array(found, accept_sparse=sparse, dtype=None, allow_nd=True, ensure_all_finite=finite)
        if not _num_samples(found):
            raise InputError("X of 0 samples cannot be used: there is nothing to answer. Pass at least 1.")
        return found

    def _given_costs(self) -> CostTable:
        """Return the costs of leaving after each member, from what each costs by itself."""
        given = self.costs
        if isinstance(given, Mapping):
            names = [name for name, _ in self.members]
            if set(given) != set(names):
                raise InputError(
                    f"costs of {list(given)} do not fit: the members are {', '.join(names)}. Give what each costs by "
                    "itself."
                )
            given = [given[name] for name in names]
        values = [float(number(cost, "costs", above=0)) for cost in listed(given, "costs")]
        if len(values) != len(self.members):
            raise ShapeError(
                f"costs of {len(values)} members do not fit: there are {len(self.members)}. Give what each costs by "
                "itself."
            )
        return CostTable(tuple(accumulate(values)), "units", values[-1])

    def _cost_table(self, X: Any) -> CostTable:
        """Return what leaving after each member costs: as given, else as measured."""
        if self.costs is not None:
            return self._given_costs()
        with own_errors():
            (timed,) = measure_latency(self.cascade_, X, batch_sizes=(self.batch_size,), passes=_PASSES, progress=False)
        return timed.costs()

    def _encoded(self, y: np.ndarray) -> Int[np.ndarray, " sample"]:
        """Return the numbers of the labels, and note their names."""
        check_classification_targets(y)
        if not self.prefit:
            encoder = LabelEncoder().fit(y)
            self.classes_ = encoder.classes_
            return np.asarray(encoder.transform(y), dtype=np.int64)
        self.classes_ = np.asarray(self.members[-1][1].classes_)
        known = {label: i for i, label in enumerate(self.classes_.tolist())}
        strange = next((label for label in y.tolist() if label not in known), None)
        if strange is not None:
            raise InputError(f"label {strange!r} is no class of the last member: it knows {list(known)}. Correct it.")
        return np.array([known[label] for label in y.tolist()], dtype=np.int64)

    def _routed(self, params: dict[str, Any]) -> Bunch:
        """Return by member what its fit is given."""
        if self.prefit and params:
            raise InputError("sample_weight is of no use: with prefit=True no member is fitted. Leave it out.")
        return process_routing(self, "fit", **params) if _routing_enabled() else with_weights(self.members, params)

    def _reason(self, count: int) -> str:
        """Return why so many samples are nothing to learn a policy from; empty: they are."""
        if len(self.classes_) < 2:
            return "y has one class: there is nothing to choose."
        used = count if self.calibration is None or self.prefit else int(count * self.calibration)
        if used < _LEAST:
            return f"{used} calibration samples are too few to learn where to leave: {_LEAST} are needed."
        return ""

    def _calibrated(
        self, X: Any, codes: np.ndarray, routed: Bunch, seed: int
    ) -> tuple[Int[np.ndarray, " row"], Float32[np.ndarray, "sample exit class"], list[np.ndarray]]:
        """Fit the members, and return the calibration samples with what members say that were not fitted on them.

        Third, where these are members of folds: what those of each fold say of the samples on which they were fitted.
        """
        rows = np.arange(len(codes))
        if self.calibration is None and not self.prefit:
            logits, seen_by_folds = out_of_fold(self.members, X, codes, routed, cv=self.cv, seed=seed)
            self._take(self.members, X, codes, routed)
            return rows, logits, seen_by_folds
        train = rows
        if not self.prefit:
            train, rows = train_test_split(rows, test_size=self.calibration, stratify=codes, random_state=seed)
        self._take(self.members, X, codes, routed, np.sort(train))
        with own_errors():
            return np.sort(rows), outputs(self.cascade_, _safe_indexing(X, np.sort(rows))), []

    def _take(self, members: Any, X: Any, codes: np.ndarray, routed: Bunch, rows: np.ndarray | None = None) -> None:
        """Fit members on some samples, default: all; those that are fitted already stay as they are."""
        self.named_members_ = Bunch(**dict(members)) if self.prefit else fitted(members, X, codes, routed, rows)
        self.members_ = list(self.named_members_.values())
        if len(members) > 1:
            self.cascade_ = cascade(list(self.named_members_.items()))

    def _turn(self, budget: BudgetLike) -> None:
        """Take the policy for a budget, and note what it does with the calibration samples."""
        self.policy_ = self.dial_.at(budget)
        least, *_, most = self.dial_.fit_costs * 2  # it may have one policy only
        self.expected_cost_ = min(max(self.costs_.budget(budget).value, least), most)
        replayer = Replayer(self.table_)
        self.exit_index_ = replayer.exit_index(self.policy_, sample_ids=self._ids)
        self.cost_ = replayer.cost(self.exit_index_)

    def _last_alone(self, X: Any) -> Prediction:
        """Return the answers of the last member."""
        probs = np.asarray(self.members_[-1].predict_proba(X))
        log_probs, last = logits_of(probs[:, None])[:, 0], len(self.members) - 1
        cost = None if self.costs is None else np.full(len(probs), self._given_costs().full)
        stops = np.full(len(probs), last)
        return Prediction(exit_index=stops, log_probs=log_probs, outputs=log_probs, cost=cost)
