"""Where models and policies meet: record, measure, run for real, time it, ship it.

Nothing is loaded before it is used; PyTorch only by what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eenet.lazy import lazy

if TYPE_CHECKING:
    from eenet.running.adaptive import AdaptiveModel as AdaptiveModel
    from eenet.running.benchmark import bench as bench
    from eenet.running.bundle import Bundle as Bundle
    from eenet.running.cascading import Cascade as Cascade
    from eenet.running.cascading import cascade as cascade
    from eenet.running.collator import Collator as Collator
    from eenet.running.cuts import Cut as Cut
    from eenet.running.cuts import tier_report as tier_report
    from eenet.running.engines import CompiledEngine as CompiledEngine
    from eenet.running.engines import EagerEngine as EagerEngine
    from eenet.running.engines import Engine as Engine
    from eenet.running.engines import OnnxEngine as OnnxEngine
    from eenet.running.engines import OpenVinoEngine as OpenVinoEngine
    from eenet.running.exporting import export as export
    from eenet.running.exports import open_export as open_export
    from eenet.running.loop import Prediction as Prediction
    from eenet.running.measuring import Profile as Profile
    from eenet.running.measuring import load_costs as load_costs
    from eenet.running.measuring import measure as measure
    from eenet.running.pipeline import AdaptivePipeline as AdaptivePipeline
    from eenet.running.recording import record as record
    from eenet.running.recording import record_dense as record_dense
    from eenet.running.split import split_export as split_export
    from eenet.running.tiers import Tier as Tier
    from eenet.running.tiers import TierResult as TierResult
    from eenet.running.tiers import flips as flips
    from eenet.running.tiers import together as together

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "eenet.running.adaptive": ("AdaptiveModel",),
        "eenet.running.loop": ("Prediction",),
        "eenet.running.engines": ("Engine", "EagerEngine", "CompiledEngine", "OnnxEngine", "OpenVinoEngine"),
        "eenet.running.bundle": ("Bundle",),
        "eenet.running.pipeline": ("AdaptivePipeline",),
        "eenet.running.collator": ("Collator",),
        "eenet.running.cascading": ("Cascade", "cascade"),
        "eenet.running.measuring": ("Profile", "load_costs", "measure"),
        "eenet.running.benchmark": ("bench",),
        "eenet.running.exporting": ("export",),
        "eenet.running.exports": ("open_export",),
        "eenet.running.recording": ("record", "record_dense"),
        "eenet.running.split": ("split_export",),
        "eenet.running.cuts": ("Cut", "tier_report"),
        "eenet.running.tiers": ("Tier", "TierResult", "flips", "together"),
    },
)
