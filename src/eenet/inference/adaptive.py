"""Inference that really stops early: samples that leave are dropped, the rest go on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

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
from eenet.inference.regroup import Regrouping
from eenet.inference.stepping import Left, gathered, log_probs, look, part
from eenet.models.inputs import Inputs, batch_size
from eenet.models.model import MultiExitModel

__all__ = ["AdaptiveModel", "Prediction", "toss"]

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
        num_exits = self.engine.num_exits
        for name, found in (("policy", policy.num_exits), ("costs", num_exits if costs is None else costs.num_exits)):
            if found != num_exits:
                raise ShapeError(
                    f"{name} with {found} exits does not fit: the model has {num_exits} exits. "
                    f"Use {name} made for this model."
                )
        self._exits = torch.arange(num_exits, device=self.engine.device)[:, None]
        self._cumulative = None if costs is None else torch.tensor(costs.cumulative, dtype=torch.float64)

    def __call__(
        self,
        inputs: Inputs,
        sample_ids: Int[Tensor, " sample"] | None = None,
        features: Float[Tensor, "sample exit feature"] | None = None,
    ) -> Prediction:
        """Predict a batch.

        Args:
            inputs: A tensor or keyword tensors, batch first, on the model's device.
            sample_ids: Names of the samples for policies that toss a coin; the same id always falls the same way.
                By default samples are counted from 0, going on from call to call (`next_id`).
            features: What the policy reads besides the outputs, if it was fitted with such features.

        Raises:
            InputError: An empty batch.
            ShapeError: Another number of ids than of samples, or logits that are not ``[sample, class]``.
        """
        ids = self._ids(batch_size(inputs), sample_ids)
        return self._prediction(*self._decided(inputs, ids, features))

    def predict_all(
        self, batches: Iterable[Any], *, regroup: bool = True, sample_ids: Int[Tensor, " sample"] | None = None
    ) -> Prediction:
        """Predict every batch of a loader; the order of the samples is kept.

        Args:
            batches: Yields inputs, or tuples that begin with the inputs (and, say, labels).
            regroup: Let samples that stay wait before the next stage until there are as many as in the first batch,
                so that late stages do not run on the few that are left of each batch. The queues hold less than two
                such batches per stage. The decisions are the same, up to the rounding of other batch sizes.
            sample_ids: Names of all samples, for policies that toss a coin; by default they are counted from 0.

        Raises:
            InputError: There is no batch.
            ShapeError: There are more samples than ids.
        """
        waiting: Regrouping | None = None
        decided: list[tuple[Tensor, Tensor]] = []
        first = 0
        for batch in batches:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            count = batch_size(inputs)
            rows = torch.arange(first, first + count, device=self.engine.device)
            ids = rows if sample_ids is None else self._ids(count, sample_ids[first : first + count])
            if first == 0 and count == 1:
                regroup = False  # one sample is a full batch of itself
            first += count
            if not regroup:
                decided.append(self._decided(inputs, ids, None))
                continue
            waiting = waiting or Regrouping(self.engine, self.policy, count)
            with self.engine.session():
                waiting.feed(inputs, ids, rows)
        if not first:
            raise InputError("batches are empty: there is nothing to predict. Pass at least 1 sample.")
        if waiting is not None:
            with self.engine.session():
                decided.append(gathered(waiting.finish()))
        return self._prediction(*map(torch.cat, zip(*decided, strict=True)))

    def _prediction(self, log_probs: Tensor, exit_index: Tensor) -> Prediction:
        """Return what came out, with what it cost."""
        cost = None if self._cumulative is None else self._cumulative.to(exit_index.device)[exit_index]
        return Prediction(log_probs=log_probs, exit_index=exit_index, cost=cost)

    def _ids(self, count: int, sample_ids: Tensor | None) -> Tensor:
        """Return the ids of a batch, counting on where none are given."""
        if sample_ids is None:
            first, self.next_id = self.next_id, self.next_id + count
            return torch.arange(first, first + count, device=self.engine.device)
        if sample_ids.shape != (count,):
            raise ShapeError(
                f"sample_ids of shape {tuple(sample_ids.shape)} do not fit: the batch holds {count} samples. "
                "Pass one id per sample."
            )
        return sample_ids

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
