"""Adaptive inference on maps: an image leaves as a whole, with the map of the exit at which it left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int
from torch import Tensor

from eenet.core.combined import answers_with_newest
from eenet.core.costs import CostTable
from eenet.core.policy import Policy
from eenet.core.scorers import Scorer
from eenet.errors import InputError
from eenet.inference.adaptive import AdaptiveModel
from eenet.inference.engines import DenseEngine, EagerEngine, Engine
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel

__all__ = ["DenseAdaptiveModel", "DensePrediction"]


@dataclass(frozen=True, kw_only=True)
class DensePrediction:
    """What came out for a batch of images, in their order.

    Attributes:
        labels: The class of every pixel, at the size of the inputs.
        exit_index: Where each image left, 0-based.
        cost: What each image cost, in the unit of the cost table; None where none was given.
    """

    labels: Int[Tensor, "sample height width"]
    exit_index: Int[Tensor, " sample"]
    cost: Float[Tensor, " sample"] | None = None


@final
class DenseAdaptiveModel:
    """A multi-exit model of maps steered by a policy: `AdaptiveModel`, shown the `summary` of every map.

    Images leave as wholes, and those that do are dropped from the batch. An image is answered with the map of the exit
    at which it left, upsampled to the size of the input. Decisions are those that `replay` makes on the table that
    `record_dense` wrote. The maps of a batch are kept at the heads' resolution until it is answered.

    Args:
        model: A model whose heads return ``[sample, class, height, width]`` (run as it is, in evaluation mode, its
            flags restored), or an engine.
        policy: Where to leave, fitted on a table of `record_dense`.
        costs: What leaving costs, to fill `DensePrediction.cost`.

    Raises:
        ShapeError: Model, policy and costs disagree on the number of exits.
        InputError: The policy compares classes that exits chose, or answers with several exits together.
    """

    def __init__(self, model: MultiExitModel | Engine, policy: Policy, costs: CostTable | None = None) -> None:
        _check(policy)
        engine = model if isinstance(model, Engine) else EagerEngine(model, optimise=False)
        self.engine = engine if isinstance(engine, DenseEngine) else DenseEngine(engine)
        self._adaptive = AdaptiveModel(self.engine, policy, costs)

    def __call__(self, inputs: Inputs, sample_ids: Int[Tensor, " sample"] | None = None) -> DensePrediction:
        """Predict a batch.

        Args:
            inputs: Images, batch first, on the model's device; of keyword tensors the first of 4 dimensions.
            sample_ids: Names of the images for policies that toss a coin; by default they are counted from 0, going on
                from call to call.

        Raises:
            InputError: An empty batch, or no images.
            ShapeError: Another number of ids than of images, or logits that are no maps.
        """
        found = self._adaptive(inputs, sample_ids)
        return DensePrediction(
            labels=self.engine.answers(found.exit_index), exit_index=found.exit_index, cost=found.cost
        )


def _check(policy: Policy) -> None:
    """Refuse policies that need to know classes, which a summary does not tell."""
    if any(isinstance(part, Scorer) and part.compares_classes for part in policy.modules()):
        raise InputError(
            "policy compares the classes that exits chose: the summary of a map names none. Fit max_prob, margin, "
            "certainty, joint, eenet, pcee, eero, stopping or auto."
        )
    if not answers_with_newest(policy):
        raise InputError(
            "policy answers with several exits together: an image is answered with the map of one exit. Fit without "
            "an ensemble, on a table of record_dense."
        )
