"""The eager engine: the model to the bit, or faster and within rounding."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from eenet.errors import InputError
from eenet.experiments.zoo.resnet import cifar_resnet
from eenet.models.attach import attach
from eenet.models.model import MultiExitModel
from eenet.running.engines import EagerEngine
from eenet.running.engines.eager import fingerprint
from eenet.running.engines.fold import fold_batch_norms
from eenet.running.recording import outputs


def norms(module: nn.Module) -> int:
    return sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())


def shaken(model: nn.Module) -> nn.Module:
    """The model with batch norms that are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(torch.rand_like(tensor))
            module.running_var.mul_(torch.rand_like(module.running_var) + 0.5)
    return model


def test_plain_is_the_model_to_the_bit(tiny, images):
    with torch.no_grad():
        expected = torch.stack(tiny(images), dim=1).numpy()
    engine = EagerEngine(tiny, optimise=False)
    assert np.array_equal(outputs(engine, images), expected)
    assert np.array_equal(engine.full(images), expected[:, -1])


def test_optimised_agrees_within_rounding_and_leaves_the_model_alone(tiny, images):
    shaken(tiny)
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    expected = outputs(EagerEngine(tiny, optimise=False), images)
    engine = EagerEngine(tiny)
    assert norms(engine.model) == 0
    np.testing.assert_allclose(outputs(engine, images), expected, atol=1e-4)
    np.testing.assert_allclose(engine.full(images), expected[:, -1], atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())
    assert norms(tiny) == 6
    assert all(parameter.requires_grad for parameter in tiny.parameters())


def test_resnet_agrees_within_rounding():
    model = shaken(cifar_resnet(8, exits=(1, 2))).train()
    x = torch.randn(4, 3, 32, 32)
    expected = outputs(EagerEngine(model, optimise=False), x)
    np.testing.assert_allclose(outputs(EagerEngine(model), x), expected, rtol=1e-3, atol=1e-3)
    assert model.training


def test_select_keeps_rows_and_memory_layout(tiny, images):
    engine = EagerEngine(tiny)
    rows = np.array([1, 5, 6])
    with engine.session():
        state = engine.stage(0, engine.start(images))
        kept = engine.select(state, rows)
        assert torch.equal(kept, state[rows])
        assert kept.is_contiguous(memory_format=torch.channels_last)
        kept = engine.select({"a": state, "b": 1}, rows)["a"]
        assert torch.equal(kept, state[rows])
        assert kept.is_contiguous(memory_format=torch.channels_last)


class Shared(nn.Module):
    """One batch norm after two convolutions, and one convolution that is read twice: nothing may be folded."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.norm, self.other = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.c(x)
        return self.norm(self.a(x)) + self.norm(self.b(x)) + y + self.other(y)


class Choosy(nn.Module):
    """Control flow on values: cannot be traced."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


@pytest.mark.parametrize(("module", "left"), [(Shared(), 2), (Choosy(), 1)])
def test_what_cannot_be_folded_stays(module, left):
    module = shaken(module).eval()
    x = torch.randn(3, 2, 5, 5)
    expected = module(x)
    folded = fold_batch_norms(module)
    assert norms(folded) == left
    assert torch.equal(folded(x), expected)


def test_of_a_sequence_only_what_cannot_be_traced_stays():
    simple = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))
    module = shaken(nn.Sequential(simple, Choosy())).eval()
    x = torch.randn(3, 2, 5, 5)
    expected = module(x)
    folded = fold_batch_norms(module)
    assert norms(folded) == 1
    assert torch.allclose(folded(x), expected, atol=1e-5)


class Scaled(Choosy):
    """Takes another path under a trace, whose values are no tensors."""

    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = x / 255
        return self.norm(self.conv(x))


class Masked(Choosy):
    """Has an argument that is not given."""

    def forward(self, x, mask=None):
        x = self.norm(self.conv(x))
        return x if mask is None else x * mask


class Sure(Choosy):
    """Raises under a trace."""

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        return self.norm(self.conv(x))


class Parametrised(Choosy):
    """Its convolution's weight is worked out at every call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(self.conv)

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize(("make", "left"), [(Scaled, 1), (Masked, 0), (Sure, 1), (Parametrised, 1)])
def test_what_is_folded_does_what_the_module_does(make, left):
    module = shaken(make()).eval().requires_grad_(False)
    x = 50 * torch.randn(3, 2, 5, 5)
    expected = module(x)
    folded = fold_batch_norms(module)
    for _ in range(2):  # the first batch decides which of the two runs
        assert torch.allclose(folded(x), expected, rtol=1e-3, atol=1e-4)
    assert norms(folded) == left


def test_parametrised_convolutions_run_behind_exits_too():
    model = shaken(nn.Sequential(*(nn.Sequential(Parametrised(), nn.ReLU()) for _ in range(3)), nn.Flatten()))
    x = torch.randn(3, 2, 5, 5)
    attached = attach(model.eval(), x, exits=["0", "1"])
    np.testing.assert_allclose(EagerEngine(attached).full(x), model(x).detach(), atol=1e-4)


def test_models_without_convolutions_or_parameters_run():
    for stages in ([nn.Linear(3, 3), nn.Linear(3, 3)], [nn.Identity(), nn.Identity()]):
        engine = EagerEngine(MultiExitModel(stages, [nn.Identity(), nn.Identity()]))
        assert not engine.channels_last
        assert outputs(engine, torch.randn(2, 3)).shape == (2, 2, 3)


@pytest.mark.filterwarnings("ignore:dtype bfloat16 is slow")  # on some processors
def test_half_as_many_bits_when_asked(tiny, images):
    engine = EagerEngine(tiny, dtype=torch.bfloat16)
    assert engine.dtype == "bfloat16" and EagerEngine(tiny, dtype=torch.float32).dtype == "float32"
    full, half = outputs(EagerEngine(tiny), images), outputs(engine, images)
    assert half.dtype == np.float32
    worst = float(np.abs(full - half).max() / np.abs(full).max())
    assert 0 < worst < 0.03
    assert next(tiny.parameters()).dtype == torch.float32


def test_the_model_itself_has_one_number_format(tiny):
    with pytest.raises(InputError, match=r"dtype torch.bfloat16 needs a copy"):
        EagerEngine(tiny, optimise=False, dtype=torch.bfloat16)


def test_inputs_are_brought_to_the_model(tiny, images):
    for engine in (EagerEngine(tiny), EagerEngine(tiny, optimise=False)):
        wanted = outputs(engine, images)
        read_only = images.numpy()
        read_only.flags.writeable = False
        for given in (read_only, images.double(), images.numpy().astype(np.float64), images.tolist()):
            np.testing.assert_allclose(outputs(engine, given), wanted, atol=1e-6)
    tokens = MultiExitModel([nn.Embedding(5, 3), nn.Linear(3, 3)], [nn.Identity(), nn.Identity()])
    assert outputs(EagerEngine(tokens), np.array([0, 4])).shape == (2, 2, 3)  # whole numbers stay what they are


def test_a_fingerprint_tells_weights_and_formats_apart(tiny):
    before = fingerprint(tiny)
    assert len(before) == 64
    assert EagerEngine(tiny).source == EagerEngine(tiny, optimise=False).source == before
    assert fingerprint(tiny, torch.bfloat16) != before
    assert fingerprint(tiny.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        tiny.heads[0][-1].bias[0] += 1e-6
    assert fingerprint(tiny) != before


def test_the_fingerprint_of_a_copy_is_not_that_of_a_model_changed_since(tiny):
    copied, itself = EagerEngine(tiny), EagerEngine(tiny, optimise=False)
    with torch.no_grad():
        tiny.heads[0][-1].bias[0] += 1
    assert copied.source == ""
    assert itself.source == fingerprint(tiny)


def test_running_knows_no_torch():
    code = "import sys, eenet.running.adaptive, eenet.running.recording; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


class Tap:
    """A hook that belongs to somebody: it doubles, and counts."""

    def __init__(self):
        self.sizes = []

    def before(self, module, args):
        self.sizes.append(len(args[0]))
        return (2 * args[0],)

    def after(self, module, args, output):
        self.sizes.append(len(output))
        return 2 * output + 1


def hooked_model(where: str, tap: Tap | None) -> MultiExitModel:
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    blocks = nn.Sequential(nn.Sequential(Block()), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = shaken(MultiExitModel([blocks, nn.Conv2d(3, 3, 1)], [head, head])).eval()
    if tap is not None and where == "own forward":
        plain = blocks[0][0].norm.forward
        blocks[0][0].norm.forward = lambda x: tap.after(None, None, plain(x))
    elif tap is not None:
        module = model.get_submodule(where)
        module.register_forward_hook(tap.after)
        module.register_forward_pre_hook(tap.before)
    return model


@pytest.mark.parametrize(
    "where",
    ["stages.0", "stages.0.0", "stages.0.0.0", "stages.0.0.0.conv", "stages.0.0.0.norm", "heads.0.2", "own forward"],
)
def test_hooks_are_called_in_the_copy_as_in_the_model(where, images):
    tap = Tap()
    model = hooked_model(where, tap)
    with torch.no_grad():
        expected = torch.stack(model(images), dim=1).numpy()
        unhooked = torch.stack(hooked_model(where, None)(images), dim=1).numpy()
    assert np.abs(expected - unhooked).max() > 0.01
    engine = EagerEngine(model)
    for _ in range(2):
        tap.sizes.clear()
        np.testing.assert_allclose(outputs(engine, images), expected, atol=1e-4)
        assert len(images) in tap.sizes  # of the caller's tap, and not of a copy
    assert norms(engine.model) < norms(model) or where == "stages.0.0.0.norm"  # the rest is folded all the same


def test_hooks_of_the_whole_model_are_said_to_be_left_out(tiny, images):
    tiny.register_forward_hook(lambda *_: None)
    for optimise in (True, False):
        with pytest.warns(UserWarning, match="hooks"):
            EagerEngine(tiny, optimise=optimise)
