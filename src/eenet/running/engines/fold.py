"""Folding batch norms into the convolutions before them."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights
from torch.utils import _pytree as pytree

from eenet.models.inputs import State
from eenet.models.whole import Around

_aten = torch.ops.aten
_DECIDING = threading.RLock()  # a folded stage may contain others
_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Return a module that computes the same with its batch norms folded away.

    What has hooks, or a ``forward`` set on the instance, stays as it is, and so does what these are called around. A
    pair is folded only where a trace proves that nothing but the batch norm reads the convolution, and both are
    called once. A module that cannot be traced (control flow on values, no plain tensors) is returned unchanged; of a
    sequence only the members that cannot be traced. A trace of user code may take another path than real inputs do: so
    the folded module is compared with the original on the first batch, and discarded if they differ.

    Args:
        module: In evaluation mode; its weights may be reused, so hand in a copy.
    """
    if isinstance(module, fx.GraphModule):
        return _folded(module, _fold_operators)
    if isinstance(module, nn.Sequential) and any(isinstance(child, fx.GraphModule) for child in module):
        return _each_folded(module)
    if hooked(module) or isinstance(module, Around):
        return _each_folded(module) if type(module) is nn.Sequential or isinstance(module, Around) else module
    if not any(isinstance(child, _Norm) for child in module.modules()):
        return module
    parameters = inspect.signature(module.forward).parameters.items()
    defaults = {name: one.default for name, one in parameters if one.default is not one.empty}
    try:
        tracer = _Tracer()
        graph = tracer.trace(module, defaults)
        traced = fx.GraphModule(tracer.root, graph, type(module).__name__)
    except Exception:  # noqa: BLE001 - whatever somebody's module raises: what cannot be traced runs unfolded
        return _each_folded(module) if type(module) is nn.Sequential else module
    folded = _folded(traced, _fold_modules)
    return folded if all(map(_is_torchs, module.modules())) else Folded(folded, module)


class _Tracer(fx.Tracer):
    """Calls modules with hooks as a whole, at each run."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return hooked(m) or super().is_leaf_module(m, module_qualified_name)


def hooked(module: nn.Module) -> bool:
    """Return whether calling a module does more than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def copied(state: State) -> State:
    """Return a batch or a state with all its tensors copied, for modules that write into what they are given."""
    return state.clone() if isinstance(state, Tensor) else pytree.tree_map_only(Tensor, Tensor.clone, state)


def _each_folded(module: nn.Module) -> nn.Module:
    """Fold the members of a sequence, or what a module is around, one by one; the module itself keeps its hooks."""
    for name, child in list(module._modules.items()):
        assert child is not None
        module._modules[name] = fold_batch_norms(child)
    return module


def _is_torchs(module: nn.Module) -> bool:
    """Return whether a module is one of PyTorch's own, whose path does not depend on the values of its inputs."""
    return type(module).__module__.startswith("torch.nn.")


class Folded(nn.Module):
    """A folded module, used once a batch has confirmed that it computes what the original does.

    Args:
        folded: From a trace of the module.
        module: The module.
    """

    def __init__(self, folded: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.folded, self.module = folded, module
        self.chosen: nn.Module | None = None

    def forward(self, state: State) -> State:
        """Return what the module returns, up to rounding."""
        if self.chosen is None:
            with _DECIDING:
                if self.chosen is None:
                    self.chosen = self.folded if self._agree(state) else self.module
                    del self.folded, self.module
        return self.chosen(state)

    def _agree(self, state: State) -> bool:
        leaves = pytree.tree_leaves(self.module(copied(state)))
        try:
            others = pytree.tree_leaves(self.folded(copied(state)))
        except Exception:  # noqa: BLE001 - the trace took another path than the state does
            return False
        return len(leaves) == len(others) and all(map(_alike, leaves, others))


def _alike(wanted: object, found: object) -> bool:
    """Return whether two results are the same up to rounding."""
    if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
        return bool(wanted == found)
    if wanted.shape != found.shape or wanted.dtype != found.dtype or not wanted.is_floating_point():
        return wanted.shape == found.shape and torch.equal(wanted, found)
    tolerance = 1e-3 if wanted.dtype in (torch.float32, torch.float64) else 0.1
    return bool((wanted - found).abs().max() <= tolerance * wanted.abs().max() + 1e-6)


def _folded(traced: fx.GraphModule, fold: Callable[[fx.GraphModule], None]) -> fx.GraphModule:
    fold(traced)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _fold_modules(traced: fx.GraphModule) -> None:
    """Fold where a graph of modules runs a batch norm on a convolution that nothing else reads."""
    names = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        if names.count(node.target) != 1 or names.count(source.target) != 1:
            continue
        convolution, norm = traced.get_submodule(str(source.target)), traced.get_submodule(str(node.target))
        if not isinstance(convolution, _Convolution) or not isinstance(norm, _Norm) or norm.running_mean is None:
            continue
        if "weight" not in convolution._parameters:  # computed from others at every call
            continue
        if hooked(convolution) or hooked(norm):  # they would see other numbers, or nothing
            continue
        fused = fuse_conv_bn_eval(convolution, norm)
        parent, _, leaf = str(source.target).rpartition(".")
        setattr(traced.get_submodule(parent), leaf, fused.to(memory_format=_layout(fused.weight)))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)


def _fold_operators(traced: fx.GraphModule) -> None:
    """Fold where a graph of operators runs a batch norm on a convolution that nothing else reads."""
    for node in list(traced.graph.nodes):
        if node.target is not _aten._native_batch_norm_legit_no_training.default:
            continue
        source = node.args[0]
        results = [user for user in node.users if user.target is operator.getitem]
        if source.target not in _CONVOLUTIONS or len(source.users) != 1 or [user.args[1] for user in results] != [0]:
            continue
        if any(isinstance(part, fx.Node) and part.op != "get_attr" for part in (*node.args[1:5], *source.args[1:3])):
            continue  # computed from others at every call
        weight, bias, mean, variance = (_tensor(traced, part) for part in node.args[1:5])
        kernel, offset = (_tensor(traced, part) for part in (*source.args[1:3], None)[:2])
        assert kernel is not None and mean is not None and variance is not None
        fused = fuse_conv_bn_weights(kernel, offset, mean, variance, node.args[6], weight, bias)
        with traced.graph.inserting_before(source):
            parts = []
            for name, value in zip(("weight", "bias"), fused, strict=True):
                path = f"folded_{source.name}_{name}"
                folded = value.detach().contiguous(memory_format=_layout(value))
                setattr(traced, path, nn.Parameter(folded, requires_grad=False))
                parts.append(traced.graph.get_attr(path))
        source.args = (source.args[0], *parts, *source.args[3:])
        results[0].replace_all_uses_with(source)
        traced.graph.erase_node(results[0])
        traced.graph.erase_node(node)


def _layout(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.dim() == 4 else torch.contiguous_format


def _tensor(traced: fx.GraphModule, node: object) -> Tensor | None:
    """Return the weight that a node stands for."""
    return operator.attrgetter(str(node.target))(traced) if isinstance(node, fx.Node) else None
