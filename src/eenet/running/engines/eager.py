"""The engine that is always available: PyTorch without a compiler."""

from __future__ import annotations

import copy
import hashlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import EenetError, InputError, RunError
from eenet.models.inputs import State, evaluating
from eenet.models.model import MultiExitModel
from eenet.models.processor import warn_of_emulation
from eenet.running.engines import plain_model
from eenet.running.engines.base import Engine
from eenet.running.engines.fold import copied, fold_batch_norms, hooked
from eenet.running.engines.packing import packed, unpacked
from eenet.running.inputs import Inputs, rows_of
from eenet.tables.arrays import as_array, axes_of

_SETTLING = threading.RLock()
# what modules raise on inputs that they were not made for
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextmanager
def _watching(model: nn.Module) -> Iterator[None]:
    """Run a model that its owner may train later: evaluation mode, flags restored, no gradients."""
    with evaluating(model), torch.inference_mode():
        yield


@final
class EagerEngine(Engine):
    """Runs a model's own modules.

    With ``optimise`` it works on a copy: batch norms folded into the convolutions before them, channels last
    where there are convolutions, evaluation mode for good. Outputs then agree with the model's up to rounding.
    Without, it runs the very model handed in, to the bit, and later changes of its weights are seen.

    Inputs may be arrays, or tensors on any device: they are moved to the model's device, and floating point numbers
    to its number format; whole numbers stay what they are. Heads return logits, or a pair of features for the policy
    and the answer. What the model's own code raises on inputs is said in one line, with their names or shapes.

    Args:
        model: The multi-exit model; what ``torch.compile`` and ``DataParallel`` wrap around it is taken off.
        optimise: Trade bit equality for speed.
        dtype: The number format to compute in, for an optimised copy; default: the model's own. With ``bfloat16``
            outputs differ in the third digit: fit the policy on a table recorded from this engine.

    Raises:
        InputError: A number format without ``optimise``.
    """

    def __init__(self, model: object, *, optimise: bool = True, dtype: torch.dtype | None = None) -> None:
        model = plain_model(model)
        if dtype is not None and not optimise:
            raise InputError(
                f"dtype {dtype} needs a copy: without optimise, the model itself is run. Pass optimise=True."
            )
        weight = _first_weight(model)
        if dtype not in (None, weight.dtype) and dtype == torch.bfloat16:
            warn_of_emulation("dtype", weight.device)
        self.name, self.device, self.num_exits = "eager", str(weight.device), model.num_exits
        self.original = model.original
        self.dtype = str(dtype or weight.dtype).removeprefix("torch.")
        self.optimised, self._original, self._dtype = optimise, model, dtype
        self._versions = _versions(model)
        self._images = optimise and any(isinstance(module, nn.Conv2d) for module in model.modules())
        self.channels_last = self._images
        self.model = _optimised(model, dtype, channels_last=self.channels_last) if optimise else model
        self._stages, self._heads = list(self.model.stages), list(self.model.heads)
        self._weight = _first_weight(self.model) if optimise else weight  # gives the device and the format of inputs
        self._writing: dict[object, bool] = {}  # by the types of inputs: does the copy write into them?
        if hooked(model):
            warnings.warn(
                "model has hooks or a forward of its own as a whole: stages are run one by one, so these are not "
                "called. Register hooks on its stages, heads or entry.",
                stacklevel=3,
            )

    @cached_property
    def source(self) -> str:
        """Fingerprint of the model; empty where a copy is run and the model's weights were changed in the meantime."""
        if self.optimised and self._versions != _versions(self._original):
            return ""
        return fingerprint(self._original, self._dtype)

    def session(self) -> AbstractContextManager[object]:
        return torch.inference_mode() if self.optimised else _watching(self.model)

    def start(self, inputs: Inputs) -> State:
        return _run(lambda batch: self.model.start(self.placed(batch)), inputs, "start")

    def placed(self, inputs: Inputs) -> Inputs:
        """Return a batch as tensors on the model's device, floating point numbers in its format.

        What the model writes into is a copy: the numbers of the caller stay as they are.
        """
        placed = self._placed(inputs)
        if not self.optimised:  # copied without a look: the very model is to run once per batch
            return copied(placed)
        writes = self._writing.get(kind := _kind(placed))
        if writes is None:
            writes = self._settled(kind, inputs)
            placed = self._placed(inputs)
        return copied(placed) if writes else placed

    def _settled(self, kind: object, inputs: Inputs) -> bool:
        """Find out on one sample whether the copy writes into its inputs, and whether it bears channels last."""
        with _SETTLING:
            if kind in self._writing:  # another thread was first
                return self._writing[kind]
            sample = rows_of(inputs, slice(0, 1))
            for channels_last in (True, False) if self.channels_last else (False,):
                self._lay_out(channels_last=channels_last)
                try:
                    self._writing[kind] = self._writes_into(self._placed(sample))
                except EenetError:  # a view of another memory order, perhaps; else the run itself will say it
                    continue
                return self._writing[kind]
            self._lay_out(channels_last=self._images)
            return True

    def _lay_out(self, *, channels_last: bool) -> None:
        """Bring the weights of the copy into a memory order, and all inputs from now on."""
        if channels_last != self.channels_last:
            with torch.inference_mode(False), torch.no_grad():
                self.model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
            self.channels_last = channels_last

    def _writes_into(self, sample: Inputs) -> bool:
        """Run all stages and heads on a copy of a sample; return whether they change it."""
        with torch.inference_mode(False):  # else changes are not counted
            given = copied(sample)
        leaves = [(one, one._version) for one in pytree.tree_leaves(given) if isinstance(one, Tensor)]
        state = _run(self.model.start, given, "start")
        for k in range(self.num_exits):
            state = self.stage(k, state)
            self.head(k, state)
        values = (one for one in pytree.tree_leaves(sample) if isinstance(one, Tensor))
        return any(
            one._version != version or not torch.equal(one, value)
            for (one, version), value in zip(leaves, values, strict=True)
        )

    def _placed(self, inputs: Inputs) -> Inputs:
        if isinstance(inputs, Tensor):  # the usual case first: this runs once per batch
            weight = self._weight
            if inputs.device != weight.device or (inputs.dtype != weight.dtype and inputs.is_floating_point()):
                dtype = weight.dtype if inputs.is_floating_point() else inputs.dtype
                inputs = inputs.to(weight.device, dtype, non_blocking=True)
            if self._images and inputs.dim() == 4:
                inputs = inputs.contiguous(
                    memory_format=torch.channels_last if self.channels_last else torch.contiguous_format
                )
            return inputs
        if isinstance(inputs, Mapping):
            return {name: self._placed(value) for name, value in inputs.items()}
        if isinstance(inputs, tuple):
            return tuple(self._placed(value) for value in inputs)
        if axes_of(inputs):  # texts stay what they are
            array = as_array(inputs)
            if array.dtype.kind in "fiub":
                array = array.copy() if min(array.strides, default=0) < 0 else array  # torch knows no reversed views
                return self._placed(torch.from_numpy(np.require(array, requirements=["W", "A"])))
        return inputs

    def stage(self, index: int, state: State) -> State:
        return _run(self._stages[index], state, "stage", index)

    def head(self, index: int, state: State) -> tuple[Any, Any]:
        return read(_run(self._heads[index], state, "head", index))

    def select(self, state: State, rows: Int[np.ndarray, " kept"]) -> State:
        kept = torch.from_numpy(rows).to(self._weight.device)
        if not self.channels_last:
            return self.model.select(state, kept)
        if isinstance(state, Tensor):  # the usual case first: walking a tree takes time
            return _kept(state, kept)
        return pytree.tree_map_only(Tensor, lambda leaf: _kept(leaf, kept), state)

    def misfit(self, state: State, count: int) -> tuple[int, ...] | None:
        leaves = [state] if isinstance(state, Tensor) else pytree.tree_leaves(state)
        shapes = (tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))
        return next((shape for shape in shapes if shape[:1] != (count,)), None)

    def constants(self, state: State) -> Mapping[str, object]:
        if isinstance(state, Tensor):
            return {"": None}
        leaves, _ = pytree.tree_flatten_with_path(state)
        return {pytree.keystr(path): None if isinstance(leaf, Tensor) else leaf for path, leaf in leaves}

    def join(self, states: Sequence[State]) -> State:
        return self.model.join(states)

    def pack(self, state: State) -> tuple[list[np.ndarray], Any]:
        return packed(state)

    def unpack(self, arrays: Sequence[np.ndarray], form: Any, index: int) -> State:  # noqa: ANN401 - of JSON
        return unpacked(arrays, form, self._weight.device)

    def as_model(self) -> MultiExitModel:
        if self._dtype not in (None, _first_weight(self._original).dtype):
            raise InputError(
                f"engine computes in {self.dtype}, and its model in another format: their outputs differ. Use an "
                "engine without dtype."
            )
        return self._original

    def synchronise(self) -> None:
        device = self._weight.device
        if device.type != "cpu":
            getattr(torch, device.type).synchronize(device)


def fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Return what identifies a set of weights: the SHA-256 of the state dict and the number format.

    Args:
        model: As it is now; of one without some of its exits, the model that has all.
        dtype: The format it is run in; default: its own.
    """
    model = model.with_all_exits if isinstance(model, MultiExitModel) else model
    digest = hashlib.sha256(str(dtype or _first_weight(model).dtype).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _versions(model: nn.Module) -> list[int]:
    """Return how often every weight was changed, as far as PyTorch counts."""
    weights = [one for one in model.state_dict().values() if isinstance(one, Tensor)]
    return [0 if one.is_inference() else one._version for one in weights]


def read(output: Any) -> tuple[Any, Any]:  # noqa: ANN401 - logits, or a pair of features and an answer
    """Return a head's output as engines do: what the policy reads on the CPU, maps and answers where they are.

    Raises:
        InputError: It is neither a tensor nor a pair that begins with one.
    """
    is_pair = isinstance(output, tuple) and len(output) == 2
    features, answer = output if is_pair else (output, None)
    if not isinstance(features, Tensor):
        raise InputError(
            f"output of a head of type {type(output).__name__} does not fit: exits return logits as a tensor, or a "
            "pair of features and an answer. Let the head return its tensor of logits."
        )
    is_map = features.dim() == 4 and not is_pair
    return (features if is_map else features.float().numpy(force=True)), answer


def _first_weight(model: nn.Module) -> Tensor:
    """Return the first floating point parameter, as an example of all; an empty tensor if there is none."""
    return next((one for one in model.parameters() if one.is_floating_point()), torch.empty(0))


def _run(part: Callable[[Any], Any], given: Inputs | State, kind: str, index: int | None = None) -> Any:  # noqa: ANN401
    """Run a part of a model; what its own code raises is said in one line."""
    try:
        return part(given)
    except EenetError:
        raise
    except _FAILURES as error:
        name = kind if index is None else f"{kind} {index}"
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in reason:
            raise RunError(f"{name} has not enough memory ({reason}). Pass smaller batches.") from error
        raise InputError(
            f"inputs {_described(given)} do not fit: the model's {name} cannot be run on them ({reason}). Pass samples "
            "of the names, shapes and types that the model was made for, batch first."
        ) from error


def _described(value: Inputs | State) -> str:
    """Return the names, or the shapes and types, of a batch or a state."""
    if isinstance(value, Mapping):
        return f"named {', '.join(map(str, value))}"
    arrays = [one for one in pytree.tree_leaves(value) if hasattr(one, "shape")]
    shapes = (f"{tuple(one.shape[1:])} {str(one.dtype).removeprefix('torch.')}" for one in arrays)
    return f"of shape {', '.join(shapes)} per sample" if arrays else f"of type {type(value).__name__}"


def _optimised(model: MultiExitModel, dtype: torch.dtype | None, *, channels_last: bool) -> MultiExitModel:
    """Return a frozen, faster copy of a model."""
    with torch.no_grad():
        # a copy of the parts: what runs all of them in one call is not needed
        stages = MultiExitModel(list(model.stages), list(model.heads), start=model.entry)
        frozen = copy.deepcopy(stages, _foreign_hooks(stages)).eval().requires_grad_(False)
        if channels_last:
            frozen = frozen.to(memory_format=torch.channels_last)
        frozen.entry = fold_batch_norms(frozen.entry)
        frozen.stages = nn.ModuleList(fold_batch_norms(stage) for stage in frozen.stages)
        frozen.heads = nn.ModuleList(fold_batch_norms(head) for head in frozen.heads)
    return frozen if dtype is None else frozen.to(dtype)


def _foreign_hooks(model: nn.Module) -> dict[int, Any]:
    """Return the hooks that are no methods of the model's own modules: copies of them would report to nobody."""
    own = set(map(id, model.modules()))
    found = [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]
    return {id(hook): hook for hook in found if id(getattr(hook, "__self__", None)) not in own}


def _kind(placed: Inputs) -> object:
    """Return the types of the tensors in a batch: others may be converted, and so copied, by the model itself."""
    if isinstance(placed, Tensor):
        return placed.dtype
    values = placed.values() if isinstance(placed, Mapping) else placed if isinstance(placed, tuple) else ()
    return tuple(getattr(value, "dtype", None) for value in values)


def _kept(tensor: Tensor, rows: Int[Tensor, " kept"]) -> Tensor:
    """Return some rows of a tensor; those of images stay channels last."""
    if tensor.dim() == 4:
        # index_select returns channels first: indexing the dense view is three times as fast as converting back
        return tensor.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
    return tensor[rows]
