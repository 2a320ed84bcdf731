"""Chained early heads: each also reads the logits of the exit before it.

Source: M. Wołczyk et al., *Zero time waste: recycling predictions in early exit neural networks*, NeurIPS 2021 (arXiv
2106.05409), section on cascade connections.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from eenet.errors import InputError, ShapeError
from eenet.models.inputs import State
from eenet.models.model import MultiExitModel


class Recall(nn.Module):
    """What a head adds for the logits of the exit before: a linear layer on them, normalised and detached.

    It begins with zeros, so that chained heads begin as the plain ones.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.LayerNorm(num_classes, elementwise_affine=False)
        self.linear = nn.Linear(num_classes, num_classes, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, earlier: Float[Tensor, "sample class ..."]) -> Float[Tensor, "sample class ..."]:
        if earlier.shape[1] != self.num_classes:
            raise ShapeError(_wrong_classes(self.num_classes, earlier.shape[1]))
        added: Tensor = self.linear(self.norm(earlier.detach().movedim(1, -1)))
        return added.movedim(-1, 1)


class ChainedStage(nn.Module):
    """A stage together with its early head: passes on its state and the logits of its exit.

    ``num_classes`` is None for the first exit, which has no exit before it.
    """

    def __init__(self, stage: nn.Module, head: nn.Module, num_classes: int | None) -> None:
        super().__init__()
        self.stage, self.head = stage, head
        self.recall = None if num_classes is None else Recall(num_classes)

    def logits(self, state: State, earlier: Tensor | None) -> Tensor:
        """Return the exit's logits from what its head reads and the logits of the exit before."""
        logits: Tensor = self.head(state)
        return logits if self.recall is None else logits + self.recall(earlier)

    def forward(self, state: State) -> tuple[State, Tensor]:
        inner, earlier = (state, None) if self.recall is None else state
        inner = self.stage(inner)
        return inner, self.logits(inner, earlier)


class LastStage(nn.Module):
    """The stage before the original output, which reads no earlier logits."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, state: tuple[State, Tensor]) -> State:
        return self.stage(state[0])


class Newest(nn.Module):
    """A chained head as seen from outside: the logits that its stage has computed already."""

    def forward(self, state: tuple[State, Tensor]) -> Tensor:
        return state[1]


class ChainedReads:
    """What chained heads read of a model that runs in one go: tap and logits for each early head, and its answer."""

    def __init__(self, stages: list[ChainedStage]) -> None:
        self.stages = stages  # those of the model: no names of their own

    def __call__(self, states: list[State]) -> list[State]:
        *taps, answer = states
        found: list[State] = []
        earlier: Tensor | None = None
        for stage, tap in zip(self.stages, taps, strict=True):
            earlier = stage.logits(tap, earlier)
            found.append((tap, earlier))
        return [*found, answer]


def cascaded(model: MultiExitModel, num_classes: int) -> MultiExitModel:
    """Return a model whose early heads also read the logits of the exit before them, its modules shared.

    A learnt linear map of the (layer-normalised) logits of exit k - 1 is added to the logits of early exit k > 0, as if
    they were further features of the head's last layer. No gradient flows back through them, and the map begins at
    zero: before training, the answers are those of ``model``. The original output does not change.

    As the next exit needs a head's logits, each early head is computed inside its stage. Inference stage by stage,
    `MultiExitModel.select`, export and the engines work as usual. But: the operations of early heads are counted among
    the stages', so the cost of "the original model without exits" includes them; and `MultiExitModel.without` closes
    exits without saving the cost of their heads, which later heads still read.

    Args:
        model: a model with at least two early exits, its logits ``[sample, class]``, or ``[sample, class, height,
            width]`` of one size.
        num_classes: number of classes C.

    Raises:
        InputError: the number of classes is not that of the model's heads.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise InputError(
            f"num_classes {num_classes!r} is not possible: classes are counted, from 2 on. Pass their number."
        )
    for head in model.heads:
        if (sizes := _outputs(head)) and num_classes not in sizes:
            raise InputError(_wrong_classes(num_classes, sizes[-1]))
    early = zip(model.stages[:-1], model.heads[:-1], strict=True)
    stages = [ChainedStage(stage, head, num_classes if k else None) for k, (stage, head) in enumerate(early)]
    return MultiExitModel(
        [*stages, LastStage(model.stages[-1])],
        [*(Newest() for _ in stages), model.heads[-1]],
        start=model.entry,
        whole=model.whole,
        reads=ChainedReads(stages),
    )


def _outputs(head: nn.Module) -> list[int]:
    """Return the number of outputs of every layer of a head that has one, the last of them usually its classes."""
    sizes = (getattr(layer, "out_features", getattr(layer, "out_channels", None)) for layer in head.modules())
    return [size for size in sizes if isinstance(size, int)]


def _wrong_classes(num_classes: int, found: int) -> str:
    return f"num_classes {num_classes} does not fit: the heads of the model have {found} classes. Pass {found}."


def early_heads(model: MultiExitModel) -> dict[str, nn.Module]:
    """Return the modules that only early exits need, by name: their heads, wherever these are computed."""
    names = [f"heads.{k}" for k in range(model.num_exits - 1)]
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ChainedStage):
            names += [f"{name}.head", f"{name}.recall"][: 1 if module.recall is None else 2]
    return {name: model.get_submodule(name) for name in names}
