"""The check that samples do not influence each other, operator by operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from eenet.errors import AttachError
from eenet.models.inputs import Inputs, batch_size
from eenet.models.splitting import batch_axis, varying
from eenet.models.tracing import Recording, module_of

__all__ = ["check_samples_apart", "random_like"]

_TOLERANCE = 1e-4  # of the largest number in a value


def check_samples_apart(recording: Recording, example_inputs: Inputs, seed: int) -> None:
    """Refuse a model in which what becomes of a sample depends on the others.

    The recording is run on random inputs and on some of their rows; every value must come out the same.

    Args:
        recording: Of the model.
        example_inputs: What the inputs look like.
        seed: Of the random inputs.

    Raises:
        AttachError: A value differs; the message names the module that made it.
    """
    inputs = random_like(example_inputs, seed)
    count, whole, depend = batch_size(inputs), _run(recording, inputs), varying(recording)
    for rows in (torch.arange(1, count, 2), torch.tensor([0])):  # every other sample, and one alone
        part = _run(recording, pytree.tree_map_only(Tensor, lambda leaf, rows=rows: leaf[rows.to(leaf.device)], inputs))
        for node in recording.nodes:  # in order: the first that differs is the culprit
            if not (node in depend and isinstance(node.meta["val"], Tensor)):
                continue
            if not _alike(part[node], whole[node], batch_axis(node, recording.batch), rows):
                raise AttachError(
                    f"model cannot be cut: in module {module_of(node)!r} samples of a batch influence each other "
                    f"({node.target}), so none can be dropped. Early exit would change its answers."
                )


def random_like(inputs: Inputs, seed: int) -> Inputs:
    """Return inputs of the same shapes whose samples differ; masks stay what they are."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(leaf: Tensor) -> Tensor:
        if leaf.is_floating_point():
            scale = leaf.float().std().item() or 1.0
            noise = torch.randn(leaf.shape, generator=generator) * scale + leaf.float().mean().cpu()
            return noise.to(leaf)
        low, high = int(leaf.min()), int(leaf.max())
        if leaf.dtype is torch.bool or high <= 1:
            return leaf
        return torch.randint(low, high + 1, leaf.shape, generator=generator).to(leaf)

    drawn_inputs: Inputs = pytree.tree_map_only(Tensor, drawn, inputs)
    return drawn_inputs


@torch.no_grad()
def _run(recording: Recording, inputs: Inputs) -> dict[fx.Node, Any]:
    """Return every value of a run."""
    values: dict[fx.Node, Any] = dict(recording.weights)
    for name, node in recording.inputs.items():
        values[node] = inputs[name] if isinstance(inputs, dict) else inputs
    for node in recording.nodes:
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = node.target(*arguments, **keywords)  # type: ignore[operator]
    return values


def _alike(part: Tensor, whole: Tensor, where: tuple[int, int] | None, rows: Tensor) -> bool:
    """Tell whether a value of some rows is that part of the value of all rows."""
    if where is None:
        return _close(part, whole)
    axis, each = where
    count, rows = whole.shape[axis] // each, rows.to(whole.device)
    for before in (
        size for size in range(1, each + 1) if each % size == 0
    ):  # samples may lie anywhere in a merged axis
        places = whole.unflatten(axis, (before, count, each // before)).index_select(axis + 1, rows)  # type: ignore[no-untyped-call]
        if _close(part, places.flatten(axis, axis + 2)):
            return True
    return False


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    scale = float(b.float().abs().nan_to_num(posinf=0, neginf=0).max()) if b.numel() else 0.0
    return torch.allclose(a.float(), b.float(), rtol=1e-3, atol=_TOLERANCE * max(scale, 1e-3), equal_nan=True)
