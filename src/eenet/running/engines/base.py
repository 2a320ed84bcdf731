"""What an engine is: a model cut into stages, run by a loop outside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int

from eenet.errors import InputError, ShapeError
from eenet.running.inputs import rows_of

if TYPE_CHECKING:
    from eenet.models.model import MultiExitModel

_ROUNDING = 1e-2  # of the largest number: other batch sizes are rounded in other ways

State: TypeAlias = Any
"""What travels between stages, in a form of the engine's own; batch first."""

ExitOutput: TypeAlias = tuple[Float32[np.ndarray, "sample column"], Any]
"""What an exit returns: what the policy reads, and the answer of the samples that leave there.

Heads of classes return their logits, and None: the policy answers. Others return features (the summary of a map, a
regressor's hidden features) and an answer, batch first, whose rows are taken with ``answer[rows]`` when samples leave.
Heads of maps may return ``[sample, class, height, width]``, as an array or tensor, and None: `DenseEngine` makes of
them what a policy reads.
"""


class Engine(ABC):
    """Runs the stages and heads of a multi-exit model, one call each.

    The loop is outside: it runs a stage, reads that exit, and drops the samples that leave with `select`. All calls
    happen inside `session`.

    Attributes:
        name: As printed and as named in a profile, for example ``eager``.
        dtype: The number format it computes in, for example ``float32``.
        device: Where states are, as PyTorch would write it.
        num_exits: Number of exits, the original output included.
        threads: Of the CPU, where they were fixed when it was made; None: as many as its runtime chooses.
        held: The stages that it has, where the others are on other devices; None: all.
        original: The first stage that the original model needs; it takes the state before stage 0.
    """

    name: str
    dtype: str = "float32"
    device: str = "cpu"
    num_exits: int
    threads: int | None = None
    held: range | None = None
    original: int = 0

    @cached_property
    def source(self) -> str:
        """Fingerprint of the model it was made from, stored in the tables recorded from it; empty: not known."""
        return ""

    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called: no gradients, inference behaviour."""
        return nullcontext()

    @abstractmethod
    def start(self, inputs: Any) -> State:  # noqa: ANN401 - arrays, tensors, mappings of these, lists
        """Turn a batch into the state that stage 0 takes.

        Raises:
            InputError: The model does not take such inputs.
        """

    @abstractmethod
    def stage(self, index: int, state: State) -> State:
        """Run stage ``index``.

        Raises:
            RunError: A runtime outside PyTorch failed.
        """

    @abstractmethod
    def head(self, index: int, state: State) -> ExitOutput:
        """Return the output of exit ``index``, from the state after its stage."""

    @abstractmethod
    def select(self, state: State, rows: Int[np.ndarray, " kept"]) -> State:
        """Keep some rows of everything in the state that carries the batch."""

    def misfit(self, state: State, count: int) -> tuple[int, ...] | None:
        """Return the shape of a tensor in the state whose first axis is not that many samples; None: there is none.

        Called before samples are dropped: `select` would pick rows of something else. Engines whose states are always
        batch first need not look.
        """
        return None

    def inside(self, inputs: Any) -> Iterator[tuple[Engine, Any]] | None:  # noqa: ANN401 - as of `start`
        """Yield the engines from whose states samples are dropped, with their inputs; None: it is this one."""
        return None

    def constants(self, state: State) -> Mapping[str, object]:
        """Return by place what `select` does not cut: what is no tensor, and None for the tensors.

        Engines whose states are always lists of arrays need not look.
        """
        return {}

    @abstractmethod
    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches, all before the same stage, as one, in that order."""

    def pack(self, state: State) -> tuple[list[np.ndarray], Any]:
        """Return a state after a stage as arrays, batch first, and how these form it, in values of JSON.

        Raises:
            InputError: The state contains something that cannot be sent, or the engine cannot send states.
        """
        raise InputError(
            f"state of the engine {self.name} cannot be sent: the engine does not say how it becomes arrays. Use "
            "eager, onnxruntime or openvino."
        )

    def unpack(self, arrays: Sequence[np.ndarray], form: Any, index: int) -> State:  # noqa: ANN401 - of JSON
        """Return the state after stage ``index`` that `pack` returned elsewhere, to the bit.

        Raises:
            InputError: It is not of this engine.
        """
        raise InputError(
            f"state cannot be taken up by the engine {self.name}: the engine does not say how. Use eager, onnxruntime "
            "or openvino."
        )

    def full(self, inputs: Any) -> object:  # noqa: ANN401 - as of `start`
        """Run the original model without exits: every stage it needs, the last head only. Opens its own `session`."""
        with self.session():
            state = self.start(inputs)
            for k in range(self.original, self.num_exits):
                state = self.stage(k, state)
            seen, answer = self.head(self.num_exits - 1, state)
            return seen if answer is None else answer

    def as_model(self) -> MultiExitModel:
        """Return a model of PyTorch that computes the same.

        Raises:
            InputError: None is known.
        """
        raise InputError(
            f"engine {self.name} is no model of PyTorch: it runs what was made elsewhere. Pass the model itself."
        )

    def synchronise(self) -> None:
        """Wait until the device has finished, so that a clock measures all of the work."""
        return


def each_exit(engine: Engine, inputs: Any) -> Iterator[ExitOutput]:  # noqa: ANN401 - as of `Engine.start`
    """Yield the output of every exit for one batch, nobody leaving; to be called inside a `session`."""
    state = engine.start(inputs)
    for k in range(engine.num_exits):
        state = engine.stage(k, state)
        yield engine.head(k, state)


def check_states(engine: Engine, inputs: Any) -> None:  # noqa: ANN401 - as of `Engine.start`
    """Refuse an engine from whose states samples cannot be dropped without a change for those that stay.

    The first sample is run alone, so that as many rows as samples are no coincidence, and beside the second.

    Args:
        engine: Runs its stages.
        inputs: A batch of at least two samples.

    Raises:
        InputError: The first sample is answered otherwise beside the second than alone.
        ShapeError: As of `require_samples_first`, or something that is no tensor differs between the two.
    """
    inner = engine.inside(rows_of(inputs, slice(0, 2)))
    if inner is not None:
        for one, given in inner:
            check_states(one, given)
        return
    with engine.session():
        states = [engine.start(rows_of(inputs, slice(0, count))) for count in (1, 2)]
        for k in engine.held or range(engine.num_exits):
            states = [engine.stage(k, state) for state in states]
            if k < engine.num_exits - 1:
                require_samples_first(engine, states[0], k, 1)
                _require_constants(engine.constants(states[0]), engine.constants(states[1]), k)
            alone, beside = (engine.head(k, state)[0] for state in states)
            if not _answered_alike(alone, beside, engine.dtype):
                _require_random(engine, inputs, k, alone)


def require_samples_first(engine: Engine, state: State, index: int, count: int) -> None:
    """Refuse a state after stage ``index`` that holds anything else than ``count`` samples in the first axis.

    Args:
        engine: Whose state it is.
        state: What travels between stages.
        index: -1: the state is that before stage 0.
        count: Samples in the batch.

    Raises:
        ShapeError: With the stage, and the shape of the tensor.
    """
    shape = engine.misfit(state, count)
    if shape is not None:
        raise ShapeError(
            f"{_state_after(index)} holds a tensor of shape {shape}: samples are dropped and joined along the first "
            f"axis, and the batch holds {count}. Let the stages pass tensors with the samples first, and keep others "
            "in the modules."
        )


def _state_after(index: int) -> str:
    return f"state after stage {index}" if index >= 0 else "state before stage 0"


def _require_constants(alone: Mapping[str, object], beside: Mapping[str, object], index: int) -> None:
    """Refuse what is no tensor and depends on the batch."""
    for place in sorted(alone.keys() | beside.keys()):
        if place not in alone or place not in beside or not _same(alone[place], beside[place]):
            kind = type(alone.get(place, beside.get(place))).__name__
            what = f"a value of type {kind}" if place in alone and place in beside else "a collection of a length"
            raise ShapeError(
                f"{_state_after(index)} holds {what} that depends on the batch, at {place or 'its root'}: only tensors "
                "are cut to the samples that stay. Pass it as a tensor with the samples first, or compute it in the "
                "stage that needs it."
            )


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Return whether two constants are equal."""
    try:
        return one is other or (type(one) is type(other) and np.array_equal(one, other))
    except (TypeError, ValueError, RuntimeError):  # of somebody's own comparison
        return False


def _answered_alike(alone: Any, beside: Any, dtype: str) -> bool:  # noqa: ANN401 - whatever a head returns
    """Return whether the first rows of two outputs are the same up to rounding; other shapes are judged elsewhere."""
    if not all(isinstance(one, np.ndarray) and one.ndim == 2 for one in (alone, beside)):
        return True
    if alone.shape[1] != beside.shape[1] or not (len(alone) and len(beside)):
        return True
    first, second = alone[0], beside[0]
    usable = np.isfinite(first) & np.isfinite(second)
    if not usable.any():
        return True
    first, second = first[usable].astype(np.float64), second[usable].astype(np.float64)
    tolerance = _ROUNDING if dtype in ("float32", "float64") else 10 * _ROUNDING
    return bool(np.abs(first - second).max() <= tolerance * np.abs(first).max() + 1e-5)


def _require_random(engine: Engine, inputs: Any, index: int, alone: np.ndarray) -> None:  # noqa: ANN401
    """Refuse an exit that mixes samples; one that answers the same batch in different ways is merely random."""
    again = next(islice(each_exit(engine, rows_of(inputs, slice(0, 1))), index, None))[0]
    if _answered_alike(alone, again, engine.dtype):
        raise InputError(
            f"model mixes the samples of a batch: exit {index} answers the first one otherwise beside the second than "
            "alone, so samples that leave would change the answers of those that stay. Take out what is computed over "
            "the batch, such as batch norms without running statistics."
        )


class Carried(NamedTuple):
    """A state, and what an engine carries beside it."""

    state: State
    extra: Any = None


class EngineAround(Engine):
    """What engines have in common that run another one and carry something beside its states.

    Args:
        inner: The other one.
    """

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.name, self.dtype, self.device = inner.name, inner.dtype, inner.device
        self.num_exits, self.threads, self.held = inner.num_exits, inner.threads, inner.held
        self.original = inner.original

    @cached_property
    def source(self) -> str:
        return self.inner.source

    def session(self) -> AbstractContextManager[object]:
        return self.inner.session()

    def select(self, state: Carried, rows: Int[np.ndarray, " kept"]) -> Carried:
        return Carried(self.inner.select(state.state, rows), state.extra)

    def misfit(self, state: Carried, count: int) -> tuple[int, ...] | None:
        return self.inner.misfit(state.state, count)

    def constants(self, state: Carried) -> Mapping[str, object]:
        return self.inner.constants(state.state)

    def pack(self, state: Carried) -> tuple[list[np.ndarray], Any]:
        return self.inner.pack(state.state)

    def unpack(self, arrays: Sequence[np.ndarray], form: Any, index: int) -> Carried:  # noqa: ANN401 - of JSON
        return Carried(self.inner.unpack(arrays, form, index))

    def join(self, states: Sequence[Carried]) -> Carried:
        return Carried(self.inner.join([state.state for state in states]), states[0].extra)

    def as_model(self) -> MultiExitModel:
        return self.inner.as_model()

    def synchronise(self) -> None:
        self.inner.synchronise()
