"""`CascadeClassifier`: what scikit-learn expects of an estimator, and what a cascade promises."""

from __future__ import annotations

import importlib.util
import io
import warnings
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_breast_cancer, load_digits, make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RepeatedStratifiedKFold, ShuffleSplit
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

from eenet import CascadeClassifier, CostTable, Dial, ScorePolicy, StoppingScheduler, advise, compare
from eenet.errors import BudgetError, InputError, ShapeError
from eenet.estimator.expected import with_expected_costs
from eenet.running.row_ids import row_ids
from eenet.schedulers import GeometricScheduler

FAST = GeometricScheduler()
NO_POLICY = "ignore:.*The last member answers everything"


def pair() -> list[tuple[str, Any]]:
    return [("lr", LogisticRegression()), ("knn", KNeighborsClassifier())]


def made(classes: int = 3, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    return make_classification(count, 6, n_informative=4, n_redundant=0, n_classes=classes, flip_y=0.1, random_state=0)


def small(**changed: Any) -> CascadeClassifier:
    chosen = {"members": pair(), "policy": FAST, "costs": [1, 10], "random_state": 0} | changed
    return CascadeClassifier(**chosen)


class Counting(ClassifierMixin, BaseEstimator):
    """A classifier that counts, over all copies, the rows it is asked about."""

    asked: list[int] = []  # noqa: RUF012

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def fit(self, X: Any, y: Any) -> Counting:
        self.inner_ = clone(self.inner).fit(X, y)
        self.classes_ = self.inner_.classes_
        return self

    def predict(self, X: Any) -> np.ndarray:
        return self.inner_.predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        self.asked.append(len(X))
        return self.inner_.predict_proba(X)


# --- what scikit-learn expects ----------------------------------------------------------------------------------------


def checked(model: CascadeClassifier) -> None:
    """Run every check; none may fail, and those skipped need a package or a setting that is not there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*The last member answers everything")
        warnings.filterwarnings("ignore", message="invalid value encountered in cast")  # by a check, of infinity
        found = check_estimator(model, on_fail=None, on_skip=None)
    assert {one["check_name"]: one["exception"] for one in found if one["status"] == "failed"} == {}
    assert {one["check_name"] for one in found if one["status"] == "skipped"} <= {
        "check_array_api_input",
        "check_classifier_data_not_an_array",
        "check_dataframe_column_names_consistency",
    }
    assert len(found) > 40


def test_every_check_of_scikit_learn_passes(unchecked: None) -> None:
    members = [("nb", GaussianNB()), ("lr", LogisticRegression())]
    checked(small(members=members, calibration=0.4))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"costs": [1, 10]}])
def test_every_check_of_scikit_learn_passes_by_default(settings: dict[str, Any], unchecked: None) -> None:
    members = [("lr", LogisticRegression()), ("rf", RandomForestClassifier(random_state=0))]
    checked(CascadeClassifier(members, budget="80%", **settings))


@pytest.mark.parametrize("classes", [2, 3])
def test_labels_of_any_kind(classes: int) -> None:
    X, y = made(classes)
    names = np.array(["ant", "bee", "cat"])[y]
    by_name, by_number = small().fit(X, names), small().fit(X, y)
    assert by_name.classes_.tolist() == ["ant", "bee", "cat"][:classes]
    assert np.array_equal(by_name.predict(X), np.array(["ant", "bee", "cat"])[by_number.predict(X)])
    probs = by_name.predict_proba(X)
    assert probs.shape == (400, classes)
    assert np.allclose(probs.sum(axis=1), 1)
    assert by_name.score(X, names) > 0.7


def test_settings_of_members_are_reached() -> None:
    model = small().set_params(lr__C=0.5, budget="70%")
    assert model.get_params()["lr__C"] == 0.5
    assert clone(model).members[0][1].C == 0.5
    assert model.set_params(lr=GaussianNB()).members[0][1].__class__ is GaussianNB


def test_a_search_over_budgets_in_a_pipeline() -> None:
    X, y = made()
    model = make_pipeline(StandardScaler(), small())
    search = GridSearchCV(model, {"cascadeclassifier__budget": ["20%", "90%"]}, cv=2).fit(X, y)
    assert search.best_params_["cascadeclassifier__budget"] in ("20%", "90%")
    assert search.best_estimator_[-1].decide(StandardScaler().fit_transform(X)).cost.mean() <= 9.5


def test_users_can_pickle_it() -> None:
    X, y = made()
    model, file = small().fit(X, y), io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    again = joblib.load(file)
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))
    assert np.array_equal(again.set_budget("90%").predict(X), model.set_budget("90%").predict(X))


def test_texts_and_sparse_matrices() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    texts = [" ".join(rng.choice(["good", "fine", "bad"] if label else ["bad", "poor", "good"], 5)) for label in y]
    members = [
        ("words", make_pipeline(TfidfVectorizer(max_features=2), LogisticRegression())),
        ("pairs", make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression())),
    ]
    model = CascadeClassifier(members, policy=FAST, costs=[1, 5], budget="60%", random_state=0).fit(texts, y)
    assert set(model.decide(texts).exit_index) == {0, 1}
    assert np.array_equal(model.predict(texts[:7]), model.predict(texts)[:7])
    assert np.array_equal(model.predict(np.array(texts, dtype=object)), model.predict(texts))
    X = TfidfVectorizer().fit_transform(texts)
    whole = CascadeClassifier(pair(), policy=FAST, costs=[1, 5], random_state=0).fit(X, y)
    assert np.array_equal(whole.predict(X.tocoo()), whole.predict(X))
    assert np.array_equal(whole.decide(X).exit_index, whole.decide(X[::-1]).exit_index[::-1])


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_frames_keep_their_names() -> None:
    import pandas as pd

    X, y = made()
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = small().fit(frame, y)
    assert model.feature_names_in_.tolist() == list("abcdef")
    assert np.array_equal(model.predict(frame), small().fit(X, y).predict(X))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[list("fedcba")])


def test_weights_reach_the_members_that_take_them() -> None:
    X, y = made(2)
    weight = np.where(y == 0, 1.0, 0.0) + 1e-9
    members = [("knn", KNeighborsClassifier()), ("lr", LogisticRegression())]
    model = CascadeClassifier(members, policy=FAST, costs=[1, 2], random_state=0).fit(X, y, sample_weight=weight)
    assert (model.named_members_["lr"].predict(X) == 0).mean() > 0.95
    assert (model.named_members_["knn"].predict(X) == 0).mean() < 0.7
    with pytest.raises(InputError, match="sample_weight"):
        CascadeClassifier([("a", KNeighborsClassifier()), ("b", KNeighborsClassifier())]).fit(
            X, y, sample_weight=weight
        )


# --- what a cascade promises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"calibration": 0.4}, {"cv": 3}, {"policy": StoppingScheduler()}])
def test_later_members_see_only_who_is_left(settings: dict[str, Any]) -> None:
    X, y = made()
    members = [("small", GaussianNB()), ("large", Counting(KNeighborsClassifier()))]
    model = CascadeClassifier(members, **{"policy": FAST, "random_state": 0} | settings, costs=[1, 10]).fit(X, y)
    Counting.asked.clear()
    found = model.decide(X)
    assert Counting.asked == [(found.exit_index == 1).sum()]
    assert 0 < Counting.asked[0] < 400
    assert np.array_equal(found.cost, np.where(found.exit_index == 1, 11.0, 1.0))
    assert model.expected_cost_ == pytest.approx(5)  # half of the last member
    assert model.cost_.mean() == pytest.approx(5, abs=0.7)
    assert len(model.cost_) == (160 if "calibration" in settings else 400)


def test_expected_costs_by_hand() -> None:
    costs = CostTable((1.0, 11.0), "units", 10.0)
    policies = tuple(ScorePolicy("max_prob", [threshold, -np.inf]) for threshold in (-np.inf, 1.0, np.inf))
    dial = Dial(policies=policies, fit_costs=(1.0, 6.0, 11.0), fit_utilities=(0.5, 0.8, 0.9), costs=costs, reason="so")

    def sure(share: float) -> np.ndarray:
        logits = np.zeros((10, 2, 2), dtype=np.float32)
        logits[: round(10 * share), 0, 0] = 3.0
        return logits

    found = with_expected_costs(dial, sure(0.9), [sure(0.8), sure(0.6)])
    # seen samples cost 2 with the members, 3 and 5 with those of the folds: unseen ones 2 less than the 6 of the latter
    assert found.fit_costs == pytest.approx((1.0, 4.0, 11.0))
    assert found.policies == policies
    assert found.reason == "so"
    cheap = with_expected_costs(dial, sure(1.0), [sure(0.0)])  # never less than the first member alone
    assert cheap.fit_costs == (1.0, 11.0)
    assert cheap.fit_utilities == (0.8, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", [DecisionTreeClassifier(max_depth=2), RandomForestClassifier(5, max_depth=3, random_state=0)]
)
def test_the_budget_holds_where_a_member_knows_few_probabilities(first: Any) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    members = [("coarse", first), ("linear", make_pipeline(StandardScaler(), LogisticRegression()))]
    off = []
    for fit, test in RepeatedStratifiedKFold(n_splits=2, n_repeats=10, random_state=0).split(X, y):
        model = CascadeClassifier(members, policy=FAST, costs=[1, 20], budget="30%", random_state=0).fit(X[fit], y[fit])
        off.append(model.decide(X[test]).cost.mean() / model.expected_cost_ - 1)
    assert model.expected_cost_ == pytest.approx(6)
    assert abs(np.mean(off)) < 0.08


def test_policies_by_name_and_costs_by_member() -> None:
    X, y = made()
    named = small(policy="max_prob", costs={"knn": 10, "lr": 1}).fit(X, y)
    assert np.array_equal(named.predict_proba(X), small().fit(X, y).predict_proba(X))
    assert named.costs_.cumulative == (1.0, 11.0)
    assert named.table_.exit_names == ("lr", "knn")
    own = advise(named.table_, resamples=20).statics  # each member at its own cost
    assert [(one.name, one.cost) for one in own] == [("lr alone", 1.0), ("knn alone", 10.0)]
    with pytest.raises(InputError, match=r"'stoping' is unknown: there are auto, .*vote.*Did you mean stopping"):
        small(policy="stoping").fit(X, y)
    with pytest.raises(InputError, match=r"costs of \['lr'\] .* lr, knn"):
        small(costs={"lr": 1}).fit(X, y)


def test_folds_that_leave_samples_out_are_refused() -> None:
    X, y = made()
    with pytest.raises(InputError, match="cv"):
        small(cv=ShuffleSplit(2, random_state=0)).fit(X, y)


def test_replay_is_run() -> None:
    X, y = made()
    fitted = [(name, member.fit(X[:200], y[:200])) for name, member in pair()]
    model = CascadeClassifier(fitted, prefit=True, policy=FAST, costs=[1, 10])
    model.fit(X[200:], y[200:])
    assert model.members_[1] is fitted[1][1]
    for budget in ("30%", "60%", "100%"):
        model.set_budget(budget)
        assert np.array_equal(model.decide(X[200:]).exit_index, model.exit_index_)


def test_fitting_again_gives_the_same() -> None:
    X, y = made()
    model = small()
    first = model.fit(X, y).predict_proba(X)
    assert np.array_equal(model.fit(X, y).predict_proba(X), first)
    assert np.array_equal(clone(model).fit(X, y).predict_proba(X), first)


@pytest.fixture(scope="module")
def digits() -> tuple[CascadeClassifier, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    model = CascadeClassifier([("nb", GaussianNB()), *pair()[1:]], policy=FAST, costs=[1, 10], random_state=0)
    return model.fit(X[:1200], y[:1200]), X[1200:1400]


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(200)), size=st.integers(1, 200))
def test_neither_order_nor_batch_matter(digits: tuple[CascadeClassifier, np.ndarray], order: Any, size: int) -> None:
    model, X = digits
    known = model.decide(X)
    rows = np.array(order[:size])
    found = model.decide(X[rows])
    assert np.array_equal(found.exit_index, known.exit_index[rows])
    assert np.allclose(found.log_probs, known.log_probs[rows], atol=1e-5)


def test_a_budget_is_set_without_fitting() -> None:
    X, y = made()
    model = small(budget="20%").fit(X, y)
    members, low = model.members_, model.cost_.mean()
    assert model.set_budget(8.0) is model
    assert model.budget == 8.0
    assert model.members_ is members
    assert low < 2.5 < 7 < model.cost_.mean() < 8.5
    assert small(budget=8.0).fit(X, y).cost_.mean() == pytest.approx(model.cost_.mean(), abs=0.5)
    with pytest.raises(BudgetError, match=r"10%"):
        model.set_budget("5%")


def test_measured_costs_are_milliseconds_and_the_table_is_there_for_all_else() -> None:
    X, y = made()
    model = CascadeClassifier(pair(), policy=FAST, budget="1s", random_state=0, batch_size=200).fit(X, y)
    assert model.costs_.unit == "ms"
    assert 0 < model.costs_.reference < 1000
    half = np.arange(400) % 2 == 0
    assert compare(model.table_.select(half), model.table_.select(~half), {"fast": FAST}, ["1s"]).area["fast"] > 0.5


@pytest.mark.parametrize("calibration", [None, 0.25])
def test_too_little_to_learn_from_is_said(calibration: float | None) -> None:
    X, y = made()
    model = small(calibration=calibration)
    with pytest.warns(UserWarning, match="80 calibration|20 calibration"):
        model.fit(X[:80], y[:80])
    assert "too few" in model.fallback_
    alone = KNeighborsClassifier().fit(X[:80], y[:80])
    assert np.array_equal(model.predict(X), alone.predict(X))
    assert model.decide(X).exit_index.tolist() == [1] * 400
    assert set(model.decide(X).cost) == {10.0}
    assert model.set_budget("20%").policy_ is None
    assert model.fit(X, y).fallback_ == ""


@pytest.mark.filterwarnings(NO_POLICY)
def test_one_class_is_answered_by_the_last() -> None:
    X, _ = made()
    model = small().fit(X, np.full(400, "only"))
    assert set(model.predict(X)) == {"only"}
    assert model.predict_proba(X).tolist() == [[1.0]] * 400


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "facts"),
    [
        ({"members": pair()[:1]}, InputError, "at least 2"),
        ({"members": [LogisticRegression(), GaussianNB()]}, InputError, "name"),
        ({"members": [("a", GaussianNB()), ("a", GaussianNB())]}, ValueError, "unique"),
        ({"members": [("a__b", GaussianNB()), ("c", GaussianNB())]}, ValueError, "__"),
        ({"members": [("a", GaussianNB()), ("svc", SVC())]}, InputError, "svc.*CalibratedClassifierCV"),
        ({"members": [("a", GaussianNB), ("b", GaussianNB())]}, InputError, "a"),
        ({"prefit": True}, InputError, "lr.*fitted"),
        ({"policy": "best"}, InputError, "best"),
        ({"costs": [1, 2, 3]}, ShapeError, "3"),
        ({"costs": [1, 0]}, InputError, "0"),
        ({"costs": [5, 10], "budget": "40%"}, BudgetError, "50%"),
        ({"budget": "much"}, BudgetError, "much"),
        ({"calibration": 1.5}, InputError, r"1\.5"),
        ({"batch_size": 0}, InputError, "0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_fitted(changed: dict[str, Any], error: type, facts: str) -> None:
    X, y = made()
    model = small().set_params(**changed)
    with pytest.raises(error, match=facts):
        model.fit(X, y)
    assert not hasattr(model, "classes_")


def test_unknown_settings_and_labels_are_refused() -> None:
    X, y = made()
    with pytest.raises(ValueError, match="nothing"):
        small().set_params(nothing__C=1)
    fitted = [(name, member.fit(X, y)) for name, member in pair()]
    with pytest.raises(InputError, match="7"):
        CascadeClassifier(fitted, prefit=True).fit(X, np.where(y == 0, 7, y))
    with pytest.raises(NotFittedError):
        small().predict(X)


def test_a_member_speaks_for_itself() -> None:
    X, y = made()
    model = small().fit(X, y)
    with pytest.raises(ValueError, match="6 features"):
        model.predict(X[:, :4])
    with pytest.raises(ValueError, match="strings"):
        model.predict([["x"] * 6])


def test_no_sample_is_refused_in_any_form() -> None:
    pd = pytest.importorskip("pandas")
    X, y = made(count=200)
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = small().fit(frame, y)
    for none in (frame[:0], X[:0]):
        with pytest.raises(ValueError, match="0 sample"):
            model.predict(none)


def test_weights_that_are_none_are_none() -> None:
    X, y = made(count=200)
    small(members=[("a", KNeighborsClassifier()), ("b", KNeighborsClassifier(9))]).fit(X, y, sample_weight=None)


class Turned(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose classes stand in another order."""

    def __init__(self, inner: Any, order: Any) -> None:
        self.inner, self.order = inner, order
        self.classes_ = inner.classes_[order]

    def fit(self, X: Any, y: Any) -> Turned:
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        return np.asarray(self.inner.predict_proba(X)[:, self.order])


@pytest.mark.parametrize("orders", [([2, 1, 0], [0, 1, 2]), ([0, 1, 2], [1, 2, 0])])
def test_members_that_are_fitted_may_order_their_classes_as_they_like(orders: Any) -> None:
    X, y = made()
    members = ("lr", LogisticRegression()), ("nb", GaussianNB())  # without ties, which the order decides
    inner = [(name, member.fit(X[:200], y[:200])) for name, member in members]
    turned = [(name, Turned(member, order)) for (name, member), order in zip(inner, orders, strict=True)]
    one, other = (small(members=them, prefit=True).fit(X[200:], y[200:]) for them in (inner, turned))
    assert other.classes_.tolist() == orders[1]
    assert np.allclose(other.table_.seen()[:, :, np.argsort(orders[1])], one.table_.seen(), atol=1e-5)
    assert np.array_equal(other.predict(X), one.predict(X))


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_are_those_of_the_content() -> None:
    X = np.array([[0.0, 1, 2], [0, 2, 1], [-0.0, 1, 2], [0, 0, 0], [16, 0, 0], [0, 16, 0]])
    ids = row_ids(X)
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 5
    for same in (X.astype(np.float32), X.astype(int), X.tolist(), sparse.csr_array(X), np.asfortranarray(X)):
        assert np.array_equal(row_ids(same), ids)
    texts = ["a", "b", "a", "ab"]
    assert np.array_equal(row_ids(texts), row_ids(np.array(texts)))
    assert np.array_equal(row_ids(texts), row_ids(np.array(texts, dtype=object)))
    assert np.array_equal(row_ids(texts)[[1, 3]], row_ids(["b", "ab"]))


def test_ids_of_nan_and_of_sparse_sums() -> None:
    with np.errstate(invalid="ignore"):
        computed = np.array([np.inf]) - np.inf  # its sign differs from that of np.nan on some processors
    nan = np.array([[np.nan, 1], [-np.nan, 1], [computed[0], 1]])
    assert len(set(row_ids(nan).tolist())) == 1
    summed = sparse.csr_matrix((np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]), np.array([0, 3])), shape=(1, 2))
    assert np.array_equal(row_ids(summed), row_ids(np.array([[3.0, 3.0]])))
    assert summed.nnz == 3


def test_ids_spread() -> None:
    X = np.random.default_rng(0).integers(0, 17, (5000, 64))
    ids = row_ids(X)
    assert len(set(ids.tolist())) == 5000
