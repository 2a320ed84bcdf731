"""Going on with samples that another device began: from the bytes of their state to their answers."""

from __future__ import annotations

from typing import final

import numpy as np

from eenet.errors import InputError
from eenet.running.adaptive import AdaptiveModel
from eenet.running.sent import Sent
from eenet.running.tiers import Tier
from eenet.serving.answers import Answer, as_answer
from eenet.tables.checks import instance


@final
class Resumer:
    """Answers samples that left a weak device as bytes; see `Tier`.

    Their policy is the model's own: a state says by which policy its samples began, and that of another is refused.

    Args:
        model: Has the stages that the device lacks. One call at a time, and nobody else may run it meanwhile.

    Raises:
        InputError: It is a tier after which others go on.
    """

    def __init__(self, model: AdaptiveModel | Tier) -> None:
        if isinstance(model, Tier) and not model.ends:
            raise InputError(
                f"model has the stages {model.first} to {model.last} of {model.engine.num_exits}: samples that go on "
                "from there would have no answer. Pass one that has the last stage."
            )
        self.model = model if isinstance(model, Tier) else instance(model, AdaptiveModel, "model")
        self._tiers = {model.first: model} if isinstance(model, Tier) else {}

    def __call__(self, state: bytes | Sent) -> Answer:
        """Run samples to where they leave.

        Args:
            state: The `TierResult.state` of the device. It may come from anywhere: all of it is checked, and no code in
                it is run.

        Returns:
            The answers, in the order of the samples in the state.

        Raises:
            InputError: The bytes are damaged, of another version, model, policy, kind of engine or stage; or the model
                does not classify whole samples.
            RunError: An exit returns NaN or infinity.
            ShapeError: Tensors in it do not fit the model.
        """
        sent = state if isinstance(state, Sent) else Sent.from_bytes(state)
        result = self._tier(sent).resume(sent)
        assert result.prediction is not None  # nobody goes on from here
        found = as_answer(result.prediction)
        order = np.argsort(np.argsort(sent.rows))  # results are in the order of the rows
        return Answer(**{name: getattr(found, name)[order] for name in vars(found)})

    def _tier(self, sent: Sent) -> Tier:
        """Return the stages that go on with a state."""
        model = self.model
        if isinstance(model, Tier):
            return model
        first = sent.exit + 1
        if sent.num_exits != model.engine.num_exits:
            raise InputError(
                f"state after exit {sent.exit} of {sent.num_exits} does not fit: this model has "
                f"{model.engine.num_exits} exits. Put the same model on all tiers."
            )
        if first not in self._tiers:
            self._tiers[first] = Tier(model.engine, model.policy, model.costs, first=first)
        return self._tiers[first]


def resume(model: AdaptiveModel | Tier, state: bytes) -> Answer:
    """Return the answers of samples that another device began; arguments and errors are those of `Resumer`."""
    return Resumer(model)(state)
