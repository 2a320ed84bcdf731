"""What a dial does at every budget of a range: numbers for a page whose reader turns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eenet.errors import InputError, TableError
from eenet.evaluation.groups import Grouping, group_rows, group_stats
from eenet.evaluation.saving import saving_of
from eenet.evaluation.scores import MainScore, auroc, main_score, on_unit_scale
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer

NUM_BUDGETS = 41
BINS = 24
_MOST_GROUPS = 5


class _Part(NamedTuple):
    """Where every sample leaves by one component of a policy, and what it earns there."""

    stops: np.ndarray
    earned: np.ndarray


class Turning:
    """Judges a dial at many budgets; components and scores that several budgets share are judged once.

    Args:
        replayer: Of the samples to judge on, with costs and utility.
        groupings: Of these samples, for who pays.
    """

    def __init__(self, replayer: Replayer, groupings: Sequence[Grouping] = ()) -> None:
        self._replayer, self._groupings = replayer, groupings
        self._parts: dict[Policy, _Part] = {}
        self._scores: dict[tuple[Any, Any, int], int] = {}
        self._drawn: list[dict[str, Any]] = []

    def over(self, dial: Dial, asked: Sequence[float] = ()) -> dict[str, Any]:
        """Return what the dial does at budgets in equal ratios from exit 0 to the most it spends, and at those asked.

        Args:
            dial: Fitted on other samples.
            asked: Further budgets, in the unit of the dial's costs.

        Returns:
            JSON values. ``positions``: by rising ``budget`` the realised ``cost`` and ``utility``,
            ``exit_distribution``, ``exit_utility`` (of those that left there; None without any), ``saving``
            (`Saving.to_dict`), ``num_paying`` groups that surely lose more than all samples together, of which
            ``who_pays`` lists the first, and, where the policy has one, the ``score`` it decides by: its number in
            ``scores``, and the ``thresholds`` on the same scale. ``scores``: ``what`` the scale is, and at every exit
            where the score decides the counts of ``right`` and ``wrong`` samples in equal bins from 0 to 1, with
            ``auroc``. All samples count at every exit. ``reason``: why this dial, where there was a choice.
        """
        low = dial.costs.low
        high = max(low, min(dial.costs.high, dial.fit_costs[-1]))
        budgets = sorted({*np.geomspace(low, high, NUM_BUDGETS).tolist(), *(max(one, low) for one in asked)})
        policies = [dial.at(budget) for budget in budgets]
        self._replayer.prepare(policies)
        positions = [{"budget": one} | self._judged(policy) for one, policy in zip(budgets, policies, strict=True)]
        return {"reason": dial.reason, "positions": positions, "scores": self._drawn}

    def _judged(self, policy: Policy) -> dict[str, Any]:
        table = self._replayer.table
        rows, (spent, earned) = np.arange(table.num_samples), np.zeros((2, table.num_samples))
        leaving, reached = np.zeros((table.num_samples, table.num_exits)), np.zeros(table.num_exits)
        self._judge_parts(policy)
        for share, part in policy.components():
            stops, each = self._parts[part]
            spent += share * self._replayer.cost(stops)
            earned += share * each
            leaving[rows, stops] += share
            reached += share * np.bincount(stops, weights=each, minlength=table.num_exits)
        counts, shares = leaving.sum(axis=0), leaving.mean(axis=0)
        those = [total / count if count > 0 else None for total, count in zip(reached, counts, strict=True)]
        judged = {
            "cost": float(spent.mean()),
            "utility": float(earned.mean()),
            "exit_distribution": shares.tolist(),
            "exit_utility": [None if one is None else float(one) for one in those],
            "saving": saving_of(table, spent, earned, tuple(shares.tolist())).to_dict(),
        }
        return judged | self._who_pays(leaving, earned) | self._score(policy)

    def _judge_parts(self, policy: Policy) -> None:
        """Judge the components, but those that the last policy had too: neighbours share them."""
        judged = {}
        for _, part in policy.components():
            if part not in self._parts:
                stops = self._replayer.exit_index(part)
                self._parts[part] = _Part(stops, self._replayer.utility(part, stops))
            judged[part] = self._parts[part]
        self._parts = judged

    def _who_pays(self, leaving: np.ndarray, earned: np.ndarray) -> dict[str, Any]:
        paying = [
            {"by": known.by} | {key: getattr(group, key) for key in ("name", "num_samples", "loss", "low", "high")}
            for known in self._groupings
            for group in group_rows(known.names, [group_stats(known, self._replayer.table, leaving, earned)])
            if group.pays_more
        ]
        return {"num_paying": len(paying), "who_pays": paying[:_MOST_GROUPS]}

    def _score(self, policy: Policy) -> dict[str, Any]:
        """Return the number of the score that the policy decides by, and its thresholds; nothing where it has none."""
        try:
            main = main_score(policy)
            key = main.scorer, main.transform, main.early_exits
            if key not in self._scores:
                self._drawn.append(self._histograms(main))
                self._scores[key] = len(self._drawn) - 1
        except (InputError, TableError):  # it has no score, or answers are neither right nor wrong
            return {}
        replayer = self._replayer if main.transform is None else self._replayer.transformed(main.transform)
        scores = replayer.scores(main.scorer)
        scaled = [
            float(on_unit_scale(main.scorer, np.append(scores[:, k], np.float32(at)))[0][-1])
            for k, at in enumerate(main.thresholds)
        ]
        return {"score": self._scores[key], "thresholds": scaled}

    def _histograms(self, main: MainScore) -> dict[str, Any]:
        scores, right = main.replayed(self._replayer)
        exits, what = [], ""
        for k in range(scores.shape[1]):
            values, what = on_unit_scale(main.scorer, scores[:, k])
            place = (values * BINS).astype(np.int64).clip(0, BINS - 1)
            sides = {"right": place[right[:, k]], "wrong": place[~right[:, k]]}
            area = auroc(scores[:, k], right[:, k])
            counts = {side: np.bincount(of, minlength=BINS).tolist() for side, of in sides.items()}
            exits.append(counts | {"auroc": None if np.isnan(area) else area})
        return {"what": what.replace("\n", " "), "exits": exits}
