"""Weights as other tools leave them: taken where they are the model's, refused in one sentence where not."""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from eenet.errors import InputError
from eenet.experiments.recipes import load_weights

State = dict[str, Tensor]


class Tied(nn.Module):
    """Two heads of one weight, and the buffers of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3, bias=False), nn.Linear(8, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.two.weight = self.one.weight


@pytest.fixture
def state() -> State:
    model = Tied()
    model.norm.running_mean += 5
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


TAKEN: dict[str, Callable[[State], object]] = {
    "plain": lambda state: state,
    "DDP": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "compiled DDP": lambda state: prefixed(state, "module._orig_mod."),
    "a compiled part": lambda state: {name.replace("body.", "body._orig_mod."): one for name, one in state.items()},
    "checkpoint": lambda state: {"epoch": 3, "state_dict": state},
    "checkpoint with an optimiser": lambda state: {
        "model": prefixed(state, "module."),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1),
        "step": torch.tensor(3),
    },
    "deep": lambda state: {"trainer": {"modules": {"net": state}}},
    "averaged": lambda state: {"n_averaged": torch.tensor(3), **prefixed(state, "module.")},
    "old": lambda state: {name: one for name, one in state.items() if "tracked" not in name},
    "tied once": lambda state: {name: one for name, one in state.items() if name != "two.weight"},
    "half": lambda state: {name: one.half() if one.is_floating_point() else one for name, one in state.items()},
}


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_save_leaves_is_taken(case: str, zipped: bool, state: State, tmp_path: Path) -> None:
    torch.save(TAKEN[case](state), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    model = Tied()
    load_weights(model, tmp_path / "w.pt")
    for name, tensor in model.state_dict().items():
        if case != "old" or "tracked" not in name:
            torch.testing.assert_close(tensor, state[name], rtol=1e-3, atol=1e-3)
    assert model.one.weight is model.two.weight


def test_what_safetensors_saves_is_taken(state: State, tmp_path: Path) -> None:
    model = Tied()
    save_model(model, str(tmp_path / "w.safetensors"))  # tied tensors stand in it once
    other = Tied()
    load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    save_file(prefixed({name: one.clone() for name, one in state.items()}, "_orig_mod."), tmp_path / "c.SAFETENSORS")
    load_weights(other, tmp_path / "c.SAFETENSORS")
    assert torch.equal(other.body.weight, state["body.weight"])


def test_a_model_that_is_wrapped_itself_takes_plain_weights(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pt")
    model = nn.Module()
    model.module = Tied()
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.module.body.weight, state["body.weight"])


def test_tensors_of_other_modules_are_left_out_and_said(state: State, tmp_path: Path) -> None:
    lightning = {"state_dict": {**prefixed(state, "net."), "loss.weight": torch.ones(3)}, "epoch": 1}
    torch.save(lightning, tmp_path / "w.ckpt")
    model = Tied()
    with pytest.warns(UserWarning, match=r"are left out: loss\.weight"):
        load_weights(model, tmp_path / "w.ckpt")
    assert torch.equal(model.body.weight, state["body.weight"])


class Code:
    """Something that a file must not make."""


REFUSED: dict[str, tuple[Callable[[State], object], str]] = {
    "two that fit": (lambda state: {"model": state, "ema": dict(state)}, "fit more than once: 'model.' and 'ema.'"),
    "two prefixes": (lambda state: prefixed(state, "a.") | prefixed(state, "b."), "fit more than once: 'a.' and 'b.'"),
    "lost": (lambda state: {name: one for name, one in state.items() if name != "body.bias"}, "lacks body.bias"),
    "more": (lambda state: state | {"more": torch.ones(2)}, "the model has not, more"),
    "shape": (
        lambda state: {"m": prefixed(state | {"body.bias": torch.ones(2)}, "module.")},
        "body.bias has shape (2,)",
    ),
    "quantised": (lambda state: state | {"body.bias": torch.ones(8, dtype=torch.int8)}, "body.bias is of type int8"),
    "NaN": (lambda state: state | {"body.bias": torch.full((8,), torch.nan)}, "body.bias contains NaN"),
    "infinity": (lambda state: state | {"norm.running_var": torch.full((3,), torch.inf)}, "contains NaN or infinity"),
    "another model": (lambda _: nn.Conv2d(3, 3, 3).state_dict(), "lacks body.weight"),
    "a list": (lambda state: [state], "are no state dict"),
    "a number": (lambda _: 3, "are no state dict"),
    "nothing": (lambda _: {}, "are no state dict"),
    "a model": (lambda _: nn.Linear(3, 2), "contain more than tensors (torch.nn.modules.linear.Linear)"),
    "code": (lambda state: {"state_dict": state, "config": Code()}, "Code): such files run code when they are opened"),
}


def refused(path: Path, said: str) -> None:
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as raised:
        load_weights(model, path)
    assert str(path) in str(raised.value) and said in str(raised.value) and "\n" not in str(raised.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_models_is_refused(case: str, state: State, tmp_path: Path) -> None:
    made, said = REFUSED[case]
    torch.save(made(state), tmp_path / "w.pt")
    refused(tmp_path / "w.pt", said)


def test_damaged_files_are_refused(state: State, tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "there is no such file")
    for content in (b"", b"hello", b"PK\x03\x04"):
        (tmp_path / "w.pt").write_bytes(content)
        refused(tmp_path / "w.pt", "cannot be read: it is no whole file of torch.save")
    torch.save(state, tmp_path / "w.pt")
    content = bytearray((tmp_path / "w.pt").read_bytes())
    content[content.index(state["body.weight"].numpy().tobytes()) + 2] ^= 4
    (tmp_path / "w.pt").write_bytes(content)
    refused(tmp_path / "w.pt", "checksum")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old
        torch.jit.script(nn.Linear(3, 2)).save(str(tmp_path / "script.pt"))
    refused(tmp_path / "script.pt", "TorchScript")


def test_a_file_that_contains_itself_is_read(state: State, tmp_path: Path) -> None:
    circle: dict[str, Any] = {"state_dict": state}
    circle["again"] = circle
    torch.save(circle, tmp_path / "w.pt")
    load_weights(Tied(), tmp_path / "w.pt")
