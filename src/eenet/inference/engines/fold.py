"""Folding batch norms into the convolutions before them."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fold_batch_norms"]

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Return a module that computes the same with its batch norms folded away.

    A pair is folded only where a trace shows that the batch norm reads the convolution and nobody else does, and
    both are called once. A module that cannot be traced (control flow on values, no plain tensors) comes back as
    it is, only slower; of a sequence only the members that cannot.

    Args:
        module: In evaluation mode; its weights may be reused, so hand in a copy.
    """
    if not any(isinstance(child, _Norm) for child in module.modules()):
        return module
    try:
        traced = fx.symbolic_trace(module)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, KeyError):
        # tracing is an optimisation; what it cannot follow runs unfolded
        return nn.Sequential(*map(fold_batch_norms, module)) if type(module) is nn.Sequential else module
    names = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and names.count(node.target) == 1:
            _fold(traced, node, names)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _fold(traced: fx.GraphModule, node: fx.Node, names: list[object]) -> None:
    """Fold one batch norm into the convolution it reads, if it reads one that is its alone."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return
    if names.count(source.target) != 1:
        return
    convolution, norm = traced.get_submodule(str(source.target)), traced.get_submodule(str(node.target))
    if not isinstance(convolution, _Convolution) or not isinstance(norm, _Norm) or norm.running_mean is None:
        return
    layout = torch.channels_last if isinstance(convolution, nn.Conv2d) else torch.contiguous_format
    fused = fuse_conv_bn_eval(convolution, norm)
    parent, _, leaf = str(source.target).rpartition(".")
    setattr(traced.get_submodule(parent), leaf, fused.to(memory_format=layout))
    node.replace_all_uses_with(source)
    traced.graph.erase_node(node)
