"""What is promised about a policy, in numbers and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from eenet.core.policy import Policy

__all__ = ["Certificate", "Certified"]


@dataclass(frozen=True)
class Certificate:
    """What is promised about a policy, and what the promise cost.

    Attributes:
        guarantee: ``"budget"`` or ``"accuracy"``.
        delta: Chance, over the draw of the calibration data, that the promise is wrong.
        epsilon: By how much the mean utility may lie below the full model's; None for a budget.
        budget: Mean cost per sample; None where only accuracy was asked for.
        unit: Of costs.
        n_fit: Samples that fitted the candidates.
        n_certify: Samples that tested them.
        bound: Upper confidence bound, at level ``delta``, of the mean cost (``"budget"``) or of the loss of utility
            against the full model (``"accuracy"``).
        mean_cost: On the certify part, in expectation over the coin.
        mean_utility: On the certify part, in expectation over the coin.
        full_utility: Mean utility of the full model on the certify part.
        price: Utility that the plain policy reaches more on the certify part. The plain policy is what the fit part
            alone would have chosen for the same goal, without a margin for chance.
        price_cost: Mean cost that the certified policy spends more than the plain one, on the certify part.
        fell_back: Whether no policy but the one that needs no test (exit 0, or the full path, for all) could be
            certified.
    """

    guarantee: str
    delta: float
    epsilon: float | None
    budget: float | None
    unit: str
    n_fit: int
    n_certify: int
    bound: float
    mean_cost: float
    mean_utility: float
    full_utility: float
    price: float
    price_cost: float
    fell_back: bool

    @property
    def statement(self) -> str:
        """The promise, its level, and the data it holds on."""
        if self.guarantee == "budget":
            told = f"the mean cost per sample is at most {self.budget:g} {self.unit}"
            fallback = "Only leaving at exit 0 could be certified, so every sample does."
        else:
            told = f"the mean utility is at most {self.epsilon:g} below that of the full model"
            fallback = "No early exit could be certified, so every sample takes the full path."
        level = f"With confidence {100 * (1 - self.delta):.6g} % (delta {self.delta:g})"
        data = (
            f"This holds for data drawn like the calibration table, and for no other; it was certified on "
            f"{self.n_certify} samples of that table which took no part in fitting."
        )
        return " ".join([f"{level}, {told}.", data] + [fallback] * self.fell_back)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values, the statement included."""
        return asdict(self) | {"statement": self.statement}


@dataclass(frozen=True, eq=False)
class Certified:
    """A policy and what is promised about it.

    Attributes:
        policy: The rule.
        certificate: The promise.
        reason: Why the scheduler was chosen, where there was a choice.
    """

    policy: Policy
    certificate: Certificate
    reason: str = ""
