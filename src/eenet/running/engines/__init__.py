"""Ways to run a multi-exit model stage by stage; one loop, `eenet.running.loop`, drives them all.

Engines are loaded when they are first used: only those that need PyTorch import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eenet.errors import InputError
from eenet.lazy import lazy
from eenet.running.engines.base import Engine
from eenet.running.engines.dense import DenseEngine, suited
from eenet.running.engines.features import FeatureEngine

if TYPE_CHECKING:
    from eenet.models.model import MultiExitModel
    from eenet.running.engines.compiled import CompiledEngine
    from eenet.running.engines.eager import EagerEngine
    from eenet.running.engines.programs import OnnxEngine, OpenVinoEngine

__all__ = [
    "Engine",
    "EagerEngine",
    "CompiledEngine",
    "DenseEngine",
    "FeatureEngine",
    "OnnxEngine",
    "OpenVinoEngine",
    "as_engine",
    "plain_model",
    "suited",
]
__getattr__, __dir__, _ = lazy(
    __name__,
    {
        "eenet.running.engines.eager": ("EagerEngine",),
        "eenet.running.engines.compiled": ("CompiledEngine",),
        "eenet.running.engines.programs": ("OnnxEngine", "OpenVinoEngine"),
    },
)


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
    from eenet.running.engines.eager import EagerEngine

    return EagerEngine(plain_model(model), optimise=optimise)


def plain_model(model: object) -> MultiExitModel:
    """Return a model without what is around it: an engine, or ``torch.compile``, ``DataParallel`` and their like.

    Raises:
        InputError: It has no exits, or is an engine that no model of PyTorch is known of.
    """
    if isinstance(model, Engine):
        return model.as_model()
    from eenet.models.model import MultiExitModel

    inner = model
    while not isinstance(inner, MultiExitModel) and type(inner).__module__.startswith("torch."):
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    if not isinstance(inner, MultiExitModel):
        raise InputError(
            f"model of type {type(model).__name__} has no exits: a MultiExitModel or an engine is needed. Give it "
            "exits with eenet.attach."
        )
    return inner
