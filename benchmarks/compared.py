"""The same cascades of scikit-learn classifiers, chosen by scikit-fallback and by `CascadeClassifier`.

scikit-fallback 0.2 (``ThresholdCascadeClassifierCV``) searches a grid of ten thresholds per member by cross-validation;
of the settings within a mean cost it takes the most accurate. Both get the same members, the same costs and the same
budgets, on random halves of two data sets that scikit-learn brings: fitted on one, judged on the other, and the other
way round. What counts is accuracy and mean cost on the samples that were not seen.

    pip install --no-deps scikit-fallback==0.2.0.post1
    python benchmarks/compared.py --work runs/compared    # writes docs/results/compared.md

What is in the folder of ``--work`` already is not measured again.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from classifier import COSTS, SETS
from common import RESULTS, command_line, given, log
from sklearn.base import clone
from sklearn.model_selection import RepeatedStratifiedKFold

from eenet import CascadeClassifier
from eenet.experiments import pages
from eenet.report import markdown_table

DATA = ("digits", "breast cancer")
BUDGETS = (0.15, 0.3, 0.6)  # of the last member alone
CUMULATIVE = np.cumsum(COSTS)  # what it costs to be answered by each member


def main() -> None:
    """Measure what is not in the folder yet, then write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of what was measured")
    parser.add_argument("--splits", type=int, default=10, help="random halvings; each half is fitted on once")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=0)
    options = given(parser)
    options.work.mkdir(parents=True, exist_ok=True)
    found = {
        name: pages.kept(options.work / f"{name.replace(' ', '_')}.json", partial(measured, name, options), log)
        for name in DATA
    }
    log(f"wrote {page(found, options)}")


def measured(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return accuracy, cost and seconds of fitting of all, for every budget and half."""
    load, members, _ = SETS[name]
    X, y = load(return_X_y=True)
    halves = RepeatedStratifiedKFold(n_splits=2, n_repeats=options.splits, random_state=options.seed)
    found = []
    for split, (fitted, judged) in enumerate(halves.split(X, y)):
        log(f"{name}, half {split + 1} of {2 * options.splits}")
        for way, make in WAYS.items():
            began = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                at = make(members(split), X[fitted], y[fitted], split)
                seconds = time.process_time() - began
                for budget in BUDGETS:
                    labels, exits = at(budget, X[judged])
                    share = float(CUMULATIVE[exits].mean()) / COSTS[-1]
                    accuracy = float((labels == y[judged]).mean())
                    found.append(
                        {"way": way, "budget": budget, "accuracy": accuracy, "share": share, "seconds": seconds}
                    )
    return found


def fallback(
    members: list[tuple[str, Any]], X: np.ndarray, y: np.ndarray, seed: int, grid: np.ndarray | None = None
) -> Callable[[float, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return what answers by scikit-fallback: from a budget and new samples to labels and exits."""
    from skfb.ensemble import ThresholdCascadeClassifierCV

    model = ThresholdCascadeClassifierCV(
        [clone(member) for _, member in members],
        costs=CUMULATIVE.tolist(),  # it counts that of the answering member only
        cv_thresholds=grid,
        max_cost=BUDGETS[-1] * COSTS[-1],
        strategy="min_score",  # the most accurate within the budget
    ).fit(X, y)

    def at(budget: float, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model.set_params(max_cost=budget * COSTS[-1])
        labels = model.predict(new)
        return np.asarray(labels), np.asarray(labels.ensemble_mask.toarray()).argmax(axis=1)

    return at


def ours(
    members: list[tuple[str, Any]], X: np.ndarray, y: np.ndarray, seed: int
) -> Callable[[float, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return what answers by eenet: from a budget and new samples to labels and exits."""
    model = CascadeClassifier(members, costs=COSTS, random_state=seed).fit(X, y)

    def at(budget: float, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = model.set_budget(f"{100 * budget:g}%").decide(new)
        return model.classes_[found.log_probs.argmax(axis=1)], found.exit_index

    return at


FINE = 1 - np.geomspace(0.9, 1e-4, 10)  # ten thresholds, too, but up to where naive Bayes is sure
WAYS: dict[str, Callable[..., Any]] = {
    "scikit-fallback": fallback,
    "scikit-fallback, thresholds up to 0.9999": partial(fallback, grid=FINE),
    "eenet": ours,
}


def page(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> Path:
    """Write the page."""
    rows = []
    for name, runs in found.items():
        for budget in BUDGETS:
            values = {
                way: {
                    key: np.array([one[key] for one in runs if one["way"] == way and one["budget"] == budget])
                    for key in ("accuracy", "share", "seconds")
                }
                for way in WAYS
            }
            for way, value in values.items():
                gap = 100 * (values["eenet"]["accuracy"] - value["accuracy"])
                error = 1.96 * gap.std(ddof=1) / math.sqrt(len(gap))
                cells = [name, f"{budget:.0%}", way, f"{value['accuracy'].mean():.2%}", f"{value['share'].mean():.1%}"]
                beside = "" if way == "eenet" else f"{gap.mean():+.2f} ± {error:.2f}"
                rows.append((*cells, beside, f"{value['seconds'].mean():.1f}"))
    head = ("data", "budget", "by", "accuracy", "cost", "eenet minus it [points]", "fit [CPU s]")
    return pages.write_page(
        options.out / "compared.md",
        "# The same cascades, by scikit-fallback and by eenet",
        markdown_table(head, rows),
        "Accuracy and mean cost on samples that were not seen, cost and budget as a share of the last member alone. "
        f"Members cost {', '.join(map(str, COSTS))}. Means over {2 * options.splits} halves; the difference in points, "
        "with the 95 % interval of halves taken as independent, which they are not quite: it is too narrow rather than "
        "too wide. scikit-fallback takes the most accurate of its grid within the budget (``max_cost``, with the "
        "strategy ``min_score``); the second row of each has another grid of ten thresholds. eenet mixes two policies "
        "where the budget lies between them. The digits begin with naive Bayes, which is surer of most answers than "
        "either grid reaches, so that scikit-fallback cannot spend more there: that is the limit of a grid of "
        "probabilities, and smaller with members whose probabilities are moderate, as those of the breast cancer data.",
        pages.again(f"python benchmarks/compared.py --work runs/compared --splits {options.splits}"),
        pages.machine(),
    )


if __name__ == "__main__":
    main()
