"""A number format that would be emulated is warned of; one that the processor has is not."""

import pytest
import torch

from eenet.models.processor import has_bfloat16, warn_of_emulation

CPU = torch.device("cpu")


def say(monkeypatch, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"architecture": "x86_64", "avx2": True, "amx_bf16": False, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": False}, True),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": True}, True),
        ({"architecture": "arm64"}, True),
        ({}, True),
    ],
)
def test_who_has_bfloat16(monkeypatch, capabilities, has):
    say(monkeypatch, capabilities)
    assert has_bfloat16() == has


def test_emulation_is_warned_of(monkeypatch):
    say(monkeypatch, {"architecture": "x86_64"})
    with pytest.warns(UserWarning, match=r"precision bfloat16 is slow here: .*Use float32"):
        warn_of_emulation("precision", CPU)
    warn_of_emulation("precision", torch.device("cuda"))
    say(monkeypatch, {"architecture": "x86_64", "avx512_bf16": True})
    warn_of_emulation("precision", CPU)
