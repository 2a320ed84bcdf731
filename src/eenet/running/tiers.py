"""One model on several tiers of devices: each runs some stages, and sends on the samples that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float32, Int

from eenet.errors import InputError, ShapeError
from eenet.policies.policy import Policy
from eenet.policies.store import policy_fingerprint
from eenet.running.adaptive import SampleIds, Steered, opened, whole_ids
from eenet.running.engines import DenseEngine, Engine, suited
from eenet.running.engines.base import check_states, require_samples_first
from eenet.running.engines.graphs import GRAPH_ENGINES
from eenet.running.inputs import Inputs, batch_of, joined, rows_of
from eenet.running.loop import Group, Loop, Prediction, gathered
from eenet.running.sent import COMPRESSIONS, Compression, Sent
from eenet.tables.arrays import batch_size
from eenet.tables.checks import instance, listed, number
from eenet.tables.costs import CostTable
from eenet.tables.display import samples


@dataclass(frozen=True, kw_only=True)
class TierResult:
    """What a tier answers, and what it sends on.

    Attributes:
        rows: Of the samples that left here: their places in the batch that the first tier was given.
        sample_ids: Their ids.
        prediction: What they are answered, in this order; None where nobody left.
        staying: The ids of the samples that go on.
        state: What the next tier's `Tier.resume` takes; None where nobody stays.
        so_far: What the policy would answer to the samples that go on if they left here, for where the next tier is
            away: log-probabilities, of models that classify whole samples; None where nobody stays.
    """

    rows: Int[np.ndarray, " left"]
    sample_ids: Int[np.ndarray, " left"]
    prediction: Prediction | None
    staying: Int[np.ndarray, " kept"]
    state: bytes | None
    so_far: Float32[np.ndarray, "kept column"] | None = None

    def __repr__(self) -> str:
        """Say how many left, and how many bytes go on."""
        sent = "" if self.state is None else f", in {len(self.state)} bytes"
        return f"TierResult: {samples(len(self.rows))} left, {len(self.staying)} go on{sent}"


@final
class Tier:
    """The stages ``first`` to ``last`` of a model on one device, steered by the policy of the whole.

    Samples that leave are answered; the state of the others becomes bytes, and the next tier goes on from there. It
    decides as one machine would have done, as what was seen and the sample ids travel along. Without ``compress`` the
    state is the same to the bit, and so are decisions and answers, as long as all tiers compute alike (one kind of
    engine; other processors may round otherwise). With it floating point tensors are sent as ``float16``, or as
    ``int8`` steps between the smallest and the largest number of each sample; then decisions near a threshold may flip,
    see `flips`.

    Args:
        model: A multi-exit model, an engine, or the folder of an export: of a whole model, or of some of its stages as
            `split_export` writes it, which need not have the weights of the others.
        policy: Where to leave, for all exits of the model; default: that of the export.
        costs: What leaving costs, to fill `Prediction.cost`; default: those of the export.
        first: The first stage here; default: the first that the export has.
        last: The last stage here; default: the last that the export has.
        optimise: See `AdaptiveModel`; the same on all tiers.
        check_source: Refuse policies and states of another model, and states of another policy, where both are known.

    Raises:
        InputError: There is no policy, it is that of another model, or the stages are not there.
        ShapeError: Model, policy and costs disagree on the number of exits.
    """

    def __init__(
        self,
        model: object,
        policy: Policy | None = None,
        costs: CostTable | None = None,
        *,
        first: int | None = None,
        last: int | None = None,
        optimise: bool = True,
        check_source: bool = True,
    ) -> None:
        given = Steered(policy=policy, costs=costs)
        self.engine, steered = opened(model, given, optimise=optimise, check_source=check_source)
        assert steered.policy is not None
        self.policy, self.costs = steered.policy, steered.costs
        held = self.engine.held or range(self.engine.num_exits)
        self.first = int(number(held[0] if first is None else first, "first", held[0], held[-1], whole=True))
        self.last = int(number(held[-1] if last is None else last, "last", self.first, held[-1], whole=True))
        self.next_id = 0
        self._check_source, self._checked = check_source, False
        self._cumulative = None if self.costs is None else np.array(self.costs.cumulative)
        self._fingerprint = policy_fingerprint(self.policy)
        self._reads_newest = self.policy.newest_only and self.policy.answers_newest

    @property
    def ends(self) -> bool:
        """Whether it has the last stage, so that nobody goes on."""
        return self.last == self.engine.num_exits - 1

    def __call__(
        self, inputs: Inputs, sample_ids: SampleIds | None = None, *, compress: Compression | None = None
    ) -> TierResult:
        """Run a batch through the stages of the first tier.

        Args:
            inputs: As of `AdaptiveModel`.
            sample_ids: As of `AdaptiveModel`; they are told apart by them, also on later tiers.
            compress: Send the state as ``float16`` or ``int8``; None: as it is.

        Raises:
            InputError: It is no first tier; else as of `AdaptiveModel`.
            RunError: As of `AdaptiveModel`.
            ShapeError: As of `AdaptiveModel`.
        """
        if self.first:
            raise InputError(
                f"inputs cannot be taken: this tier begins with stage {self.first}. Pass the state that the tier "
                "before it returned to resume."
            )
        _require_compression(compress)
        inputs = batch_of(inputs)
        count = batch_size(inputs)
        if sample_ids is None:
            ids = np.arange(self.next_id, self.next_id + count)
            self.next_id += count
        else:
            ids = whole_ids(sample_ids, count)
        if not self._checked:
            self.engine = suited(self.engine, inputs)
            if count > 1:
                check_states(self.engine, inputs)
            self._checked = count > 1
        with self.engine.session():
            group = Group(self.engine.start(inputs), ids, np.arange(count), self.policy.following(ids))
            return self._run(self.engine, group, compress)

    def resume(self, state: bytes | Sent, *, compress: Compression | None = None) -> TierResult:
        """Go on with the samples that stayed on the tier before.

        Args:
            state: The `TierResult.state` of that tier; it is checked, and no code in it is run. Its checksum reveals
                damage but is no signature. Or what `Sent.from_bytes` made of it.
            compress: As of a call, for what goes on from here.

        Raises:
            InputError: The bytes are damaged, of another version, model, policy, kind of engine or stage.
            RunError: As of `AdaptiveModel`.
            ShapeError: As of `AdaptiveModel`.
        """
        _require_compression(compress)
        sent = state if isinstance(state, Sent) else Sent.from_bytes(state)
        self._require_fit(sent)
        engine = self.engine  # of this state only: a damaged one must not change how the next is read
        if isinstance(sent.form, dict) and "size" in sent.form and not isinstance(engine, DenseEngine):
            engine = DenseEngine(engine)
        with engine.session():
            return self._run(engine, received(engine, sent, self.policy.following(sent.ids)), compress)

    def _run(self, engine: Engine, group: Group, compress: Compression | None) -> TierResult:
        loop = Loop(engine, self.policy)
        ids = dict(zip(group.places.tolist(), group.ids.tolist(), strict=True))
        rest = loop.through(group, self.first, self.last)
        rows = np.sort(np.concatenate([part.places for part in loop.left])) if loop.left else np.empty(0, np.int64)
        left = [part._replace(places=np.searchsorted(rows, part.places)) for part in loop.left]
        return TierResult(
            rows=rows,
            sample_ids=np.array([ids[row] for row in rows.tolist()], dtype=np.int64),
            prediction=gathered(left, self._cumulative) if left else None,
            staying=np.empty(0, np.int64) if rest is None else rest.ids,
            state=None if rest is None else self._sent(engine, rest).to_bytes(compress),
            so_far=None if rest is None else self._so_far(rest),
        )

    def _so_far(self, group: Group) -> np.ndarray:
        assert group.seen is not None
        return group.policy.answers(group.seen[:, : self.last + 1], group.ids)

    def _sent(self, engine: Engine, group: Group) -> Sent:
        return sent_on(engine, group, self.last, policy=self._fingerprint, with_seen=not self._reads_newest)

    def _require_fit(self, sent: Sent) -> None:
        """Refuse a state that this tier cannot go on with."""
        if sent.exit + 1 != self.first or sent.num_exits != self.engine.num_exits:
            raise InputError(
                f"state after exit {sent.exit} of {sent.num_exits} does not fit: this tier begins with stage "
                f"{self.first} of {self.engine.num_exits}. Send it to the tier that begins with stage {sent.exit + 1}."
            )
        if sent.engine != _kind(self.engine):
            raise InputError(
                f"state of the engine {sent.engine} does not fit: this tier runs {self.engine.name}. Run all tiers of "
                "a model in engines of one kind."
            )
        if sent.seen is not None:
            self.policy.require(num_columns=sent.seen.shape[2])
        elif not self._reads_newest:
            raise InputError(
                "state lacks what earlier exits said: the policy of the tier before reads the newest exit only, and "
                "this one reads all. Put the same policy on all tiers."
            )
        if not self._check_source:
            return
        for what, ours, theirs in (
            ("model", self.engine.source, sent.source),
            ("policy", self._fingerprint, sent.policy),
        ):
            if ours and theirs not in ("", ours):
                raise InputError(
                    f"state of another {what}, {theirs[:12]}, does not fit: this tier has {ours[:12]}. Put the same "
                    f"{what} on all tiers, or pass check_source=False to use it all the same."
                )


def received(engine: Engine, sent: Sent, policy: Policy) -> Group:
    """Return samples that were sent as a group before their next stage; to be called inside a `session`.

    Raises:
        InputError: Their state is not what the stage takes.
    """
    seen = None  # made by the loop where the policy reads the newest exit only
    if sent.seen is not None:
        seen = np.empty((len(sent.ids), sent.num_exits, sent.seen.shape[2]), dtype=np.float32)
        seen[:, : sent.exit + 1] = sent.seen
    state = engine.unpack(sent.arrays, sent.form, sent.exit)
    return Group(state, sent.ids, sent.rows, policy, seen=seen)


def sent_on(engine: Engine, group: Group, exit_index: int, *, policy: str = "", with_seen: bool = True) -> Sent:
    """Return samples that go on after an exit as they are sent; to be called inside a `session`.

    Args:
        engine: That ran them.
        group: They.
        exit_index: The last exit that they saw.
        policy: Its fingerprint; empty: the next tier does not compare it.
        with_seen: Send what all exits said so far; False: the policy reads the newest one only.

    Raises:
        ShapeError: Their state has not the samples in its first axis.
    """
    assert group.seen is not None
    require_samples_first(engine, group.state, exit_index, len(group.ids))
    arrays, form = engine.pack(group.state)
    return Sent(
        source=engine.source,
        policy=policy,
        engine=_kind(engine),
        exit=exit_index,
        num_exits=engine.num_exits,
        ids=group.ids,
        rows=group.places,
        seen=group.seen[:, : exit_index + 1] if with_seen else None,
        arrays=arrays,
        form=form,
    )


def together(results: Sequence[TierResult]) -> Prediction:
    """Return what all tiers answered to one batch, in the order of its samples.

    Args:
        results: Of the first tier, and of every later one that went on with it.

    Raises:
        InputError: Some samples of the batch are missing, or are there twice; or they are no results.
    """
    results = listed(results, "results")
    for one in results:
        instance(one, TierResult, "results", "Pass those of every tier.")
    parts = [(one.rows, one.prediction) for one in results if one.prediction is not None]
    rows = np.concatenate([rows for rows, _ in parts]) if parts else np.empty(0, np.int64)
    if not len(rows) or not np.array_equal(np.sort(rows), np.arange(len(rows))) or results[-1].state is not None:
        raise InputError(
            f"results of {len(rows)} samples are not those of one batch: some are missing, or there twice. Pass those "
            "of every tier, for one batch."
        )
    order = np.argsort(rows)
    found = [prediction for _, prediction in parts]
    log_probs, costs = [one.log_probs for one in found], [one.cost for one in found]
    outputs = rows_of(joined([one.outputs for one in found]), order)
    return Prediction(
        exit_index=np.concatenate([one.exit_index for one in found])[order],
        log_probs=None if any(one is None for one in log_probs) else outputs,
        outputs=outputs,
        cost=None if any(one is None for one in costs) else np.concatenate([*filter(_known, costs)])[order],
    )


def _known(cost: np.ndarray | None) -> bool:
    return cost is not None


def flips(one: Prediction, other: Prediction) -> int:
    """Return how many samples left at another exit, or with another class where there are classes.

    Args:
        one: Such as what one machine answers.
        other: What tiers answered to the same samples, with `Tier`'s ``compress``.

    Raises:
        ShapeError: They are of different numbers of samples.
    """
    for value, name in ((one, "one"), (other, "other")):
        instance(value, Prediction, name, "Pass what AdaptiveModel or together returns.")
    if len(one.exit_index) != len(other.exit_index):
        raise ShapeError(
            f"predictions of {len(one.exit_index)} and {len(other.exit_index)} samples cannot be compared. Pass those "
            "of the same samples."
        )
    flipped = one.exit_index != other.exit_index
    if one.log_probs is not None and other.log_probs is not None:
        flipped |= one.log_probs.argmax(axis=1) != other.log_probs.argmax(axis=1)
    return int(flipped.sum())


def _kind(engine: Engine) -> str:
    """Return whose states an engine understands: graphs all do each other's, as do engines of PyTorch."""
    return (
        "graphs" if engine.name in GRAPH_ENGINES else "torch" if engine.name in ("eager", "compiled") else engine.name
    )


def _require_compression(compress: object) -> None:
    if compress is not None and compress not in COMPRESSIONS:
        raise InputError(f"compress {compress!r} is unknown: it is {' or '.join(COMPRESSIONS)}. Pass one, or None.")
