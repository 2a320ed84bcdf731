"""Chained heads: they begin as the plain heads, learn from the exit before, and run wherever other models run."""

import dataclasses

import pytest
import torch
from tests.training import resumable
from torch import Tensor, nn

from eenet.errors import InputError, ShapeError
from eenet.experiments.zoo import tiny_cnn
from eenet.models import MultiExitModel, attach, cascaded, conv_head, pooled_linear
from eenet.models.chained_heads import early_heads
from eenet.running.engines import EagerEngine, OnnxEngine
from eenet.training import fit_exits


def stir(model: MultiExitModel) -> MultiExitModel:
    """Let every head hear the one before it."""
    for name, parameter in model.named_parameters():
        if "recall" in name:
            nn.init.normal_(parameter)
    return model


def staged(model: MultiExitModel, inputs: Tensor) -> list[Tensor]:
    state, outputs = model.start(inputs), []
    for stage, head in zip(model.stages, model.heads, strict=True):
        state = stage(state)
        outputs.append(head(state))
    return outputs


def test_it_begins_as_the_plain_heads() -> None:
    plain, inputs = tiny_cnn(exits=4).eval(), torch.randn(5, 1, 8, 8)
    for ours, theirs in zip(cascaded(plain, 10)(inputs), plain(inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_by_hand() -> None:
    stages = [nn.Identity() for _ in range(3)]
    model = cascaded(MultiExitModel(stages, [nn.Identity() for _ in range(3)]), 2)
    model.stages[1].recall.linear.weight.data = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    first, second, last = model(torch.tensor([[5.0, 1.0]]))  # normalised over its two classes: (1, -1)
    torch.testing.assert_close(second, torch.tensor([[5.0 - 3.0, 1.0 + 1.0]]))
    assert first.tolist() == last.tolist() == [[5.0, 1.0]]


def test_dense_logits_are_recalled_pixel_by_pixel() -> None:
    model = stir(cascaded(MultiExitModel([nn.Identity() for _ in range(3)], [nn.Identity() for _ in range(3)]), 4))
    inputs = torch.randn(2, 4, 3, 5)
    dense = model(inputs)[1]
    torch.testing.assert_close(dense[:, :, 1, 2], model(inputs[:, :, 1, 2])[1])


@pytest.mark.parametrize("number", [5, 1, 100, 0, -3, True])
def test_another_number_of_classes_than_that_of_the_heads_is_refused(number: int) -> None:
    with pytest.raises(InputError, match=f"num_classes {number} "):
        cascaded(tiny_cnn(exits=3), number)


def test_heads_without_layers_tell_their_classes_when_they_run() -> None:
    model = cascaded(MultiExitModel([nn.Identity() for _ in range(3)], [nn.Identity() for _ in range(3)]), 4)
    with pytest.raises(ShapeError, match="num_classes 4 does not fit: the heads of the model have 6 classes"):
        model(torch.zeros(2, 6))


def test_no_gradient_goes_back_to_the_exit_before() -> None:
    model = stir(cascaded(tiny_cnn(), 10))
    model(torch.randn(3, 1, 8, 8))[1].sum().backward()
    assert all(parameter.grad is None for parameter in model.stages[0].head.parameters())
    assert model.stages[1].recall.linear.weight.grad.abs().sum() > 0


def test_samples_can_be_dropped_between_its_stages() -> None:
    model = stir(cascaded(tiny_cnn(exits=4), 10)).eval()
    inputs, rows = torch.randn(6, 1, 8, 8), torch.tensor([5, 1, 2])
    with torch.inference_mode():
        whole = model(inputs)
        state = model.select(model.stages[0](model.start(inputs)), rows)
        for k in (1, 2, 3):
            state = model.stages[k](state)
            torch.testing.assert_close(model.heads[k](state), whole[k][rows])
        joined = model.join([model.stages[0](model.start(inputs[:2])), model.stages[0](model.start(inputs[2:]))])
        torch.testing.assert_close(model.stages[1](joined)[1], whole[1])


def test_exits_can_be_closed_and_are_heard_all_the_same() -> None:
    model = stir(cascaded(tiny_cnn(exits=4), 10)).eval()
    inputs = torch.randn(3, 1, 8, 8)
    outputs, fewer = model(inputs), model.without([1])(inputs)
    for ours, theirs in zip(fewer, [outputs[k] for k in (0, 2, 3)], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attached_exits_say_the_same_in_one_go_and_stage_by_stage() -> None:
    backbone = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)), nn.Linear(8, 3))
    model = stir(cascaded(attach(backbone, torch.randn(2, 8), exits=3), 3)).eval()
    inputs = torch.randn(5, 8)
    for ours, theirs in zip(model(inputs), staged(model, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(model(inputs)[-1], backbone(inputs))
    assert len(model.without([0])(inputs)) == 2


@pytest.mark.slow
def test_the_engines_run_it() -> None:
    pytest.importorskip("onnxruntime")
    stages = [nn.Conv2d(a, 4, 3, padding=1) for a in (1, 4, 4)]
    heads = [conv_head((2,))((2, 4, 6, 6), 5) for _ in stages]
    model, inputs = stir(cascaded(MultiExitModel(stages, heads), 5)).eval(), torch.randn(4, 1, 6, 6)
    with torch.inference_mode():
        wanted = model(inputs)
    for engine in (EagerEngine(model), OnnxEngine(model, inputs)):
        with engine.session():
            state = engine.start(inputs)
            for k in range(3):
                state = engine.stage(k, state)
                torch.testing.assert_close(torch.as_tensor(engine.head(k, state)[0]), wanted[k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attached", [False, True])
def test_the_first_phase_trains_its_heads_and_nothing_else(attached: bool) -> None:
    torch.manual_seed(0)
    model = three_exits()
    if attached:
        backbone = nn.Sequential(*model.stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
        model = attach(backbone, torch.randn(2, 3, 8, 8), exits=["0", "1"])
    model = cascaded(model, 4)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    settings = dataclasses.replace(resumable.SETTINGS, epochs=1, heads_share=1.0)
    fit_exits(model, resumable.make_data(), settings, progress=False)
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    heads = {id(parameter) for part in early_heads(model).values() for parameter in part.parameters()}
    assert changed == {name for name, parameter in model.named_parameters() if id(parameter) in heads}
    assert any("recall" in name for name in changed)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


def three_exits() -> MultiExitModel:
    stages = [nn.Sequential(nn.Conv2d(a, 6, 3, padding=1), nn.ReLU()) for a in (3, 6, 6)]
    return MultiExitModel(stages, [pooled_linear((1, 6, 8, 8), 4) for _ in stages])
