"""Which number formats the processor supports, and which PyTorch has to emulate."""

from __future__ import annotations

import warnings
from typing import Any

import torch


def has_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 numbers itself; True where PyTorch cannot tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch before 2.11 has none
    if capabilities.get("architecture") != "x86_64":
        return True
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def warn_of_emulation(name: str, device: torch.device) -> None:
    """Warn where the argument ``name`` asked for bfloat16 on a device on which it will be slower than float32."""
    if device.type == "cpu" and not has_bfloat16():
        warnings.warn(
            f"{name} bfloat16 is slow here: this processor has no bfloat16 units, and PyTorch emulates them, more than "
            "ten times slower for convolutions. Use float32.",
            stacklevel=3,
        )
