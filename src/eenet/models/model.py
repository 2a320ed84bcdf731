"""A model with exits: stages in a row, a head after each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from eenet.errors import InputError, ShapeError
from eenet.models.inputs import Inputs, State, plain
from eenet.tables.checks import number

CUT = "eenet cut"
"""Marks, in the ``meta`` of a graph module, a stage that was cut from a recording of the whole model."""

# names of version 0.1: what `without` and `cascaded` wrapped around the whole model, and the weights of cut stages
_OLD_NAMES = (
    (re.compile(r"^whole\.whole\."), "whole."),
    (re.compile(r"^whole\.stages\."), "stages."),
    (re.compile(r"^stages\.\d+\.(?:.+?\.)??weights\."), "whole.model."),
)


@final
class MultiExitModel(nn.Module):
    """A backbone cut into stages, with a head after every stage.

    Stage ``k`` maps a state to the next state, head ``k`` maps the state after stage ``k`` to logits. The last head is
    the backbone's own classifier (or the identity where the last stage contains it), so that the last exit is the
    original output to the bit. Samples never influence each other, which is what allows samples that leave to be
    dropped between stages: every tensor in a state has the samples in its first axis.

    ``state_dict`` names every tensor once. Weights that occur in several places (the stages of an attached model are
    cut from the original model and share its weights; weights may be tied) are saved under one name, those of the
    original model under its own names after ``whole.model.``, and are shared again after loading, ``assign=True`` too.

    Args:
        stages: the K pieces of the backbone, in order.
        heads: the K heads, the last one being the original output.
        start: maps the inputs to the first state; the inputs themselves are the first state when it is not given.
        whole: maps the inputs to what every head reads, in one go: somebody else's model that runs as its authors
            wrote it, in training too, while the stages serve inference. Default: the stages in a row.
        reads: maps what ``whole`` returns to what every head reads, where that differs.
        begins: stages that begin anew with the inputs, whatever the stages before them did, as those of the later
            members of a cascade: the original model is what begins with the last of them.

    Raises:
        InputError: a batch norm without running statistics.
        ShapeError: fewer than two stages, or another number of heads than of stages.

    Example:
        >>> import torch
        >>> stages = [torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)]
        >>> heads = [torch.nn.Linear(8, 3), torch.nn.Linear(8, 3)]
        >>> model = MultiExitModel(stages, heads)
        >>> [tuple(logits.shape) for logits in model(torch.zeros(5, 4))]
        [(5, 3), (5, 3)]
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        start: nn.Module | None = None,
        whole: nn.Module | None = None,
        reads: Callable[[list[State]], list[State]] | None = None,
        *,
        begins: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if len(stages) < 2:
            raise ShapeError(
                f"stages {len(stages)} are not enough: leaving early needs at least 2. Pass one more stage."
            )
        if len(heads) != len(stages):
            raise ShapeError(
                f"heads {len(heads)} do not fit the stages: there are {len(stages)} stages and each needs one head. "
                "Pass as many heads as stages, the last one being the original output (nn.Identity() if a stage "
                "contains it)."
            )
        self.whole = whole  # first: its names are those that shared weights are known by
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.entry = nn.Identity() if start is None else start
        self.reads, self.begins = reads, tuple(begins)
        _require_running_statistics(self)
        self._parents: tuple[MultiExitModel, ...] = ()  # in a tuple, so that its tensors are not counted as own

    def __repr__(self) -> str:
        """Say how large it is; ``model.stages`` and ``model.heads`` show their modules."""
        numbers = sum(parameter.numel() for parameter in self.parameters())
        return f"MultiExitModel of {self.num_exits} exits and {numbers / 1e6:.4g} M parameters"

    @property
    def with_all_exits(self) -> MultiExitModel:
        """The model that `without` made this one from, itself where it has all its exits."""
        return self._parents[0] if self._parents else self

    @property
    def num_exits(self) -> int:
        """The number of exits K, the original output included."""
        return len(self.stages)

    @property
    def original(self) -> int:
        """The first stage that the original model needs."""
        return self.begins[-1] if self.begins else 0

    def start(self, inputs: Inputs | State) -> State:
        """Return the state that stage 0 expects, made from the model's inputs."""
        return self.entry(plain(inputs))

    def select(self, state: State, rows: Int[Tensor, " kept"] | Bool[Tensor, " sample"]) -> State:
        """Return the state of some samples only: every tensor in it is indexed along its first axis.

        ``rows`` are indices of the samples to keep, or one flag per sample. What is no tensor is passed on as it is.
        """
        return tree_map(lambda leaf: _rows(leaf, rows) if isinstance(leaf, Tensor) else leaf, state)

    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches after one stage as one: every tensor is joined along its first axis.

        The shapes are the same apart from the number of samples; what is no tensor is the same in all.

        Raises:
            ShapeError: It is not.
        """
        try:
            return tree_map(_joined, *states)
        except ValueError as error:  # of trees of different forms
            raise _no_join("collections of different lengths") from error

    def without(self, exits: Sequence[int]) -> MultiExitModel:
        """Return a model that cannot leave at some exits: their stages join the next ones, weights are shared.

        Stages that nothing is left to read from, those of a dropped member of a cascade, are left out.

        Raises:
            InputError: there is no such early exit.
        """
        last = self.num_exits - 1
        exits = [int(number(k, "exits", 0, last - 1, whole=True)) for k in exits]
        kept = [k for k in range(self.num_exits) if k not in exits]
        runs = [range(first, k + 1) for first, k in zip([0, *(k + 1 for k in kept)], kept, strict=False)]
        runs = [range(max((j for j in run if j in self.begins), default=run[0]), run.stop) for run in runs]
        stages = [
            self.stages[run[0]] if len(run) == 1 else nn.Sequential(*(self.stages[j] for j in run)) for run in runs
        ]
        heads = [self.heads[k] for k in kept]
        reads = partial(_picked, self.reads, kept)
        begins = [i for i, run in enumerate(runs) if run[0] in self.begins]
        fewer = MultiExitModel(stages, heads, start=self.entry, whole=self.whole, reads=reads, begins=begins)
        fewer._parents = (self.with_all_exits,)
        return fewer

    def forward(self, *inputs: Inputs | State, **named: Any) -> list[Tensor]:  # noqa: ANN401 - tensors
        """Return the logits of every exit, each of shape ``[sample, class]``, the original output last.

        The batch is a tensor, a mapping of keyword tensors (a tokeniser's ``BatchEncoding``, say), or these themselves.
        ``model(inputs=x)`` is ``model(x)``, unless exits were attached with a tensor of the name ``inputs``.

        Raises:
            InputError: neither, or both.
        """
        given = [one for one in inputs if one is not None]
        if not given and named.keys() == {"inputs"} and not self._takes_inputs_by_name(named["inputs"]):
            given, named = [named["inputs"]], {}
        if len(given) + bool(named) != 1:
            both = f"and keyword tensors {sorted(named)} were both given" if named else f"{len(given)} were given"
            found = both if given else "are missing"
            raise InputError(f"inputs {found}: a batch is one or the other. Pass model(inputs) or model(**inputs).")
        state = plain(named or given[0])
        if self.whole is not None:
            states = self.whole(state) if self.reads is None else self.reads(self.whole(state))
            return [head(state) for head, state in zip(self.heads, states, strict=True)]
        outputs: list[Tensor] = []
        state = self.entry(state)
        for stage, head in zip(self.stages, self.heads, strict=True):
            state = stage(state)
            output = head(state)
            outputs.append(output if head is self.heads[-1] else _apart(output, state))
        return outputs

    def _takes_inputs_by_name(self, value: object) -> bool:
        """Return whether exits were attached with a tensor called ``inputs``, and this is one."""
        return isinstance(value, Tensor) and "inputs" in getattr(self.entry, "sizes", ())

    # --- shared tensors: moved together, saved once, shared again after loading --------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultiExitModel:
        """Move or convert all tensors; those that occur in several places stay shared."""
        owners: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for module in self.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        owners.setdefault(id(tensor), []).append((tensors, name))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for (first, own), *others in owners.values():
            for tensors, name in others:
                tensors[name] = first[own]
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ANN401
        """Return the tensors by name, each of them once."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name, saved_as in self._saved_names().items():
            if saved_as != name:
                state.pop(prefix + name, None)
        return state

    def _saved_names(self) -> dict[str, str | None]:
        """Return the name each tensor is saved under, by every name it has; None for constants of cut stages."""
        cut = [
            f"stages.{path}."
            for path, module in self.stages.named_modules()
            if self.whole is not None and isinstance(module, fx.GraphModule) and CUT in module.meta
        ]
        first: dict[object, str] = {}
        found: dict[str, str | None] = {}
        for name, tensor in super().state_dict(keep_vars=True).items():
            if not isinstance(tensor, Tensor):  # extra state of somebody's module
                continue
            key = _identity(tensor)
            if not name.startswith(tuple(cut)):
                first.setdefault(key, name)
            found[name] = first.get(key)
        return found

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,  # noqa: ANN401 - as of nn.Module
    ) -> None:
        """Give a shared tensor's value to all its names, before the modules inside take their own."""
        errors: list[str] = args[-1]
        saved_as, own = self._saved_names(), super().state_dict(keep_vars=True)
        values = _values_by_saved_name(state_dict, prefix, saved_as, errors)
        for name, value in values.items():
            bare = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
            if local_metadata.get("assign_to_params_buffers") and bare and isinstance(own[name], nn.Parameter):
                values[name] = nn.Parameter(value, requires_grad=own[name].requires_grad)
            state_dict[prefix + name] = values[name]
        for alias, source in saved_as.items():
            if alias != source:  # one value for all; the present one where none came, or where its shape is refused
                value = values.get(source or "")
                fits = isinstance(value, Tensor) and value.shape == own[alias].shape
                state_dict[prefix + alias] = value if fits else own[alias]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _values_by_saved_name(
    state_dict: dict[str, Any], prefix: str, saved_as: Mapping[str, str | None], errors: list[str]
) -> dict[str, Any]:
    """Take the values of known tensors out of a state dict; names that are not known are left in it.

    A tensor that occurs under several names with different values is reported in ``errors``.
    """
    values: dict[str, Any] = {}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        known, name = _resolved(key[len(prefix) :], saved_as)
        if not known:
            continue
        value = state_dict.pop(key)
        if name is None:
            continue
        if name in values and not _equal(values[name], value):
            errors.append(
                f"{key} is ambiguous: the tensor {prefix}{name} is in the file under several names and with different "
                "values, but the model has it once. Keep the entry that is right, under that name, and delete the "
                "others."
            )
        values.setdefault(name, value)
    return values


def _resolved(name: str, saved_as: Mapping[str, str | None]) -> tuple[bool, str | None]:
    """Return whether a name is known, older names included, and under which name its tensor is saved."""
    if name in saved_as:
        return True, saved_as[name]
    for pattern, replacement in _OLD_NAMES if any(key.startswith("whole.") for key in saved_as) else ():
        newer = pattern.sub(replacement, name)
        if newer != name:
            known, found = _resolved(newer, saved_as)
            if known:
                return True, found
            if replacement == "whole.model.":
                return True, None  # a constant of a cut stage, which is recorded anew
    return False, None


def _identity(tensor: Tensor) -> object:
    """Return a key that is equal for tensors that are the same numbers in memory."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _equal(a: Any, b: Any) -> bool:  # noqa: ANN401
    """Return whether two values of a state dict are the same, NaN included."""
    if a is b or not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return a is b
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return some rows in the tensor's own memory order."""
    if rows.dtype == torch.int64 and tensor.is_contiguous():  # twice as fast, but always answers in channels first
        return tensor.index_select(0, rows)
    return tensor[rows]


def _joined(leaf: Any, *more: Any) -> Any:  # noqa: ANN401 - a leaf of a state
    if isinstance(leaf, Tensor):
        return torch.cat((leaf, *more))
    if any(other is not leaf and not np.array_equal(leaf, other) for other in more):
        raise _no_join(f"a {type(leaf).__name__}")
    return leaf


def _no_join(what: str) -> ShapeError:
    return ShapeError(
        f"states of several batches hold {what}, which differ: only tensors with the samples first can be joined. Pass "
        "tensors, or regroup=False to predict_all."
    )


def _apart(output: Any, state: State) -> Any:  # noqa: ANN401 - what a head returns
    """Return a head's output, copied where it is a view of the state, into which the next stage may write."""
    if torch.compiler.is_compiling():  # memory is not known yet; what need not be copied is not, once compiled
        return tree_map_only(Tensor, Tensor.clone, output)
    shared = {_memory(leaf) for leaf in tree_leaves(state) if isinstance(leaf, Tensor)}
    return tree_map_only(Tensor, lambda leaf: leaf.clone() if _memory(leaf) in shared else leaf, output)


def _memory(tensor: Tensor) -> object:
    """Return a key of the memory that a tensor lies in; None where that is not known."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # in torch.func and torch.vmap
        return None


def _require_running_statistics(model: nn.Module) -> None:
    """Refuse batch norms that normalise by the batch in evaluation mode too."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InputError(
                f"module {name!r} mixes the samples of a batch: a {type(module).__name__} without running statistics "
                "normalises by the batch in evaluation mode too, so none can be dropped. Use track_running_stats=True, "
                "or a norm of single samples such as GroupNorm."
            )


def _picked(
    reads: Callable[[list[State]], list[State]] | None, kept: Sequence[int], states: list[State]
) -> list[State]:
    """Return what some of the heads read."""
    states = states if reads is None else reads(states)
    return [states[k] for k in kept]
