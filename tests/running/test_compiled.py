"""torch.compile: the same outputs and decisions, everything compiled beforehand, and clear words where it cannot be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from eenet.errors import InputError
from eenet.models.model import MultiExitModel
from eenet.running.engines import CompiledEngine

SUPPORT = Path(__file__).parents[1] / "support"


def check(model: str) -> None:
    """Run the checks of `compiling` in a process of their own."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler")
    command = [sys.executable, str(SUPPORT / "compiling.py"), model]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SUPPORT)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["convolutional", "gated", "texts"])
def test_outputs_and_decisions_whatever_the_batch(model):
    check(model)


def two(stage: nn.Module) -> MultiExitModel:
    return MultiExitModel([stage, nn.Linear(3, 3)], [nn.Identity(), nn.Identity()])


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"compiler 'no-such-compiler' is missing: .*C\+\+ compiler"):
        CompiledEngine(two(nn.Linear(3, 3)), torch.randn(2, 3))


class Choosy(nn.Module):
    """Control flow on values: cannot be compiled as a whole."""

    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


def test_what_cannot_be_compiled_is_refused_and_never_run_uncompiled(monkeypatch):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler")
    with pytest.raises(InputError, match=r"model cannot be compiled: .*Use the engine eager") as caught:
        CompiledEngine(two(Choosy()), torch.randn(2, 3))
    assert "\n" not in str(caught.value)
