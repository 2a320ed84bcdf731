"""What a hop between two stages costs in Ray Serve, beside the same stages in one process.

    python benchmarks/ray_hop.py EXPORT [--requests 300]

Requests of one sample come one after the other, so that nobody waits for anybody: what is left is the way. It prints
the median latency through Ray, that of `AdaptiveModel` in one process, how many stages a request saw in the mean, and
the difference per stage: what ``eenet size --hop-ms`` is to be told. Ray is needed (``pip install "eenet[onnx,ray]"``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from eenet import AdaptiveModel


def inputs_of(model: AdaptiveModel, count: int) -> np.ndarray:
    """Return random samples for a model of one input."""
    (one,) = model.engine.inputs
    return np.random.default_rng(0).standard_normal((count, *one.shape)).astype(one.dtype)


def median_ms(ask: Callable[[int], Any], count: int) -> tuple[float, list[Any]]:
    """Return the median time of a call, in ms, and what came back; the first tenth warms up."""
    times, found = [], []
    for row in range(count):
        began = time.perf_counter()
        found.append(ask(row))
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times[count // 10 :])), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("--requests", type=int, default=300)
    asked = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    import ray
    from ray import serve

    from eenet.serving import ray_app

    model = AdaptiveModel(asked.export)
    images, ids = inputs_of(model, asked.requests), np.arange(asked.requests)
    here_ms, here = median_ms(lambda row: model(images[row : row + 1], ids[row : row + 1]), asked.requests)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(logging_config={"log_level": "ERROR", "enable_access_log": False})
    handle = serve.run(ray_app(asked.export, max_wait_ms=0))
    try:
        through_ms, there = median_ms(
            lambda row: handle.predict.remote(images[row : row + 1], sample_ids=[ids[row]]).result(), asked.requests
        )
    finally:
        serve.shutdown()
        ray.shutdown()
    same = [int(a.exit_index[0]) == int(b.exit[0]) for a, b in zip(here, there, strict=True)]
    hops = 1 + float(np.mean([one.exit_index[0] for one in here]))
    shown = {"requests": asked.requests, "in_one_process_ms": here_ms, "through_ray_ms": through_ms}
    shown |= {"stages_seen": hops, "hop_ms": (through_ms - here_ms) / hops, "same_exits": float(np.mean(same))}
    print(json.dumps({name: round(value, 3) for name, value in shown.items()}))


if __name__ == "__main__":
    main()
