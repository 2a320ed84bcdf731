"""Cost of leaving at each exit, measured and saved: the file of ``eenet profile``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, product
from typing import TYPE_CHECKING, Any

import numpy as np

from eenet.errors import InputError, TableError
from eenet.policies.policy import Policy
from eenet.policies.store import policy_size
from eenet.running.engines import Engine, as_engine, plain_model
from eenet.running.inputs import Data, Inputs, batch_of, gathered, rows_of
from eenet.running.latency import Latency, counts, measure_latency, threads_of
from eenet.tables.arrays import as_array
from eenet.tables.checks import number
from eenet.tables.costs import CostTable
from eenet.tables.display import few, frame
from eenet.tables.files import read_object, write_json

if TYPE_CHECKING:
    import pandas

_FORMAT = {"format": "eenet profile", "version": 1}
_FAR = 0.2  # relative difference above which two shares are reported as disagreeing


@dataclass(frozen=True, kw_only=True)
class FlopReport:
    """Floating point operations per sample; one multiply-accumulate is two.

    Attributes:
        start: Of making the first state.
        stages: Of each stage.
        heads: Of each head.
        uncounted: Operators that ran and have no formula; they count as zero, so the true number is larger.
            Element-wise operations, normalisation and pooling count as zero by convention and are not listed.
        original: The first stage that the original model needs.
    """

    start: float
    stages: tuple[float, ...]
    heads: tuple[float, ...]
    uncounted: tuple[str, ...]
    original: int = 0

    @property
    def cumulative(self) -> tuple[float, ...]:
        """Of leaving at each exit: every stage and head on the way. The operations of decisions are negligible."""
        steps = [stage + head for stage, head in zip(self.stages, self.heads, strict=True)]
        return tuple(accumulate(steps, initial=self.start))[1:]

    @property
    def reference(self) -> float:
        """Of the original model without exits: every stage that it needs, the last head only."""
        return self.start + sum(self.stages[self.original :]) + self.heads[-1]

    def costs(self) -> CostTable:
        """Return the costs of leaving at each exit."""
        return CostTable(self.cumulative, "FLOPs", self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: the costs and what they consist of."""
        return self.costs().to_dict() | asdict(self)

    def not_counted(self) -> str:
        """Say which operators have no formula and what that means; empty where all were counted."""
        if not self.uncounted:
            return ""
        return (
            f"Operations without a formula count as nothing: {', '.join(self.uncounted)}. The true number is larger; "
            "where they are a large part of the model, state budgets in ms."
        )


def tokens_in(inputs: Inputs) -> int | None:
    """Return how many tokens each text of a batch has, padding included; None of inputs that are no texts."""
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    arrays = [as_array(value) for value in named.values()]
    return next((one.shape[1] for one in arrays if one.ndim == 2 and one.dtype.kind in "iu"), None)


def measure_flops(model: object, example_inputs: Inputs) -> FlopReport:
    """Count the floating point operations of every stage and head.

    Args:
        model: The multi-exit model, or an engine of one; runs in evaluation mode, its flags are restored.
        example_inputs: A batch of any size.

    Raises:
        InputError: An empty batch, inputs that the model does not take, or an engine of no model of PyTorch.
    """
    from eenet.models.counting import operations
    from eenet.running.engines import EagerEngine

    model, inputs = plain_model(model), batch_of(example_inputs)
    engine = EagerEngine(model, optimise=False)
    engine.full(rows_of(inputs, slice(0, 2)))  # what does not fit is said in one line
    start, stages, heads, uncounted = operations(model, engine.placed(inputs))
    return FlopReport(start=start, stages=stages, heads=heads, uncounted=uncounted, original=model.original)


def counted(model: object, example_inputs: Inputs) -> FlopReport | None:
    """Return `measure_flops` of a model; None of an engine of no model of PyTorch, whose operations are not known."""
    return None if (known := _of_torch(model)) is None else measure_flops(known, example_inputs)


def _of_torch(model: object) -> object | None:
    """Return the model of an engine; None where it has none."""
    try:
        return model.as_model() if isinstance(model, Engine) else model
    except InputError:
        return None


@dataclass(frozen=True, kw_only=True)
class ParameterReport:
    """How many parameters a model has, and what a policy adds.

    Attributes:
        up_to: Of the part up to each exit: its stages, and its heads so far.
        full: Of the original model without exits.
        policy: Numbers that the policy consists of; None where none was given, or they are not known.
    """

    up_to: tuple[int, ...]
    full: int
    policy: int | None = None


def count_parameters(model: object, policy: Policy | None = None) -> ParameterReport:
    """Return how many parameters a model has up to each exit, and how many numbers a policy adds."""
    from eenet.models.capacities import exit_sizes, plain_size

    model = plain_model(model)
    return ParameterReport(
        up_to=tuple(int(size) for size in exit_sizes(model)["params"]),
        full=int(plain_size(model)["params"]),
        policy=None if policy is None else policy_size(policy),
    )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything measured of one model on one machine.

    Attributes:
        parameters: Up to each exit; None where they are not known, as those of functions and estimators.
        flops: Operations per sample; None likewise.
        latency: Times per sample, one record per engine, length and batch size.
        threads: Of the CPU, while timing.
    """

    parameters: ParameterReport | None
    flops: FlopReport | None
    latency: tuple[Latency, ...]
    threads: int

    def costs(
        self,
        batch_size: int | None = None,
        engine: str | None = None,
        dtype: str | None = None,
        length: int | None = None,
    ) -> CostTable:
        """Return the costs in FLOPs, or in ms if a batch size, an engine, a number format or a length is named.

        Raises:
            InputError: Nothing, or more than one thing, was measured that fits, or operations could not be counted.
        """
        return _chosen(self.to_dict(), "profile", batch_size=batch_size, engine=engine, dtype=dtype, length=length)

    def disagreements(self) -> list[str]:
        """Return where a budget in FLOPs would mislead: exits whose share of the full cost is another one in time.

        Returns:
            One sentence for every exit of every latency record whose share of the full time lies more than 20 % above
            or below its share of the full operations, and does so between the quartiles of both times as well; and one
            for every record where the quartiles are too far apart to tell. Records of other lengths than the examples'
            are left out.
        """
        found: list[str] = []
        if self.flops is None:
            return found
        operations = [cost / self.flops.reference for cost in self.flops.cumulative]
        for row in (row for row in self.latency if row.length is None):
            where = f"on {row.engine} {row.dtype} at batch size {row.batch_size}"
            unsure = []
            for k, (cost, (low, high), share) in enumerate(zip(row.cumulative, row.quartiles, operations, strict=True)):
                taken = cost / row.full.median
                if abs(taken / share - 1) <= _FAR:
                    continue
                if low / row.full.high > (1 + _FAR) * share or high / row.full.low < (1 - _FAR) * share:
                    found.append(
                        f"Exit {k} takes {taken:.0%} of the full time {where}, but {share:.0%} of the full operations: "
                        "state budgets there in ms."
                    )
                else:
                    unsure.append(str(k))
            if unsure:
                found.append(
                    f"The times {where} vary too much to be compared with the operations (exits {', '.join(unsure)}): "
                    f"the machine was busy, or {row.passes} passes are too few. Measure again, with more --passes."
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            **_FORMAT,
            "torch": getattr(sys.modules.get("torch"), "__version__", None),
            "threads": self.threads,
            "num_exits": len((self.flops or self.latency[0]).stages),
            "parameters": None if self.parameters is None else asdict(self.parameters),
            "flops": None if self.flops is None else self.flops.to_dict(),
            "latency": [row.to_dict() for row in self.latency],
            "notes": self.disagreements(),
        }

    def __repr__(self) -> str:
        """Say what was measured."""
        timed = [f"{row.engine} {row.dtype} at batch {row.batch_size}" for row in self.latency]
        counted = "" if self.flops is None else f"; {self.flops.reference / 1e6:.4g} MFLOPs without exits"
        return f"Profile with {self.threads} threads of {few(timed) or 'no times'}{counted}"

    def to_frame(self) -> pandas.DataFrame:
        """Return what leaving at each exit costs: operations first, then the times, one row per exit.

        Returns:
            Columns ``engine``, ``dtype``, ``batch_size``, ``length`` (None for operations), ``exit``, ``cost``,
            ``unit``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        keys = ("engine", "dtype", "batch_size", "length")
        found = [] if self.flops is None else [(dict.fromkeys(keys), self.flops.cumulative, "FLOPs")]
        found += [({key: getattr(row, key) for key in keys}, row.cumulative, "ms") for row in self.latency]
        return frame(
            [
                how | {"exit": k, "cost": cost, "unit": unit}
                for how, costs, unit in found
                for k, cost in enumerate(costs)
            ]
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON, atomically; `load_costs` reads it."""
        write_json(path, self.to_dict(), sealed=True)


def measure(
    model: object,
    example_inputs: Data,
    *,
    batch_sizes: Sequence[int] = (1, 32, 128),
    lengths: Sequence[int] | None = None,
    engines: Sequence[Engine] | None = None,
    passes: int = 15,
    policy: Policy | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Profile:
    """Count parameters and operations, and time every stage, head and decision.

    Args:
        model: The multi-exit model, or an engine such as a cascade; operations of engines are counted where a model of
            PyTorch is known.
        example_inputs: Samples to run, repeated or cut to each batch size: a batch as the model takes it, or a
            `DataLoader` or other data that `eenet.running.inputs.batches_of` takes, of which as many are read as are
            needed.
        batch_sizes: Samples per batch, at which times are taken; none: operations only.
        lengths: Tokens per text, at which times are taken too: the texts are cut, or begun again; default: as they are.
        engines: What is timed; default: the model's eager engine, or the engine given.
        passes: How often everything is timed.
        policy: Whose decisions are timed; default: one threshold on the log-odds of the top class.
        seed: Of the order in which batch sizes take turns.
        progress: Show a bar on stderr if it takes more than two seconds.

    Raises:
        InputError: An empty batch, inputs that the model does not take, a batch size or number of passes below 1, no
            batch size for an engine whose operations cannot be counted, or lengths of inputs that are no texts.
        ShapeError: The policy has another number of exits than the model.
    """
    sizes = counts(batch_sizes, "batch_sizes")
    inputs = gathered(example_inputs, max(sizes, default=1))
    texts = (
        {None: inputs}
        if lengths is None
        else {length: _of_length(inputs, length) for length in counts(lengths, "lengths")}
    )
    engines = engines or (as_engine(model),)
    flops = counted(model, inputs)
    if flops is None and not sizes:
        raise InputError(
            "batch_sizes are empty: the operations of this engine cannot be counted, so nothing would be measured. "
            "Pass for example (1, 32)."
        )
    number(passes, "passes", 1, whole=True)
    settings: dict[str, Any] = {"passes": passes, "policy": policy, "seed": seed, "progress": progress}
    rows: list[Latency] = []
    for engine, (length, given) in product(engines if sizes else (), texts.items()):
        found = measure_latency(engine, given, batch_sizes=sizes, **settings)
        rows += [replace(row, length=length) for row in found]
    known = _of_torch(model)
    parameters = None if known is None else count_parameters(known, policy)
    return Profile(parameters=parameters, flops=flops, latency=tuple(rows), threads=threads_of(engines[0]))


def _of_length(inputs: Inputs, length: int) -> Inputs:
    """Return texts of another number of tokens: cut, or begun again from their start."""
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    arrays = {name: as_array(value) for name, value in named.items()}
    tokens = tokens_in(inputs)
    if length < 1 or tokens is None:
        raise InputError(
            f"lengths {length} do not fit: they are tokens, at least 1, of texts, which are whole numbers [sample, "
            "token]. Leave them out."
        )
    places = np.arange(length) % tokens
    changed = {name: one[:, places] if one.ndim > 1 and one.shape[1] == tokens else one for name, one in arrays.items()}
    return changed if isinstance(inputs, Mapping) else changed[""]


def load_costs(
    path: str | os.PathLike[str],
    batch_size: int | None = None,
    engine: str | None = None,
    dtype: str | None = None,
    length: int | None = None,
) -> CostTable:
    """Read costs from what ``eenet profile`` wrote, or from a bare ``{"cumulative", "unit", "reference"}``.

    Args:
        path: The JSON file.
        batch_size: Whose times to take; default: the FLOPs, or the only batch size if an engine or format is named.
        engine: Whose times to take; needed if several were measured.
        dtype: Number format whose times to take; needed if several were measured.
        length: Tokens of the texts whose times to take; needed if several lengths were measured.

    Raises:
        InputError: The file is missing or no costs, or what is asked for was not measured or is not unique.
    """
    asked = {"batch_size": batch_size, "engine": engine, "dtype": dtype, "length": length}
    value = read_object(path, "costs")
    if "cumulative" in value:
        if any(one is not None for one in asked.values()):
            raise InputError(
                f"costs {path} have no batch sizes or engines to choose from: they are a bare cost table. "
                "Leave the choice out, or give a file of eenet profile."
            )
        return CostTable.from_dict(value)
    found = {name: value.get(name) for name in _FORMAT}
    if found != _FORMAT:
        raise TableError(
            f"costs {path} are of an unknown kind: format {found['format']!r}, version {found['version']!r}. Write "
            "them with eenet profile."
        )
    return _chosen(value, os.fspath(path), **asked)


def _chosen(profile: dict[str, Any], where: str, **asked: object) -> CostTable:
    """Return the one cost table of a profile that was asked for; None: any will do."""
    wanted = {name: value for name, value in asked.items() if value is not None}
    listed = profile.get("latency")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    if not wanted and profile.get("flops", "") is None:
        sizes = ", ".join(str(row.get("batch_size")) for row in rows)
        raise InputError(
            f"costs need a batch size: {where} has times only, at batch size {sizes}, as the operations could not be "
            "counted. Pass batch_size=."
        )
    if not wanted:
        return CostTable.from_dict(profile.get("flops"))
    fitting = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    if len(fitting) == 1:
        return CostTable.from_dict(fitting[0])
    named = " and ".join(f"{name} {value}" for name, value in wanted.items())
    measured = [
        f"{row.get('engine')} {row.get('dtype')} at batch size {row.get('batch_size')}"
        + (f" and length {row['length']}" if row.get("length") else "")
        for row in rows
    ]
    fault = "was not measured" if not fitting else "is not unique"
    raise InputError(f"{named} {fault}: {where} contains {', '.join(measured) or 'nothing'}. Choose one of these.")
