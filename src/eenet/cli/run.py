"""`eenet run`: adaptive inference for real."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from eenet.cli import loading, paths
from eenet.cli.inputs import Source, batches, open_inputs
from eenet.cli.options import DataRootOption, DebugFlag, JsonFlag, PolicyFolderOption, QuietFlag, RunArgument
from eenet.cli.output import Output, percent, plain, shares, text_table
from eenet.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from eenet.inference.adaptive import AdaptiveModel, Prediction
    from eenet.recipes import Run

SHOWN_SAMPLES = 50
OUT_SUFFIXES = (".csv", ".json")


def run(
    run_folder: RunArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUTS...", help="Images, folders of images, .npy or .npz arrays, or split:test."),
    ],
    *,
    policy: PolicyFolderOption,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples per forward pass.")] = 32,
    regroup: Annotated[
        bool,
        typer.Option(
            "--regroup/--no-regroup",
            help="Let samples that stay wait for a full batch before each stage; same answers.",
        ),
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Per-sample rows, .csv or .json.")
    ] = None,
    data_root: DataRootOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Run a model with a policy: every sample stops where the policy lets it go.

    Arrays hold images as (sample, channel, height, width): uint8 from 0 to 255 or floats from 0 to 1; an .npz has them
    under `images`, and the true classes, if known, under `labels`.

    Examples:

        eenet run run --policy policy photos/ cat.png

        eenet run run --policy policy split:test --out rows.csv
    """
    output = Output(as_json=as_json, quiet=quiet)
    if out is not None and paths.output_file(out).suffix.lower() not in OUT_SUFFIXES:
        raise InputError(
            f"--out {str(out)!r} is of no known kind: rows are written as {' or '.join(OUT_SUFFIXES)}. Rename it."
        )
    opened = loading.open_run(run_folder, data_root)
    saved, model = loading.open_policy(policy, opened)
    sources = open_inputs(inputs, opened.splits.get, loading.image_shape(opened.splits.test))

    from eenet.inference.adaptive import AdaptiveModel

    output.note(f"Running {sum(len(source.names) for source in sources)} samples in batches of {batch_size}.")
    samples = predict(
        AdaptiveModel(model, saved.policy, saved.costs),
        opened,
        sources,
        batch_size,
        regroup=regroup,
        exits=saved.exits,
        progress=not quiet,
    )
    unit = None if saved.costs is None else saved.costs.unit
    summary = summarise(samples, opened.model.num_exits, unit)
    if out is not None:
        write_rows(samples, out)
        output.note(f"wrote {len(samples)} rows to {out}")
    output.result({**summary, "samples": samples}, *_shown(summary, samples))


def predict(
    adaptive: AdaptiveModel,
    opened: Run,
    sources: Sequence[Source],
    batch_size: int,
    *,
    regroup: bool = True,
    exits: Sequence[int] | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Run every sample of the sources and return one row for each.

    Args:
        adaptive: The model with its policy.
        opened: The run the model belongs to: it knows how images are prepared and what classes are called.
        sources: Where the samples come from.
        batch_size: Samples per forward pass.
        regroup: Let samples that stay wait for a full batch before each stage.
        exits: What the exits are called, where the adaptive model has some of the run's only.
        progress: Show a bar on stderr if it takes more than two seconds.
    """
    from eenet.inference.progress import track

    total = sum(-(-len(source.names) // batch_size) for source in sources)
    names: list[str] = []
    labels: list[int | None] = []
    prepare, classes = loading.preparation(opened.splits.test), opened.splits.classes

    def prepared() -> Iterator[Tensor]:
        for batch_names, images, batch_labels in track(
            batches(sources, batch_size), total, "running", enabled=progress
        ):
            names.extend(batch_names)
            labels.extend([None] * len(batch_names) if batch_labels is None else batch_labels.tolist())
            yield prepare(images)

    prediction = adaptive.predict_all(prepared(), regroup=regroup)
    samples: list[dict[str, Any]] = []
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        sample = {"sample": row, "input": name, **_sample(prediction, row, classes)}
        if exits is not None:
            sample["exit"] = exits[sample["exit"]]
        if label is not None:
            sample["label"] = label
            sample["right"] = sample["prediction"] == label
        samples.append(sample)
    return samples


def _sample(prediction: Prediction, row: int, classes: Sequence[str]) -> dict[str, Any]:
    predicted = int(prediction.log_probs[row].argmax())
    return {
        "prediction": predicted,
        "class": classes[predicted],
        "probability": float(prediction.log_probs[row, predicted].exp()),
        "exit": int(prediction.exit_index[row]),
        "cost": None if prediction.cost is None else float(prediction.cost[row]),
    }


def summarise(samples: Sequence[dict[str, Any]], num_exits: int, unit: str | None) -> dict[str, Any]:
    """Return what the samples cost on average, where they left, and how many were right if that is known."""
    costs = [sample["cost"] for sample in samples if sample["cost"] is not None]
    known = [sample["right"] for sample in samples if "right" in sample]
    return {
        "num_samples": len(samples),
        "unit": unit,
        "mean_cost": sum(costs) / len(costs) if costs else None,
        "exit_distribution": [sum(s["exit"] == k for s in samples) / len(samples) for k in range(num_exits)],
        "num_labelled": len(known),
        "accuracy": sum(known) / len(known) if known else None,
    }


def write_rows(samples: Sequence[dict[str, Any]], out: Path) -> None:
    """Write per-sample rows as CSV or JSON, atomically."""
    from eenet.core.files import atomic_path, write_json

    if out.suffix.lower() == ".json":
        write_json(out, plain(samples))
        return
    columns = list(dict.fromkeys(key for sample in samples for key in sample))
    with atomic_path(out) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(samples)


def _shown(summary: dict[str, Any], samples: Sequence[dict[str, Any]]) -> list[RenderableType]:
    unit = summary["unit"] or "cost"
    tables: list[RenderableType] = []
    if len(samples) <= SHOWN_SAMPLES:
        rows = [(s["input"], s["class"], percent(s["probability"]), s["exit"], s["cost"]) for s in samples]
        tables.append(text_table("", ("input", "prediction", "probability", "exit", unit), rows))
    lines: list[tuple[str, object]] = [
        ("samples", summary["num_samples"]),
        (f"mean cost ({unit})", summary["mean_cost"]),
        ("left at exits, %", shares(summary["exit_distribution"])),
    ]
    if summary["accuracy"] is not None:
        lines.append((f"accuracy on {summary['num_labelled']} labelled", percent(summary["accuracy"])))
    return [*tables, text_table("Summary", ("what", "value"), lines)]
