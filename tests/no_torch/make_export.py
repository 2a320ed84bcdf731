"""Writes what the tests without PyTorch read: python make_export.py FOLDER [ENGINE], where PyTorch is installed.

FOLDER gets `val.npz` and `test.npz` (recorded tables), `policy` (fitted, with its dial), `export`, `inputs.npz` (the
test images with their labels) and `answers.npz` (what the model answers to them with PyTorch).
"""

import sys
from pathlib import Path

import numpy as np
import torch

from eenet import AdaptiveModel, CostTable, StoppingScheduler, export, record, save_policy, tiny_cnn
from eenet.experiments.data import load_digits

BUDGET = "60%"


def main(folder: Path, engine: str = "onnxruntime") -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    splits, model = load_digits(seed=0), tiny_cnn(exits=3).eval()
    costs = CostTable((1.0, 2.0, 4.0), "ms", 3.5)
    tables = {
        name: record(model, splits.get(name), folder / f"{name}.npz", split=name, costs=costs)
        for name in ("val", "test")
    }
    dial = StoppingScheduler().sweep(tables["val"])
    policy, images = dial.at(BUDGET), splits.test.inputs(slice(None))
    save_policy(policy, folder / "policy", costs=costs, dial=dial, source=tables["val"].source)
    export(model, policy, images[:8], folder / "export", engine=engine, costs=costs, dial=dial)
    np.savez(folder / "inputs.npz", inputs=images.contiguous().numpy(), labels=splits.test.labels.numpy())
    found = AdaptiveModel(model, policy, costs)(images)
    turned = AdaptiveModel(model, dial.at("90%"), costs)(images)
    np.savez(
        folder / "answers.npz",
        exit_index=found.exit_index,
        log_probs=found.log_probs,
        turned_exit_index=turned.exit_index,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
