"""Batches for training loops of others, from samples as data sets have them: texts or pictures, and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eenet.errors import InputError
from eenet.running.preparation import Preparation
from eenet.running.stored import Prepares


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes a batch of samples, prepared as the model will read them when it runs: a ``collate_fn``.

    Attributes:
        preparation: How texts or pictures become inputs.
        sample: The key of a sample under which its text or picture stands.
        label: The key of a sample under which its class stands, a number; samples without labels are taken too.
        named: The name of the inputs in a batch where the preparation makes one tensor: ``pixel_values`` of models of
            Hugging Face.
    """

    preparation: Prepares
    sample: str = "text"
    label: str = "label"
    named: str = "inputs"

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the inputs of some samples by name, and their ``labels``.

        Raises:
            DataError: A picture cannot be read, or the tokenizer fails.
            InputError: A sample lacks its text or picture, or some have labels and others none.
        """
        known = [self.label in one for one in samples]
        if not all(self.sample in one for one in samples) or len(set(known)) != 1:
            keys = sorted({str(key) for one in samples for key in one})
            raise InputError(
                f"samples with keys {', '.join(keys) or 'none'} do not fit: each has {self.sample!r}, and all or none "
                f"{self.label!r}. Name the keys with Collator(sample=..., label=...); a Trainer drops them unless "
                "remove_unused_columns=False."
            )
        how, given = self.preparation, [one[self.sample] for one in samples]
        made: Any = how.of(given) if isinstance(how, Preparation) else how(given)
        named = made if isinstance(made, Mapping) else {self.named: made}
        batch = {str(name): torch.from_numpy(value) for name, value in named.items()}
        return batch | ({"labels": torch.tensor([int(one[self.label]) for one in samples])} if known[0] else {})
