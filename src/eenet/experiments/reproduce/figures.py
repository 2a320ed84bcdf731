"""The figures of an experiment, drawn from its tables: the paper's Figures 3 to 5, and two more."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

from eenet import plot
from eenet.errors import EenetError
from eenet.evaluation import separation
from eenet.evaluation.paired import GROUPS, Paired, at_equal_cost, paired
from eenet.experiments.data.dataset import ArrayDataset
from eenet.experiments.data.texts import TextDataset
from eenet.policies import Dial, Policy
from eenet.report import markdown_table
from eenet.tables.atomic import atomic_path
from eenet.tables.table import ExitTable
from eenet.training.dataset import LabelledDataset

_LARGEST = 64  # pixels of an example's longer side: it is drawn no larger
_AT_ONCE = 256
_DPI = 90
_ALTS = {
    "ladder": "Exits with their cost in the middle; on both sides the samples that leave there by max_prob and by auto",
    "scores": "Scores at the first exit by class: on the left the largest probability, on the right the learned score",
    "weights": "Weights of the learned score as one heat strip per exit",
    "exits": "Share of the test samples that leave at each exit by auto, over the budget",
    "reliability": "Reliability diagram of every exit on the test set",
}
_MAPS = "an answer is a whole map, neither right nor wrong"

Draw: TypeAlias = Callable[[], Figure]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What figures are drawn from.

    Attributes:
        table: The test set.
        max_prob: Fitted on the calibration set.
        auto: Likewise.
        learned: Name of a policy with a learned score, and the policy.
        cost: Mean cost per sample that `max_prob` and `auto` shall both realise.
        samples: The inputs of the table, which are shown; None: figures show none of them.
        maps: Whether the samples are answered by maps.
    """

    table: ExitTable
    max_prob: Dial
    auto: Dial
    learned: tuple[str, Policy]
    cost: float
    samples: LabelledDataset | None
    maps: bool = False

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write every figure that can be drawn into a folder, and return what they show, as JSON values."""
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {"files": {}, "left_out": {}, "learned": self.learned[0]}
        pair: tuple[Policy, ...] = ()
        for kind in ("ladder", "scores", "reliability") if self.maps else ():
            found["left_out"][kind] = _MAPS
        if not self.maps:
            try:
                pair = at_equal_cost(self.max_prob, self.auto, self.table, self.cost)
                found["pair"] = _described(paired(self.table, *pair), self.table)
            except EenetError as error:
                found["left_out"]["ladder"] = str(error)
            found["auroc"] = dict(self._auroc(pair))
        for kind, draw in self._drawings(pair).items():
            try:
                _save(draw(), folder / f"{name}_{kind}.png")
                found["files"][kind] = f"{name}_{kind}.png"
            except EenetError as error:
                found["left_out"][kind] = str(error)
        return found

    def _drawings(self, pair: Sequence[Policy]) -> dict[str, Draw]:
        """Return what draws each figure; ``pair``: at equal cost, empty where there is none."""
        table, images = self.table, None if self.maps else pictures(self.samples)
        always: dict[str, Draw] = {
            "weights": partial(plot.score_weights, self.learned[1]),
            "exits": partial(plot.exits_by_budget, self.auto, table),
        }
        if self.maps:
            return always
        drawn: dict[str, Draw] = {"scores": partial(plot.scores_by_class, table, self.learned[1], images=images)}
        if pair:
            drawn = {"ladder": partial(plot.ladder, table, *pair, images=images, texts=texts(self.samples))} | drawn
        return drawn | always | {"reliability": partial(plot.reliability, table)}

    def _auroc(self, pair: Sequence[Policy]) -> Iterator[tuple[str, list[float | None]]]:
        """Yield how well the score of each policy separates right from wrong at every exit where it decides."""
        for name, policy in (*zip(("max_prob", "auto"), pair, strict=False), self.learned):
            try:
                yield name, separation(policy, self.table).to_dict()["overall"]
            except EenetError:  # all leave at the first exit
                continue


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of 256 colours, a third of the size where there are pictures in it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI, format="png")
    with atomic_path(path) as draft:
        Image.open(drawn).convert("RGB").quantize(dither=Image.Dither.NONE).save(draft, format="PNG", optimize=True)


def _described(found: Paired, table: ExitTable) -> dict[str, Any]:
    costs = table.require_costs()
    return {
        "groups": found.counts,
        "costs": list(found.costs),
        "unit": costs.unit,
        "right": found.right.mean(axis=1).tolist(),
        "right_and_left": found.right_and_left(costs.num_exits).tolist(),
    }


def pictures(samples: LabelledDataset | None) -> UInt8[np.ndarray, "sample height width channel"] | None:
    """Return samples as small pictures before any normalisation; None where they are no images with 1 or 3 channels."""
    if not isinstance(samples, ArrayDataset) or samples.images.shape[1] not in (1, 3):
        return None
    return np.concatenate([_small(samples, first) for first in range(0, len(samples), _AT_ONCE)])


def _small(samples: ArrayDataset, first: int) -> UInt8[np.ndarray, "sample height width channel"]:
    raw = samples.images[slice(first, first + _AT_ONCE)]
    values = raw.float() if raw.dtype == torch.uint8 else 255 * raw.float()
    if (longer := max(values.shape[2:])) > _LARGEST:
        size = [max(1, round(side * _LARGEST / longer)) for side in values.shape[2:]]
        values = F.interpolate(values, size, mode="area")
    found: np.ndarray = values.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return found


def texts(samples: LabelledDataset | None) -> list[str] | None:
    """Return texts as far as the model reads them; None where samples are no texts, or their tokenizer is not known."""
    if not isinstance(samples, TextDataset) or samples.preparation is None:
        return None
    tokens = [row[mask].tolist() for row, mask in zip(samples.tokens, samples.mask, strict=True)]
    decode = samples.preparation.tokenizer.decode
    return [decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=True) for row in tokens]


def figures_section(found: Mapping[str, Any]) -> str:
    """Return the section of a page with the figures of `Figures.save`, and the counts in them."""
    parts = ["## Who leaves where, and by which score"]
    parts += [_groups(found["pair"])] if "pair" in found else []
    parts += [_separation(found["auroc"])] if found.get("auroc") else []
    parts.append(f"The learned score in the figures is that of `{found['learned']}`.")
    parts += [f"![{_ALTS[kind]}]({found['files'][kind]})" for kind in _ALTS if kind in found["files"]]
    parts += [f"The figure *{kind}* is left out: {why.rstrip('.')}." for kind, why in found["left_out"].items()]
    return "\n\n".join(parts)


def _groups(pair: Mapping[str, Any]) -> str:
    """Return how two policies do at equal cost, exit by exit, and the counts of the groups of samples."""
    rows = [
        (f"exit {k}", *(f"{right} / {left}" for right, left in both))
        for k, both in enumerate(zip(*pair["right_and_left"], strict=True))
    ]
    rows.append(("all", *(f"{100 * share:.2f} %" for share in pair["right"])))
    rows.append((f"mean cost [{pair['unit']}]", *(f"{cost:.5g}" for cost in pair["costs"])))
    meanings = (
        (name, meaning.replace("the second", "auto").replace("second", "auto")) for name, meaning in GROUPS.items()
    )
    groups = [(name, meaning, str(pair["groups"][name])) for name, meaning in meanings]
    head = "`max_prob` and `auto` at equal realised cost on the test set: right answers / samples that left, by exit."
    tables = markdown_table(("", "max_prob", "auto"), rows), markdown_table(("group", "answers", "samples"), groups)
    return f"{head}\n\n" + "\n".join(tables).rstrip("\n")


def _separation(auroc: Mapping[str, Sequence[float | None]]) -> str:
    """Return the AUROC of every policy's score at every exit where it decides."""
    exits = max(map(len, auroc.values()))
    rows = [
        (name, *("-" if value is None else f"{value:.3f}" for value in (*values, *[None] * (exits - len(values)))))
        for name, values in auroc.items()
    ]
    head = (
        "How well the score of each policy separates right from wrong answers on the test set, all samples at every "
        "exit (AUROC: 0.5 says nothing, 1 everything)."
    )
    return f"{head}\n\n{markdown_table(('score of', *(f'exit {k}' for k in range(exits))), rows)}".rstrip("\n")
