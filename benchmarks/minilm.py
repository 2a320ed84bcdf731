"""A model from elsewhere on real sentences: MiniLM on SST-2, given exits after every second layer.

    python benchmarks/sst2.py --data-root DIR --run runs/sst2_minilm_6       # fine-tunes the published weights
    python benchmarks/minilm.py --data-root DIR --start runs/sst2_minilm_6 --run runs/sst2_minilm_3

Takes the fine-tuned network of the first command as transformers runs it, with token numbers and attention masks,
attaches exits behind layers 1 and 3, trains them (some minutes on one core; it resumes), and records both halves of
the held-out sentences as ``calibration.npz`` and ``test.npz`` with FLOPs. Sentences are padded to one length, as
compiled graphs want them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from common import command_line, data_option, described, given, recorded
from sst2 import CLASSES, weights_folder, with_exits
from torch import Tensor, nn

from eenet import attach
from eenet.experiments.data.text_sets import load_sst2
from eenet.experiments.data.texts import TextDataset, masked
from eenet.models.model import MultiExitModel
from eenet.models.weights import load_tensors
from eenet.running.measuring import measure_flops
from eenet.tables.costs import CostTable
from eenet.training.fit import fit_exits
from eenet.training.losses import uniform_weights
from eenet.training.settings import TrainSettings

TOKENS = 64  # one of the 2,693 held-out sentences is longer, and is cut
EXITS = ("bert.encoder.layer.1", "bert.encoder.layer.3")
# fixed beforehand: some minutes on one slow core
SETTINGS = TrainSettings(
    epochs=0.15, batch_size=32, lr=0.02, head_lr=0.1, heads_share=0.3, weight_decay=0.0, weighting=uniform_weights
)


def main() -> None:
    """Do what is not done yet, then print what the exits cost and get right."""
    parser = command_line(__doc__)
    data_option(parser)
    parser.add_argument("--start", type=Path, required=True, help="run folder of benchmarks/sst2.py")
    parser.add_argument("--run", type=Path, required=True, help="run folder; made if it is not there")
    parser.add_argument("--seed", type=int, default=0, help="of heads, data order and halves")
    options = given(parser)
    model = build(options.start, options.seed)
    splits = padded_splits(options.data_root, options.seed)
    fit_exits(model, splits["train"], replace(SETTINGS, seed=options.seed), out=options.run)
    known = costs(model)
    tables = {
        name: recorded(model, splits[name], options.run, name, known, batch_size=64) for name in ("calibration", "test")
    }
    print(json.dumps(described(tables), indent=2))


class SentenceClassifier(nn.Module):
    """A BERT that answers by the mean over its real tokens.

    Args:
        bert: of transformers, without its pooler.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert
        self.classify = nn.Linear(bert.config.hidden_size, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.to(hidden.dtype)[:, :, None]
        return self.classify((hidden * weights).sum(dim=1) / weights.sum(dim=1))  # type: ignore[no-any-return]


def padded_splits(root: Path, seed: int) -> dict[str, TextDataset]:
    """Return the splits of the benchmark of six exits with attention masks; held-out sentences have one length."""
    splits = load_sst2(root, weights_folder(), seed=seed)
    forms = {"train": masked, "calibration": partial(masked, width=TOKENS), "test": partial(masked, width=TOKENS)}
    return {
        name: TextDataset(splits.get(name).tokens, splits.get(name).labels, form=form) for name, form in forms.items()
    }


def classifier(start: Path, seed: int) -> SentenceClassifier:
    """Return the network that a run of the benchmark of six exits ended with, as transformers runs it."""
    from transformers import BertModel, logging

    logging.set_verbosity_error()  # else it warns about the pooler, which nobody needs
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(
        weights_folder(), local_files_only=True, use_safetensors=True, add_pooling_layer=False
    )
    fitted = with_exits(bert, seed)  # shares the weights
    fitted.load_state_dict(load_tensors(start / "model.safetensors", "run"))
    found = SentenceClassifier(bert.requires_grad_(True))
    found.classify.load_state_dict(fitted.heads[-1].classify.state_dict())  # type: ignore[union-attr,operator]
    found.bert.embeddings.requires_grad_(False)  # type: ignore[union-attr]
    return found.eval()


def example() -> dict[str, Tensor]:
    """Return what goes into the network, two sentences of it."""
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, 12:] = 0
    return {"input_ids": 1000 * mask, "attention_mask": mask}


def build(start: Path, seed: int) -> MultiExitModel:
    """Return the fine-tuned network with untrained exits."""
    return attach(classifier(start, seed), example(), exits=EXITS, seed=seed)


def costs(model: MultiExitModel) -> CostTable:
    """Return the FLOPs of leaving at each exit."""
    return measure_flops(model, example()).costs().convert("MFLOPs")


if __name__ == "__main__":
    main()
