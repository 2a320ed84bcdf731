"""What `eenet run` does with a folder that has some stages of a model: answer who leaves there, send on who stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eenet.cli.samples import Source
from eenet.errors import InputError
from eenet.tables.arrays import batch_size as size_of
from eenet.tables.atomic import atomic_path

if TYPE_CHECKING:
    from eenet.running import AdaptiveModel, Tier, TierResult
    from eenet.running.sent import Compression

FILES = ("batch_*.safetensors",)
"""What a folder of states contains."""


@dataclass(frozen=True, kw_only=True)
class Sending:
    """The options of tiers.

    Attributes:
        state: Folder of the states to go on with.
        out: Folder for the states that go on from here.
        compress: How they are sent.
    """

    state: Path | None
    out: Path | None
    compress: str | None

    @property
    def asked(self) -> str:
        """The first of the options that was given, empty where none was."""
        given = {"--state": self.state, "--state-out": self.out, "--compress": self.compress}
        return next((name for name, value in given.items() if value is not None), "")

    def require(self, model: object, inputs: Sequence[str], budget: str | None) -> None:
        """Refuse words that do not fit each other, before any work starts."""
        from eenet.running import Tier
        from eenet.running.sent import COMPRESSIONS

        if not isinstance(model, Tier):
            if self.asked:
                raise InputError(
                    f"{self.asked} cannot be used: TARGET has all stages of its model, so no sample goes on elsewhere. "
                    "Leave it out, or pass a folder of eenet export --tier or --from."
                )
            if not inputs:
                raise InputError(
                    "INPUTS are missing: TARGET has nothing to run on. Name images, texts, arrays or split:test."
                )
            return
        held = f"stages {model.first} to {model.last} of {model.engine.num_exits}"
        if budget is not None:
            raise InputError(
                f"--budget {budget!r} cannot be set on one tier: all need the same policy, and TARGET has {held}. "
                "Export all tiers with a policy for that budget."
            )
        if (model.first > 0) == bool(inputs) or (model.first > 0) != (self.state is not None):
            needed = "--state, which the tier before wrote, and no INPUTS" if model.first else "INPUTS, and no --state"
            raise InputError(f"TARGET has {held}: it needs {needed}. Pass these.")
        if model.ends != (self.out is None):
            what = (
                "nobody goes on from there. Leave out" if model.ends else "others go on from there. Name a folder for"
            )
            raise InputError(f"--state-out does not fit: TARGET has {held}, {what} --state-out.")
        if self.compress is not None and (self.compress not in COMPRESSIONS or self.out is None):
            raise InputError(
                f"--compress {self.compress!r} cannot be used: what goes on from here is sent as it is, or as "
                f"{' or '.join(COMPRESSIONS)}. Pass one of these on a tier that sends."
            )

    def run(self, tier: AdaptiveModel | Tier, sources: Sequence[Source], batch_size: int) -> Iterator[TierResult]:
        """Yield what the tier answers, batch by batch, and write what goes on."""
        from eenet.running import Tier

        assert isinstance(tier, Tier)
        compress: Compression | None = None
        if self.compress is not None:
            compress = "float16" if self.compress == "float16" else "int8"
        with ExitStack() as kept:
            folder = None if self.out is None else kept.enter_context(atomic_path(self.out))
            if folder is not None:
                folder.mkdir()
            for i, result in enumerate(self._results(tier, sources, batch_size, compress)):
                if folder is not None and result.state is not None:
                    (folder / FILES[0].replace("*", f"{i:06d}")).write_bytes(result.state)
                yield result

    def _results(
        self, tier: Tier, sources: Sequence[Source], batch_size: int, compress: Compression | None
    ) -> Iterator[TierResult]:
        if self.state is None:
            batches = (batch for source in sources for batch in source.batches(batch_size))
            fed = 0
            for batch in batches:
                count = size_of(batch)
                yield tier(batch, np.arange(fed, fed + count), compress=compress)
                fed += count
            return
        files = sorted(self.state.glob(FILES[0]))
        if not files:
            raise InputError(
                f"--state {str(self.state)!r} has no states in it: nobody went on, or it is another folder. Pass "
                "what the tier before wrote with --state-out."
            )
        answered: set[int] = set()
        for file in files:
            result = tier.resume(file.read_bytes(), compress=compress)
            ids = {*result.sample_ids.tolist(), *result.staying.tolist()}
            if twice := answered & ids:
                raise InputError(
                    f"--state {str(self.state)!r} has sample {min(twice)} twice, the second time in {file.name}: it "
                    "is a copy, or of another run. Pass the folder as the tier before wrote it."
                )
            answered |= ids
            yield result
