"""Inference that really stops early: samples that leave are dropped, the rest go on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from jaxtyping import Int

from eenet.errors import InputError, ShapeError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.running.engines import DenseEngine, Engine, as_engine, suited
from eenet.running.engines.base import check_states
from eenet.running.inputs import Data, Inputs, batch_of, batches_of
from eenet.running.loop import Loop, Prediction
from eenet.tables.arrays import as_array
from eenet.tables.arrays import batch_size as size_of
from eenet.tables.checks import instance, number
from eenet.tables.costs import Budget, BudgetLike, CostTable

SampleIds: TypeAlias = Any
"""One whole number per sample: a list, an array or a tensor, of any integer type."""


@final
class AdaptiveModel:
    """A multi-exit model steered by a policy: the same decisions as `replay` makes on recorded outputs.

    Between stages only the samples that stay are kept, so work is saved for real. The output of an exit is copied to
    the host once per batch, where the policy decides. Models of maps are recognised: an image leaves as a whole, and is
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
        check_source: Refuse a policy that was fitted on a table of another model, where both are known. False: take it,
            as after weights were tuned further.

    Attributes:
        engine: What runs.
        policy: May be exchanged between batches.
        costs: As given.
        dial: As given.
        next_id: Id of the next sample that comes without one.

    Raises:
        InputError: There is no policy, it is that of another model, or it cannot decide on maps.
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
        check_source: bool = True,
    ) -> None:
        given = Steered(policy=policy, costs=costs, dial=dial)
        self.engine, steered = opened(model, given, optimise=optimise, check_source=check_source)
        if (held := self.engine.held) is not None:
            raise InputError(
                f"model holds stages {held[0]} to {held[-1]} of {self.engine.num_exits} only, the rest is elsewhere. "
                "Run it with Tier."
            )
        assert steered.policy is not None
        self.policy, self.costs, self.dial = steered.policy, steered.costs, steered.dial
        self.next_id = 0
        self._recognised, self._checked = isinstance(self.engine, DenseEngine), False
        self._cumulative = None if self.costs is None else np.array(self.costs.cumulative)

    def __repr__(self) -> str:
        """Say what runs, and by which policy."""
        return f"AdaptiveModel of {self.engine.num_exits} exits on {self.engine.name}; policy: {self.policy!r}"

    def __call__(self, inputs: Inputs, sample_ids: SampleIds | None = None) -> Prediction:
        """Predict a batch.

        Args:
            inputs: An array or tensor, or a mapping of them by name, batch first; or a list of samples. Labels in a
                mapping are left out.
            sample_ids: Names of the samples for policies that toss a coin; the same id always falls the same way.
                By default samples are counted from 0, going on from call to call (`next_id`).

        Raises:
            DataError: Samples in a list that differ in shape.
            InputError: No batch or an empty one, inputs that the model does not take, ids that are no whole numbers, or
                a model that mixes the samples of a batch.
            RunError: An exit returns NaN or infinity; minus infinity is taken, as the logit of an impossible class.
            ShapeError: Another number of ids than of samples, exits that do not return one row per sample, a policy
                fitted for another number of classes, or states that hold anything but constants and tensors with the
                samples in their first axis.
        """
        inputs = batch_of(inputs)
        count = size_of(inputs)
        if sample_ids is None:
            ids = np.arange(self.next_id, self.next_id + count)
            self.next_id += count
        else:
            ids = whole_ids(sample_ids, count)
        self.look_at(inputs, count)
        loop = Loop(self.engine, self.policy)
        loop.feed(inputs, ids)
        return loop.finish(self._cumulative)

    def predict_all(
        self,
        batches: Data,
        *,
        regroup: bool = True,
        sample_ids: SampleIds | None = None,
        batch_size: int = 128,
    ) -> Prediction:
        """Predict all samples of a loader or a data set; their order is kept.

        Args:
            batches: What `eenet.running.inputs.batches_of` takes: a `DataLoader`, a data set, an array, an iterable of
                batches, ...; it is read once. Labels in it are left out.
            regroup: Let samples that stay wait before the next stage until there are as many as in the first batch,
                so that late stages run on full batches too. Only samples whose inputs have the same shape wait
                together: for every shape there is, the queues hold less than two such batches per stage. The decisions
                are the same, up to the rounding of other batch sizes.
            sample_ids: Names of all samples, for policies that toss a coin; by default they are counted from 0.
            batch_size: Samples per batch, where that is left open.

        Raises:
            InputError: There is no batch, which of its values are the inputs is not clear, or ids or ``batch_size`` are
                no whole numbers; else as of a call.
            ShapeError: Another number of ids than of samples; else as of a call.
        """
        names = None if sample_ids is None else _whole(sample_ids)
        loop: Loop | None = None
        fed = 0
        batch_size = int(number(batch_size, "batch_size", 1, whole=True))
        for inputs, _ in batches_of(batches, batch_size):
            count = size_of(inputs)
            if names is not None:
                _require_one_each(names, fed + count, more=True)
            self.look_at(inputs, count)
            if loop is None:
                loop = Loop(self.engine, self.policy, count if regroup else 1)
            loop.feed(inputs, np.arange(fed, fed + count) if names is None else names[fed : fed + count])
            fed += count
        if loop is None:
            raise InputError(
                "batches are empty: there is nothing to predict, or they are an iterator that was read before. Pass at "
                "least 1 sample."
            )
        if names is not None:
            _require_one_each(names, fed)
        return loop.finish(self._cumulative)

    def at(self, budget: BudgetLike) -> AdaptiveModel:
        """Return the same model for another budget, without fitting again.

        Args:
            budget: A mean cost per sample: a number in the unit of `costs` (else of the dial's), with a unit, or a
                percentage.

        Raises:
            InputError: There is no dial, or it was fitted with costs that are not in proportion to `costs`.
            BudgetError: No number, a foreign unit, or below the cost of exit 0.
        """
        if self.dial is None:
            raise InputError(
                f"budget {budget} cannot be set: the policy was fitted for one budget, and there is no dial beside it. "
                "Pass dial=scheduler.sweep(table), or fit and export again."
            )
        costs, fitted = self.costs or self.dial.costs, self.dial.costs
        asked = costs.budget(budget)
        factor = costs.factor(fitted)
        if factor is None:
            raise InputError(
                f"budget {asked.text} cannot be set: exits cost {_listed(costs)}, and the dial was fitted for "
                f"{_listed(fitted)}, which is another share of the last exit's cost. Pass dial=scheduler.sweep(table, "
                "costs) with these costs, or the costs of the dial."
            )
        policy = self.dial.at(Budget(max(asked.value * factor, fitted.low), asked.text, asked.meaning, fitted.unit))
        turned = AdaptiveModel(self.engine, policy, costs, dial=self.dial, check_source=False)
        turned._recognised, turned._checked = self._recognised, self._checked
        return turned

    def look_at(self, inputs: Inputs, count: int) -> None:
        """Find out, once, whether the model returns maps, and whether samples can be dropped from its states.

        Every call does this by itself; it is for those who run `engine` in a loop of their own.

        Args:
            inputs: A batch, as `batch_of` returns it.
            count: How many samples it has.

        Raises:
            InputError: As of a call.
            ShapeError: As of a call.
        """
        if not self._recognised:
            self.engine = suited(self.engine, inputs)
            self._recognised = True
        if not self._checked and count > 1:
            check_states(self.engine, inputs)
            self._checked = True


@dataclass(frozen=True, kw_only=True)
class Steered:
    """What steers a model: the arguments of `AdaptiveModel`, or what an export has of them."""

    policy: Policy | None
    costs: CostTable | None
    dial: Dial | None = None


def opened(model: object, given: Steered, *, optimise: bool, check_source: bool) -> tuple[Engine, Steered]:
    """Return the engine of a model, an engine or the folder of an export, and what steers it; see `AdaptiveModel`."""
    if isinstance(model, str | os.PathLike):
        from eenet.running.exports import open_export

        found = open_export(model)
        engine = found.engine
        check_source = check_source and given.policy is not None  # its own was checked when it was exported
        given = Steered(
            policy=given.policy or found.policy, costs=given.costs or found.costs, dial=given.dial or found.dial
        )
    else:
        engine = as_engine(model, optimise=optimise)
    if given.policy is None:
        raise InputError("policy is missing: it decides where samples leave. Pass one, such as dial.at(budget).")
    require_parts(engine.num_exits, given.policy, given.costs, given.dial)
    if check_source:
        require_source(given.policy, engine)
    return engine, given


def require_parts(
    num_exits: int, policy: Policy, costs: CostTable | None, dial: Dial | None, *, num_classes: int | None = None
) -> None:
    """Refuse a policy, costs or a dial that are not made for a model of so many exits and, where known, classes.

    Raises:
        InputError: They are something else.
        ShapeError: Another number of exits or of classes.
    """
    for value, kind, name in ((policy, Policy, "policy"), (costs, CostTable, "costs"), (dial, Dial, "dial")):
        if value is not None or kind is Policy:
            instance(value, kind, name, f"Pass one; of what load_policy returns, pass .{name}.")
    for one in (policy, *(() if dial is None else dial.policies)):
        one.require(num_exits, num_classes)
    for known in (costs, None if dial is None else dial.costs):
        if known is not None and known.num_exits != num_exits:
            raise ShapeError(
                f"costs with {known.num_exits} exits do not fit: the model has {num_exits}. Use costs measured on "
                "this model."
            )


def require_source(policy: Policy, engine: Engine) -> None:
    """Refuse a policy that was fitted on a table of another model than an engine runs; what is not known passes.

    Raises:
        InputError: Their fingerprints differ.
    """
    if policy.source and engine.source not in ("", policy.source):
        raise InputError(
            f"policy of source {policy.source[:12]} does not fit: it was fitted on a table of another model than this "
            f"one, of source {engine.source[:12]}. Fit it on a table recorded from this model, or pass "
            "check_source=False (on the command line --force) to use it all the same."
        )


def _listed(costs: CostTable) -> str:
    return f"{', '.join(f'{cost:.4g}' for cost in costs.cumulative)} {costs.unit}"


def whole_ids(sample_ids: SampleIds, count: int) -> Int[np.ndarray, " sample"]:
    """Return the ids of so many samples as int64.

    Raises:
        InputError: They are no whole numbers.
        ShapeError: They are more or fewer.
    """
    ids = _whole(sample_ids)
    _require_one_each(ids, count)
    return ids


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


def _require_one_each(ids: np.ndarray, count: int, *, more: bool = False) -> None:
    """Refuse another number of ids than of samples; with ``more``, further samples may come."""
    if ids.ndim != 1 or len(ids) < count or (len(ids) > count and not more):
        raise ShapeError(
            f"sample_ids of shape {ids.shape} do not fit: there are {'at least ' if more else ''}{count} samples. Pass "
            "one id per sample."
        )
