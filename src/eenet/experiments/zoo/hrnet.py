"""High-resolution networks (Sun et al., 2019) for segmentation, with exits between modules; the layers are timm's.

The state is a list of branches, the finest first, each half the height of the one before; every module exchanges
features between all of them.

Source: K. Sun, Y. Zhao, B. Jiang, T. Cheng, B. Xiao, D. Liu, Y. Mu, X. Wang, W. Liu, J. Wang, *High-resolution
representations for labeling pixels and regions*, arXiv 1904.04514, 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from eenet.errors import InputError
from eenet.experiments.zoo.parts import check_kind, divided, with_heads
from eenet.libraries import library
from eenet.models.heads import BranchHeadFactory, branch_head, resized
from eenet.models.model import MultiExitModel

EARLY_WIDTH = 64


class Opening(nn.Module):
    """The stem, two convolutions of stride 2, and the first stage: an image as one branch at a quarter of its size."""

    def __init__(self, net: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act1, net.conv2, net.bn2, net.act2)
        self.layer1 = net.layer1

    def forward(self, x: Float[Tensor, "sample channel h w"]) -> list[Tensor]:
        return [self.layer1(self.stem(x))]


class Branching(nn.Module):
    """Keeps every branch there is and adds a coarser one, made from the last of ``before``."""

    def __init__(self, steps: nn.ModuleList, before: int) -> None:
        super().__init__()
        self.steps, self.before = steps, before

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        return [step(branches[min(i, self.before - 1)]) for i, step in enumerate(self.steps)]


class Exchange(nn.Module):
    """Residual blocks on every branch, and a sum over all branches at the resolution of each.

    Coarser branches are resized bilinearly to the very size of the finer one, as in the segmentation nets of the
    authors, so images may have any size. The weights are those of a ``HighResolutionModule`` of timm.
    """

    def __init__(self, module: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.branches = module.branches
        self.fuse = nn.ModuleList(
            nn.ModuleList(step[:-1] if j > i else step for j, step in enumerate(row))  # without the nearest neighbours
            for i, row in enumerate(module.fuse_layers)
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        own = [branch(branches[i]) for i, branch in enumerate(self.branches)]
        out = []
        for i, row in enumerate(self.fuse):
            parts = [step(own[j]) for j, step in enumerate(row.children())]
            total = parts[0]
            for j, part in enumerate(parts[1:], start=1):
                total = total + (resized(part, own[i]) if j > i else part)
            out.append(F.relu(total))
        return out


def hrnet_segmenter(
    name: str = "hrnet_w18_small",
    num_classes: int = 19,
    *,
    exits: int | Sequence[int] = 4,
    width: int | None = None,
    opening: int | None = None,
    heads: BranchHeadFactory | None = None,
) -> MultiExitModel:
    """Return an HRNetV2 for segmentation with early exits, randomly initialised.

    Every exit returns logits ``[sample, class, h, w]`` at a quarter of the image's height and width. Without early
    heads and with 19 classes, ``hrnet_w18_small``, ``hrnet_w18_small_v2`` and ``hrnet_w48`` have 1.5, 3.9 and 65.8
    million parameters, as the authors state of theirs; the page on ready-made models has their operations.

    Args:
        name: of timm's net: ``hrnet_w18_small``, ``hrnet_w18_small_v2``, ``hrnet_w18``, ``hrnet_w48``, ...
        num_classes: number of classes C.
        exits: as of `hrnet_with_exits`.
        width: channels of the finest branch, with which all others are scaled, but for the 64 of the second
            convolution; default: those of the name. With 8, ``hrnet_w18_small`` can be trained on a CPU.
        opening: channels of the first convolution and inside the first stage, at a quarter of the image's size where
            they are expensive; default: scaled as the others. A small number makes early exits cheap.
        heads: as of `hrnet_with_exits`.

    Raises:
        InputError: an unknown name, a width or an opening below 1, or exits outside the net.

    Source of the counts: https://github.com/HRNet/HRNet-Semantic-Segmentation.
    """
    timm = library("timm.models.hrnet")
    known = timm.cfg_cls
    if name not in known:
        raise InputError(f"name {name!r} is unknown: there are {', '.join(known)}. Pass one of these.")
    for argument, count in (("width", width), ("opening", opening)):
        if count is not None and count < 1:
            raise InputError(f"{argument} {count} is not possible: features need channels. Pass 1 or more.")
    settings = known[name] if width is None else _scaled(known[name], width)
    if opening is not None:
        settings = settings | {"stem_width": opening, "stage1": settings["stage1"] | {"num_channels": (opening,)}}
    net = timm.HighResolutionNet(settings, head="")
    return hrnet_with_exits(net, num_classes, exits=exits, heads=heads)


def hrnet_with_exits(
    net: nn.Module,
    num_classes: int,
    *,
    exits: int | Sequence[int] = 4,
    heads: BranchHeadFactory | None = None,
) -> MultiExitModel:
    """Return a segmenter that shares the weights of a high-resolution net of timm and has early exits.

    Args:
        net: a ``timm.models.hrnet.HighResolutionNet``, such as one with published weights; its own head is not used.
        num_classes: number of classes C.
        exits: numbers of modules after which an early exit sits, the original output being the last exit; or how many
            exits there are, it included, at even distances. The first module is the stem with the first stage, which
            has one branch; the others are timm's high-resolution modules: 1 + 1 + 1 + 1 of ``hrnet_w18_small``,
            1 + 1 + 3 + 2 of ``hrnet_w18_small_v2``, 1 + 1 + 4 + 3 of the larger ones.
        heads: makes the early heads, from the shapes of the branches; by default `branch_head` with 64 channels.

    Raises:
        InputError: another net, or exits outside it.
    """
    check_kind(net, "timm.models.hrnet", "HighResolutionNet")
    rows = divided(_modules(net), exits, "module")
    stages = [nn.Sequential(*(part for module in row for part in module)) for row in rows]
    shapes = [_shapes(row[-1][-1]) for row in rows]
    early = heads or branch_head(EARLY_WIDTH)
    return with_heads(stages, shapes, num_classes, early=early, last=branch_head())


def _modules(net: Any) -> list[list[nn.Module]]:  # noqa: ANN401
    """Return the modules of a net in their order, each but the first of a stage after what adds a branch."""
    modules: list[list[nn.Module]] = [[Opening(net)]]
    stages = ((net.transition1, net.stage2), (net.transition2, net.stage3), (net.transition3, net.stage4))
    for branches, (steps, stage) in enumerate(stages, start=1):
        rows: list[list[nn.Module]] = [[Exchange(module)] for module in stage]
        rows[0].insert(0, Branching(steps, branches))
        modules += rows
    return modules


def _shapes(module: Any) -> list[tuple[int, ...]]:  # noqa: ANN401
    """Return the shapes of the branches a module returns, of an image of 256 x 256."""
    last = [module.layer1] if isinstance(module, Opening) else module.branches
    channels = [
        [one for one in branch.modules() if isinstance(one, nn.BatchNorm2d)][-1].num_features for branch in last
    ]
    return [(2, count, 64 >> i, 64 >> i) for i, count in enumerate(channels)]


def _scaled(settings: dict[str, Any], width: int) -> dict[str, Any]:
    """Return timm's description of a net with other numbers of channels."""
    ratio = width / settings["stage2"]["num_channels"][0]
    scaled = {"stem_width": max(1, round(settings["stem_width"] * ratio))}
    for key in ("stage1", "stage2", "stage3", "stage4"):
        channels = [max(1, round(count * ratio)) for count in settings[key]["num_channels"]]
        scaled[key] = settings[key] | {"num_channels": tuple(channels)}
    return scaled
