"""What holds of every model of the zoo: when samples leave, in training, on engines, without its library."""

from collections.abc import Callable

import pytest
import torch
import zoo
from torch import Tensor

from eenet.errors import MissingExtraError
from eenet.experiments.zoo import (
    bert_classifier,
    cifar_resnet,
    densenet121,
    densenet_cifar,
    hrnet_segmenter,
    msdnet,
)
from eenet.models import MultiExitModel, pooled_linear

TOKENS = torch.tensor([[3, 7, 9, 4, 8, 0], [5, 6, 0, 0, 0, 0], [2, 2, 2, 0, 0, 0]])


def bert(kind: str, exits: int | tuple[int, ...] = 4) -> MultiExitModel:
    return bert_classifier(zoo.encoder(kind, pad_token_id=0), 5, exits=exits)


def multi_scale(layers: tuple[int, ...] = (2, 2, 2), factors: tuple[int, ...] = (1, 2, 4)) -> MultiExitModel:
    return msdnet(5, layers=layers, channels=4, growth=2, factors=factors, heads=pooled_linear)


def hrnet(exits: int | tuple[int, ...] = 4, name: str = "hrnet_w18_small") -> MultiExitModel:
    pytest.importorskip("timm")
    return hrnet_segmenter(name, 5, exits=exits, width=4)


def densenet(**settings: object) -> MultiExitModel:
    pytest.importorskip("torchvision")
    return densenet_cifar(5, **settings)


def images(size: int = 32) -> Tensor:
    return torch.randn(4, 3, size, size)


CASES = {
    "resnet": lambda: (cifar_resnet(20, exits=(2, 3, 7)), images()),
    "densenet, ends of blocks": lambda: (densenet(depth=16, growth=4, exits=(2, 4)), images()),
    "densenet, inside a block": lambda: (densenet(depth=16, growth=4, exits=(1, 3)), images()),
    "msdnet": lambda: (multi_scale(), images()),
    "msdnet, more scales than exits": lambda: (multi_scale((1, 3), (1, 2, 2, 4)), images()),
    "msdnet, scales that no classifier reads": lambda: (multi_scale((1, 1, 1, 1)), images()),
    "msdnet, one scale": lambda: (multi_scale((1, 1), (1,)), images()),
    "hrnet": lambda: (hrnet(), images()),
    "hrnet, one early exit": lambda: (hrnet((2,)), images()),
    "hrnet, modules in a stage": lambda: (hrnet(name="hrnet_w18_small_v2"), images(64)),
    "bert": lambda: (bert("Bert", (1, 3)), TOKENS),
    "roberta": lambda: (bert("Roberta"), TOKENS),
    "distilbert": lambda: (bert("DistilBert", (1, 3)), TOKENS),
}


@pytest.mark.parametrize("case", CASES)
def test_samples_may_leave_and_batches_be_joined_between_stages(case: str) -> None:
    model, inputs = CASES[case]()
    zoo.scrambled(model)
    zoo.check_shrinking(model, inputs)
    zoo.check_join(model, inputs[:1], inputs[1:3])


@pytest.mark.parametrize("case", CASES)
def test_gradient_reaches_everything(case: str) -> None:
    zoo.check_gradients(*CASES[case]())


@pytest.mark.parametrize("make", [lambda: densenet(depth=16, growth=4), multi_scale, hrnet])
def test_the_folded_copy_answers_the_same(make: Callable[[], MultiExitModel]) -> None:
    zoo.check_folded(zoo.scrambled(make()), images()[:3])


EXPORTED = {
    "densenet": lambda: (densenet(depth=10, growth=4, exits=(2,)), images()[:3]),
    "msdnet": lambda: (multi_scale((1, 1), (1, 2)), images(16)[:3]),
    "hrnet": lambda: (hrnet((2,)), torch.randn(3, 3, 32, 48)),
    "bert": lambda: (bert("Bert", 2), TOKENS),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED)
def test_onnx_answers_the_same(case: str) -> None:
    model, inputs = EXPORTED[case]()
    zoo.check_onnx(zoo.scrambled(model), inputs)


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("timm.models.hrnet", "vision", hrnet_segmenter),
        ("torchvision.models", "vision", densenet121),
        ("transformers", "text", lambda: bert_classifier("folder", 2)),
    ],
)
def test_without_its_library_the_extra_is_named(
    module: str, extra: str, make: Callable[[], MultiExitModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module.partition('.')[0]} is not installed.*eenet\[{extra}\]"):
        make()
