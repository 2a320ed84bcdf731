"""What leaving at each exit costs, measured and written down: the file of ``eenet profile``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from eenet.core.costs import CostTable
from eenet.core.files import read_json, write_json
from eenet.core.policy import Policy
from eenet.errors import InputError, TableError
from eenet.inference.engines import EagerEngine, Engine
from eenet.inference.flops import FlopReport, measure_flops
from eenet.inference.latency import Latency, Spread, measure_latency
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel

__all__ = ["FlopReport", "Latency", "Profile", "Spread", "load_costs", "measure", "measure_flops", "measure_latency"]

_FORMAT = "eenet profile"
_VERSION = 1
_FAR = 0.2  # relative distance of two shares from which on they are said to disagree


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything measured of one model on one machine.

    Attributes:
        flops: Operations per sample.
        latency: Times per sample, one record per engine and batch size.
        threads: Of the CPU, while timing.
    """

    flops: FlopReport
    latency: tuple[Latency, ...]
    threads: int

    def costs(self, batch_size: int | None = None, engine: str | None = None, dtype: str | None = None) -> CostTable:
        """Return the costs in FLOPs, or in ms if a batch size, an engine or a number format is named.

        Raises:
            InputError: Nothing, or more than one thing, was measured that fits.
        """
        return _choose(self.to_dict(), _Asked(batch_size, engine, dtype), "profile")

    def disagreements(self) -> list[str]:
        """Say where a budget in FLOPs would mislead: which exits' share of the full cost is another one in time.

        Returns:
            One sentence for every exit of every latency record whose share of the full time lies more than 20 % above
            or below its share of the full operations.
        """
        said = []
        operations = [cost / self.flops.reference for cost in self.flops.cumulative]
        for row in self.latency:
            for k, (cost, share) in enumerate(zip(row.cumulative, operations, strict=True)):
                taken = cost / row.full.median
                if abs(taken / share - 1) > _FAR:
                    said.append(
                        f"Exit {k} takes {taken:.0%} of the full time on {row.engine} {row.dtype} at batch size "
                        f"{row.batch_size}, but {share:.0%} of the full operations: state budgets there in ms."
                    )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "torch": torch.__version__,
            "threads": self.threads,
            "num_exits": len(self.flops.stages),
            "flops": self.flops.to_dict(),
            "latency": [row.to_dict() for row in self.latency],
            "notes": self.disagreements(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON, atomically; `load_costs` reads it."""
        write_json(path, self.to_dict())


def measure(
    model: MultiExitModel,
    example_inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 32, 128),
    engines: Sequence[Engine] | None = None,
    passes: int = 15,
    policy: Policy | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Profile:
    """Count operations and time every stage, head and decision.

    Args:
        model: The multi-exit model.
        example_inputs: Samples to run.
        batch_sizes: At which times are taken; none: operations only.
        engines: What is timed; default: the eager engine.
        passes: How often everything is timed.
        policy: Whose decisions are timed; default: one threshold on the log-odds of the top class.
        seed: Of the order.
        progress: Show a bar on stderr if it takes more than two seconds.

    Raises:
        InputError: An empty batch, or a batch size or number of passes below 1.
    """
    flops = measure_flops(model, example_inputs)
    rows: list[Latency] = []
    if batch_sizes:
        for engine in engines or (EagerEngine(model),):
            rows += measure_latency(
                engine,
                example_inputs,
                batch_sizes=batch_sizes,
                passes=passes,
                policy=policy,
                seed=seed,
                progress=progress,
            )
    return Profile(flops=flops, latency=tuple(rows), threads=torch.get_num_threads())


def load_costs(
    path: str | os.PathLike[str],
    batch_size: int | None = None,
    engine: str | None = None,
    dtype: str | None = None,
) -> CostTable:
    """Read costs from what ``eenet profile`` wrote, or from a bare ``{"cumulative", "unit", "reference"}``.

    Args:
        path: The JSON file.
        batch_size: Whose times to take; default: the FLOPs, or the only batch size if an engine or format is named.
        engine: Whose times to take; needed if several were measured.
        dtype: Number format whose times to take; needed if several were measured.

    Raises:
        InputError: The file is missing or no costs, or what is asked for was not measured or is not unique.
    """
    value, asked = read_json(path, "costs"), _Asked(batch_size, engine, dtype)
    if not isinstance(value, dict):
        raise TableError(f"costs {path} are no costs: a JSON object is needed. Write them with eenet profile.")
    if "cumulative" in value:
        if asked != _Asked():
            raise InputError(
                f"costs {path} have no batch sizes or engines to choose from: they are a bare cost table. "
                "Leave the choice out, or give a file of eenet profile."
            )
        return CostTable.from_dict(value)
    if value.get("format") != _FORMAT or value.get("version") != _VERSION:
        raise TableError(
            f"costs {path} are of an unknown kind: format {value.get('format')!r}, version {value.get('version')!r}. "
            "Write them with eenet profile."
        )
    return _choose(value, asked, os.fspath(path))


class _Asked(NamedTuple):
    """Which times are wanted; None: any."""

    batch_size: int | None = None
    engine: str | None = None
    dtype: str | None = None

    def fits(self, row: dict[str, Any]) -> bool:
        """Return whether a latency record is meant."""
        return all(wanted in (None, row.get(name)) for name, wanted in self._asdict().items())


def _choose(profile: dict[str, Any], asked: _Asked, where: str) -> CostTable:
    """Return the one cost table that was asked for."""
    if asked == _Asked():
        return CostTable.from_dict(profile.get("flops"))
    rows = [row for row in profile.get("latency", []) if isinstance(row, dict)]
    fitting = [row for row in rows if asked.fits(row)]
    if len(fitting) == 1:
        return CostTable.from_dict(fitting[0])
    named = " and ".join(f"{name} {value}" for name, value in asked._asdict().items() if value is not None)
    measured = [f"{row.get('engine')} {row.get('dtype')} at batch size {row.get('batch_size')}" for row in rows]
    fault = "was not measured" if not fitting else "is not unique"
    raise InputError(f"{named} {fault}: {where} holds {', '.join(measured) or 'nothing'}. Choose one of these.")
