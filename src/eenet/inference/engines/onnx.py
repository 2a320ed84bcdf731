"""The engine of ONNX Runtime: one session per stage, its head fused in."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import MissingExtraError, ShapeError
from eenet.inference.engines.base import Engine
from eenet.models.inputs import Inputs, State, evaluating
from eenet.models.model import MultiExitModel

__all__ = ["OnnxEngine", "stage_programs"]

_MOST = 1 << 20  # samples a graph is asked to allow


@dataclass(frozen=True)
class _Held:
    """What a session returned: the next state, and what the head fused into it says."""

    leaves: list[np.ndarray]
    logits: np.ndarray | None = None


class _Part(nn.Module):
    """Stages in a row and the head behind them, from the leaves of a state to logits and the leaves of the next."""

    def __init__(self, stages: Sequence[nn.Module], head: nn.Module, spec: pytree.TreeSpec, *, last: bool) -> None:
        super().__init__()
        self.stages, self.head = nn.ModuleList(stages), head
        self.spec, self.last = spec, last

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        state = pytree.tree_unflatten(list(leaves), self.spec)
        for stage in self.stages:
            state = stage(state)
        logits = self.head(state)
        return (logits,) if self.last else (logits, *pytree.tree_leaves(state))


@final
class OnnxEngine(Engine):
    """Runs a model in ONNX Runtime on the CPU, with as many threads as torch uses.

    Args:
        model: The multi-exit model; it is exported as it is now, in evaluation mode, its flags restored.
        example_inputs: What its inputs look like, at least 2 samples.

    Raises:
        MissingExtraError: ONNX, its exporter or its runtime is not installed.
        ShapeError: Fewer than 2 samples.
    """

    def __init__(self, model: MultiExitModel, example_inputs: Inputs) -> None:
        self.name, self.dtype = "onnxruntime", "float32"
        self.device = torch.device("cpu")
        self.num_exits = model.num_exits
        self._keys = list(example_inputs) if isinstance(example_inputs, dict) else None
        self._parts = [_session(program) for program in stage_programs(model, example_inputs)]
        self._whole = _session(
            _program(model, list(model.stages), model.heads[-1], example_inputs, start=True, last=True)
        )

    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called."""
        return torch.inference_mode()

    def start(self, inputs: Inputs) -> State:
        """Turn a batch into the state that stage 0 takes."""
        return _Held([leaf.numpy() for leaf in self._leaves(inputs)])

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` and the head behind it."""
        logits, *leaves = _run(self._parts[index], state.leaves)
        return _Held(leaves, logits)

    def head(self, index: int, state: State) -> Float[Tensor, "sample class"]:
        """Return the logits of exit ``index``, worked out with its stage."""
        return torch.from_numpy(state.logits)

    def select(self, state: State, rows: Int[Tensor, " kept"]) -> State:
        """Keep some rows of everything in the state."""
        kept = rows.numpy()
        return _Held([leaf.take(kept, axis=0) for leaf in state.leaves])

    def full(self, inputs: Inputs) -> Float[Tensor, "sample class"]:
        """Run the original model without exits, in one session."""
        return torch.from_numpy(_run(self._whole, [leaf.numpy() for leaf in self._leaves(inputs)])[0])

    def _leaves(self, inputs: Inputs) -> list[Tensor]:
        if self._keys is None or isinstance(inputs, Tensor):
            return pytree.tree_leaves(inputs)
        return [inputs[key] for key in self._keys]


def stage_programs(model: MultiExitModel, example_inputs: Inputs) -> list[bytes]:
    """Return a model as ONNX, one file per stage with its head, for any number of samples.

    Inputs are called ``state_0``, ``state_1``, ...; the first stage takes the model's inputs in their order. Outputs
    are ``logits`` and, but for the last stage, ``next_0``, ``next_1``, ...

    Args:
        model: The multi-exit model; its flags are restored.
        example_inputs: What its inputs look like, at least 2 samples.

    Raises:
        MissingExtraError: ONNX or its exporter is not installed.
        ShapeError: Fewer than 2 samples.
    """
    programs, state = [], example_inputs
    for k, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
        last = k == model.num_exits - 1
        programs.append(_program(model, [stage], head, state, start=k == 0, last=last))
        with evaluating(model), torch.no_grad():
            state = stage(model.start(state) if k == 0 else state)
    return programs


def _program(
    model: MultiExitModel, stages: list[nn.Module], head: nn.Module, state: State, *, start: bool, last: bool
) -> bytes:
    """Return one part of a model as ONNX."""
    leaves, spec = pytree.tree_flatten(state)
    if len(leaves[0]) < 2:
        raise ShapeError("example_inputs of 1 sample are too few: the batch must be told from the rest. Pass 2.")
    part = _Part([model.entry, *stages] if start else stages, head, spec, last=last)
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    with evaluating(model), torch.no_grad(), _quietly():
        outputs = ["logits", *(f"next_{i}" for i in range(len(part(*leaves)) - 1))]
        part.training = False
        try:
            program: Any = torch.onnx.export(
                part,
                tuple(leaves),
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in leaves),),
                input_names=[f"state_{i}" for i in range(len(leaves))],
                output_names=outputs,
                verbose=False,
            )
        except ImportError as error:
            raise _missing() from error
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


def _session(program: bytes) -> Any:  # noqa: ANN401
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise _missing() from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])


def _run(session: Any, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:  # noqa: ANN401
    """Run a session; inputs it has no use for are not among its own."""
    wanted = [one.name for one in session.get_inputs()]
    found: list[np.ndarray] = session.run(None, {name: leaves[int(name.removeprefix("state_"))] for name in wanted})
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter from telling what it does; what goes wrong is raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _missing() -> MissingExtraError:
    return MissingExtraError(
        'onnx is missing: the engine onnxruntime needs onnx, onnxscript and onnxruntime. Run pip install "eenet[onnx]".'
    )
