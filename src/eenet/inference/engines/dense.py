"""Engines of models whose heads return maps: policies are shown summaries, and the maps are kept for the answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.errors import InputError
from eenet.inference.engines.base import Engine
from eenet.inference.maps import label_map, map_logits, summary
from eenet.models.inputs import Inputs, State, batch_size

__all__ = ["DenseEngine", "suited"]


@final
class DenseEngine(Engine):
    """An engine whose exits say the `summary` of their maps; what they said in full is kept until the next `start`.

    Everything else is left to the engine inside. One caller at a time.

    Args:
        engine: Runs a model whose heads return ``[sample, class, height, width]``.
    """

    def __init__(self, engine: Engine) -> None:
        self.inner = engine
        self.name, self.dtype, self.device = engine.name, engine.dtype, engine.device
        self.num_exits, self.threads = engine.num_exits, engine.threads
        self._size = (0, 0)
        self._said: dict[int, Tensor] = {}

    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called."""
        return self.inner.session()

    def start(self, inputs: Inputs) -> State:
        """Turn a batch of images into the state that stage 0 takes.

        Raises:
            InputError: The inputs hold no image.
        """
        self._size, self._said = _image_size(inputs), {}
        return self.inner.start(inputs)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index``."""
        return self.inner.stage(index, state)

    def head(self, index: int, state: State) -> Float[Tensor, "sample class"]:
        """Return the summary of what exit ``index`` says.

        Raises:
            ShapeError: It is no map.
        """
        self._said[index] = map_logits(self.inner.head(index, state), index)
        return summary(self._said[index])

    def select(self, state: State, rows: Int[Tensor, " kept"]) -> State:
        """Keep some rows of everything in the state that carries the batch."""
        return self.inner.select(state, rows)

    def join(self, states: Sequence[State]) -> State:
        """Refuse: maps of several batches are not kept apart."""
        raise InputError("batches of maps cannot be joined: an answer is made of one batch. Run them one by one.")

    def full(self, inputs: Inputs) -> Int[Tensor, "sample height width"]:
        """Return what the original model without exits answers: the class of every pixel of its inputs."""
        logits = self.inner.full(inputs)
        with self.session():
            return label_map(map_logits(logits, self.num_exits - 1), _image_size(inputs))

    def answers(self, exit_index: Int[Tensor, " sample"]) -> Int[Tensor, "sample height width"]:
        """Return the class of every pixel, as the exit says at which each sample of the last batch left.

        Args:
            exit_index: Where each sample left; at every exit those that left before were gone, the others in order.
        """
        labels = torch.empty(len(exit_index), *self._size, dtype=torch.long, device=exit_index.device)
        with self.session():
            for k, logits in self._said.items():
                left = exit_index == k
                if left.any():
                    labels[left] = label_map(logits[left[exit_index >= k]], self._size)
        return labels


def suited(engine: Engine, inputs: Inputs) -> Engine:
    """Return an engine as it is, or as a `DenseEngine` if its heads return maps.

    Args:
        engine: Its first stage is run, on two samples at most.
        inputs: What it takes.
    """
    if isinstance(engine, DenseEngine):
        return engine
    few: Inputs = pytree.tree_map_only(Tensor, lambda leaf: leaf[: min(2, batch_size(inputs))], inputs)
    with engine.session():
        maps = engine.head(0, engine.stage(0, engine.start(few))).dim() == 4
    return DenseEngine(engine) if maps else engine


def _image_size(inputs: Inputs) -> tuple[int, int]:
    """Return height and width of the images in a batch."""
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim() == 4:
            return leaf.shape[2], leaf.shape[3]
    raise InputError(
        "inputs hold no images: a map is as large as the image it belongs to. Pass [sample, channel, height, width]."
    )
