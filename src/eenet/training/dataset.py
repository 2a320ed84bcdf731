"""What training, recording and judging need of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from eenet.models.inputs import Inputs

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor] | Callable[..., Any]
"""From raw images and a generator to changed images of the same shape; or a transform of torchvision, of one image."""
Chosen = TypeVar("Chosen", bound="LabelledDataset")


class LabelledDataset(Dataset[tuple[Inputs, Tensor]], ABC):
    """Samples and the truth about them: what training, recording and judging need of data.

    Attributes:
        groups: Of every sample, what it belongs to, such as a street (`eenet.ExitTable.group`); None: each sample is
            independent of the others.
    """

    groups: np.ndarray | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @property
    @abstractmethod
    def labels(self) -> Int[Tensor, " sample"]:
        """The class of every sample.

        Raises:
            InputError: samples have a class per pixel; `targets` returns those.
        """

    @abstractmethod
    def inputs(self, rows: Int[Tensor, " row"] | slice) -> Inputs:
        """Return what the model takes for some rows, prepared and un-augmented, batch first."""

    @abstractmethod
    def targets(self, rows: Int[Tensor, " row"] | slice) -> Int[Tensor, "row ..."]:
        """Return the classes of some rows: ``[row]``, or ``[row, height, width]``, -100 where there is none."""

    @abstractmethod
    def training_batch(
        self, rows: Int[Tensor, " row"], augment: Augment | None, generator: torch.Generator
    ) -> tuple[Inputs, Int[Tensor, "row ..."]]:
        """Return (prepared inputs, targets) of some rows, changed at random.

        Args:
            rows: which samples.
            augment: changes raw images; None leaves them as they are.
            generator: the only source of chance.
        """

    @abstractmethod
    def select(self: Chosen, rows: Int[Tensor, " row"] | Bool[Tensor, " sample"] | slice) -> Chosen:
        """Return a data set of some rows only, or of those where a mask is true."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short digest of labels and inputs: a training is resumed on the same data only."""

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor]:
        """Return one prepared sample and its target, for use with a ``DataLoader``.

        Texts differ in length: a ``DataLoader`` needs a ``collate_fn`` that pads them; `batches` does so by itself.
        """
        row = torch.tensor([index])
        inputs: Inputs = pytree.tree_map(lambda leaf: leaf[0], self.inputs(row))
        return inputs, self.targets(row)[0]

    def batches(self, batch_size: int) -> Iterator[tuple[Inputs, Int[Tensor, "row ..."]]]:
        """Yield (prepared inputs, targets) in row order; the last batch may be smaller."""
        for first in range(0, len(self), batch_size):
            rows = slice(first, first + batch_size)
            yield self.inputs(rows), self.targets(rows)
