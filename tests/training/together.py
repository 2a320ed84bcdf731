"""A training that several processes do together: ``together.py FOLDER``, started with the variables of a launcher."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from tests.training import resumable
from torch import nn

from eenet.models import MultiExitModel, pooled_linear
from eenet.training import History, fit_exits

SETTINGS = dataclasses.replace(
    resumable.SETTINGS,
    batch_size=9,  # shares of 5 and 4
    accumulate=2,
    ema=0.5,
    distillation=1.0,
    distillation_from=0.3,
    augment=None,
)


def make_model() -> MultiExitModel:
    torch.manual_seed(2)
    stages = [nn.Sequential(nn.Conv2d(a, 6, 3, padding=1), nn.ReLU()) for a in (3, 6)]
    return MultiExitModel(stages, [pooled_linear((1, 6, 8, 8), 4) for _ in stages])


def run(out: Path | None) -> tuple[dict[str, torch.Tensor], History]:
    model = make_model()
    if os.environ.get("RANK") == "1":
        nn.init.ones_(model.heads[0][2].weight)  # those of the first process count
    history = fit_exits(model, resumable.make_data(), SETTINGS, out=out, progress=False)
    return model.state_dict(), history


def start(out: Path, count: int) -> list[subprocess.Popen[bytes]]:
    """Start the processes of one training, as ``accelerate launch`` and ``torchrun`` do."""
    root = Path(__file__).parents[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "src"), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen([sys.executable, __file__, str(out)], env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
