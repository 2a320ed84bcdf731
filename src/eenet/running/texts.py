"""From texts to what a model takes: one value of a data set that its runs carry, as `Preparation` is of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from eenet.errors import DataError
from eenet.libraries import pretrained

Tokens: TypeAlias = Int64[np.ndarray, "sample token"]
NAMES = ("input_ids", "attention_mask")
"""What Hugging Face models call token numbers and the mask of the real ones."""


@dataclass(frozen=True, kw_only=True)
class TextPreparation:
    """How texts become what a model takes: cut by a tokenizer, and padded as in training.

    Attributes:
        tokenizer: Of Hugging Face, in memory.
        max_tokens: Longer texts are cut there.
        named: Whether the model takes token numbers and their mask, by Hugging Face's names; else the numbers only.
        width: Tokens per text; None: as many as the longest text of a batch has.
        least: Fewest tokens per text where there is no ``width``.
    """

    tokenizer: Any
    max_tokens: int
    named: bool = False
    width: int | None = None
    least: int = 1

    def cut(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "sample token"], Bool[np.ndarray, "sample token"]]:
        """Return the token numbers of texts, padded to ``max_tokens``, and which of them are real.

        Raises:
            DataError: There is no room for texts, or the tokenizer fails on them.
        """
        if self.max_tokens <= (added := self.tokenizer.num_special_tokens_to_add()):
            raise DataError(
                f"max_tokens {self.max_tokens} leave no room for texts: the tokenizer adds {added} of its own to each. "
                "Allow more (--input on the command line)."
            )
        asked = {"padding": "max_length", "truncation": True, "max_length": self.max_tokens}
        try:
            found = self.tokenizer(list(texts), **asked, return_attention_mask=True)
            tokens, mask = (np.asarray(found[name], dtype=np.int32) for name in NAMES)
        except Exception as error:  # libraries in other languages raise what they like
            raise DataError(
                f"texts cannot be cut into at most {self.max_tokens} tokens: the tokenizer fails on them ({error}). "
                "Allow more tokens, or pass another tokenizer."
            ) from error
        return tokens, mask.astype(bool)

    def form(self, tokens: np.ndarray, mask: np.ndarray) -> Tokens | dict[str, Tokens]:
        """Return padded token numbers and their mask as the model takes them."""
        return formed(tokens, mask, named=self.named, width=self.width, least=self.least)

    def __call__(self, texts: Sequence[str]) -> Tokens | dict[str, Tokens]:
        """Return what the model takes for some texts."""
        return self.form(*self.cut(texts))


def formed(
    tokens: Int[np.ndarray, "sample longest"],
    mask: Bool[np.ndarray, "sample longest"],
    *,
    named: bool,
    width: int | None = None,
    least: int = 1,
) -> Tokens | dict[str, Tokens]:
    """Return token numbers, and by name their mask too, of a ``width``, or cut where the last text ends."""
    columns = np.flatnonzero(mask.any(axis=0))
    end = int(columns[-1]) + 1 if len(columns) else 1
    width = max(least, end) if width is None else width
    numbers = tokens[:, :width].astype(np.int64)
    return dict(zip(NAMES, (numbers, mask[:, :width].astype(np.int64)), strict=True)) if named else numbers


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401
    """Return the tokenizer of Hugging Face in a folder.

    Args:
        folder: On this machine, as ``save_pretrained`` leaves it; nothing is downloaded.

    Raises:
        MissingExtraError: transformers is not installed.
        DataError: The folder holds no whole tokenizer, or one that does not pad.
    """
    made = pretrained("AutoTokenizer", folder, "tokenizer", DataError)
    names = list(dict.fromkeys(made.vocab_files_names.values()))
    if names and not any((folder / name).is_file() for name in names):  # transformers makes one without words of it
        raise DataError(
            f"tokenizer {folder} has no vocabulary: texts are cut by it, and none of {', '.join(names)} is there. Save "
            "the tokenizer there with save_pretrained, or name the folder that has it."
        )
    if made.pad_token_id is None:
        raise DataError(
            f"tokenizer {folder} does not pad: texts of a batch have one length, and it has no token for that. Set its "
            "pad_token, and pad_token_id in the model's config, and save both again."
        )
    return made
