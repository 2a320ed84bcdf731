"""Several models as one with exits: the state carries the inputs for those that come later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from eenet.models.inputs import Inputs, State, plain
from eenet.models.model import MultiExitModel
from eenet.models.whole import Around


class Beside(NamedTuple):
    """The state within a model that others follow.

    Attributes:
        inputs: For the others.
        inner: Of the model itself.
    """

    inputs: Inputs
    inner: State


class Joined(NamedTuple):
    """A model among others.

    Attributes:
        model: Its stages.
        exits: How many of them, from the first on, count.
        columns: Where the classes of all stand in its outputs; None: in this order.
    """

    model: MultiExitModel
    exits: int
    columns: Sequence[int] | None = None


def joined_models(models: Sequence[Joined]) -> MultiExitModel:
    """Return models, one after another, as one whose exits are all of theirs; weights are shared.

    Each begins with the inputs. The original model, for costs and times, is the last one alone.
    """
    stages: list[nn.Module] = []
    heads: list[nn.Module] = []
    begins: list[int] = []
    for one in models:
        first, last = len(stages), one is models[-1]
        begins += [first, *(first + k for k in one.model.begins if k < one.exits)]
        for k in range(one.exits):
            stages.append(MemberStage(one.model, k, last=last))
            heads.append(MemberHead(one.model.heads[k], one.columns))
    return MultiExitModel(stages, heads, begins=sorted(set(begins)))


@final
class MemberStage(Around):
    """A stage of one of several models; its first one begins with the inputs.

    Args:
        model: Whose stage it is.
        index: Its number there.
        last: No other model follows.
    """

    def __init__(self, model: MultiExitModel, index: int, *, last: bool) -> None:
        super().__init__()
        self.entry = model.entry if index == 0 else None
        self.stage, self.last = model.stages[index], last

    def forward(self, state: State) -> State:
        """Return what the head reads, beside the inputs where another model follows."""
        if self.entry is None:
            inner = self.stage(state if self.last else state.inner)
            return inner if self.last else Beside(state.inputs, inner)
        inputs = plain(state.inputs if isinstance(state, Beside) else state)
        if self.last:
            return self.stage(self.entry(inputs))
        own = tree_map_only(Tensor, Tensor.clone, inputs)  # a stage may write into what it is given
        return Beside(inputs, self.stage(self.entry(own)))


@final
class MemberHead(Around):
    """A head of one of several models, whose classes stand in the order of all.

    Args:
        head: Its own.
        columns: As of `Joined`.
    """

    def __init__(self, head: nn.Module, columns: Sequence[int] | None) -> None:
        super().__init__()
        self.head = head
        order = None if columns is None else torch.tensor(list(columns))
        self.register_buffer("order", order, persistent=False)

    def forward(self, state: State) -> Any:  # noqa: ANN401 - what the head returns
        """Return the outputs of the head."""
        output = self.head(state.inner if isinstance(state, Beside) else state)
        return output if self.order is None else output[:, self.order]
