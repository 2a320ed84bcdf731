"""What leaving at each exit costs, measured and written down: the file of ``eenet profile``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eenet.core.costs import CostTable
from eenet.core.files import read_json, write_json
from eenet.errors import InputError, TableError
from eenet.inference.engines import EagerEngine, Engine
from eenet.inference.flops import FlopReport, measure_flops
from eenet.inference.latency import Latency, Spread, measure_latency
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel

__all__ = ["FlopReport", "Latency", "Profile", "Spread", "load_costs", "measure", "measure_flops", "measure_latency"]

_FORMAT = "eenet profile"
_VERSION = 1


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

    def costs(self, batch_size: int | None = None, engine: str | None = None) -> CostTable:
        """Return the costs in FLOPs, or in ms if a batch size or an engine is named.

        Raises:
            InputError: Nothing, or more than one thing, was measured that fits.
        """
        return _choose(self.to_dict(), batch_size, engine, "profile")

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
                engine, example_inputs, batch_sizes=batch_sizes, passes=passes, seed=seed, progress=progress
            )
    return Profile(flops=flops, latency=tuple(rows), threads=torch.get_num_threads())


def load_costs(path: str | os.PathLike[str], batch_size: int | None = None, engine: str | None = None) -> CostTable:
    """Read costs from what ``eenet profile`` wrote, or from a bare ``{"cumulative", "unit", "reference"}``.

    Args:
        path: The JSON file.
        batch_size: Whose times to take; default: the FLOPs, or the only batch size if an engine is named.
        engine: Whose times to take; needed if several were measured.

    Raises:
        InputError: The file is missing or no costs, or what is asked for was not measured or is not unique.
    """
    value = read_json(path, "costs")
    if not isinstance(value, dict):
        raise TableError(f"costs {path} are no costs: a JSON object is needed. Write them with eenet profile.")
    if "cumulative" in value:
        if batch_size is not None or engine is not None:
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
    return _choose(value, batch_size, engine, os.fspath(path))


def _choose(profile: dict[str, Any], batch_size: int | None, engine: str | None, where: str) -> CostTable:
    """Return the one cost table that was asked for."""
    if batch_size is None and engine is None:
        return CostTable.from_dict(profile.get("flops"))
    rows = [row for row in profile.get("latency", []) if isinstance(row, dict)]
    fitting = [
        row for row in rows if batch_size in (None, row.get("batch_size")) and engine in (None, row.get("engine"))
    ]
    if len(fitting) == 1:
        return CostTable.from_dict(fitting[0])
    asked = " and ".join(
        f"{name} {value}" for name, value in (("batch_size", batch_size), ("engine", engine)) if value is not None
    )
    measured = ", ".join(f"{row.get('engine')} at batch size {row.get('batch_size')}" for row in rows) or "nothing"
    fault = "was not measured" if not fitting else "is not unique"
    raise InputError(f"{asked} {fault}: {where} holds {measured}. Choose one of these.")
