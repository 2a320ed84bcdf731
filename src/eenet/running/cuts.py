"""Where a model is best cut between tiers: what travels, beside what it would cost to send the input instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eenet.policies.policy import Policy
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines import as_engine
from eenet.running.inputs import Inputs, batch_of
from eenet.running.sent import COMPRESSIONS
from eenet.running.tiers import Tier, flips, together
from eenet.tables.arrays import arrays_of, as_array, batch_size
from eenet.tables.capacity import written
from eenet.tables.checks import number
from eenet.tables.costs import CostTable

AS_IS = "lossless"
"""The name of a state that is not compressed."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What travels where one tier ends at an exit and the next goes on.

    Attributes:
        exit: The last exit of the first tier.
        num_samples: That were run.
        going_on: Share of the samples that the next tier gets.
        input_bytes: Per sample, of the input itself.
        state_bytes: Per sample that goes on, by how the state is sent; empty where nobody goes on.
        flips: Samples that leave at another exit or with another class than on one machine, by how the state is sent.
        again: What the next tier would do again per sample if it got the input: the cost of that exit.
        unit: Of ``again``; both None where costs are not known.
    """

    exit: int
    num_samples: int
    going_on: float
    input_bytes: float
    state_bytes: Mapping[str, float]
    flips: Mapping[str, int]
    again: float | None
    unit: str | None

    @property
    def sends(self) -> str | None:
        """How the state is sent so that it is no larger than the input, lossless first; None: it always is larger."""
        return next((name for name, size in self.state_bytes.items() if size <= self.input_bytes), None)

    @property
    def verdict(self) -> str:
        """Whether sending the state pays, in one or two sentences."""
        where, going = f"A cut after exit {self.exit}", f"{self.going_on:.1%} of the samples go on"
        if not self.state_bytes:
            return f"{where} sends nothing: all samples leave before."
        sizes = f"the state takes {written(self.state_bytes[AS_IS], 'bytes')} per sample"
        given = f"the input {written(self.input_bytes, 'bytes')}"
        if self.sends == AS_IS:
            return f"{where} pays: {sizes}, {given}; {going}."
        if self.sends:
            small = f"{written(self.state_bytes[self.sends], 'bytes')} as {self.sends}"
            flipped = f"{self.flips[self.sends]} of {self.num_samples} samples flip"
            return f"{where} pays only if compressed: {sizes}, {small} ({flipped}), {given}; {going}."
        smallest = min(self.state_bytes, key=lambda name: self.state_bytes[name])
        again = "" if self.again is None else f", which does {self.again:.4g} {self.unit} per sample again"
        return (
            f"{where} does not pay: {sizes}, {written(self.state_bytes[smallest], 'bytes')} as {smallest}, {given}; "
            f"{going}. Send the input instead{again}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self) | {"sends": self.sends, "verdict": self.verdict}


def tier_report(
    model: object,
    policy: Policy,
    inputs: Inputs,
    costs: CostTable | None = None,
    *,
    input_bytes: float | None = None,
    optimise: bool = True,
) -> tuple[Cut, ...]:
    """Return for every cut between two tiers what travels, measured on a batch.

    Args:
        model: A multi-exit model, an engine that has all stages.
        policy: Where samples leave.
        inputs: Samples as the model takes them, run as one batch; hundreds, so that shares mean something.
        costs: What leaving costs, to say what would be done again.
        input_bytes: What an input takes when it is sent, per sample, such as that of a JPEG; default: its arrays.
        optimise: See `AdaptiveModel`.

    Returns:
        One `Cut` per early exit.

    Raises:
        InputError: ``input_bytes`` is not above 0; else as of `Tier`.
        RunError: As of `Tier`.
        ShapeError: As of `Tier`.
    """
    inputs = batch_of(inputs)
    count = batch_size(inputs)
    given = sum(as_array(one).nbytes for one in arrays_of(inputs)) / count if input_bytes is None else input_bytes
    given = number(given, "input_bytes", above=0)
    engine = as_engine(model, optimise=optimise)
    ids = np.arange(count)
    wanted = AdaptiveModel(engine, policy, costs)(inputs, ids)

    def cut(k: int) -> Cut:
        device, later = Tier(engine, policy, last=k), Tier(engine, policy, first=k + 1)
        sizes: dict[str, float] = {}
        flipped: dict[str, int] = {}
        going = 0
        for compress in (None, *COMPRESSIONS):
            result = device(inputs, ids, compress=compress)
            going = len(result.staying)
            if result.state is None:
                break
            name = compress or AS_IS
            sizes[name] = len(result.state) / going
            flipped[name] = flips(together([result, later.resume(result.state)]), wanted)
        return Cut(
            exit=k,
            num_samples=count,
            going_on=going / count,
            input_bytes=given,
            state_bytes=sizes,
            flips=flipped,
            again=None if costs is None else costs.cumulative[k],
            unit=None if costs is None else costs.unit,
        )

    return tuple(cut(k) for k in range(engine.num_exits - 1))
