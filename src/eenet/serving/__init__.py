"""Serving: a model that runs stage by stage while requests come and go, and a budget that is turned while it runs.

Nothing is loaded before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eenet.lazy import lazy

if TYPE_CHECKING:
    from eenet.serving.answers import Answer as Answer
    from eenet.serving.edge import EdgeAnswer as EdgeAnswer
    from eenet.serving.edge import EdgeClient as EdgeClient
    from eenet.serving.ray_data import predict_dataset as predict_dataset
    from eenet.serving.ray_serve import ray_app as ray_app
    from eenet.serving.service import QueueFull as QueueFull
    from eenet.serving.service import Service as Service
    from eenet.serving.service import Stopped as Stopped
    from eenet.serving.sizing import Sizing as Sizing
    from eenet.serving.sizing import load_latencies as load_latencies
    from eenet.serving.sizing import size_stages as size_stages
    from eenet.serving.watch import Alarm as Alarm
    from eenet.serving.watch import Histogram as Histogram
    from eenet.serving.watch import Snapshot as Snapshot

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "eenet.serving.service": ("Service", "QueueFull", "Stopped"),
        "eenet.serving.answers": ("Answer",),
        "eenet.serving.edge": ("EdgeClient", "EdgeAnswer"),
        "eenet.serving.ray_serve": ("ray_app",),
        "eenet.serving.ray_data": ("predict_dataset",),
        "eenet.serving.sizing": ("size_stages", "Sizing", "load_latencies"),
        "eenet.serving.watch": ("Snapshot", "Histogram", "Alarm"),
    },
)
