"""From texts or pictures to labels in one call, each sample leaving where the policy lets it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
from jaxtyping import Float32

from eenet.errors import InputError
from eenet.running.adaptive import AdaptiveModel
from eenet.running.exports import OpenedExport, open_export
from eenet.running.preparation import Preparation
from eenet.running.stored import Prepares
from eenet.tables.checks import number
from eenet.tables.costs import BudgetLike
from eenet.tables.files import MANIFEST, read_object

if TYPE_CHECKING:
    from eenet.running.bundle import Bundle

Answer: TypeAlias = dict[str, Any]
"""``label``, ``score`` (its probability), ``exit`` (0-based) and ``cost`` (None where costs are not known)."""


@final
class AdaptivePipeline:
    """Classifies texts or pictures, as ``transformers.pipeline`` does, with a model that stops early.

    Texts are cut and padded, and pictures read, as in training: by the preparation that the bundle or the export
    carries, which ``eenet run`` uses, too.

    Args:
        model: A `Bundle`, what `open_export` returned, the folder of either, or a repository of the Hugging Face Hub.
        preparation: How texts or pictures become inputs; default: the model's own.
        classes: Names of the classes, in label order; default: the model's own, else their numbers.
        budget: Another mean cost per sample than that of its policy.

    Attributes:
        adaptive: The model that stops early.
        preparation: As given.
        classes: As given.

    Raises:
        InputError: It is nothing of these, or does not say how texts or pictures become inputs; or there is no dial for
            the budget. Else as of `Bundle.from_pretrained`, `open_export` and `AdaptiveModel`.
    """

    def __init__(
        self,
        model: Bundle | OpenedExport | str | os.PathLike[str],
        preparation: Prepares | None = None,
        classes: Sequence[str] | None = None,
        *,
        budget: BudgetLike | None = None,
    ) -> None:
        opened = _opened(model) if isinstance(model, str | os.PathLike) else model
        if isinstance(opened, OpenedExport):
            adaptive = AdaptiveModel(opened.engine, opened.policy, opened.costs, dial=opened.dial)
            own: tuple[Prepares | None, Sequence[str] | None] = opened.manifest.preparation, opened.manifest.classes
        elif hasattr(opened, "adaptive"):
            adaptive, own = opened.adaptive(), (opened.preparation, opened.classes)
        else:
            raise InputError(
                f"model of type {type(opened).__name__} does not fit: a Bundle, an export or the folder of one is "
                "needed. Make one: Bundle(model=model, policy=policy, preparation=preparation)."
            )
        found = own[0] if preparation is None else preparation
        if found is None:
            raise InputError(
                "preparation is missing: the model does not say how texts or pictures become inputs. Pass a "
                "Preparation or a TextPreparation, or call its AdaptiveModel with inputs."
            )
        self.preparation = found
        self.classes = own[1] if classes is None else tuple(classes)
        self.adaptive = adaptive if budget is None else adaptive.at(budget)

    def __call__(self, inputs: Any, *, top_k: int | None = None, batch_size: int = 32) -> list[Any]:  # noqa: ANN401
        """Return the answers, in the order of the inputs.

        Args:
            inputs: A text, or a list of texts; of a model of pictures a path, an open file or an image of Pillow, or a
                list of them.
            top_k: How many classes to return for each input, the most probable first; default: the best one alone.
            batch_size: Samples per forward pass.

        Returns:
            One `Answer` per input. With ``top_k`` a list of them for each input; of a single input that list alone.

        Raises:
            DataError: A picture cannot be read, or the tokenizer fails.
            InputError: An input is no text, or no picture; ``top_k`` or ``batch_size`` are below 1; or there is not a
                name for each class.
        """
        single = not isinstance(inputs, list | tuple)
        given = [inputs] if single else list(inputs)
        size = int(number(batch_size, "batch_size", 1, whole=True))
        count = 1 if top_k is None else int(number(top_k, "top_k", 1, whole=True))
        if not given:
            return []
        self._require_known(given)
        prediction = self.adaptive.predict_all(self._batches(given, size))
        if prediction.log_probs is None:
            raise InputError("model answers with no classes of whole samples. Call its AdaptiveModel.")
        if self.classes is not None and len(self.classes) != prediction.log_probs.shape[1]:
            raise InputError(
                f"classes of {len(self.classes)} names do not fit: the model has {prediction.log_probs.shape[1]}. Name "
                "each."
            )
        rows = [
            [
                {
                    "label": label,
                    "score": score,
                    "exit": int(prediction.exit_index[row]),
                    "cost": None if prediction.cost is None else float(prediction.cost[row]),
                }
                for _, label, score in ranked(prediction.log_probs[row], self.classes, count)
            ]
            for row in range(len(given))
        ]
        if top_k is None:
            return [best for (best,) in rows]
        return rows[0] if single else rows

    def _batches(self, given: Sequence[Any], size: int) -> Iterator[Any]:
        how = self.preparation
        for first in range(0, len(given), size):
            part = given[first : first + size]
            yield how.of(part) if isinstance(how, Preparation) else how(part)

    def _require_known(self, given: Sequence[Any]) -> None:
        """Refuse inputs that are no texts where texts are read, before anything runs."""
        if isinstance(self.preparation, Preparation):
            self.preparation.require_files()
            return
        wrong = next((i for i, one in enumerate(given) if not isinstance(one, str)), None)
        if wrong is not None:
            raise InputError(
                f"input {wrong} of type {type(given[wrong]).__name__} does not fit: the model reads texts. Pass a "
                "string, or a list of strings."
            )


def ranked(
    log_probs: Float32[np.ndarray, " class"], classes: Sequence[str] | None, count: int = 1
) -> list[tuple[int, str, float]]:
    """Return the most probable classes of a sample: their numbers, names (else their numbers) and probabilities."""
    order = np.argsort(-log_probs, kind="stable")[:count].tolist()
    return [(k, str(k) if classes is None else classes[k], float(np.exp(np.float64(log_probs[k])))) for k in order]


def _opened(source: str | os.PathLike[str]) -> Any:  # noqa: ANN401 - a bundle or an export
    """Return the bundle or the export in a folder, or the bundle in a repository."""
    manifest = Path(source) / MANIFEST
    if manifest.is_file() and read_object(manifest, "manifest").get("format") == "eenet export":
        return open_export(source)
    from eenet.running.bundle import Bundle

    return Bundle.from_pretrained(source)
