"""Tables and schedulers small enough to be followed by hand."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from eenet.policies.dial import Dial
from eenet.policies.mixture import MixedPolicy, coin
from eenet.policies.policy import Policy, ScorePolicy
from eenet.policies.scorers import ConfidenceScorer
from eenet.schedulers.base import Scheduler
from eenet.tables.arrays import log_softmax
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

NEVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class Fixed(Scheduler):
    """Returns the same thresholds on max_prob whatever the budget."""

    thresholds: tuple[float, ...]
    fit_cost: float = 1.25

    def dial(self, table, budgets):
        policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([*self.thresholds, -NEVER]))
        return Dial((policy,), (self.fit_cost,), (0.0,), table.require_costs())


@dataclass(frozen=True, kw_only=True)
class Coins(Scheduler):
    """Answers with the first exit for one share of the samples and with the last for the others, by a mixed policy."""

    share: float

    def dial(self, table, budgets):
        now, later = (
            ScorePolicy(ConfidenceScorer("max_prob"), [at] * (table.num_exits - 1) + [-NEVER]) for at in (-NEVER, NEVER)
        )
        mixed = MixedPolicy(now, later, self.share, self.seed)
        return Dial((mixed,), (1.0,), (0.0,), table.require_costs(), self.seed)


class Tossed(Policy):
    """Leaves at the first exit by a hash of seed and sample, which it does not call a coin: it is judged as it fell."""

    answers_newest = True

    def __init__(self, num_exits, seed):
        self.num_exits, self.seed = num_exits, seed

    def leaves(self, seen, sample_ids):
        return coin(sample_ids, self.seed) < 0.5

    def answers(self, seen, sample_ids):
        return seen[:, -1]


@dataclass(frozen=True, kw_only=True)
class Tossing(Scheduler):
    """Fits nothing: under all seeds it is worth the same, and does something else to each sample."""

    def dial(self, table, budgets):
        return Dial((Tossed(table.num_exits, self.seed),), (1.5,), (0.0,), table.require_costs())


def by_hand(reference=None):
    """Four samples, two exits of cost 1 and 2 ms; exit 0 is right on samples 0 and 1, exit 1 on all.

    The log-odds at exit 0 are 4, 3, 2 and 1.
    """
    first = [[4.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.0, 0.0]]
    last = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    return ExitTable(
        logits=np.stack([first, last], axis=1),
        labels=[0, 0, 1, 1],
        costs=CostTable((1.0, 2.0), "ms", reference),
    )


def planted(samples, seed, exits=3, classes=4):
    """Random labels; later exits see them more clearly, some samples are hard at all exits."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=samples)
    noise = generator.standard_normal((samples, exits, classes)) * generator.random((samples, 1, 1)) * 3
    signal = np.linspace(0.5, 2.5, exits)[:, None] * np.eye(classes)[labels][:, None]
    costs = CostTable(tuple(float(k + 1) for k in range(exits)), "MFLOPs", reference=float(exits) - 0.2)
    return ExitTable(logits=noise + signal, labels=labels, costs=costs)


def worse_at_the_end(samples, seed):
    """Of four exits the second is best: whoever goes on further is right less often."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=samples)
    signal = np.array([1.0, 3.0, 1.5, 0.5])[:, None] * np.eye(4)[labels][:, None]
    logits = signal + generator.standard_normal((samples, 4, 4))
    return ExitTable(logits=logits, labels=labels, costs=CostTable((1.0, 2.0, 3.0, 4.0), "MFLOPs"))


def dense_table(samples=300, classes=5, seed=0):
    """A table as recording maps leaves it: summaries as named features, utility near the mean confidence."""
    generator = np.random.default_rng(seed)
    ease = generator.random((samples, 1))
    gain = np.array([0.0, 0.15, 0.25, 0.3]) * (1 - ease) * 2
    utility = (0.45 + 0.4 * ease + 0.6 * gain).clip(0.3, 0.97)
    first = (utility + 0.04 * generator.standard_normal(utility.shape)).clip(0.3, 0.98)
    rest = generator.random((*utility.shape, classes - 1))
    rest *= (1 - first)[:, :, None] / rest.sum(axis=2, keepdims=True)
    probs = -np.sort(-np.concatenate([first[:, :, None], rest], axis=2), axis=2)
    top, second = probs[:, :, 0], probs[:, :, 1]
    certainty = 1 + (probs * np.log(probs)).sum(axis=2) / np.log(classes)
    return ExitTable(
        features=np.concatenate([np.stack([np.log(top / (1 - top)), top - second, certainty], axis=2), probs], axis=2),
        feature_names=("max_prob", "margin", "certainty", *(f"p{i}" for i in range(classes))),
        utility=utility,
        costs=CostTable((1.0, 2.0, 3.0, 4.0), "ms"),
        split="dense",
    )


def confusion_of(table, pixels=200, seed=0):
    """Counts that agree with the utility of every image at every exit, errors spread evenly; classes at random."""
    classes = sum(name.startswith("p") for name in table.feature_names)
    share = np.random.default_rng(seed).random((table.num_samples, 1, classes)) ** 2
    of_class = (pixels * share / share.sum(axis=2, keepdims=True)).round()
    right = (of_class * table.utility[:, :, None]).round()
    wrong = of_class - right
    counts = right[..., None] * np.eye(classes)
    for shift in range(1, classes):
        part = wrong // (classes - shift)
        wrong = wrong - part
        counts += part[..., None] * np.roll(np.eye(classes), shift, axis=1)
    return counts.astype(np.int64)


def walk(policy, table):
    """Return mean cost and utility, sample by sample and exit by exit, in expectation over the coin."""
    log_probs, cost, right = log_softmax(table.logits), 0.0, 0.0
    for share, part in policy.components():
        for n in range(table.num_samples):
            for k in range(table.num_exits):
                if k == table.num_exits - 1 or bool(part.leaves(log_probs[n : n + 1, : k + 1], np.array([n]))):
                    cost += share * table.costs.cumulative[k]
                    right += share * float(int(log_probs[n, k].argmax()) == int(table.labels[n]))
                    break
    return cost / table.num_samples, right / table.num_samples


def read(points, cost):
    """Read a piecewise linear curve, flat beyond its ends; of points at one cost the mean counts."""
    unique = {}
    for at, utility in points:
        unique.setdefault(at, []).append(utility)
    joined = [(at, sum(utilities) / len(utilities)) for at, utilities in sorted(unique.items())]
    for (left, low), (right, high) in pairwise(joined):
        if left <= cost <= right:
            return low + (high - low) * (cost - left) / (right - left)
    return joined[-1][1] if cost > joined[-1][0] else joined[0][1]
