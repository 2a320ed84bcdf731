"""DenseNets against torchvision's own, their published counts, and exits anywhere."""

import pytest
import torch
import zoo
from torch import nn

from eenet.errors import InputError
from eenet.experiments.zoo import densenet121, densenet_cifar, densenet_with_exits
from eenet.models import pooled_linear
from eenet.running.measuring import measure_flops

torchvision = pytest.importorskip("torchvision")


def small(exits=(2, 4), blocks=(2, 3, 2)) -> nn.Module:
    net = torchvision.models.DenseNet(4, blocks, num_init_features=8, num_classes=5)
    return zoo.scrambled(densenet_with_exits(net, exits=exits, heads=pooled_linear)), net


@pytest.mark.parametrize("exits", [(2, 5), (1, 3, 6), (6,), 3, 7])
def test_last_exit_is_the_net_of_torchvision_to_the_bit(exits) -> None:
    model, net = small(exits)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images)[-1], net.eval()(images))
    assert model.num_exits == (exits if isinstance(exits, int) else len(exits) + 1)
    assert zoo.backbone_parameters(model) == zoo.parameters(net)


def test_a_transition_goes_with_the_block_it_ends() -> None:
    model, _ = small((2, 4))
    kinds = [[type(module).__name__ for module in stage] for stage in model.stages]
    assert kinds[0][-2:] == ["DenseLayers", "_Transition"]
    assert kinds[1:] == [["DenseLayers"], ["DenseLayers", "_Transition", "DenseLayers"]]


def test_densenet121_costs_what_torchvision_states() -> None:
    model, stated = densenet121(), torchvision.models.DenseNet121_Weights.IMAGENET1K_V1.meta
    assert zoo.backbone_parameters(model) == stated["num_params"] == 7_978_856
    report = measure_flops(model, torch.zeros(1, 3, 224, 224))
    assert report.reference / 2e9 == pytest.approx(stated["_ops"], abs=5e-4)
    assert stated["_ops"] == 2.834
    assert report.uncounted == ()
    assert sum(report.heads[:-1]) < 0.06 * report.reference


def test_densenet_of_100_layers_has_the_parameters_of_the_paper() -> None:
    model = densenet_cifar(10, exits=3)  # DenseNet-BC, k = 12: 0.8 M in table 2
    assert zoo.backbone_parameters(model) == 769_162
    assert round(zoo.backbone_parameters(model) / 1e6, 1) == 0.8
    assert [len(stage[-2].layers) for stage in model.stages[:2]] == [16, 16]


def test_the_net_for_small_images_keeps_their_size() -> None:
    model = densenet121(100, stem="cifar", growth=12)
    shapes, state = [], torch.zeros(2, 3, 32, 32)
    with torch.no_grad():
        for stage in model.eval().stages:
            state = stage(state)
            shapes.append(tuple(state.shape))
    assert shapes == [(2, 48, 16, 16), (2, 96, 8, 8), (2, 192, 4, 4), (2, 384, 4, 4)]
    assert zoo.backbone_parameters(model) == 1_035_268  # as of the public code of EENet


def test_heads_get_the_shape_of_what_they_read() -> None:
    seen = []

    def head(shape, num_classes) -> nn.Module:
        seen.append(tuple(shape))
        return pooled_linear(shape, num_classes)

    densenet121(10, exits=(3, 18, 42), heads=head)
    assert seen == [(2, 160, 56, 56), (2, 256, 14, 14), (2, 512, 7, 7)]


def test_refusals() -> None:
    with pytest.raises(InputError, match="Ask for 2 to 58"):
        densenet121(10, exits=1)
    with pytest.raises(InputError, match="growth 0"):
        densenet121(10, growth=0)
    with pytest.raises(InputError, match="stem 'mnist' is unknown"):
        densenet121(10, stem="mnist")
    with pytest.raises(InputError, match="depth 99"):
        densenet_cifar(10, depth=99)
    with pytest.raises(InputError, match="Linear is no DenseNet"):
        densenet_with_exits(nn.Linear(2, 2))
