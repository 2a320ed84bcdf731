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
    from eenet.running.recording import record as record
    from eenet.running.recording import record_dense as record_dense

_PLACES = {
    "AdaptiveModel": "eenet.running.adaptive",
    "Prediction": "eenet.running.adaptive",
    "Engine": "eenet.running.engines",
    "EagerEngine": "eenet.running.engines",
    "CompiledEngine": "eenet.running.engines",
    "OnnxEngine": "eenet.running.engines",
    "OpenVinoEngine": "eenet.running.engines",
    "Bundle": "eenet.running.bundle",
    "Profile": "eenet.running.measuring",
    "bench": "eenet.running.benchmark",
    "export": "eenet.running.exporting",
    "load_costs": "eenet.running.measuring",
    "measure": "eenet.running.measuring",
    "open_export": "eenet.running.exports",
    "record": "eenet.running.recording",
    "record_dense": "eenet.running.recording",
}

__all__ = list(_PLACES)
__getattr__, __dir__ = lazy(__name__, _PLACES)
