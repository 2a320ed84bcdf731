"""The page of `encoder_depth.py`: a sentence encoder whose depth depends on the query."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eenet.experiments.pages import again, bullets, machine, write_page
from eenet.report import markdown_table

COMMAND = "python benchmarks/encoder_depth.py --data-root DIR --out runs/encoder_depth"
CAVEATS = (
    "One split of one data set, one training of the heads, one seed. Queries, candidates and training pairs come from "
    "the same source; a title often repeats words of its text, which makes finding it easy.",
    "A mean cost in layers is a mean over queries. The candidates of a query are encoded with it; where their vectors "
    "can be stored beforehand, only the query is left to encode, and early layers save little.",
    "The time is that of one run on one machine, without batches of several queries.",
)


def depth_page(found: Mapping[str, Any], options: argparse.Namespace) -> Path:
    """Write the page and return where it stands."""
    queries, timed = found["queries"], found["timed"]
    before, after = found["likelihoods"]
    layers = [
        (
            f"layer {2 * (k + 1)}",
            f"{100 * found['utility'][k]:.2f}",
            f"{100 * found['first'][k]:.2f}",
            f"{found['temperatures'][k]:.2f}",
            f"{before[k]:.3f}",
            f"{after[k]:.3f}",
        )
        for k in range(len(before))
    ]
    rows = [
        (
            f"{one['budget']:g}",
            one["policy"],
            f"{one['cost']:.2f}",
            f"{100 * one['utility']:.2f}",
            f"{100 * one['gain']:+.2f} ± {196 * one['error']:.2f}",
            " ".join(f"{100 * share:.0f}" for share in one["shares"]),
        )
        for one in found["rows"]
    ]
    return write_page(
        options.page / "encoder_depth.md",
        "# Depth of an encoder, query by query",
        "What [Rerankers and encoders](../rerankers.md) describes, on MiniLM (6 layers, published weights, not "
        "fine-tuned). Queries are titles of AG News; the text of the same article is to be found among 50 of its "
        "section by the cosine of two vectors, each the mean over the words after layer 2, 4 or 6 and a linear head, "
        f"trained on {queries['train']} other pairs. Policies are fitted on {queries['calibration']} queries and "
        f"judged on {queries['test']}; no article is in two parts. Utility is the reciprocal rank of the right text "
        "(its mean, in percent, is the MRR).",
        "## Fixed depth\n\nThe temperature of each layer is fitted on the calibration queries; the last two columns "
        "are the mean negative log-probability of the right text on the test queries.\n\n"
        + markdown_table(("read after", "MRR %", "first %", "temperature", "as scored", "calibrated"), layers),
        "## Depth per query, at equal mean cost\n\n*Gain* is the difference, in points, from the best mix at "
        "random of two fixed depths that has the same mean cost, with its paired 95 % interval; which depths are mixed "
        "is chosen on the test queries, so that no policy is favoured. It is fixed depth 4 at a cost of 4 layers, "
        "unless the mix of depths 2 and 6 is better.\n\n"
        + markdown_table(("budget, layers", "policy", "spent", "MRR %", "gain", "by layer, %"), rows),
        f"Run for real, one query with its 50 texts after the other, {timed['queries']} test queries, "
        f"{found['threads']} thread: {timed['full']:.0f} ms per query at full depth, {timed['adaptive']:.0f} ms by "
        f"`stopping` at a budget of 4 layers, which used {timed['layers']:.2f} layers in the mean.",
        bullets("Caveats", CAVEATS),
        again(COMMAND),
        f"Seed {found['seed']}. " + machine(),
    )
