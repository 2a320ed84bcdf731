"""Multi-scale dense networks: by hand, what the public code counts at every exit, and which scales are kept where."""

from itertools import accumulate

import pytest
import torch
import zoo
from torch import Tensor, nn

from eenet.errors import InputError
from eenet.experiments.zoo import msdnet, msdnet_imagenet
from eenet.experiments.zoo.msdnet import Halving, MultiScaleLayer
from eenet.models import MultiExitModel, pooled_linear
from eenet.running.measuring import measure_flops


def small(layers=(2, 2, 2), factors=(1, 2, 4)) -> MultiExitModel:
    return zoo.scrambled(msdnet(5, layers=layers, channels=4, growth=2, factors=factors, heads=pooled_linear))


def scales_at_exits(model: MultiExitModel, size: int) -> list[list[tuple[int, ...]]]:
    """Shapes of every scale at every exit."""
    shapes, state = [], torch.zeros(2, 3, size, size)
    with torch.no_grad():
        for stage in model.eval().stages:
            state = stage(state)
            shapes.append([tuple(scale.shape[1:]) for scale in state])
    return shapes


@pytest.mark.parametrize("drop", [False, True])
def test_a_layer_by_hand(drop: bool) -> None:
    layer = zoo.scrambled(MultiScaleLayer([4, 8], [2, 4], [1, 2], drop=drop))
    fine, coarse = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)
    out = layer([fine, coarse])
    wanted = [torch.cat([coarse, layer.down[0](fine), layer.same[-1](coarse)], dim=1)]
    if not drop:
        wanted.insert(0, torch.cat([fine, layer.same[0](fine)], dim=1))
    assert [scale.shape[1] for scale in out] == ([12] if drop else [6, 12])
    assert all(map(torch.equal, out, wanted))
    bottleneck, three = layer.down[0]
    assert (bottleneck[0].weight.shape, three[0].weight.shape) == ((2, 4, 1, 1), (2, 2, 3, 3))
    assert (bottleneck[0].stride, three[0].stride) == ((1, 1), (2, 2))


def test_the_finest_scale_is_dropped_and_channels_halved_from_part_to_part() -> None:
    model = msdnet(5, layers=(1, 1, 1, 1, 1, 1), channels=4, growth=2, factors=(1, 2, 4))
    assert scales_at_exits(model, 32) == [
        [(6, 32, 32), (12, 16, 16), (24, 8, 8)],
        [(8, 32, 32), (16, 16, 16), (32, 8, 8)],
        [(10, 16, 16), (20, 8, 8)],  # (8 + 2) / 2 at a factor of 1
        [(14, 16, 16), (28, 8, 8)],
        [(16, 8, 8)],  # 9 / 2, rounded down
        [(24, 8, 8)],
    ]


def test_scales_that_no_classifier_sees_are_not_computed() -> None:
    model = msdnet(5, layers=(1, 1, 1, 1), channels=4, growth=2, factors=(1, 2, 4))  # parts of 2 layers would keep 2
    assert [len(scales) for scales in scales_at_exits(model, 32)] == [3, 3, 2, 1]


def test_35_layers_at_four_scales() -> None:
    model = msdnet_imagenet(10)
    assert [sum(isinstance(m, MultiScaleLayer) for m in stage) for stage in model.stages] == [7] * 5
    shapes = scales_at_exits(model, 64)
    assert [len(scales) for scales in shapes] == [4, 3, 2, 1, 1]
    assert sum(isinstance(m, Halving) for m in model.modules()) == 3


def public_count(model: nn.Module, images: Tensor) -> list[float]:
    """Millions of operations at every exit as the public code counts them.

    A multiply-accumulate is one; ReLU is one per element; pooling is one per element it reads.
    """
    counts: list[float] = []
    exits: list[float] = []

    def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            counts.append(out.numel() * module.weight[0].numel() / 1e6)
        elif isinstance(module, nn.ReLU):
            counts.append(out.numel() / 1e6)
        elif isinstance(module, nn.MaxPool2d):
            counts.append(out.numel() * module.kernel_size**2 / 1e6)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            counts.append(args[0].numel() / 1e6)
        elif isinstance(module, nn.Linear):
            counts.append((module.weight.numel() + module.bias.numel()) / 1e6)
            exits.append(sum(counts))

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return exits


def test_20_layers_cost_what_the_public_code_prints() -> None:
    """The figures known of github.com/kalviny/MSDNet-PyTorch (5 blocks, step 4, base 4), counted by its rule."""
    model = msdnet_imagenet(layers=(4, 4, 4, 4, 4))
    images = torch.zeros(1, 3, 224, 224)
    assert [round(ops, 2) for ops in public_count(model, images)] == [339.90, 685.46, 1008.16, 1254.47, 1360.53]
    stages = zip(model.stages, model.heads, strict=True)
    sizes = accumulate(zoo.parameters(stage) + zoo.parameters(head) for stage, head in stages)
    assert [round(size / 1e6, 2) for size in sizes] == [4.24, 8.77, 13.07, 16.75, 23.96]
    report = measure_flops(model, images)
    assert report.uncounted == ()
    for counted, printed in zip(report.cumulative, (339.90, 685.46, 1008.16, 1254.47, 1360.53), strict=True):
        assert counted / 2e6 == pytest.approx(printed, rel=0.01)  # without ReLU and pooling


def test_heads_of_other_kinds_read_the_coarsest_scale() -> None:
    seen = []

    def head(shape, num_classes) -> nn.Module:
        seen.append(shape[1])
        return pooled_linear(shape, num_classes)

    model = msdnet(5, layers=(2, 2, 2), channels=4, growth=2, factors=(1, 2, 4), heads=head)
    assert seen == [scales[-1][0] for scales in scales_at_exits(model, 32)[:2]]
    assert model.heads[-1].head[0][0].out_channels == 128  # the last one is the original's


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"layers": (4,)}, "ends a stage of at least one layer"),
        ({"layers": (4, 0)}, "ends a stage of at least one layer"),
        ({"factors": ()}, "a positive factor for each"),
        ({"layers": (1, 1)}, "1 to 2 scales"),
        ({"growth": 3, "factors": (1, 1)}, "Pass an even growth"),
        ({"channels": 0}, "at least 1"),
        ({"stem": "mnist"}, "stem 'mnist' is unknown"),
    ],
)
def test_refusals(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        msdnet(10, **{"layers": (4, 4), "channels": 16, "growth": 6, "factors": (1, 2, 4)} | wrong)
