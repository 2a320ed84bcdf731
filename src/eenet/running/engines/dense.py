"""Engines of models whose heads return maps: policies read summaries, and maps stay on the device until they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float32, Int

from eenet.errors import InputError
from eenet.running.engines.base import Carried, Engine, EngineAround, each_exit
from eenet.running.inputs import Inputs, rows_of
from eenet.tables.arrays import arrays_of


class MapAnswer:
    """What an exit predicts for every pixel, at the head's own resolution: enlarged when samples leave with it.

    Args:
        logits: A tensor or array ``[sample, class, height, width]``.
        size: Height and width of the answers.
    """

    def __init__(self, logits: Any, size: tuple[int, int]) -> None:  # noqa: ANN401
        self.logits, self.size = logits, size

    def __getitem__(self, rows: slice | Int[np.ndarray, " kept"]) -> Int[np.ndarray, "kept height width"]:
        """Return the class of every pixel of some samples, at full size."""
        from eenet.running.maps import label_map

        return label_map(self.logits[rows], self.size).numpy(force=True)


@final
class DenseEngine(EngineAround):
    """An engine whose exits return the `summary` of their maps, and answer with the class of every pixel.

    Everything else is left to the inner engine; the size of the images is carried beside its states.

    Args:
        engine: Runs a model whose heads return ``[sample, class, height, width]``.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)

    def start(self, inputs: Inputs) -> Carried:
        return Carried(self.inner.start(inputs), _required_size(inputs))

    def stage(self, index: int, state: Carried) -> Carried:
        return Carried(self.inner.stage(index, state.state), state.extra)

    def head(self, index: int, state: Carried) -> tuple[Float32[np.ndarray, "sample column"], MapAnswer]:
        """Return the summary of the maps of exit ``index``, and the maps.

        Raises:
            ShapeError: They are no maps.
        """
        from eenet.running.maps import map_logits, summary

        logits = map_logits(self.inner.head(index, state.state)[0], index)
        return summary(logits), MapAnswer(logits, state.extra)

    def pack(self, state: Carried) -> tuple[list[np.ndarray], Any]:
        arrays, form = self.inner.pack(state.state)
        return arrays, {"size": list(state.extra), "of": form}

    def unpack(self, arrays: Sequence[np.ndarray], form: Any, index: int) -> Carried:  # noqa: ANN401 - of JSON
        try:
            (height, width), inner = map(int, form["size"]), form["of"]
        except (TypeError, ValueError, LookupError) as error:
            raise InputError(
                "state does not fit: it is not of a model of maps. Send that of the same model."
            ) from error
        return Carried(self.inner.unpack(arrays, inner, index), (height, width))

    def full(self, inputs: Inputs) -> Int[np.ndarray, "sample height width"]:
        from eenet.running.maps import map_logits

        logits = self.inner.full(inputs)
        with self.session():
            return MapAnswer(map_logits(logits, self.num_exits - 1), _required_size(inputs))[:]


def suited(engine: Engine, inputs: Inputs) -> Engine:
    """Return an engine as it is, or as a `DenseEngine` if its heads return maps.

    Args:
        engine: Where inputs are images, its first stage is run, on two samples at most.
        inputs: What it takes.
    """
    if isinstance(engine, DenseEngine) or _image_size(inputs) is None:
        return engine
    with engine.session():
        output, answer = next(each_exit(engine, rows_of(inputs, slice(0, 2))))
    return DenseEngine(engine) if answer is None and output.ndim == 4 else engine


def _image_size(inputs: Inputs) -> tuple[int, int] | None:
    """Return height and width of the images in a batch; None where there are none."""
    return next(((int(one.shape[2]), int(one.shape[3])) for one in arrays_of(inputs) if one.ndim == 4), None)


def _required_size(inputs: Inputs) -> tuple[int, int]:
    size = _image_size(inputs)
    if size is None:
        raise InputError(
            "inputs contain no images: a map is as large as the image it belongs to. Pass [sample, channel, height, "
            "width]."
        )
    return size
