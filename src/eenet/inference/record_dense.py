"""Writing down what every exit says about every image whose answer is a map."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable
from eenet.errors import DataError, InputError, ShapeError
from eenet.evaluation.segmentation import CONFUSION, mean_iou, pixel_accuracy
from eenet.inference.engines import DenseEngine, Engine
from eenet.inference.maps import confusions, label_map, map_logits, summary
from eenet.inference.record import Batches, Rows, write_table
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel

__all__ = ["DenseUtility", "dense_utility", "holds_masks", "record_dense"]

DenseUtility = Literal["accuracy", "miou"]
"""What an image's answer is worth: the share of its pixels that are right, or its mean IoU over the classes in it."""

_Worth = Callable[[Tensor], Tensor]
_WORTH: dict[DenseUtility, _Worth] = {"accuracy": pixel_accuracy, "miou": mean_iou}


def record_dense(
    model: MultiExitModel | Engine,
    dataset: Batches,
    path: str | os.PathLike[str],
    *,
    utility: DenseUtility = "accuracy",
    batch_size: int = 8,
    split: str = "",
    costs: CostTable | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> ExitTable:
    """Record every exit's maps in short, image by image, and write them as an exit table.

    The table's ``logits`` are the `summary` of each map, ``confidence`` the mean over pixels of the largest
    probability, ``utility`` what the image's map is worth; there are no labels. Confusion counts
    ``[sample, exit, true class, answered class]`` stand beside under the key ``confusion``
    (`eenet.evaluation.load_confusion`): from them comes the data set's mean IoU of any choice of exits. Maps are
    upsampled bilinearly to the size of the masks before the largest logit is taken; pixels whose target is -100 do not
    count. An image in which no pixel counts is worth 1 at every exit.

    As with `record`, memory stays that of one batch and no half-written table is left.

    Args:
        model: Its heads return ``[sample, class, height, width]``; run in evaluation mode, its flags, and its device,
            are restored.
        dataset: Gives ``len()`` and batches of (images, masks ``[sample, height, width]``).
        path: An ``.npz`` file if the name ends so, else a folder of ``.npy`` files (read memory-mapped).
        utility: ``"accuracy"``: share of the pixels that are right; ``"miou"``: mean IoU over the classes that occur in
            the image.
        batch_size: Images per forward pass.
        split: Name of the split, stored in the table.
        costs: What leaving at each exit costs, stored in the table.
        device: Where to compute; default: where the model is.
        progress: Show a bar on stderr if it takes more than two seconds.

    Returns:
        The table, as `ExitTable.load` reads it back.

    Raises:
        InputError: An unknown utility, a batch size below 1, a data set without samples, or ``path`` is a folder that
            holds something else.
        ShapeError: Heads or targets are no maps, or costs of another number of exits.
        DataError: A mask holds what is no class of the model.
        RunError: The disk is full or refuses, or the data set yields another number of rows than its length.
    """
    return write_table(
        model,
        dataset,
        path,
        _mapped(_WORTH[dense_utility(utility)]),
        batch_size=batch_size,
        split=split,
        costs=costs,
        device=device,
        progress=progress,
    )


def holds_masks(dataset: Batches) -> bool:
    """Return whether the answers to a data set are maps, judged by its first sample."""
    _, targets = next(iter(dataset.batches(1)))
    return targets.dim() == 3


def dense_utility(name: str) -> DenseUtility:
    """Return the utility of a name.

    Raises:
        InputError: There is none of that name.
    """
    for known in _WORTH:
        if known == name:
            return known
    raise InputError(f"utility {name!r} is unknown: there are {' and '.join(_WORTH)}. Pass one of them.")


def _mapped(worth: _Worth) -> Rows:
    """Return what makes a batch's rows of a table of maps."""

    def rows(engine: Engine, inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
        if targets.dim() != 3:
            raise ShapeError(
                f"targets of shape {tuple(targets.shape)} do not fit: masks are [sample, height, width]. Use record "
                "for data sets with one label per sample."
            )
        if targets.is_floating_point():
            raise DataError(f"targets of {targets.dtype} do not fit: classes are whole numbers. Pass integers.")
        inner = engine.inner if isinstance(engine, DenseEngine) else engine
        masks, size = targets.long().to(inner.device), (targets.shape[1], targets.shape[2])
        summaries, counts = [], []
        with inner.session():
            state = inner.start(inputs)
            for k in range(inner.num_exits):
                state = inner.stage(k, state)
                logits = map_logits(inner.head(k, state), k)
                summaries.append(summary(logits))
                counts.append(confusions(label_map(logits, size), masks, logits.shape[1]))
        said, confusion = torch.stack(summaries, dim=1), torch.stack(counts, dim=1)
        return {
            "logits": said,
            "confidence": said[:, :, 0].exp(),
            "utility": worth(confusion).float(),
            CONFUSION: confusion,
        }

    return rows
