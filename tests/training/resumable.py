"""Small trainings used by the tests of resuming, also run as a program that gets killed.

``resumable.py FOLDER`` runs the plain one, ``resumable.py FOLDER full`` the one with every setting that keeps a state.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from eenet.experiments.data import ArrayDataset, load_digits, random_crop_flip
from eenet.experiments.zoo import tiny_cnn
from eenet.models import MultiExitModel, cascaded, grid_linear, pooled_linear
from eenet.training import (
    History,
    TrainSettings,
    expected_exit_weights,
    fit_exits,
    rescaled_gradients,
    step_decay,
)

SETTINGS = TrainSettings(
    epochs=4, batch_size=8, heads_share=0.2, augment=random_crop_flip, seed=3, checkpoint_seconds=1e-6
)

FULL = TrainSettings(
    epochs=3,
    batch_size=32,
    accumulate=2,
    precision="bfloat16",
    heads_share=0.2,
    schedule=partial(step_decay, milestones=(0.4, 0.8)),
    ema=0.9,
    gradients=rescaled_gradients,
    sample_weighting=expected_exit_weights,
    augment=partial(random_crop_flip, pad=1),
    checkpoint_seconds=1e-6,
)


def make_data() -> ArrayDataset:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (100, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (100,), generator=generator)
    return ArrayDataset(images, labels, mean=(0.5,) * 3, std=(0.25,) * 3)


def make_model() -> MultiExitModel:
    torch.manual_seed(11)
    stages = [
        nn.Sequential(nn.Conv2d(a, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2)) for a in (3, 6)
    ]
    heads = [grid_linear(2)((1, 6, 8, 8), 4), pooled_linear((1, 6, 8, 8), 4)]
    return MultiExitModel(stages, heads).to(memory_format=torch.channels_last)


def run(out: Path | None) -> tuple[dict[str, Tensor], History]:
    model = make_model()
    history = fit_exits(model, make_data(), SETTINGS, out=out, progress=False)
    return model.state_dict(), history


def run_full(out: Path | None) -> dict[str, Tensor]:
    torch.manual_seed(11)
    model = cascaded(tiny_cnn(width=4), 10)
    fit_exits(model, load_digits().train, FULL, out=out, progress=False)
    return model.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)
    (run_full if "full" in sys.argv else run)(Path(sys.argv[1]))
