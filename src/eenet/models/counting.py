"""Counting floating point operations, and noticing what cannot be counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from eenet.models.inputs import Inputs, evaluating
from eenet.models.model import MultiExitModel
from eenet.tables.arrays import batch_size

_aten = torch.ops.aten

# some operations per element, or none: zero by the usual convention, as element-wise operations are
_NAMES = """
    _adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d _local_scalar_dense _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _safe_softmax _softmax _to_copy _unsafe_view
    adaptive_max_pool2d amax amin arange argmax argmin as_strided_ avg_pool1d avg_pool2d avg_pool3d cat clone
    constant_pad_nd copy_ cumsum
    embedding empty empty_like empty_strided fill_ flip full full_like gather index index_select is_same_size
    lift_fresh logsumexp masked_fill max max_pool2d_with_indices mean min native_batch_norm native_dropout
    native_group_norm native_layer_norm new_empty new_full new_ones new_zeros nonzero ones ones_like pad
    pixel_shuffle reflection_pad2d repeat replication_pad2d resize_ roll scalar_tensor scatter select_scatter
    set_ slice_scatter sort stack std sum topk tril triu upsample_bilinear2d upsample_nearest2d var var_mean
    zeros zeros_like
"""
_NEGLIGIBLE = frozenset(_NAMES.split())


def operations(
    model: MultiExitModel, inputs: Inputs
) -> tuple[float, tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Return the operations per sample of the start, of every stage and of every head, and what was not counted.

    The model runs once, in evaluation mode, on a batch of any size; its flags are restored.
    """
    count = batch_size(inputs)
    uncounted: set[str] = set()
    stages: list[float] = []
    heads: list[float] = []
    with evaluating(model), torch.no_grad(), plain_attention():
        state, start = _counted(model.start, inputs, uncounted)
        for stage, head in zip(model.stages, model.heads, strict=True):
            state, flops = _counted(stage, state, uncounted)
            stages.append(flops / count)
            heads.append(_counted(head, state, uncounted)[1] / count)
    return start / count, tuple(stages), tuple(heads), tuple(sorted(uncounted))


def _counted(
    function: Callable[[Any], Any],
    value: Any,  # noqa: ANN401
    uncounted: set[str],
) -> tuple[Any, int]:
    """Run a function; return what it returned and its operations, and note what cannot be counted."""
    counting = counter()
    with _Watch(uncounted), counting:  # the watch is outermost: it sees operators as the counter leaves them
        result = function(value)
    return result, counting.get_total_flops()


def counter() -> FlopCounterMode:
    """Return a context that counts; one multiply-accumulate is two operations."""
    return FlopCounterMode(display=False, custom_mapping=_FORMULAS)


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401
    """Return the operations of attention from the shapes of query, key and value: two matrix products."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# without this, attention on a CPU counts as nothing at all
_FORMULAS = {_aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that does real work and has no formula."""

    def __init__(self, uncounted: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._uncounted = uncounted

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        packet = func.overloadpacket
        name = str(packet).rpartition(".")[2]
        free = func.is_view or torch.Tag.pointwise in func.tags or name in _NEGLIGIBLE
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) and result else result
        if not free and packet not in flop_registry and packet not in _FORMULAS and isinstance(first, Tensor):
            self._uncounted.add(str(packet))
        return result


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep transformer layers from running as one opaque operator that no formula knows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
