"""Inference that really stops early: samples that leave are dropped, the rest go on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeAlias, final

import numpy as np
from jaxtyping import Int

from eenet.errors import InputError, ShapeError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.running.engines import DenseEngine, as_engine, suited
from eenet.running.inputs import Inputs, each_batch
from eenet.running.loop import Loop, Prediction
from eenet.tables.arrays import as_array, batch_size
from eenet.tables.costs import BudgetLike, CostTable

SampleIds: TypeAlias = Any
"""One whole number per sample: a list, an array or a tensor, of any integer type."""


@final
class AdaptiveModel:
    """A multi-exit model steered by a policy: the same decisions as `replay` makes on recorded outputs.

    Between stages only the samples that stay are kept, so work is saved for real. What an exit says is copied to the
    host once per batch, where the policy decides. Models of maps are recognised: an image leaves as a whole, and is
    answered with the map of the exit at which it left.

    Fed the same logits, it decides as `replay` does, to the bit, whatever the batch size. Logits computed anew at
    another batch size differ by rounding; only samples whose score lies that close to a threshold may then differ.

    Args:
        model: A multi-exit model, an engine, or the folder of an export.
        policy: Where to leave; default: that of the export.
        costs: What leaving costs, to fill `Prediction.cost`; default: those of the export.
        dial: The same fit for other budgets, for `at`.
        optimise: Run a faster copy of a model (see `EagerEngine`), which gives the same answers up to rounding. False:
            run the very model, so that later changes of its weights are seen.

    Attributes:
        engine: What runs.
        policy: May be exchanged between batches.
        costs: As given.
        dial: As given.
        next_id: Id of the next sample that comes without one.

    Raises:
        InputError: There is no policy, or it cannot decide on maps.
        ShapeError: Model, policy, costs and dial disagree on the number of exits.
    """

    def __init__(
        self,
        model: object,
        policy: Policy | None = None,
        costs: CostTable | None = None,
        *,
        dial: Dial | None = None,
        optimise: bool = True,
    ) -> None:
        if isinstance(model, str | os.PathLike):
            from eenet.running.exports import open_export

            opened = open_export(model)
            self.engine = opened.engine
            policy, costs, dial = policy or opened.policy, costs or opened.costs, dial or opened.dial
        else:
            self.engine = as_engine(model, optimise=optimise)
        if policy is None:
            raise InputError("policy is missing: it says where samples leave. Pass one, such as dial.at(budget).")
        require_parts(self.engine.num_exits, policy, costs, dial)
        self.policy, self.costs, self.dial = policy, costs, dial
        self.next_id = 0
        self._recognised = isinstance(self.engine, DenseEngine)
        self._cumulative = None if costs is None else np.array(costs.cumulative)

    def __call__(self, inputs: Inputs, sample_ids: SampleIds | None = None) -> Prediction:
        """Predict a batch.

        Args:
            inputs: An array or tensor, or a mapping of them by name, batch first.
            sample_ids: Names of the samples for policies that toss a coin; the same id always falls the same way.
                By default samples are counted from 0, going on from call to call (`next_id`).

        Raises:
            InputError: An empty batch, or ids that are no whole numbers.
            RunError: An exit says what is no number.
            ShapeError: Another number of ids than of samples, exits that say something else than one row per sample, a
                policy fitted for another number of classes, or states without the samples in their first axis.
        """
        count = batch_size(inputs)
        if sample_ids is None:
            ids = np.arange(self.next_id, self.next_id + count)
            self.next_id += count
        else:
            ids = _whole(sample_ids)
            _require_one_each(ids, count, "the batch holds")
        self._recognise(inputs)
        loop = Loop(self.engine, self.policy)
        loop.feed(inputs, ids)
        return loop.finish(self._cumulative)

    def predict_all(
        self, batches: Iterable[Any], *, regroup: bool = True, sample_ids: SampleIds | None = None
    ) -> Prediction:
        """Predict every batch of a loader; the order of the samples is kept.

        Args:
            batches: What `eenet.running.inputs.each_batch` takes, a `DataLoader` for example.
            regroup: Let samples that stay wait before the next stage until there are as many as in the first batch,
                so that late stages run on full batches too. Only samples whose inputs have the same shape wait
                together: for every shape there is, the queues hold less than two such batches per stage. The decisions
                are the same, up to the rounding of other batch sizes.
            sample_ids: Names of all samples, for policies that toss a coin; by default they are counted from 0.

        Raises:
            InputError: There is no batch, or ids are no whole numbers; else as of a call.
            ShapeError: Another number of ids than of samples; else as of a call.
        """
        names = None if sample_ids is None else _whole(sample_ids)
        loop: Loop | None = None
        fed = 0
        for inputs in each_batch(batches):
            count = batch_size(inputs)
            if names is not None:
                _require_one_each(names, fed + count, "there are at least", more=True)
            if loop is None:
                self._recognise(inputs)
                loop = Loop(self.engine, self.policy, count if regroup else 1)
            loop.feed(inputs, np.arange(fed, fed + count) if names is None else names[fed : fed + count])
            fed += count
        if loop is None:
            raise InputError("batches are empty: there is nothing to predict. Pass at least 1 sample.")
        if names is not None:
            _require_one_each(names, fed, "there are")
        return loop.finish(self._cumulative)

    def at(self, budget: BudgetLike) -> AdaptiveModel:
        """Return the same model for another budget, without fitting again.

        Args:
            budget: A mean cost per sample: a number in the unit of the costs, with a unit, or a percentage.

        Raises:
            InputError: There is no dial.
            BudgetError: No number, a foreign unit, or below the cost of exit 0.
        """
        if self.dial is None:
            raise InputError(
                f"budget {budget} cannot be set: the policy was fitted for one budget, and there is no dial beside it. "
                "Pass dial=scheduler.sweep(table), or fit and export again."
            )
        return AdaptiveModel(self.engine, self.dial.at(budget), self.costs or self.dial.costs, dial=self.dial)

    def _recognise(self, inputs: Inputs) -> None:
        """Notice a model of maps by what its first exit says; done once."""
        if not self._recognised:
            self.engine = suited(self.engine, inputs)
            self._recognised = True


def require_parts(
    num_exits: int, policy: Policy, costs: CostTable | None, dial: Dial | None, *, num_classes: int | None = None
) -> None:
    """Refuse a policy, costs or a dial that are not made for a model of so many exits and, where known, classes.

    Raises:
        ShapeError: Another number of exits or of classes.
    """
    for one in (policy, *(() if dial is None else dial.policies)):
        one.require(num_exits, num_classes)
    for known in (costs, None if dial is None else dial.costs):
        if known is not None and known.num_exits != num_exits:
            raise ShapeError(
                f"costs with {known.num_exits} exits do not fit: the model has {num_exits}. Use costs measured on "
                "this model."
            )


def _whole(sample_ids: SampleIds) -> Int[np.ndarray, "*shape"]:
    """Return ids as int64, refusing what is no whole number."""
    try:
        ids = as_array(sample_ids)
    except (TypeError, ValueError) as error:
        raise InputError(f"sample_ids cannot be read: {error}. Pass one whole number per sample.") from error
    if ids.size and ids.dtype.kind not in "iu":
        raise InputError(
            f"sample_ids of type {ids.dtype} do not fit: coins are tossed by whole numbers, and others might become "
            "one. Pass one whole number per sample."
        )
    return ids.astype(np.int64)


def _require_one_each(ids: np.ndarray, count: int, there: str, *, more: bool = False) -> None:
    """Refuse another number of ids than of samples; with ``more``, further samples may come."""
    if ids.ndim != 1 or (len(ids) < count if more else len(ids) != count):
        raise ShapeError(
            f"sample_ids of shape {ids.shape} do not fit: {there} {count} samples. Pass one id per sample."
        )
