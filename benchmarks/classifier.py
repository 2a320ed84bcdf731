"""Whether `CascadeClassifier` keeps its budget, and what its `predict` costs beside the members.

Two data sets that scikit-learn brings, a cascade of three each, split into random halves again and again, each half
for fitting once and for judging once, so that what the draw of a half does cancels in the mean: the mean cost of new
samples beside what is expected (the budget, unless the policy has no use for it), accuracy beside that of the members
alone, and the time of ``predict_proba`` beside that of the same members called for the same samples. Limits: in the
mean of the splits within 2 % of the budget, every split within 3 standard errors, and 10 % more time than the members
at 1,000 rows.

    python benchmarks/classifier.py --work runs/classifier    # writes docs/results/classifier.md
    python benchmarks/classifier.py --splits 3 --json

What is in the folder of ``--work`` already is not measured again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, command_line, given, log, row, show
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from eenet import CascadeClassifier
from eenet.experiments.pages import again, kept, machine, write_page
from eenet.report import markdown_table

CLOCK = time.process_time  # on one thread the same share as by the wall clock, whatever else the machine does
COSTS = (1, 2, 20)  # of each member by itself: measured times would bring in the chance of the machine's load
IN_MEAN, OF_ONE, MORE_TIME = 0.02, 3.0, 0.10


def digits(seed: int) -> list[tuple[str, Any]]:
    """Return a cascade for the digits."""
    return [
        ("naive Bayes", GaussianNB()),
        ("logistic regression", make_pipeline(StandardScaler(), LogisticRegression())),
        ("extra trees", ExtraTreesClassifier(random_state=seed)),
    ]


def breast_cancer(seed: int) -> list[tuple[str, Any]]:
    """Return a cascade for the breast cancer data: two measurements of a cell, five, all 30."""
    return [
        ("2 columns", make_pipeline(make_column_transformer((StandardScaler(), [0, 1])), LogisticRegression())),
        ("5 columns", make_pipeline(make_column_transformer((StandardScaler(), [*range(5)])), LogisticRegression())),
        ("support vectors", make_pipeline(StandardScaler(), CalibratedClassifierCV(SVC()))),
    ]


def small_tree(seed: int) -> list[tuple[str, Any]]:
    """Return a cascade that begins with a tree of four leaves."""
    return [("tree", DecisionTreeClassifier(max_depth=2, random_state=seed)), *breast_cancer(seed)[1:]]


def five_trees(seed: int) -> list[tuple[str, Any]]:
    """Return a cascade that begins with a forest of five small trees."""
    forest = RandomForestClassifier(5, max_depth=3, random_state=seed)
    return [("five trees", forest), *breast_cancer(seed)[1:]]


SETS: dict[str, tuple[Callable[..., Any], Callable[[int], list[tuple[str, Any]]], dict[str, Any]]] = {
    "digits": (load_digits, digits, {}),
    "breast cancer": (load_breast_cancer, breast_cancer, {}),
    "breast cancer, small tree": (load_breast_cancer, small_tree, {}),
    "breast cancer, five trees": (load_breast_cancer, five_trees, {}),
    "the same, calibration=0.5": (load_breast_cancer, five_trees, {"calibration": 0.5}),
}


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--splits", type=int, default=20, help="fits; two of the same halves")
    parser.add_argument("--budget", default="30%", help="mean cost per sample")
    parser.add_argument("--rows", type=int, default=1000, help="samples per timed call")
    parser.add_argument("--passes", type=int, default=40, help="timed calls")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--json", action="store_true", help="print JSON, and write no page")
    parser.add_argument("--work", type=Path, help="folder that keeps the measurements of every data set")
    parser.add_argument("--only", choices=tuple(SETS), help="measure this one only, and write no page")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = given(parser, argv)
    found = {name: known(name, options) for name in ([options.only] if options.only else SETS)}
    rows = [one for name, values in found.items() for one in limits(name, values)]
    show(rows, as_json=options.json, **{name.replace(" ", "_"): values for name, values in found.items()})
    if not (options.json or options.only):
        write_page(options.out / "classifier.md", *page(found, options))


def known(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured on a data set, now or before."""
    if options.work is None:
        return measured(name, options)
    options.work.mkdir(parents=True, exist_ok=True)
    return kept(options.work / f"{name}.json", partial(measured, name, options), log)


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what every split gave, and the times on the last one."""
    load, members, settings = SETS[name]
    X, y = load(return_X_y=True)
    halves = RepeatedStratifiedKFold(n_splits=2, n_repeats=math.ceil(options.splits / 2), random_state=options.seed)
    splits = []
    for seed, (fit, test) in enumerate(halves.split(X, y), options.seed):
        log(f"{name}, split {seed}")
        model = CascadeClassifier(members(seed), budget=options.budget, costs=COSTS, random_state=seed, **settings)
        model.fit(X[fit], y[fit])
        test_X = X[test]
        splits.append(one_split(model, test_X, y[test], options.budget))
    times = overhead(model, np.resize(test_X, (options.rows, test_X.shape[1])), options.passes)
    return {"members": list(model.named_members_), "test": len(test_X), "splits": splits, **times}


def one_split(model: CascadeClassifier, X: np.ndarray, y: np.ndarray, budget: str) -> dict[str, Any]:
    """Return how far the mean cost of new samples is from what is expected, and the accuracies."""
    asked, expected = model.costs_.budget(budget).value, model.expected_cost_
    cost, known = model.decide(X).cost, model.cost_
    noise = np.concatenate([cost, known]).std() * math.sqrt(1 / len(cost) + 1 / len(known))
    alone = [float((model.classes_[member.predict(X)] == y).mean()) for member in model.members_]
    return {
        "off": float(cost.mean() / expected - 1),
        "errors": float((cost.mean() - expected) / noise),
        "saved": expected < asked * (1 - 1e-6),
        "accuracy": float(model.score(X, y)),
        "alone": alone,
        "costs": list(model.costs_.cumulative),
        "reference": model.costs_.reference,
        "left": np.bincount(model.decide(X).exit_index, minlength=len(alone)).tolist(),
    }


def overhead(model: CascadeClassifier, X: np.ndarray, passes: int) -> dict[str, Any]:
    """Return milliseconds of a call, and of the members alone, each called for the samples that come to it."""
    left = model.decide(X).exit_index
    parts = [(member, X[left >= k]) for k, member in enumerate(model.members_) if (left >= k).any()]
    cascade, bare = [], []
    for _ in range(passes):
        began = CLOCK()
        for member, part in parts:
            member.predict_proba(part)
        between = CLOCK()
        model.predict_proba(X)
        bare.append(1e3 * (between - began))
        cascade.append(1e3 * (CLOCK() - between))
    last = []
    for _ in range(passes):
        began = CLOCK()
        model.members_[-1].predict_proba(X)
        last.append(1e3 * (CLOCK() - began))
    return {
        "cascade_ms": float(np.median(cascade)),
        "bare_ms": float(np.median(bare)),
        "last_ms": float(np.median(last)),
    }


def limits(name: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the measurements beside the limits."""
    splits = values["splits"]
    worst = max(abs(one["errors"]) for one in splits)
    more = values["cascade_ms"] / values["bare_ms"] - 1
    return [
        row(f"{name}: off the budget, mean", "%", 100 * abs(mean(splits, "off")), 100 * IN_MEAN),
        row(f"{name}: off the budget, worst split", "standard errors", worst, OF_ONE),
        row(f"{name}: more time than the members", "%", 100 * more, 100 * MORE_TIME),
    ]


def mean(splits: list[dict[str, Any]], key: str) -> float:
    """Return the mean of a value over the splits."""
    return float(np.mean([one[key] for one in splits]))


def page(found: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Return the parts of the page."""
    cells, timed = [], []
    for name, values in found.items():
        splits = values["splits"]
        off = [100 * one["off"] for one in splits]
        alone = np.mean([one["alone"] for one in splits], axis=0)
        cells.append(
            (
                name,
                ", ".join(values["members"]),
                f"{np.mean(off):+.1f} % (sd {np.std(off, ddof=1):.1f})",
                f"{max(abs(one['errors']) for one in splits):.1f}",
                str(sum(one["saved"] for one in splits)),
                f"{100 * mean(splits, 'accuracy'):.1f} %",
                ", ".join(f"{100 * one:.1f} %" for one in alone),
            )
        )
        timed.append(
            (
                name,
                f"{values['last_ms']:.1f}",
                f"{values['bare_ms']:.1f}",
                f"{values['cascade_ms']:.1f}",
                f"{100 * (values['cascade_ms'] / values['bare_ms'] - 1):.0f} %",
            )
        )
    return [
        "# CascadeClassifier: budget, accuracy and time\n\n"
        f"A budget of {options.budget} of the last member alone, policy `auto`, costs of {', '.join(map(str, COSTS))} "
        f"for the three members; {options.splits} splits into halves for fitting and for judging; every half is both "
        "once. All but the last calibrate on out-of-fold outputs, the default. *Off the budget*: by how much the mean "
        "cost of new samples differs from it, with the standard deviation over splits; *worst split*: in standard "
        "errors of that difference, of the calibration samples and the new ones together; *saved*: in how many splits "
        "the policy has no use for the whole budget, so that the cost is held against `expected_cost_`.",
        markdown_table(
            ("data", "members", "off the budget", "worst split", "saved", "accuracy", "members alone"), cells
        ),
        f"## Time\n\nOf a call of `predict_proba` with {options.rows} rows, in ms of processor time on one thread, "
        f"medians of {options.passes}: the last member for all rows; the members, each for the rows that come to it; "
        "and the cascade, which does the same and decides.",
        markdown_table(("data", "last member", "members", "cascade", "more than the members"), timed),
        machine(),
        again("python benchmarks/classifier.py --work runs/classifier"),
    ]


if __name__ == "__main__":
    main()
