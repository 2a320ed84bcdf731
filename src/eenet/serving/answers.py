"""What a request is answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

from eenet.errors import InputError
from eenet.running.loop import Prediction


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request is answered, in the order of its samples.

    Attributes:
        label: The class.
        probabilities: Of all classes.
        exit: Where the sample left, 0-based.
        cost: Of leaving there, in the unit of the model's costs; NaN where these are not known.
        score: Probability of the class that is answered.
    """

    label: Int[np.ndarray, " sample"]
    probabilities: Float32[np.ndarray, "sample class"]
    exit: Int[np.ndarray, " sample"]
    cost: Float64[np.ndarray, " sample"]
    score: Float64[np.ndarray, " sample"]


def as_answer(prediction: Prediction) -> Answer:
    """Return a prediction as a server answers it.

    Raises:
        InputError: The model does not classify whole samples.
    """
    if prediction.log_probs is None:
        raise InputError("exits return no classes: a server answers with these. Run the model by itself.")
    probabilities = np.exp(prediction.log_probs)
    label = probabilities.argmax(axis=1)
    unknown = np.full(len(label), np.nan)
    return Answer(
        label=label,
        probabilities=probabilities,
        exit=prediction.exit_index,
        cost=unknown if prediction.cost is None else prediction.cost,
        score=probabilities[np.arange(len(label)), label].astype(np.float64),
    )
