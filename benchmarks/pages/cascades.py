"""The page of `cascades.py`: what a small model in front of a large one saves."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eenet.experiments.pages import again, bullets, machine, spread, write_page
from eenet.report import markdown_table

COMMAND = "python benchmarks/cascades.py --data-root DIR --out runs/cascades --agnews RUN --resnet56 RUN"
TITLES = {"agnews": "AG News", "sst2": "SST-2"}
POLICIES = {"auto": "`auto`", "stopping": "`stopping`", "threshold": "one threshold on `max_prob`"}
SETUPS = {"plain": "linear, MiniLM", "inside": "linear, MiniLM with exits inside"}
CAVEATS = (
    "One training of each model with one seed; policies and thresholds are chosen on the calibration samples, and "
    "judged once on the test samples.",
    "On SST-2, calibration has 1,500 sentences of the training part besides the dev sentences; neither model was "
    "trained on them or on phrases of them. MiniLM, trained on the rest, is judged with less than "
    "[sst2-bert](sst2-bert.md) was trained on.",
    "CIFAR-10 here is **re-compressed JPEG**, which the published weights have not seen: accuracies are lower than "
    "published ones. The multi-exit ResNet56 was tuned on such images, the other two were not, so it is favoured.",
    "Times are ratios within one run on one machine; other machines have others.",
)


def cascades_page(found: Mapping[str, Any], options: argparse.Namespace) -> Path:
    """Write the page and return where it stands."""
    return write_page(
        options.page / "cascades.md",
        "# Models one after another",
        intro(),
        *(texts_section(TITLES[name], found[name]) for name in TITLES),
        images_section(found["cifar10"]),
        bullets("Caveats", CAVEATS),
        again(COMMAND),
        machine(),
    )


def intro() -> str:
    """Return what was measured, and how to read it."""
    return (
        "What a [cascade](../cascades.md) saves: a small model answers first, and the large one is called for the "
        "samples that are left. **linear** is a logistic regression on TF-IDF of words and pairs of words "
        "(scikit-learn), fitted on the training texts and called as a plain function of the text, which gives the same "
        "probabilities without building a sparse matrix of one row; **MiniLM** has 6 layers and is fine-tuned on them "
        "(its exits inside are after layers 2, 3 and 4, trained with it; *MiniLM alone* is its last exit). Tokens are "
        "made by `prepare`, within the times.\n\n"
        "**Speed** is the time of MiniLM alone divided by that of the cascade, both within one run, passes in turns, "
        "medians over passes; times in ms per text with their quartiles. The goal, fixed beforehand, is to lose at "
        "most 0.3 points on the test texts at the speed named, at batch size 1. Points lost have their 95 % "
        "interval.\n\n"
        "Each policy has the smallest budget that is *safe* on the calibration texts: fitted on four fifths of them "
        "and judged on the rest, in turn, it loses at most 0.3 points, its standard error included, and so does every "
        "larger budget. Where no budget is, it has the largest. The single threshold is judged on the texts it is "
        "chosen by."
    )


def texts_section(title: str, value: Mapping[str, Any]) -> str:
    """Return one data set of texts."""
    samples, timed = value["samples"], value["timed"]
    rows = []
    for (setup, one), goal in zip(value["cascades"].items(), value["goals"], strict=True):
        for policy, result in one["policies"].items():
            rows.append(text_row(setup, policy, result, goal))
    alone = [(name, f"{100 * right:.2f}") for name, right in value["accuracy"].items()]
    first = next(iter(value["cascades"]["plain"]["policies"].values()))["bench"][0]
    costs, calls = value["cascades"]["plain"], value["linear_ms"]
    return (
        f"## {title}\n\n{samples['train']} texts for training, {samples['calibration']} for calibration, "
        f"{samples['test']} for the test; timed on the first {timed['samples']} of them, {timed['passes']} passes, "
        f"{timed['threads']} thread. MiniLM alone takes {spread(first['full_ms'], first['full_spread'])} ms per text "
        f"at batch size 1, the linear model {costs['costs'][0]:.2f} ms; called by itself, it takes "
        f"{calls['function']:.2f} ms as a function and {calls['scikit-learn']:.2f} ms through scikit-learn.\n\n"
        + markdown_table(
            (
                "cascade",
                "policy",
                "test %",
                "points lost",
                "speed, batch 1",
                "ms",
                "speed, batch 32",
                "by exit, %",
                "goal",
            ),
            rows,
        )
        + "\nAt the budgets of the goals, the time of MiniLM alone divided by a speed (*speed* here follows from the "
        "costs of the exits and from where test texts leave; *alone* is the best single model within the budget, and "
        "the threshold is the best within it, both on the calibration texts):\n\n"
        + markdown_table(
            ("cascade", "budget", "policy", "test %", "points lost", "speed"),
            [
                budget_row(setup, row, [*value["accuracy"]])
                for setup, one in value["cascades"].items()
                for row in one["budgets"]
            ],
        )
        + "\nEach exit alone:\n\n"
        + markdown_table(("exit", "test %"), alone)
    )


def budget_row(setup: str, row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """Return what one policy loses at the budget of a goal."""
    exits = names if setup == "inside" else (names[0], names[-1])
    return (
        SETUPS[setup],
        f"1/{row['goal']:g}",
        f"{exits[row['exit']]} alone" if row["policy"] == "alone" else POLICIES[row["policy"]],
        f"{100 * row['accuracy']:.2f}",
        f"{100 * row['lost']:+.2f} ± {196 * row['error']:.2f}",
        f"{row['speed']:.2f}",
    )


def text_row(setup: str, policy: str, result: Mapping[str, Any], goal: float) -> tuple[str, ...]:
    """Return one policy of one cascade."""
    one, many = result["bench"]
    total = sum(result["shares"])
    reached = result["lost"] <= 0.003 and one["speedup"] >= goal
    return (
        SETUPS[setup],
        POLICIES[policy],
        f"{100 * result['accuracy']:.2f}",
        f"{100 * result['lost']:+.2f} ± {100 * 1.96 * result['error']:.2f}",
        f"{one['speedup']:.2f}",
        spread(one["adaptive_ms"], one["adaptive_spread"]),
        f"{many['speedup']:.2f}",
        " ".join(f"{100 * count / total:.0f}" for count in result["shares"]),
        f"{goal:g}: {'reached' if reached else 'missed'}",
    )


def images_section(value: Mapping[str, Any]) -> str:
    """Return the images: accuracy at equal measured time."""
    samples = value["samples"]
    rows = []
    for one in value["curves"]:
        reached = ["-" if right is None else f"{100 * right:.2f}" for right in one["curve"]]
        alone = ", ".join(
            f"{100 * right:.2f} ({cost / one['full']:.0%})"
            for right, cost in zip(one["accuracy"], one["costs"], strict=True)
        )
        rows.append((one["setup"], str(one["batch_size"]), *reached, alone))
    return (
        f"## CIFAR-10\n\nTest accuracy in percent under the policy `stopping`, fitted on {samples['calibration']} "
        f"images and judged on {samples['test']}, at shares of the measured time of ResNet56 alone ({value['passes']} "
        f"passes in turns, {value['threads']} thread). The last column is the accuracy of each exit alone, with the "
        "share of that time at which a sample leaves there.\n\n"
        + markdown_table(
            ("models", "batch", *(f"{share:.0%}" for share in value["shares"]), "exits: accuracy (time)"), rows
        )
    )
