"""Inference that really stops early: samples that leave are dropped, the rest go on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.core.alone import tensor_of
from eenet.core.combined import MixedPolicy
from eenet.core.costs import CostTable
from eenet.core.policy import Policy
from eenet.core.views import FEW_CLASSES
from eenet.errors import InputError, ShapeError
from eenet.inference.engines import EagerEngine, Engine
from eenet.inference.fitting import classes_of, require_classes, require_exits, require_no_features
from eenet.inference.latency import rows_of
from eenet.inference.regroup import Regrouping
from eenet.inference.stepping import Left, gathered, log_probs, look, part
from eenet.models.inputs import Inputs, batch_size
from eenet.models.model import MultiExitModel

__all__ = ["AdaptiveModel", "Prediction", "SampleIds", "toss"]

SampleIds: TypeAlias = Tensor | np.ndarray | Sequence[int]
"""Names of samples: one whole number each, of any type."""

_WORD = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What came out for a batch, in the order of its samples.

    Attributes:
        log_probs: The answers, as float32 log-probabilities.
        exit_index: Where each sample left, 0-based.
        cost: What each sample cost, in the unit of the cost table; None where none was given.
    """

    log_probs: Float[Tensor, "sample class"]
    exit_index: Int[Tensor, " sample"]
    cost: Float[Tensor, " sample"] | None = None

    @property
    def labels(self) -> Int[Tensor, " sample"]:
        """The predicted classes."""
        return self.log_probs.argmax(dim=1)


@final
class AdaptiveModel:
    """A multi-exit model steered by a policy: the same decisions as `replay` makes on recorded outputs.

    Between stages only the samples that stay are kept, so work is saved for real. Each stage costs one
    device-to-host synchronisation per batch; a batch of one sample is never gathered or scattered.

    Fed the same logits, it decides as `replay` does, to the bit, whatever the batch size. Logits computed anew at
    another batch size differ by rounding; only samples whose score lies that close to a threshold may then differ.

    Args:
        model: A multi-exit model (run as it is, in evaluation mode, its flags restored), or an engine.
        policy: Where to leave.
        costs: What leaving costs, to fill `Prediction.cost`.

    Raises:
        ShapeError: Model, policy and costs disagree on the number of exits.
    """

    def __init__(self, model: MultiExitModel | Engine, policy: Policy, costs: CostTable | None = None) -> None:
        self.engine = model if isinstance(model, Engine) else EagerEngine(model, optimise=False)
        self.policy = policy
        self.costs = costs
        self.next_id = 0
        require_exits(self.engine.num_exits, policy, costs)
        self._fitting: tuple[Policy, int, int | None] | None = None
        self._exits = torch.arange(self.engine.num_exits, device=self.engine.device)[:, None]
        self._cumulative = None if costs is None else torch.tensor(costs.cumulative, dtype=torch.float64)

    def __call__(
        self,
        inputs: Inputs,
        sample_ids: SampleIds | None = None,
        features: Float[Tensor, "sample exit feature"] | None = None,
    ) -> Prediction:
        """Predict a batch.

        Args:
            inputs: A tensor or keyword tensors, batch first, on the model's device.
            sample_ids: Names of the samples for policies that toss a coin; the same id always falls the same way.
                By default samples are counted from 0, going on from call to call (`next_id`).
            features: What the policy reads besides the outputs, if it was fitted with such features; of every sample
                at every exit.

        Raises:
            InputError: An empty batch, or ids that are no whole numbers.
            ShapeError: Another number of ids than of samples, features of other samples or exits, logits that are not
                ``[sample, class]``, or a policy fitted for another number of classes.
        """
        count, num_exits = batch_size(inputs), self.engine.num_exits
        if features is not None and (features.dim() != 3 or features.shape[:2] != (count, num_exits)):
            raise ShapeError(
                f"features of shape {tuple(features.shape)} do not fit: the batch holds {count} samples and the model "
                f"has {num_exits} exits. Pass [sample, exit, feature], for all exits."
            )
        ids = self._ids(count, sample_ids)
        return self._prediction(*self._decided(inputs, ids, features))

    def predict_all(
        self, batches: Iterable[Any], *, regroup: bool = True, sample_ids: SampleIds | None = None
    ) -> Prediction:
        """Predict every batch of a loader; the order of the samples is kept.

        Policies that read features are given them batch by batch, in calls of the model itself.

        Args:
            batches: Yields inputs, or tuples that begin with the inputs (and, say, labels).
            regroup: Let samples that stay wait before the next stage until there are as many as in the first batch,
                so that late stages do not run on the few that are left of each batch. Only samples whose
                inputs have the same shape wait together: for every shape there is, the queues hold less than two such
                batches per stage. The decisions are the same, up to the rounding of other batch sizes.
            sample_ids: Names of all samples, for policies that toss a coin; by default they are counted from 0.

        Raises:
            InputError: There is no batch, ids are no whole numbers, or the policy reads features.
            ShapeError: Another number of ids than of samples, or a policy fitted for another number of classes.
        """
        require_no_features(self.policy, "Call the model batch by batch, with the features of each batch.")
        names = None if sample_ids is None else _whole(sample_ids, self.engine.device)
        waiting: Regrouping | None = None
        decided: list[tuple[Tensor, Tensor]] = []
        first = 0
        for batch in batches:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            count = batch_size(inputs)
            rows = torch.arange(first, first + count, device=self.engine.device)
            if first == 0 and count == 1:
                regroup = False  # one sample is a full batch of itself
            first += count
            if names is not None:
                _require_one_each(names, first, "there are at least", more=True)
            ids = rows if names is None else names[first - count : first]
            if not regroup:
                decided.append(self._decided(inputs, ids, None))
                continue
            with self.engine.session():
                if waiting is None:
                    self._look_ahead(inputs)
                    waiting = Regrouping(self.engine, self.policy, count)
                waiting.feed(inputs, ids, rows)
        if not first:
            raise InputError("batches are empty: there is nothing to predict. Pass at least 1 sample.")
        if names is not None:
            _require_one_each(names, first, "there are")
        if waiting is not None:
            with self.engine.session():
                decided.append(gathered(waiting.finish()))
        return self._prediction(*map(torch.cat, zip(*decided, strict=True)))

    def _prediction(self, log_probs: Tensor, exit_index: Tensor) -> Prediction:
        """Return what came out, with what it cost."""
        cost = None if self._cumulative is None else self._cumulative.to(exit_index.device)[exit_index]
        return Prediction(log_probs=log_probs, exit_index=exit_index, cost=cost)

    def _ids(self, count: int, sample_ids: SampleIds | None) -> Tensor:
        """Return the ids of a batch, counting on where none are given."""
        if sample_ids is None:
            first, self.next_id = self.next_id, self.next_id + count
            return torch.arange(first, first + count, device=self.engine.device)
        ids = _whole(sample_ids, self.engine.device)
        _require_one_each(ids, count, "the batch holds")
        return ids

    def _require_classes(self, classes: int, features: Tensor | None) -> None:
        """Refuse a policy that was fitted for other classes or features; looked into once for every policy."""
        shown = (self.policy, classes, None if features is None else features.shape[2])
        if shown != self._fitting:
            require_classes(*shown)
            self._fitting = shown

    def _look_ahead(self, inputs: Inputs) -> None:
        """Check on one sample that the policy was fitted for the model's classes, before samples wait in queues."""
        if self._fitting is not None and self._fitting[0] is self.policy:
            return
        if classes_of(self.policy) is not None:
            first = rows_of(inputs, torch.arange(1))
            logits = self.engine.head(0, self.engine.stage(0, self.engine.start(first)))
            self._require_classes(log_probs(logits, 0).shape[1], None)

    def _decided(self, inputs: Inputs, ids: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities and exits of a batch."""
        with self.engine.session():
            if len(ids) > 1:
                return self._run_many(inputs, ids, features)
            policy = _followed(self.policy, int(ids))
            return self._run_one(inputs, policy, ids, features)

    def _run_one(self, inputs: Inputs, policy: Policy, ids: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run one sample: nothing to gather, nothing to scatter."""
        engine, last = self.engine, self.engine.num_exits - 1
        alone = policy.single and features is None and engine.device.type == "cpu"
        k, state, seen, told = 0, engine.start(inputs), None, []
        while True:
            state = engine.stage(k, state)
            newest = log_probs(engine.head(k, state), k)
            if not k:
                self._require_classes(newest.shape[1], features)
            if alone and newest.shape[1] <= FEW_CLASSES:  # a few numbers: Python adds them up before torch wakes up
                told.append(newest.tolist()[0])
                shown = policy.shown_one(told)
                if k == last or policy.leaves_one(shown, k):
                    return newest if shown is told[k] else tensor_of(shown), self._exits[k].clone()
            else:
                seen = newest.unsqueeze(1) if seen is None else torch.cat((seen, newest.unsqueeze(1)), dim=1)
                noted = None if features is None else features[:, : k + 1]
                if k == last or bool(policy.leaves(seen, ids, noted)):
                    return policy.answers(seen, ids, noted), self._exits[k].clone()
            k += 1

    def _run_many(self, inputs: Inputs, ids: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run a batch, dropping the samples that leave after each stage."""
        engine, policy, last = self.engine, self.policy, self.engine.num_exits - 1
        left: list[Left] = []
        rows: Tensor | None = None
        drawn = policy.drawn(ids.long().numpy()) if policy.quick and ids.is_cpu else None  # once, not at every exit
        state, seen = engine.start(inputs), None
        for k in range(last + 1):
            state = engine.stage(k, state)
            seen = look(engine, k, state, seen)
            if not k:
                self._require_classes(seen.shape[2], features)
            shown = None if features is None else features[:, : k + 1]
            if k == last:
                left.append(Left(k, rows, policy.answers(seen, ids, shown)))
                break
            gone, stay, answers = part(policy, seen, ids, shown, drawn)
            if gone is None or answers is None:
                continue
            if stay is None:  # nobody goes on
                left.append(Left(k, rows, answers))
                break
            left.append(Left(k, gone if rows is None else rows[gone], answers))
            rows = stay if rows is None else rows[stay]
            seen, ids, state = seen.index_select(0, stay), ids[stay], engine.select(state, stay)
            features = None if features is None else features[stay]
            drawn = None if drawn is None else drawn[stay.numpy()]
        return gathered(left)


def _whole(sample_ids: SampleIds, device: torch.device) -> Int[Tensor, "*shape"]:
    """Return ids as int64 on a device, refusing what is no whole number."""
    try:
        ids = sample_ids if isinstance(sample_ids, Tensor) else torch.tensor(np.asarray(sample_ids))
    except (TypeError, ValueError) as error:
        raise InputError(f"sample_ids cannot be read: {error}. Pass one whole number per sample.") from error
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise InputError(
            f"sample_ids of {ids.dtype} do not fit: coins are tossed by whole numbers, and many of these would become "
            "one. Pass one whole number per sample."
        )
    return ids.to(device).long()


def _require_one_each(ids: Tensor, count: int, held: str, *, more: bool = False) -> None:
    """Refuse another number of ids than of samples; with ``more``, further samples may come."""
    if ids.dim() != 1 or (len(ids) < count if more else len(ids) != count):
        raise ShapeError(
            f"sample_ids of shape {tuple(ids.shape)} do not fit: {held} {count} samples. Pass one id per sample."
        )


def _followed(policy: Policy, sample_id: int) -> Policy:
    """Return the policy that a single sample's coins chose, so that they are tossed once and not at every exit."""
    while isinstance(policy, MixedPolicy):
        policy = policy.a if toss(sample_id, policy.seed) < policy.weight else policy.b
    return policy


def toss(sample_id: int, seed: int) -> float:
    """Return `eenet.core.coins.coin` of one sample, to the bit, without a dozen tensors."""
    x = ((sample_id + 1) * -7046029254386353131 + seed * 2862933555777941757 % (1 << 63)) & _WORD
    x = ((x ^ (x >> 30)) * -4658895280553007687) & _WORD
    x = ((x ^ (x >> 27)) * -7723592293110705685) & _WORD
    return float((x ^ (x >> 31)) >> 11) * 2.0**-53
