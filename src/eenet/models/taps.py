"""Where a model can be tapped: its blocks, what they cost, and reading their outputs while it runs."""

from __future__ import annotations

import difflib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import AttachError
from eenet.models.counting import counter, plain_attention
from eenet.models.form import Axes, Limits, SameForm, by_name, resized
from eenet.models.inputs import Inputs, evaluating
from eenet.tables.arrays import batch_size

_RUNNING = threading.RLock()
Run: TypeAlias = Callable[[nn.Module, Inputs], Tensor]
"""From a model and a batch to its logits."""
_LARGEST_TABLE = 2048  # entries of a table that may be one of positions
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """A module whose output can be tapped.

    Attributes:
        name: Its path in the model.
        shape: Of its output, batch first.
        flops: Operations of the whole model until it returns, for the batch it was measured on.
    """

    name: str
    shape: tuple[int, ...]
    flops: int


def call(model: nn.Module, inputs: Inputs, answer: str | int | None = None) -> Tensor:
    """Return a model's logits for a batch: its output, ``logits`` by name, or the first of tensors of one shape.

    ``answer`` is the name or place of the logits in the output, where that is given.

    Raises:
        AttachError: There is no tensor, or which of several is meant is not clear.
    """
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    if answer is not None:
        return _part(output, answer)
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    found = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if found and all(leaf.shape == found[0].shape for leaf in found):
        return found[0]
    kinds = f"tensors of shapes {[tuple(leaf.shape) for leaf in found]}" if found else "no tensor"
    raise AttachError(
        f"model returns {type(output).__name__} with {kinds}: an exit answers with logits, and which these are is not "
        "clear. Pass answer=, their name or place, or wrap the model in a module that returns them."
    )


def _part(output: Any, answer: str | int) -> Tensor:  # noqa: ANN401
    try:
        found = output[answer]
    except (LookupError, TypeError):
        found = None
    if isinstance(output, Tensor) or not isinstance(found, Tensor):
        raise AttachError(
            f"answer {answer!r} is no tensor in the {type(output).__name__} that the model returns. Pass the name or "
            "the place of the logits in it."
        )
    return found


@contextmanager
def tapping(model: nn.Module, names: Sequence[str], seen: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Pass the output of some modules to a function, which may replace it; hooks are removed afterwards.

    ``seen`` is called with the number of the tap and the first tensor of its output.
    """

    def pass_on(index: int, module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ANN401
        leaves, spec = pytree.tree_flatten(output)
        place = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)), None)
        if place is None:
            return output
        leaves[place] = seen(index, leaves[place])
        return pytree.tree_unflatten(leaves, spec)

    with ExitStack() as hooks:
        for i, name in enumerate(names):
            hooks.enter_context(model.get_submodule(name).register_forward_hook(partial(pass_on, i)))
        yield


class Whole(nn.Module):
    """A model from elsewhere, unchanged; returns the outputs of its taps, and its answer last.

    Args:
        model: The model; its weights are shared.
        names: Modules to tap.
        run: Returns the model's logits for a batch.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], run: Run) -> None:
        super().__init__()
        self.model, self.names, self.run = model, tuple(names), run

    def forward(self, inputs: Inputs) -> list[Tensor]:
        taps: dict[int, Tensor] = {}

        def keep(index: int, output: Tensor) -> Tensor:
            taps[index] = output.clone()  # the model may go on to change it in place, as ``ReLU(inplace=True)`` does
            return output

        with _RUNNING, tapping(self.model, self.names, keep):  # hooks see the calls of all threads
            answer = self.run(self.model, inputs)
        return [*(taps[i] for i in range(len(self.names))), answer]


def limits_by_tables(whole: Whole, example: Inputs, axes: Axes, name: str, known: Limits) -> Limits:
    """Return the limits of a free size, where a table of positions ends found by trying.

    OpenVINO reads something else beyond the end of a table, without an error; a GPU ends the whole process.
    """
    device = next(iter(by_name(example).values())).device
    size, tables = SameForm(example, axes).example[name], [m for m in whole.modules() if isinstance(m, nn.Embedding)]
    if known[1] is not None or device.type != "cpu":
        return known

    def runs(at: int) -> bool:
        lengths = SameForm(example, axes).example | {name: at}
        try:
            whole(resized(pytree.tree_map(lambda leaf: leaf[:1], example), axes, lengths))
        except (RuntimeError, LookupError, ValueError):
            return False
        return True

    with evaluating(whole), torch.no_grad():
        for end in sorted({table.num_embeddings for table in tables if size <= table.num_embeddings <= _LARGEST_TABLE}):
            if not runs(end + 1):  # what pads begins the table, in some models
                return known[0], next((at for at in range(end, max(size, end - 4), -1) if runs(at)), size)
    return known


def blocks_of(model: nn.Module, example_inputs: Inputs, num_exits: int, run: Run) -> tuple[list[Block], int, list[str]]:
    """Return the blocks a model runs one after the other, in that order, and the operations of the whole model.

    Last in the result: why expensive modules are no blocks, in words.

    Blocks are the members of sequences and lists of modules; a module that contains a list and costs more than a stage
    should, with ``num_exits`` exits, is searched for blocks itself. The model runs once, in evaluation mode.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {}
    ends: dict[str, int] = {}
    begins: dict[str, int] = {}
    # with gradients: the counter hangs hooks on parameters that are handed from module to module
    with ExitStack() as hooks, evaluating(model), torch.enable_grad(), plain_attention(), counter() as counting:

        def before(name: str, *_: Any) -> None:  # noqa: ANN401
            begins.setdefault(name, counting.get_total_flops())

        def after(name: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
            first = next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)
            shapes.setdefault(name, []).append(() if first is None else tuple(first.shape))
            ends[name] = counting.get_total_flops()

        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_pre_hook(partial(before, name)))
                hooks.enter_context(module.register_forward_hook(partial(after, name)))
        run(model, example_inputs)
        total = counting.get_total_flops()
    count = batch_size(example_inputs)
    usable = {name: seen[0] for name, seen in shapes.items() if len(seen) == 1 and seen[0][:1] == (count,)}

    def large(name: str) -> bool:
        return bool(ends.get(name, 0) - begins.get(name, 0) > total / num_exits)

    names = [name for name in _members(model, "", large) if name in usable and len(usable[name]) > 1]
    if len(names) < num_exits - 1:  # no blocks: then any module
        names = [name for name in usable if len(usable[name]) > 1]
    order = {name: place for place, name in enumerate(shapes)}  # as they returned
    blocks = [Block(name, usable[name], ends[name]) for name in sorted(names, key=order.__getitem__)]
    reasons: dict[str, str] = {}
    for name, seen in sorted(shapes.items()):  # a module before its parts
        expensive = ends[name] - begins[name] > total / (2 * num_exits)
        if expensive and name not in usable and not name.startswith(tuple(f"{outer}." for outer in reasons)):
            reasons[name] = _unusable(name, seen, count)
    return blocks, total, list(reasons.values())


def _unusable(name: str, shapes: Sequence[tuple[int, ...]], count: int) -> str:
    """Return why a module is no block, from the shapes it returned."""
    if len(shapes) > 1:
        return f"module {name!r} runs {len(shapes)} times"
    return f"module {name!r} returns the shape {shapes[0]} for {count} samples, not batch first"


def _members(module: nn.Module, path: str, large: Callable[[str], bool]) -> Iterator[str]:
    """Yield the names of the blocks below a module."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if next(child.children(), None) is None:
            continue
        inside = _blocks_in(child)
        lists = any(isinstance(part, _CONTAINERS) and sum(_blocks_in(part)) >= 2 for part in child.modules())
        if (isinstance(child, _CONTAINERS) and (all(inside) or sum(inside) >= 2)) or (large(inner) and lists):
            yield from list(_members(child, inner, large)) or [inner]
        else:
            yield inner


def _blocks_in(module: nn.Module) -> list[bool]:
    """Return for each child of a container whether it contains modules itself."""
    return [next(child.children(), None) is not None for child in module.children()]


def chosen_blocks(model: nn.Module, example_inputs: Inputs, num_exits: int, run: Run) -> list[str]:
    """Return the names of blocks after which early exits split a model into stages of about equal cost.

    Raises:
        AttachError: The model has too few blocks, or none at such costs.
    """
    blocks, total, unusable = blocks_of(model, example_inputs, num_exits, run)
    early = num_exits - 1
    if len(blocks) > early and blocks[-1].flops >= 0.98 * total:
        blocks = blocks[:-1]  # an exit after the last block would be the original output
    if len(blocks) < early:
        raise AttachError(
            f"exits {num_exits} are too many for this model: it runs {len(blocks)} blocks one after the other, "
            f"{[block.name for block in blocks]}. Ask for fewer exits, or name the modules to tap."
        )
    picked: list[int] = []
    for exit_index in range(early):
        aim = total * (exit_index + 1) / num_exits
        free = range(picked[-1] + 1 if picked else 0, len(blocks) - (early - exit_index) + 1)
        picked.append(min(free, key=lambda i: abs(blocks[i].flops - aim)))
    _check_spacing([blocks[i] for i in picked], total, unusable)
    return [blocks[i].name for i in picked]


def _check_spacing(exits: Sequence[Block], total: int, unusable: Sequence[str]) -> None:
    """Refuse exits where a stage costs next to nothing, and warn of those far from equal costs."""
    ends = [0, *(block.flops for block in exits), total]
    smallest = min(after - before for before, after in pairwise(ends)) * (len(exits) + 1) / max(1, total)
    if smallest >= 1 / 3:  # of an equal share
        return
    text = (
        f"exits after {', '.join(block.name for block in exits)} come at "
        f"{', '.join(f'{block.flops / max(1, total):.0%}' for block in exits)} of the cost: no blocks split this model "
        f"into {len(exits) + 1} stages of about equal cost"
        + (f" ({'; '.join(unusable[:3])})" if unusable else "")
        + ". Ask for fewer exits, or name the modules to tap."
    )
    if smallest < 0.1:
        raise AttachError(text)
    warnings.warn(text, stacklevel=4)


def require_modules(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names, all of them of modules.

    Raises:
        AttachError: A module is unknown, or named twice.
    """
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 5, 0.5) or known[:5]
            raise AttachError(
                f"exits name the module {name!r}, which is not there: near it are {', '.join(near)}. Name modules as "
                "model.named_modules() does."
            )
    if len(set(names)) != len(names) or not names:
        raise AttachError(f"exits {list(names)} name no module or one twice. Name every module to tap once.")
    return list(names)
