"""The CIFAR ResNet against a plain one written down again, its cost, and published weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from eenet.errors import DataError, InputError
from eenet.experiments.recipes import RECIPES
from eenet.experiments.zoo import cifar_resnet, load_cifar_resnet_weights
from eenet.models import MultiExitModel
from eenet.models.weights import save_tensors


def plain_resnet(weights: dict[str, Tensor], x: Tensor, depth: int) -> Tensor:
    """The slow twin: the net without exits as one function of its published weights, in evaluation mode."""

    def norm(x: Tensor, name: str) -> Tensor:
        part = (weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *part)

    x = F.relu(norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1"))
    for layer in (1, 2, 3):
        for i in range((depth - 2) // 6):
            block, stride = f"layer{layer}.{i}", 2 if i == 0 and layer > 1 else 1
            out = F.conv2d(x, weights[f"{block}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(F.relu(norm(out, f"{block}.bn1")), weights[f"{block}.conv2.weight"], padding=1)
            if stride == 2:
                short, half = x[:, :, ::2, ::2], torch.zeros_like(x[:, ::2, ::2, ::2])
                x = torch.cat([half, short, half], dim=1)
            x = F.relu(norm(out, f"{block}.bn2") + x)
    return x.mean(dim=(2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]


def published(model: MultiExitModel, depth: int) -> dict[str, Tensor]:
    """Weights of the backbone under their published names, made anew from the order of the blocks."""
    n, weights, block = (depth - 2) // 6, {}, 0
    for stage in model.stages:
        for module in stage:
            prefix = f"layer{block // n + 1}.{block % n}." if hasattr(module, "conv2") else ""
            block += hasattr(module, "conv2")
            weights |= {prefix + key: value for key, value in module.state_dict().items()}
    weights |= model.heads[-1].state_dict()
    return {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(("depth", "exits"), [(8, (1,)), (20, (2, 3, 7))])
def test_last_exit_is_the_plain_net(depth: int, exits: tuple[int, ...]) -> None:
    model, images = zoo.scrambled(cifar_resnet(depth, exits=exits)), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        logits = model(images)
        torch.testing.assert_close(
            logits[-1], plain_resnet(published(model, depth), images, depth), rtol=1e-4, atol=1e-5
        )
    blocks = [sum(hasattr(module, "conv2") for module in stage) for stage in model.stages]
    assert [sum(blocks[: k + 1]) for k in range(len(blocks))] == [*exits, (depth - 2) // 2]


def test_weights_land_in_their_places(tmp_path: Path) -> None:
    source, target = zoo.scrambled(cifar_resnet(20, exits=(3, 6))), cifar_resnet(20, exits=(1, 4, 8)).eval()
    save_tensors(tmp_path / "w.safetensors", published(source, 20))
    load_cifar_resnet_weights(target, tmp_path / "w.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(source(images)[-1], target(images)[-1])


def test_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    weights = published(cifar_resnet(20, exits=(3,)), 20)
    save_tensors(path, weights)
    with pytest.raises(DataError, match=r"the file lacks layer1\.3"):
        load_cifar_resnet_weights(cifar_resnet(32, exits=(3,)), path)
    with pytest.raises(DataError, match=r"linear.weight has shape \(10, 64\), the model's has \(3, 64\)"):
        load_cifar_resnet_weights(cifar_resnet(20, exits=(3,), num_classes=3), path)
    save_tensors(path, weights | {"other": torch.zeros(1)})
    with pytest.raises(DataError, match=r"the model has not, other"):
        load_cifar_resnet_weights(cifar_resnet(20, exits=(3,)), path)
    with pytest.raises(InputError, match="missing"):
        load_cifar_resnet_weights(cifar_resnet(20, exits=(3,)), tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["cifar10_resnet56_3", "cifar10_resnet56_6"])
def test_early_heads_cost_at_most_a_tenth_of_the_backbone(name: str) -> None:
    model, state, heads, backbone = RECIPES[name].build().eval(), torch.randn(1, 3, 32, 32), 0, 0
    with torch.inference_mode():
        for k, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
            with FlopCounterMode(display=False) as counter:
                state = stage(state)
            backbone += counter.get_total_flops()
            with FlopCounterMode(display=False) as counter:
                head(state)
            heads += counter.get_total_flops() if k < model.num_exits - 1 else 0
    assert 250e6 < backbone < 252e6
    assert 0 < heads <= 0.1 * backbone


@pytest.mark.parametrize("exits", [(), (0, 3), (3, 3), (5, 2), (9,)])
def test_refuses_exits_outside_the_net(exits: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="the net has 9 blocks"):
        cifar_resnet(20, exits=exits)
    with pytest.raises(InputError, match="depth 21"):
        cifar_resnet(21, exits=exits)
