"""Models with exits: the multi-exit model, attaching exits, and heads."""

from eenet.models.attach import attach
from eenet.models.capacities import Capacities, capacities, exit_sizes
from eenet.models.chained_heads import cascaded
from eenet.models.heads import (
    BranchHeadFactory,
    HeadFactory,
    attention_linear,
    branch_head,
    conv_head,
    grid_linear,
    mixed_linear,
    pooled_linear,
    residual_head,
    token_head,
)
from eenet.models.model import MultiExitModel

__all__ = [
    "attach",
    "Capacities",
    "capacities",
    "exit_sizes",
    "MultiExitModel",
    "cascaded",
    "BranchHeadFactory",
    "HeadFactory",
    "branch_head",
    "attention_linear",
    "conv_head",
    "grid_linear",
    "mixed_linear",
    "pooled_linear",
    "residual_head",
    "token_head",
]
