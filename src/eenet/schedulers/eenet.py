"""EENet: learned exit scores, with the paper's assignment or our joint search for the thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64

from eenet.errors import InputError
from eenet.policies.dial import Dial
from eenet.policies.learned import EENetScorer, Reads, constant_beside, exit_features
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer
from eenet.schedulers.base import Scheduler, blocks
from eenet.schedulers.eenet_fit import Adam, AssignmentNetworks, Own, PerExit, score_gradient, score_members
from eenet.schedulers.thresholds import geometric_dial, joint_dial
from eenet.tables.table import ExitTable

Columns: TypeAlias = Float64[np.ndarray, "exit column"]

_RIDGE = 10.0  # of the regression that scores of features start at, in samples


@dataclass(frozen=True, kw_only=True)
class EENetScheduler(Scheduler):
    """EENet's learned exit scores. The defaults are ours; `published` gives the paper's rule and settings.

    The default trains the paper's scores faster and searches the thresholds jointly on them (one fit for all budgets).
    With ``thresholds="assigned"`` the paper's exit-assignment networks are trained for each budget, their mean shares
    become thresholds, and shares are tilted and mixed until the budget is met on the fitting data. The dial then has
    one policy per budget, all trained together, and mixes between them.

    Attributes:
        thresholds: ``"joint"`` or ``"assigned"``.
        epochs: Passes over the table.
        batch_size: Samples per step.
        learning_rate: Of Adam.
        weight_decay: Of Adam.
        restarts: Starts of which the most useful on the fitting data is kept (``"assigned"`` only; the joint fit is
            convex but for the clipping, and starts at ``q = max p``).
        alternate_every: Epochs after which score and assignment training take turns.
        alpha_kl: Weight of the pull of the assignment towards the scores.
        alpha_cost: Weight of the relative distance to the budget.
        beta: Sharpness of the assignment's target.
        hidden_ratio: Width of the assignment's hidden layer relative to its inputs: 0.5 for images, 2 for text in the
            paper.
        assignment: ``"sum"`` normalises softplus outputs by their sum; ``"softmax"`` takes the softmax of sigmoids as
            the released code does, which cannot reach tight budgets.
        progress: Called every two seconds with what is done, how many epochs are done and how many there will be.

    Source:
        Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet, WACV 2024, arXiv 2301.07099.
    """

    thresholds: Literal["joint", "assigned"] = "joint"
    epochs: int = 60
    batch_size: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    restarts: int = 1
    alternate_every: int = 10
    alpha_kl: float = 1e-3
    alpha_cost: float = 1e-2
    beta: float = 1.0
    hidden_ratio: float = 0.5
    assignment: Literal["sum", "softmax"] = "sum"
    progress: Callable[[str, int, int], None] | None = field(default=None, repr=False, compare=False)
    at_least: ClassVar[dict[str, float]] = {"weight_decay": 0, "alpha_kl": 0, "alpha_cost": 0, "beta": 0}
    positive = ("epochs", "batch_size", "learning_rate", "restarts", "alternate_every", "hidden_ratio")

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        super().__post_init__()
        if self.thresholds not in ("joint", "assigned") or self.assignment not in ("sum", "softmax"):
            raise InputError(
                f"thresholds {self.thresholds!r} or assignment {self.assignment!r} is unknown: thresholds are 'joint' "
                "or 'assigned', the assignment 'sum' or 'softmax'. Pass one of each."
            )

    @classmethod
    def published(cls, *, seed: int = 0, hidden_ratio: float = 0.5) -> EENetScheduler:
        """Return the paper's rule with its published settings: slow, for comparison."""
        return cls(
            seed=seed,
            hidden_ratio=hidden_ratio,
            thresholds="assigned",
            epochs=1000,
            batch_size=512,
            learning_rate=3e-5,
            weight_decay=1e-2,
            restarts=3,
        )

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        if self.thresholds == "joint":
            weight, _ = _fit(table, None, self)
            return joint_dial(_scorer(table, weight[0]), table, self.seed)
        return self._assigned_dial(table, budgets)

    def _assigned_dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Return one policy per budget: the best of its restarts on the fitting data."""
        weight, shares = _fit(table, budgets, self)
        replayer = Replayer(table)
        best: list[tuple[float, float, Policy]] = []
        for i, budget in enumerate(budgets):
            candidates = []
            for member in range(i * self.restarts, (i + 1) * self.restarts):
                dial = geometric_dial(_scorer(table, weight[member]), table, self.seed, base=shares[member])
                policy = dial.at(budget)
                candidates.append((*replayer.expected(policy), policy))
            best.append(max(candidates, key=lambda candidate: candidate[1]))
        # both ends, so that the dial reaches every budget: all leave at once, all stay to the end
        best += [(*replayer.expected(policy), policy) for policy in (dial.policies[0], dial.policies[-1])]
        # another coin than the one inside its policies
        return Dial.of_candidates(best, table.require_costs(), self.seed + 1)


def _scorer(table: ExitTable, weight: Float[np.ndarray, "exit input"]) -> EENetScorer:
    kind: Reads = "classes" if table.has_classes else "features"
    return EENetScorer(weight=weight, num_columns=table.num_columns, kind=kind)


def _fit(
    table: ExitTable, budgets: Sequence[float] | None, settings: EENetScheduler
) -> tuple[Float64[np.ndarray, "member exit input"], Float64[np.ndarray, "member exit"]]:
    """Minimise EENet's score loss and, for each budget, its assignment loss.

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
        weight += noise
        networks = AssignmentNetworks(
            np.minimum(budgets, table.require_costs().high).repeat(settings.restarts).astype(np.float32),
            x.shape[1:],
            hidden_ratio=settings.hidden_ratio,
            assignment=settings.assignment,
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
        rate = settings.learning_rate
        if networks is None:
            rate *= (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        order = generator.permutation(len(x))
        for rows in (order[some] for some in blocks(0, len(x), settings.batch_size)):
            part = x[rows]
            scores = score_members(weight, part)
            if networks is None or assignment_steps is None:
                score_steps.step(score_gradient(part, scores, utility[rows], None), rate)
            elif (epoch // settings.alternate_every) % 2 == 0:
                shares = networks.assign(part, scores).shares
                score_steps.step(score_gradient(part, scores, utility[rows], shares), rate)
            else:
                assignment_steps.step(networks.gradient(part, scores, costs[rows]), rate)


def _epochs(settings: EENetScheduler) -> Iterator[int]:
    """Yield the numbers of the epochs, and report every two seconds how far the training is."""
    reported = monotonic()
    for epoch in range(settings.epochs):
        yield epoch
        if settings.progress is not None and monotonic() - reported >= 2:
            reported = monotonic()
            settings.progress("epochs of EENet's networks", epoch + 1, settings.epochs)
