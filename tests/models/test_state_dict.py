"""Saving and loading models with exits: every tensor once, shared again afterwards, older files understood."""

import copy
import functools
from collections import UserDict

import pytest
import torch
from foreign import FAMILIES, attached_copy, check_attached, run_dropping
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from eenet.errors import InputError
from eenet.experiments.zoo import tiny_cnn
from eenet.models import MultiExitModel, attach, cascaded
from eenet.models.weights import load_tensors, save_tensors

pytestmark = pytest.mark.filterwarnings("ignore:free sizes stay")  # the windows of `Tokens` need even lengths

FOREIGN = [
    pytest.param(name, marks=() if name in ("conv", "gated") else pytest.mark.slow)
    for name in ("conv", "tokens", "gated", "timm mobilenetv4_conv_small", "transformers BERT")
]


def original_names(model):
    return {f"whole.model.{name}" for name in model.state_dict()}


def check_once(model):
    """Check that no two entries of the state dict are the same memory."""
    places = [(one.data_ptr(), one.shape) for one in model.state_dict().values() if one.numel()]
    assert len(places) == len(set(places))


def scramble(model):
    """Give all tensors other values, in place."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.02 * torch.rand_like(tensor))
    return model


def every(model, inputs):
    """Return what all exits say, in one go and stage by stage."""
    with torch.no_grad():
        return [*model(inputs), *(logits for _, logits in run_dropping(model, inputs))]


def check_same(model, other, inputs):
    for a, b in zip(every(model.eval(), inputs), every(other.eval(), inputs), strict=True):
        assert torch.equal(a, b)


def old_names(model):
    """Return a state dict as version 0.1 wrote it: every name of every tensor."""
    return dict(nn.Module.state_dict(model))


@pytest.mark.parametrize("name", FOREIGN)
def test_attached_models_have_the_names_of_the_original_and_of_the_heads(name):
    model, _, attached = attached_copy(name)
    names = set(attached.state_dict())
    heads = {f"heads.{key}" for key in attached.heads.state_dict()}
    assert names == original_names(model) | heads
    assert list(dict(attached.named_parameters())) == [
        key for key in attached.state_dict() if _is_parameter(attached, key)
    ]
    check_once(attached)


def _is_parameter(model, name):
    module, _, last = name.rpartition(".")
    return last in model.get_submodule(module)._parameters


@pytest.mark.parametrize("name", FOREIGN)
def test_any_saver_brings_it_back_into_a_model_attached_anew(name, tmp_path):
    _, inputs, attached = attached_copy(name)
    path = tmp_path / "model"
    other = attach(FAMILIES[name]()[0].eval(), inputs, exits=3)

    def torchs():
        torch.save(attached.state_dict(), path)
        other.load_state_dict(torch.load(path, weights_only=True))

    def safetensors_model():
        save_model(attached, str(path))
        assert load_model(other, path) == (set(), [])

    def safetensors_file():
        save_file(attached.state_dict(), path, metadata={"format": "pt"})
        other.load_state_dict(load_file(path))

    def our_own():
        save_tensors(path, attached.state_dict())
        other.load_state_dict(load_tensors(path, "model"))

    for save_and_load in (torchs, safetensors_model, safetensors_file, our_own):
        scramble(attached)
        save_and_load()
        check_same(attached, other, inputs)


@pytest.mark.parametrize("name", ["conv", pytest.param("tokens", marks=pytest.mark.slow)])
def test_assigned_tensors_stay_shared(name):
    _, inputs, attached = attached_copy(name)
    state = {key: value.clone() for key, value in scramble(attached).state_dict().items()}
    original, _, other = attached_copy(name)
    frozen = next(other.whole.parameters()).requires_grad_(False)
    other.load_state_dict(state, assign=True)
    assert next(other.whole.parameters()) is not frozen and not next(other.whole.parameters()).requires_grad
    assert next(original.parameters()).data_ptr() == next(iter(state.values())).data_ptr()
    check_same(attached, other, inputs)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.mul_(1.1)
    check_attached(original, inputs, other.eval())


def test_copies_and_conversions_stay_shared():
    model, inputs, attached = attached_copy("conv")
    for twin in (copy.deepcopy(attached), copy.deepcopy(attached).to("meta").to_empty(device="cpu")):
        twin.load_state_dict(attached.state_dict())
        assert list(twin.state_dict()) == list(attached.state_dict())
        scramble(twin.whole)
        check_attached(twin.whole.model, inputs, twin.eval())
    scramble(attached.double().whole)
    check_attached(model, inputs.double(), attached.eval())
    assert attached.state_dict()["whole.model.stem.weight"].dtype == torch.float64


class Tied(nn.Module):
    """Answers in its own words, with the weights of its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))
        self.decode = nn.Linear(16, 50, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids) * attention_mask[:, :, None]
        for block in self.blocks:
            x = x + block(x)
        return self.decode(x[:, 0])


def masked_bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=50, **sizes))


@functools.cache
def made(make):
    """Return a model with exits, made once: recording it takes most of the time."""
    return attach(make().eval(), FAMILIES["tokens"]()[1], exits=3).eval()


@pytest.mark.parametrize(
    ("make", "assign"),
    [(Tied, False), (Tied, True), *(pytest.param(masked_bert, one, marks=pytest.mark.slow) for one in (False, True))],
)
def test_tied_weights_are_saved_once_and_tied_again(make, assign, tmp_path):
    _, inputs = FAMILIES["tokens"]()
    attached = scramble(copy.deepcopy(made(make)))
    check_once(attached)
    assert set(attached.state_dict()) < original_names(attached.whole.model) | {
        f"heads.{key}" for key in attached.heads.state_dict()
    }
    save_file(attached.state_dict(), tmp_path / "model")
    other = copy.deepcopy(made(make))
    other.load_state_dict(load_file(tmp_path / "model"), assign=assign)
    check_same(attached, other, inputs)
    for model in (attached, other):
        shared = dict(model.whole.named_parameters(remove_duplicate=False))
        again = dict(model.stages.named_parameters(remove_duplicate=False))
        assert {id(one) for one in again.values()} <= {id(one) for one in shared.values()}


def test_weights_tied_between_stages_of_a_plain_model():
    def make():
        model = tiny_cnn(width=8)
        model.stages[2][1].weight = model.stages[2][4].weight
        return model

    model, other = make(), make()
    assert len(model.state_dict()) == len(tiny_cnn(width=8).state_dict()) - 1
    scramble(model)
    for assign in (False, True):
        other.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=assign)
        assert other.stages[2][1].weight is other.stages[2][4].weight
        assert torch.equal(other.stages[2][1].weight, model.stages[2][1].weight)


def test_a_plain_model_has_the_names_of_its_modules():
    model = tiny_cnn()
    assert list(model.state_dict()) == list(nn.Module.state_dict(model))


def test_partial_dictionaries():
    model, inputs, attached = attached_copy("conv")
    before = {key: value.clone() for key, value in attached.state_dict().items()}
    weight = torch.full_like(model.classify.weight, 2.0)
    missing, unexpected = attached.load_state_dict({"whole.model.classify.weight": weight, "odd": weight}, strict=False)
    assert unexpected == ["odd"]
    counters = {key for key in before if key.endswith("num_batches_tracked")}  # torch misses none without versions
    assert set(missing) == set(before) - counters - {"whole.model.classify.weight"}
    assert torch.equal(model.classify.weight, weight)
    check_attached(model, inputs, attached)  # the stages read the same weight
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"whole.model.stem.weight\"") as caught:
        attached.load_state_dict({"heads.0.head.classify.bias": before["heads.0.head.classify.bias"]})
    assert "stages" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"size mismatch for whole\.model\.classify\.weight") as caught:
        attached.load_state_dict(before | {"whole.model.classify.weight": torch.zeros(1)})
    assert "stages" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "form", "assign"),
    [("conv", "all", False), pytest.param("tokens", "safetensors", True, marks=pytest.mark.slow)],
)
def test_files_of_version_0_1_load(name, form, assign):
    _, inputs, attached = attached_copy(name)
    state = {key: value.clone() for key, value in old_names(scramble(attached)).items()}
    if form == "safetensors":  # kept one name of each tensor, the first in the alphabet
        kept = {}
        for key, value in sorted(old_names(attached).items()):
            kept.setdefault((value.data_ptr(), value.shape) if value.numel() else key, key)
        state = {key: state[key] for key in kept.values()}
        assert "whole.model.embed.weight" not in state
    other = attached_copy(name)[2]
    other.load_state_dict(state, assign=assign)
    check_same(attached, other, inputs)


def test_an_old_file_of_two_truths_is_refused():
    attached = attached_copy("conv")[2]
    state = {key: value.clone() for key, value in old_names(attached).items()}
    state["stages.0.weights.stem.weight"] += 1
    with pytest.raises(RuntimeError, match=r"whole\.model\.stem\.weight .*several names.*Keep the entry that is right"):
        attached.load_state_dict(state)


def test_old_files_of_models_with_closed_exits_and_of_cascades():
    attached = scramble(attached_copy("conv")[2])
    fewer = attached.without([1])
    assert set(fewer.state_dict()) < set(attached.state_dict()) | {"heads.1.head.norm.weight"}
    for one, renamed in (
        (fewer, ("whole.", "whole.whole.")),
        (cascaded(attached, 4), ("whole.", "whole.whole.")),
        (cascaded(attached, 4), ("stages.0.head.", "whole.stages.0.head.")),
    ):
        state = {
            (renamed[1] + key.removeprefix(renamed[0]) if key.startswith(renamed[0]) else key): value.clone() + 1
            for key, value in one.state_dict().items()
        }
        one.load_state_dict(state)
        for key, value in one.state_dict().items():
            assert torch.equal(
                value, state[renamed[1] + key.removeprefix(renamed[0]) if key.startswith(renamed[0]) else key]
            )


def test_inside_another_module():
    _, inputs, attached = attached_copy("conv")
    outer = nn.ModuleDict({"net": attached, "more": nn.Linear(2, 2)})
    assert set(outer.state_dict()) == {f"net.{key}" for key in attached.state_dict()} | {"more.weight", "more.bias"}
    state = {key: value.clone() for key, value in scramble(outer).state_dict().items()}
    other = nn.ModuleDict({"net": attached_copy("conv")[2], "more": nn.Linear(2, 2)})
    other.load_state_dict(state)
    check_same(attached, other["net"], inputs)


def test_channels_last_models_can_be_saved(tmp_path):
    model, inputs, attached = attached_copy("conv")
    scramble(attached.to(memory_format=torch.channels_last))
    save_model(attached, str(tmp_path / "model"))
    other = attached_copy("conv")[2]
    load_model(other, tmp_path / "model")
    check_attached(model, inputs, attached)
    for key, value in other.state_dict().items():
        assert torch.equal(value, attached.state_dict()[key])


def test_inputs_by_keyword_and_in_any_mapping():
    model, inputs = FAMILIES["gated"]()
    attached = attach(model.eval(), UserDict(inputs), exits=3).eval()
    wanted = attached(inputs)
    for found in (attached(**inputs), attached(UserDict(inputs)), attached(inputs=inputs)):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(attached.start(UserDict(inputs))["x"], inputs["x"])
    with pytest.raises(InputError, match="inputs are missing"):
        attached()
    with pytest.raises(InputError, match="both given"):
        attached(inputs, gate=inputs["gate"])


def test_pieces_that_are_shared_by_heads():
    shared = nn.Linear(4, 2)
    model = MultiExitModel([nn.Linear(4, 4), nn.Linear(4, 4)], [shared, shared])
    assert [name for name in model.state_dict() if name.startswith("heads")] == ["heads.0.weight", "heads.0.bias"]
    state = {key: value + 1 for key, value in model.state_dict().items()}
    model.load_state_dict({key.replace("heads.0", "heads.1"): value for key, value in state.items()})
    assert torch.equal(shared.weight, state["heads.0.weight"])
