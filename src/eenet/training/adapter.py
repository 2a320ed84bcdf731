"""For loops of others: the loss of a model with exits as one number, and a module that a Trainer can train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int
from torch import Tensor, nn

from eenet.errors import InputError
from eenet.models.model import MultiExitModel
from eenet.training.losses import (
    SampleWeighting,
    Weighting,
    exit_losses,
    exit_weights,
    increasing_weights,
    total_loss,
)


@dataclass(frozen=True, kw_only=True)
class MultiExitLoss:
    """What `fit_exits` minimises on a batch, as one number, for a loop of one's own.

    Args:
        weighting: the weight of each exit's loss, from the number of exits.
        sample_weighting: the weight of each sample's loss at each exit; all 1 when not given.
        distillation: factor alpha on the self-distillation loss; 0 for none.
        temperature: T of the self-distillation loss.
        distillation_summed: whether that loss is summed over the early exits, as in the paper, and not averaged.
    """

    weighting: Weighting = increasing_weights
    sample_weighting: SampleWeighting | None = None
    distillation: float = 0.01
    temperature: float = 3.0
    distillation_summed: bool = False

    def __call__(
        self, logits: Sequence[Float[Tensor, "sample class ..."]], targets: Int[Tensor, "sample ..."]
    ) -> Float[Tensor, ""]:
        """Return the loss of a batch.

        Args:
            logits: one tensor per exit, as the model returns them.
            targets: the true classes, -100 where nothing is to be learnt.

        Raises:
            ShapeError: logits that cannot be learnt from, or other than one weight per exit.
        """
        exact = [one.float() for one in logits]
        chosen = self.sample_weighting
        sample_weights = None if chosen is None else chosen([one.detach() for one in exact], targets)
        return total_loss(
            exit_losses(exact, targets, sample_weights),
            exit_weights(self.weighting, len(exact)).to(targets.device),
            exact,
            distillation=self.distillation,
            temperature=self.temperature,
            summed=self.distillation_summed,
        )


@final
class TrainerAdapter(nn.Module):
    """A model with exits in the form that the ``Trainer`` of Hugging Face trains, evaluates and saves.

    It takes what the model takes, by name, and ``labels``; it returns a dictionary of the ``loss`` over all exits,
    where there are labels, and the ``logits`` of the last exit, which metrics are computed from. Its weights are those
    of the model, under names that begin with ``model.``.

    Args:
        model: The model with exits; it is trained in place.
        loss: From the logits of all exits and the labels to one number.
    """

    def __init__(self, model: MultiExitModel, loss: MultiExitLoss | None = None) -> None:
        super().__init__()
        self.model, self.loss = model, loss or MultiExitLoss()

    # named one by one: the Trainer looks here which columns of the data it shall keep
    def forward(
        self,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return ``loss``, where there are ``labels``, and the ``logits`` of the last exit, ``[sample, class]``.

        ``inputs`` is for models of one tensor without a name.

        Raises:
            InputError: no inputs, or ``inputs`` and named ones.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
        }
        named = {name: value for name, value in given.items() if value is not None}
        if (inputs is None) == (not named):
            found = f"inputs and {sorted(named)} were both given" if named else "inputs are missing"
            raise InputError(f"{found}: a batch is one tensor, or tensors by name. Pass one of the two.")
        logits = self.model(named if inputs is None else inputs)
        answer = {"logits": logits[-1]}
        return answer if labels is None else {"loss": self.loss(logits, labels), **answer}
