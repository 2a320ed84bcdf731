"""Ways to run a multi-exit model stage by stage; one loop, `eenet.running.loop`, drives them all.

Engines are loaded when they are first used: only those that need PyTorch import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eenet.errors import InputError
from eenet.lazy import lazy
from eenet.running.engines.base import Engine
from eenet.running.engines.dense import DenseEngine, suited

if TYPE_CHECKING:
    from eenet.running.engines.compiled import CompiledEngine as CompiledEngine
    from eenet.running.engines.eager import EagerEngine as EagerEngine
    from eenet.running.engines.programs import OnnxEngine as OnnxEngine
    from eenet.running.engines.programs import OpenVinoEngine as OpenVinoEngine

_PLACES = {
    "EagerEngine": "eenet.running.engines.eager",
    "CompiledEngine": "eenet.running.engines.compiled",
    "OnnxEngine": "eenet.running.engines.programs",
    "OpenVinoEngine": "eenet.running.engines.programs",
}

__all__ = [
    "Engine",
    "EagerEngine",
    "CompiledEngine",
    "DenseEngine",
    "OnnxEngine",
    "OpenVinoEngine",
    "as_engine",
    "suited",
]
__getattr__, __dir__ = lazy(__name__, _PLACES)


def as_engine(model: object, *, optimise: bool = True) -> Engine:
    """Return an engine as it is, and a model in the engine that is always there.

    Args:
        model: An engine, or a `MultiExitModel`, which becomes an `EagerEngine`.
        optimise: See `EagerEngine`.

    Raises:
        InputError: It is neither.
    """
    if isinstance(model, Engine):
        return model
    from eenet.models.model import MultiExitModel
    from eenet.running.engines.eager import EagerEngine

    if not isinstance(model, MultiExitModel):
        raise InputError(
            f"model of type {type(model).__name__} has no exits: a MultiExitModel or an engine is needed. Give it "
            "exits with eenet.attach."
        )
    return EagerEngine(model, optimise=optimise)
