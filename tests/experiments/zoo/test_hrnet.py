"""High-resolution nets against timm's own, their published counts, and heads that resize after they reduce."""

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from eenet.errors import InputError, ShapeError
from eenet.experiments.zoo import hrnet, hrnet_segmenter, hrnet_with_exits
from eenet.models import MultiExitModel, branch_head
from eenet.running.measuring import measure_flops

timm = pytest.importorskip("timm.models.hrnet")


def small(exits=4, name="hrnet_w18_small") -> MultiExitModel:
    return zoo.scrambled(hrnet_segmenter(name, 5, exits=exits, width=4))


def nearest(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


@pytest.mark.parametrize(("name", "exits"), [("hrnet_w18_small", 4), ("hrnet_w18_small_v2", (2, 5))])
def test_branches_are_those_of_timm(name: str, exits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifying, timm resizes by nearest neighbours between branches; apart from that nothing differs."""
    net = timm.HighResolutionNet(timm.cfg_cls[name], head="")
    model, images = zoo.scrambled(hrnet_with_exits(net, 5, exits=exits)), torch.randn(2, 3, 64, 96)
    monkeypatch.setattr(hrnet, "resized", nearest)
    with torch.no_grad():
        state = model.start(images)
        for stage in model.stages:
            state = stage(state)
        wanted = net.eval().forward_features(images)
    assert len(state) == 4
    assert all(map(torch.equal, state, wanted))


def test_resizing_after_mixing_is_the_head_of_the_paper() -> None:
    shapes = [(2, 3, 12, 8), (2, 6, 6, 4), (2, 12, 3, 2)]
    head, branches = zoo.scrambled(branch_head()(shapes, 5)), [torch.randn(shape) for shape in shapes]
    joined = torch.cat([F.interpolate(one, size=(12, 8), mode="bilinear") for one in branches], dim=1)
    weight = torch.cat([mix.weight for mix in head.mix], dim=1)
    assert weight.shape == (21, 21, 1, 1)
    wanted = head.classify(F.relu(head.norm(F.conv2d(joined, weight))))
    torch.testing.assert_close(head(branches), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "millions", "gibi"),
    [("hrnet_w18_small", 1.5, 31.1), ("hrnet_w18_small_v2", 3.9, 71.6), ("hrnet_w48", 65.8, 696.2)],
)
def test_counts_are_those_the_authors_publish(name: str, millions: float, gibi: float) -> None:
    """Figures of github.com/HRNet/HRNet-Semantic-Segmentation: 19 classes, images of 1024 x 2048.

    Its GFLOPs are multiply-accumulates in units of 2^30.
    """
    model = hrnet_segmenter(name, 19)
    assert zoo.backbone_parameters(model) / 1e6 == pytest.approx(millions, abs=0.06)
    report, share = measure_flops(model, torch.zeros(1, 3, 128, 256)), 1024 * 2048 / (128 * 256)
    mixes = model.heads[-1].mix
    width, pixels = mixes[0].out_channels, 256 * 512
    saved = sum(mix.in_channels * width * pixels * (1 - 4**-i) for i, mix in enumerate(mixes))  # by mixing first
    assert (report.reference * share / 2 + saved) / 2**30 == pytest.approx(gibi, abs=0.05)
    assert report.uncounted == ()
    assert sum(report.heads[:-1]) < 0.1 * report.reference


def test_exits_spread_over_the_modules() -> None:
    places = {
        name: [sum(isinstance(m, hrnet.Exchange) for m in stage) for stage in hrnet_segmenter(name, 5, width=2).stages]
        for name in ("hrnet_w18_small", "hrnet_w18_small_v2", "hrnet_w18")
    }
    assert places == {
        "hrnet_w18_small": [0, 1, 1, 1],
        "hrnet_w18_small_v2": [1, 2, 1, 2],
        "hrnet_w18": [1, 2, 3, 2],
    }


@pytest.mark.parametrize("size", [(180, 240), (64, 64), (75, 41)])
def test_images_of_any_size_are_answered_at_a_quarter_of_it(size: tuple[int, int]) -> None:
    with torch.no_grad():
        shapes = {tuple(logits.shape) for logits in small()(torch.randn(1, 3, *size))}
    assert shapes == {(1, 5, -(-size[0] // 4), -(-size[1] // 4))}


def test_width_scales_everything_but_the_second_convolution() -> None:
    model = hrnet_segmenter("hrnet_w18_small", 5, width=8)
    opening = model.stages[0][0]
    assert [opening.stem[i].out_channels for i in (0, 3)] == [32, 64]
    assert [mix.in_channels for mix in model.heads[-1].mix] == [8, 16, 32, 64]
    assert timm.cfg_cls["hrnet_w18_small"]["stage2"]["num_channels"] == (16, 32)  # timm's own is left alone


def test_an_opening_of_fewer_channels_makes_the_first_exit_cheap() -> None:
    usual, slim = hrnet_segmenter("hrnet_w18_small", 5), hrnet_segmenter("hrnet_w18_small", 5, opening=6)
    stem, layer = slim.stages[0][0].stem, slim.stages[0][0].layer1
    assert [stem[i].out_channels for i in (0, 3)] == [6, 64] and layer[0].conv1.out_channels == 6
    assert [mix.in_channels for mix in slim.heads[-1].mix] == [mix.in_channels for mix in usual.heads[-1].mix]
    before, after = (measure_flops(net, torch.zeros(1, 3, 64, 64)).cumulative for net in (usual, slim))
    assert after[0] < before[0] / 3
    assert after[-1] - after[0] > 0.8 * (before[-1] - before[0])  # only what reads the first stage is cheaper too


def test_heads_get_the_shapes_of_the_branches() -> None:
    seen = []

    def head(shapes, num_classes) -> nn.Module:
        seen.append(list(shapes))
        return branch_head(8)(shapes, num_classes)

    hrnet_segmenter("hrnet_w18_small", 5, heads=head)
    assert seen == [[(2, 128, 64, 64)], [(2, 16, 64, 64), (2, 32, 32, 32)], [*seen[1], (2, 64, 16, 16)]]


def test_refusals() -> None:
    with pytest.raises(InputError, match="name 'hrnet' is unknown: there are hrnet_w18_small, "):
        hrnet_segmenter("hrnet", 5)
    with pytest.raises(InputError, match="width 0"):
        hrnet_segmenter(width=0)
    with pytest.raises(InputError, match="opening 0"):
        hrnet_segmenter(opening=0)
    with pytest.raises(InputError, match="Linear is no HighResolutionNet"):
        hrnet_with_exits(nn.Linear(2, 2), 5)
    with pytest.raises(ShapeError, match="width 0"):
        branch_head(0)
    with pytest.raises(ShapeError, match="do not fit branch_head"):
        branch_head()([(2, 3)], 5)
