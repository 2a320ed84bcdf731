"""What a server serves: a model by its name, and how what people send becomes its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np

from eenet.errors import InputError
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines.graphs import GraphEngine, TensorSpec
from eenet.running.inputs import Inputs
from eenet.running.preparation import Preparation
from eenet.running.stored import Prepares
from eenet.running.texts import NAMES

RAW = "images"
"""The name under which raw pictures may be sent, in place of prepared inputs."""
_INPUT = "input"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that is served.

    Attributes:
        name: In addresses.
        model: That stops early.
        classes: Their names, in label order, where known.
        preparation: How pictures or texts become inputs, where known.
    """

    name: str
    model: AdaptiveModel
    classes: Sequence[str] | None = None
    preparation: Prepares | None = None

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes; empty where that is not known."""
        if isinstance(self.model.engine, GraphEngine):
            return self.model.engine.inputs
        how = self.preparation
        if isinstance(how, Preparation):
            return (TensorSpec(_INPUT, np.dtype(np.float32), how.shape),)
        if how is None:
            return ()
        return tuple(TensorSpec(name, np.dtype(np.int64), (how.width,)) for name in (NAMES if how.named else NAMES[:1]))

    def as_inputs(self, arrays: Mapping[str, np.ndarray]) -> Inputs:
        """Return tensors of a request as the model takes them.

        Raw pictures (uint8, or called `RAW`) and texts are prepared, where it is known how.

        Raises:
            InputError: The model takes no texts, or no such pictures; or there are several tensors, and no names.
            ShapeError: Pictures of another shape.
        """
        ((name, array), *others) = arrays.items()
        how, is_text = self.preparation, array.dtype.kind == "O"
        if not others and isinstance(how, Preparation):
            if name == RAW or (array.dtype == np.uint8 and not self._takes(np.uint8)):
                return how(array)
        elif not others and is_text and how is not None:
            return how(array.ravel().tolist())
        self._require_numbers(arrays)
        by_name = others or isinstance(self.model.engine, GraphEngine) or len(self.inputs) > 1
        return dict(arrays) if by_name else array

    def _require_numbers(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if array.dtype.kind == "O":
                taken = ", ".join(f"{one.name!r} of {one.dtype}" for one in self.inputs) or "numbers"
                raise InputError(
                    f"input {name!r} of texts does not fit: the model takes {taken}, and it is not known how texts "
                    "become these. Send numbers."
                )

    def _takes(self, dtype: type[np.generic]) -> bool:
        return any(one.dtype == dtype for one in self.inputs)

    @property
    def reads(self) -> str:
        """What people can send: ``pictures``, ``texts``, or nothing, an empty text."""
        if self.preparation is None:
            return ""
        return "pictures" if isinstance(self.preparation, Preparation) else "texts"

    def read(self, files: Sequence[tuple[str, bytes]], texts: Sequence[str]) -> Inputs:
        """Return inputs from the contents of image files, each with its name for messages, or from texts.

        Raises:
            DataError: A picture cannot be read, or the tokenizer fails.
            InputError: There is nothing, or something else than the model reads.
        """
        how: Any = self.preparation
        if how is None:
            raise InputError(
                f"model {self.name!r} does not say how pictures or texts become inputs. Send tensors to "
                f"/v2/models/{self.name}/infer."
            )
        wanted, others = (files, texts) if self.reads == "pictures" else (texts, files)
        if others or not wanted:
            found = "something else" if others else "nothing"
            raise InputError(f"{found} was sent: model {self.name!r} reads {self.reads}. Send one, or several.")
        if self.reads == "texts":
            return how(list(texts))
        how.require_files()
        return how(np.stack([how.read(BytesIO(content), name) for name, content in files]))
