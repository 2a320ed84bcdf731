"""The page of a published bundle: what it saves, what its exits cost, how to load it, and what is not known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from eenet.evaluation.saving import Saving
from eenet.running.preparation import Preparation

if TYPE_CHECKING:
    from eenet.running.bundle import Bundle

CARD = "README.md"
_TAGS = ("eenet", "early-exit", "adaptive-inference")
_UNKNOWN = "**Not measured:** what leaving early saves and loses on new samples was not given when this was saved."


def model_card(
    bundle: Bundle,
    name: str,
    *,
    saving: Saving | None = None,
    budget: str | None = None,
    data: str | None = None,
    license: str | None = None,
    alone: bool = False,
) -> str:
    """Return the model card of a bundle, in Markdown.

    Args:
        bundle: The bundle.
        name: Where it is found: a repository, or a folder.
        saving: What its policy saved and lost on samples that took no part in fitting; its sentence comes first.
        budget: The one its policy was fitted for, as it was asked for.
        data: What it was trained and fitted on, in the author's words.
        license: Its identifier, such as ``apache-2.0``.
        alone: Whether it can be loaded without a function that builds the model.
    """
    how = bundle.preparation
    task = None if how is None else "image-classification" if isinstance(how, Preparation) else "text-classification"
    header = ["---", "library_name: eenet", *([f"license: {json.dumps(license)}"] if license else [])]
    header += [f"pipeline_tag: {task}"] if task else []
    header += ["tags:", *(f"- {tag}" for tag in _TAGS), "---"]
    parts = [
        "\n".join(header),
        f"# {name.rpartition('/')[2]}",
        f"A model with {bundle.model.num_exits} exits that stops early, with the policy that decides where. "
        "Made with `eenet`.",
        _UNKNOWN if saving is None else saving.sentence,
        "## Cost and budget",
        *_costs(bundle, saving),
        *_budget(bundle, budget),
        "## Loading",
        _loading(name, pipeline=how is not None, alone=alone),
        "## Data and limits",
        "Trained and fitted on: " + (data or "not said by the author."),
        *_limits(saving, bundle),
    ]
    return "\n\n".join(parts) + "\n"


def _costs(bundle: Bundle, saving: Saving | None) -> list[str]:
    costs = bundle.costs
    if costs is None:
        return ["What leaving costs is not known: no costs were saved."]
    shares = None if saving is None else saving.exits
    names = ["exit", f"cost ({costs.unit})", "% of the full model", *(["% of samples"] if shares else [])]
    rows = [
        [str(k), f"{cost:.4g}", f"{100 * cost / costs.full:.0f}", *([f"{100 * shares[k]:.0f}"] if shares else [])]
        for k, cost in enumerate(costs.cumulative)
    ]
    lines = [names, ["---"] * len(names), *rows]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _budget(bundle: Bundle, budget: str | None) -> list[str]:
    said = [] if budget is None else [f"The policy was fitted for a budget of {budget} per sample."]
    if bundle.dial is not None:
        costs = bundle.dial.costs
        said.append(
            f"Its dial serves every mean cost from {costs.low:.4g} to {costs.high:.4g} {costs.unit} per sample without "
            'fitting again: `bundle.adaptive().at("60%")`.'
        )
    return [" ".join(said)] if said else []


def _loading(name: str, *, pipeline: bool, alone: bool) -> str:
    build = "" if alone else ", build"
    lines = [f"from eenet import {'AdaptivePipeline, ' if pipeline else ''}Bundle", ""]
    lines += [] if alone else ["# build: from bundle.info to the untrained model, see `info.json`"]
    lines.append(f"bundle = Bundle.from_pretrained({json.dumps(name)}{build})")
    lines.append(
        "answers = AdaptivePipeline(bundle)(inputs)  # texts or pictures"
        if pipeline
        else "prediction = bundle.adaptive()(inputs)  # exit_index, log_probs, cost"
    )
    return "```python\n" + "\n".join(lines) + "\n```"


def _limits(saving: Saving | None, bundle: Bundle) -> list[str]:
    judged = (
        "No measurement came with it: measure it on samples of your own before you rely on it."
        if saving is None
        else f"Judged on {saving.num_samples} samples that took no part in fitting, on one machine. Other data leave "
        "elsewhere: measure it on yours."
    )
    points = [
        judged,
        "A budget is a mean over samples like those it was fitted on, not a limit for each.",
        "The folder contains numbers and JSON only, no code. Its checksums show damage and changes; they are no "
        "signature.",
    ]
    if bundle.policy.source:
        points.append(f"The policy was fitted on outputs of this model (source {bundle.policy.source[:12]}).")
    return ["\n".join(f"- {point}" for point in points)]
