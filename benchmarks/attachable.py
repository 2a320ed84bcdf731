"""The page of models that exits were attached to: where they were tapped, what travels between stages, how exact it is.

    python benchmarks/attachable.py

Every model gets four exits at about equal cost, chosen by `attach`. Models are small or have random weights; none is
trained. The page is `docs/results/attach.md`; a slow test holds its rows to what `attach` does.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from foreign import FAMILIES

from eenet import attach
from eenet.experiments.pages import write_page
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel
from eenet.report import markdown_table

INTRO = """# Models that can be cut

Four exits each, at about equal cost, chosen by `attach`: three early ones behind the modules named, the original output
last. *Between stages*: how many tensors travel from stage to stage, and how many numbers a sample has in them (largest
of the three cuts). *Difference*: run stage by stage, one sample leaving after every stage, against the original model;
the power of ten above the largest difference, as a share of the largest logit. Transformers are small ones with random
weights, pictures are 64 x 64. Made by `python benchmarks/attachable.py`; a slow test attaches exits to all of them
and trains the heads for a few steps.

"""


def row(name: str) -> tuple[str, ...]:
    """Attach exits to one model and return what is said about it."""
    model, inputs = FAMILIES[name]()
    return described(name, attach(model.eval(), inputs, exits=4).eval(), inputs)


def described(name: str, attached: MultiExitModel, inputs: Inputs) -> tuple[str, ...]:
    """Return what is said about one model with exits."""
    with torch.no_grad():
        answer, left = attached(inputs)[-1], torch.arange(3)
        state, tensors, numbers = attached.start(inputs), [], []
        for stage in attached.stages:
            state = stage(state)
            parts = state if isinstance(state, tuple) else (state,)
            tensors.append(len(parts))
            numbers.append(sum(part[0].numel() for part in parts))
            if len(left) > 1 and len(tensors) < 3:
                keep = torch.arange(1, len(left))
                state, left = attached.select(state, keep), left[keep]
    difference = float((state - answer[left]).abs().max() / answer.abs().max())
    power = "0" if difference == 0 else f"1e{math.ceil(math.log10(difference))}"
    taps = ", ".join(f"`{tap}`" for tap in attached.whole.names)
    return (name, taps, f"{max(tensors[:-1])}", f"{max(numbers[:-1])}", power)


def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/attach.md"))
    options: Any = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for name in FAMILIES:
        print(name, file=sys.stderr, flush=True)
        rows.append(row(name))
    columns = ("model", "tapped", "tensors", "numbers per sample", "difference")
    write_page(options.out, INTRO, markdown_table(columns, rows))


if __name__ == "__main__":
    main()
