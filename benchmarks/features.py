"""Do embeddings foretell better than probabilities whether going on will help?

    python benchmarks/features.py --tables DIR --data-root DIR [--splits 5] [--seed 0] [--out docs/results]

For every real table in the folder of run folders (`policies.py` says how to make them): at each early exit, how well it
can be foretold that the exit is wrong and the last one right, from the state of `stopping` alone and with the exit's
pooled embedding beside it (logistic regression fitted on one half, area under the ROC curve on the other); and the area
that `stopping` reaches with and without the embeddings. Those of the CIFAR-10 runs are recorded first, from their
models. Writes ``docs/results/features.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from eenet import ExitTable, StoppingScheduler, compare
from eenet.core.files import atomic_path
from eenet.evaluation.sides import draw_sides
from eenet.recipes import open_run
from eenet.report import markdown_table
from eenet.reproduce import machine
from eenet.schedulers.stopping import StoppingState

TABLES = ("cifar10_resnet56_6", "cifar10_resnet56_3", "sst2_minilm_6")


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder of run folders")
    parser.add_argument(
        "--data-root", type=Path, help="where the images are, to record embeddings of the CIFAR-10 runs"
    )
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = [HEAD]
    for name in TABLES:
        if (options.tables / name / "test.npz").is_file():
            tables = [with_embeddings(options.tables / name, split, options.data_root) for split in SPLITS]
            parts.append(section(name, *tables, splits=options.splits, seed=options.seed))
    parts.append(
        f"\nCommand: `python benchmarks/features.py --tables DIR --data-root DIR --splits {options.splits} --seed "
    )
    parts.append(f"{options.seed}`\n\n{machine()}")
    with atomic_path(options.out / "features.md") as draft:
        draft.write_text("".join(parts), encoding="utf-8")


SPLITS = ("calibration", "test")
HEAD = """# Embeddings beside probabilities

A table may carry `features`, here the pooled embedding that each exit's last layer sees. Do they tell more about
whether going on will help? Two answers for each table: how well "this exit is wrong and the last one right" is foretold
on unseen samples (area under the ROC curve; 0.5 is guessing), and what `stopping` makes of it (area under the
utility-cost curve, in percent).
"""


def with_embeddings(run: Path, split: str, data_root: Path | None) -> ExitTable:
    """Return a recorded table with the pooled embeddings of its exits."""
    table = ExitTable.load(run / f"{split}.npz")
    if table.features is not None:
        return table
    path = run / f"{split}.features.npy"
    if not path.is_file():
        opened = open_run(run, data_root=data_root)
        np.save(path, embeddings(opened.model, opened.splits.get(split)))
    return replace(table, features=torch.from_numpy(np.load(path)))


@torch.inference_mode()
def embeddings(model: Any, data: Any) -> np.ndarray:  # noqa: ANN401
    """Return what the last linear layer of every head sees, filled up with zeros to the widest."""
    seen: list[list[Tensor]] = []
    last = [[part for part in head.modules() if isinstance(part, nn.Linear)][-1] for head in model.heads]
    for layer in last:
        parts: list[Tensor] = []
        layer.register_forward_pre_hook(lambda _, args, parts=parts: parts.append(args[0]))
        seen.append(parts)
    model.eval()
    for start in range(0, len(data), 250):
        model(data.inputs(slice(start, min(start + 250, len(data)))))
    widest = max(parts[0].shape[1] for parts in seen)
    columns = [nn.functional.pad(torch.cat(parts), (0, widest - parts[0].shape[1])) for parts in seen]
    found: np.ndarray = torch.stack(columns, dim=1).half().numpy()
    return found


def section(name: str, val: ExitTable, test: ExitTable, *, splits: int, seed: int) -> str:
    """Return the part of the page about one table."""
    rows = [
        (str(k), f"{100 * share:.1f}", f"{alone:.3f}", f"{both:.3f}", f"{both - alone:+.3f} ± {spread:.3f}")
        for k, share, alone, both, spread in foretold(val, test, splits, seed)
    ]
    schedulers = {
        "stopping": StoppingScheduler(seed=seed),
        "stopping with embeddings": StoppingScheduler(use_features=True, seed=seed),
    }
    found = compare(val, test, schedulers, splits=splits, seed=seed)
    pair = next(one for one in found.pairs if {one.a, one.b} == set(schedulers))
    verdict = "significant" if pair.significant else "not significant"
    areas = ", ".join(f"{policy} {100 * found.area[policy]:.2f}" for policy in schedulers)
    return (
        f"\n## {name}\n\n{val.num_samples} + {test.num_samples} samples, {val.features.shape[2]} numbers per "
        f"embedding, {splits} splits.\n\n"
        + markdown_table(("exit", "share %", "from the state", "with embedding", "difference"), rows)
        + f"\nAreas: {areas}. {pair.a} − {pair.b}: {pair.difference:+.2f} points, 95 % interval {pair.low:+.2f} to "
        f"{pair.high:+.2f} ({verdict}).\n"
    )


def foretold(val: ExitTable, test: ExitTable, splits: int, seed: int) -> list[tuple[int, float, float, float, float]]:
    """Return, for every early exit, the share of samples the last exit saves, and the areas under the ROC curve."""
    result = []
    for k in range(val.num_exits - 1):
        shares, alone, both = [], [], []
        for first, second in draw_sides(val, test, splits, seed):
            sides = [described(side, k) for side in (first, second)]
            shares.append(float(sides[1][2].mean()))
            for store, columns in ((alone, (0,)), (both, (0, 1))):
                (x, y), (x_test, y_test) = ((np.hstack([side[c] for c in columns]), side[2]) for side in sides)
                model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)).fit(x, y)
                store.append(roc_auc_score(y_test, model.decision_function(x_test)))
        spread = float(np.std(np.subtract(both, alone), ddof=1)) if splits > 1 else 0.0
        result.append((k, float(np.mean(shares)), float(np.mean(alone)), float(np.mean(both)), spread))
    return result


def described(table: ExitTable, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return state, embedding and target of all samples at one exit."""
    utility = table.require_utility("foretelling")
    state = StoppingState.suiting(table, with_features=False).of(table.log_probs_at(slice(None), k), None)
    target = (utility[:, k] < 0.5) & (utility[:, -1] > 0.5)
    return state.numpy(), table.features[:, k].double().numpy(), target.numpy()


if __name__ == "__main__":
    main()
