"""EENet: learned exit scores, with the paper's assignment or our joint search for the thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from eenet.errors import InputError
from eenet.policies.dial import Dial
from eenet.policies.learned import EENetScorer, Reads, constant_beside, exit_features
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer
from eenet.schedulers.base import LEAST_SAMPLES, Scheduler, blocks, folds_of, sampled
from eenet.schedulers.choosing import held_out
from eenet.schedulers.eenet_fit import Adam, AssignmentNetworks, Own, PerExit, score_gradient, score_members
from eenet.schedulers.thresholds import geometric_dial, joint_dial
from eenet.tables.costs import standard_budgets
from eenet.tables.table import ExitTable

Columns: TypeAlias = Float64[np.ndarray, "exit column"]

KINDS = ("geometric", "joint", "assigned")
"""What can make thresholds of scores, the quickest first."""

_FOLDS = 3  # of the cross-validation that chooses between them
_ROWS = 10_000  # samples it is made on at most
_EVERY = 3  # one in so many standard budgets gets assignment networks there
_NEAR = 0.1  # relative distance of the planned cost from the budget
_VOTE = 2  # place of the vote among the confidences: always 1 at exit 0, so no input there
_RIDGE = 10.0  # of the regression that scores of features start at, in samples


@dataclass(frozen=True, kw_only=True)
class EENetScheduler(Scheduler):
    """EENet's learned exit scores. The defaults are ours; `paper` gives the paper's rule, `published` its public code.

    The default trains the paper's scores once for all budgets, and chooses by cross-validation what makes thresholds
    of them: shares in geometric progression, the paper's assignment, or our joint search.

    With ``thresholds="assigned"`` the paper's assignment networks are trained for each budget together with the scores.
    ``round(N p_k)`` samples leave at exit k, where ``p_k`` is the network's mean share. Shares are tilted and mixed
    until the budget is met on the fitting data. The dial then has one policy per budget, and mixes between them.

    Attributes:
        thresholds: ``"chosen"``, ``"geometric"``, ``"assigned"`` or ``"joint"``.
        epochs: Passes over the table.
        batch_size: Samples per step.
        learning_rate: Of Adam.
        anneal: Whether the learning rate falls to 0 along a half cosine.
        weight_decay: Of Adam.
        restarts: Starts of the assignment networks. Of those that plan to spend within 10 % of the budget, the most
            useful on the fitting data is kept; where there is none, the one nearest to the budget, and the dial's
            ``reason`` says so. (Fitting scores alone is convex but for the clipping, and starts at ``q = max p``.)
        alternate_every: Epochs after which training of scores and assignment take turns; 0: a step of both on every
            batch, as in the paper's algorithm.
        alpha_kl: Weight of the pull of the assignment towards the scores.
        alpha_cost: Weight of the relative distance to the budget.
        beta: Weight of the entropy in the assignment's target: the larger, the more even.
        hidden_ratio: Width of the assignment's hidden layer relative to its inputs.
        progress: Called every two seconds with what is done, how many epochs are done and how many there will be.

    Source:
        Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet, WACV 2024, section 3.2.
    """

    thresholds: Literal["chosen", "geometric", "assigned", "joint"] = "chosen"
    epochs: int = 60
    batch_size: int = 1024
    learning_rate: float = 3e-3
    anneal: bool = True
    weight_decay: float = 1e-4
    restarts: int = 1
    alternate_every: int = 0
    alpha_kl: float = 1e-3
    alpha_cost: float = 1e-2
    beta: float = 1.0
    hidden_ratio: float = 0.5
    progress: Callable[[str, int, int], None] | None = field(default=None, repr=False, compare=False)
    at_least: ClassVar[dict[str, float]] = {"alternate_every": 0, "weight_decay": 0, "alpha_kl": 0, "alpha_cost": 0}
    positive = ("epochs", "batch_size", "learning_rate", "restarts", "beta", "hidden_ratio")

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        super().__post_init__()
        if self.thresholds not in ("chosen", "geometric", "assigned", "joint"):
            raise InputError(
                f"thresholds {self.thresholds!r} are unknown: they are 'chosen', 'geometric', 'assigned' or 'joint'. "
                "Pass one of these."
            )

    @classmethod
    def paper(cls, *, seed: int = 0, hidden_ratio: float = 0.5) -> EENetScheduler:
        """Return the paper's rule, trained until it converges."""
        return cls(seed=seed, hidden_ratio=hidden_ratio, thresholds="assigned", epochs=120, batch_size=512, restarts=3)

    @classmethod
    def published(cls, *, seed: int = 0, hidden_ratio: float = 0.5) -> EENetScheduler:
        """Return the paper's rule with the settings of its public code, for comparison.

        They undertrain: in 1,000 epochs the weights hardly move from where they start, ``q = max p``, and so does the
        assignment. What is left is the largest probability with shares tilted to the budget: `GeometricScheduler`,
        reached slowly.
        """
        return cls(
            seed=seed,
            hidden_ratio=hidden_ratio,
            thresholds="assigned",
            epochs=1000,
            batch_size=512,
            learning_rate=3e-5,
            anneal=False,
            weight_decay=1e-2,
            restarts=3,
            alternate_every=10,
        )

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        if self.thresholds != "chosen":
            return self._dials(table, budgets, (self.thresholds,), (0, 1))[self.thresholds]
        if table.num_samples < max(LEAST_SAMPLES, _FOLDS):
            return replace(self, thresholds="joint").dial(table, budgets)
        areas = self._held_out(table)
        best = max(areas, key=lambda name: areas[name])
        listed = ", ".join(f"{name} {100 * area:.2f}" for name, area in areas.items())
        reason = f"thresholds: {best}, by held-out utility over the standard budgets, in percent: {listed}."
        return replace(self._dials(table, budgets, (best,), (2 * _FOLDS, 2 * _FOLDS + 1))[best], reason=reason)

    def _held_out(self, table: ExitTable) -> dict[str, float]:
        """Return the area under the curve of each kind of thresholds, on held-out samples."""
        table = sampled(table, _ROWS, self.seed)
        budgets, fold = standard_budgets(table.require_costs()), folds_of(table.group_index, _FOLDS, self.seed)

        def trials() -> Iterator[tuple[str, Int[np.ndarray, " row"], Replayer, Dial]]:
            for f in range(int(fold.max()) + 1):
                rows, rest = np.flatnonzero(fold == f), table.select(fold != f)
                replayer = Replayer(table.select(rows))
                for name, dial in self._dials(rest, budgets[::_EVERY], KINDS, (2 * f, 2 * _FOLDS + 1)).items():
                    yield name, rows, replayer, dial

        return {name: float(one.parts.mean()) for name, one in held_out(table, trials(), budgets).items()}

    def _dials(
        self, table: ExitTable, budgets: tuple[float, ...], kinds: Sequence[str], part: tuple[int, int]
    ) -> dict[str, Dial]:
        """Return a dial for each kind of thresholds; geometric and joint ones have the same scores.

        ``part`` says how many trainings were done before, and how many there are.
        """
        dials: dict[str, Dial] = {}
        done, of = part
        if set(kinds) - {"assigned"}:
            scorer = _scorer(table, _fit(table, None, self._reporting(done, of))[0][0])
            done += 1
        for kind in kinds:
            if kind == "assigned":
                dials[kind] = self._reporting(done, of)._assigned_dial(table, budgets)
            else:
                dials[kind] = (geometric_dial if kind == "geometric" else joint_dial)(scorer, table, self.seed)
        return dials

    def _reporting(self, done: int, of: int) -> EENetScheduler:
        """Return the same scheduler, which reports one training as a part of several."""
        report = self.progress
        if report is None:
            return self
        return replace(self, progress=lambda what, epoch, epochs: report(what, done * epochs + epoch, of * epochs))

    def _assigned_dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Return one policy per budget, of the best of its restarts on the fitting data."""
        weight, shares = _fit(table, budgets, self)
        replayer, costs = Replayer(table), table.require_costs()
        best: list[tuple[float, float, Policy]] = []
        far = 0
        for i, budget in enumerate(budgets):
            members = np.arange(i * self.restarts, (i + 1) * self.restarts)
            goal = min(budget, costs.high)
            off = np.abs(shares[members] @ np.array(costs.cumulative) - goal) / goal
            far += bool(off.min() > _NEAR)
            candidates = []
            for member in members[off <= max(_NEAR, off.min())]:
                dial = geometric_dial(_scorer(table, weight[member]), table, self.seed, base=shares[member])
                policy = dial.at(budget)
                candidates.append((*replayer.expected(policy), policy))
            best.append(max(candidates, key=lambda candidate: candidate[1]))
        # both ends, so that the dial reaches every budget: all leave at once, all stay to the end
        best += [(*replayer.expected(policy), policy) for policy in (dial.policies[0], dial.policies[-1])]
        reason = ""
        if far:
            reason = (
                f"no start planned to spend within {_NEAR:.0%} of the budget at {far} of {len(budgets)} budgets: the "
                "nearest ones were taken, and mixed until the budget was met."
            )
        # another coin than the one inside its policies
        return replace(Dial.of_candidates(best, costs, self.seed + 1), reason=reason)


def _scorer(table: ExitTable, weight: Float[np.ndarray, "exit input"]) -> EENetScorer:
    kind: Reads = "classes" if table.has_classes else "features"
    return EENetScorer(weight=weight, num_columns=table.num_columns, kind=kind)


def _fit(
    table: ExitTable, budgets: Sequence[float] | None, settings: EENetScheduler
) -> tuple[Float64[np.ndarray, "member exit input"], Float64[np.ndarray, "member exit"]]:
    """Minimise EENet's score loss ``L_g`` and, for each budget, its assignment loss ``L_h``.

    Returns:
        Weights of the scores, and mean shares of the assignment, of each member: every budget times every restart,
        restarts of a budget side by side; without budgets one member, all samples with equal weights and equal shares.
    """
    generator = np.random.default_rng(settings.seed)
    utility = table.require_utility("fitting EENetScheduler").astype(np.float32)
    x, center, spread = _inputs(table)
    members = 1 if budgets is None else len(budgets) * settings.restarts
    weight = np.repeat(_start(table, x, utility)[:, None], members, axis=1)
    networks, costs = None, table.leaving_costs.astype(np.float32)
    if budgets is not None:
        noise = 0.01 * generator.standard_normal(weight.shape, dtype=np.float32)
        noise[:, :: settings.restarts] = 0.0  # the first start of each budget is the plain one
        if table.has_classes:
            noise[0, :, table.num_columns + _VOTE] = 0.0
        weight += noise
        networks = AssignmentNetworks(
            np.minimum(budgets, table.require_costs().high).repeat(settings.restarts).astype(np.float32),
            x.shape[1:],
            hidden_ratio=settings.hidden_ratio,
            pulls=(settings.alpha_kl, settings.alpha_cost, settings.beta),
            generator=generator,
        )
    _train(weight, networks, (x, utility, costs), settings, generator)
    shares = np.full((members, table.num_exits), 1 / table.num_exits)
    if networks is not None:
        shares = np.zeros_like(shares)
        for rows in blocks(0, len(x), settings.batch_size):
            shares += networks.assign(x[rows], score_members(weight, x[rows])).shares.sum(axis=2) / len(x)
    found = weight.astype(np.float64).swapaxes(0, 1)
    if not table.has_classes:  # what was learnt of standardised features, as weights of the features themselves
        columns = found[:, :, : table.num_columns]
        columns /= spread
        found[:, :, table.num_columns] -= np.einsum("mkd,kd->mk", columns, center)
    return found, shares


def _inputs(table: ExitTable) -> tuple[Own, Columns, Columns]:
    """Return each exit's own inputs of the score; features are standardised, with the centres and spreads given."""
    make = exit_features if table.has_classes else constant_beside
    x = np.concatenate([make(table.seen(rows)).astype(np.float32) for rows in table.chunks()])
    if table.has_classes:
        x[:, 0, table.num_columns + _VOTE] = 0.0
    center, spread = np.zeros((2, table.num_exits, table.num_columns))
    if not table.has_classes:
        columns = x[:, :, :-1]
        center = columns.mean(axis=0, dtype=np.float64)
        spread = np.sqrt(columns.var(axis=0, dtype=np.float64))
        spread[spread <= 1e-6 * np.abs(center)] = np.inf  # a constant column has no weight
        columns[...] = (columns - center) / spread
    return x, center, spread


def _start(table: ExitTable, x: Own, utility: PerExit) -> Float32[np.ndarray, "exit input"]:
    """Return the scores' first weights: inside [0, 1], where clipping leaves a gradient."""
    _, exits, own = x.shape
    weight = np.zeros((exits, own + exits - 1), dtype=np.float32)
    if table.has_classes:
        weight[:, table.num_columns] = 1.0  # q = max p
        return weight
    penalty = np.diag([_RIDGE] * (own - 1) + [0.0])
    for k in range(exits):  # a regression of the utility
        columns = x[:, k].astype(np.float64)
        weight[k, :own] = np.linalg.solve(columns.T @ columns + penalty, columns.T @ utility[:, k])
    return weight


def _train(
    weight: Float32[np.ndarray, "exit member input"],
    networks: AssignmentNetworks | None,
    data: tuple[Own, PerExit, PerExit],
    settings: EENetScheduler,
    generator: np.random.Generator,
) -> None:
    """Train the scores and, in turns with them, the assignment where there is one, both in place.

    ``data`` are inputs, utilities and costs of all samples; the generator is that of their order.
    """
    x, utility, costs = data
    score_steps = Adam(weight, settings.weight_decay)
    assignment_steps = None if networks is None else Adam(networks.parameters, settings.weight_decay)
    for epoch in _epochs(settings):
        rate, turn = settings.learning_rate, settings.alternate_every and epoch // settings.alternate_every % 2
        if settings.anneal:
            rate *= (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        order = generator.permutation(len(x))
        for rows in (order[some] for some in blocks(0, len(x), settings.batch_size)):
            part = x[rows]
            scores = score_members(weight, part)
            if networks is None or turn == 0:
                shares = None if networks is None else networks.assign(part, scores).shares
                score_steps.step(score_gradient(part, scores, utility[rows], shares), rate)
                if not settings.alternate_every and networks is not None:
                    scores = score_members(weight, part)
            if assignment_steps is not None and networks is not None and (turn or not settings.alternate_every):
                assignment_steps.step(networks.gradient(part, scores, costs[rows]), rate)


def _epochs(settings: EENetScheduler) -> Iterator[int]:
    """Yield the numbers of the epochs, and report every two seconds how far the training is."""
    reported = monotonic()
    for epoch in range(settings.epochs):
        yield epoch
        if settings.progress is not None and monotonic() - reported >= 2:
            reported = monotonic()
            settings.progress("epochs of EENet's networks", epoch + 1, settings.epochs)
