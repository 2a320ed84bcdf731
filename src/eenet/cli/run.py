"""`eenet run`: adaptive inference, from a run, a bundle or an export."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from eenet import environment
from eenet.cli import loading, names, options
from eenet.cli.interrupt import require
from eenet.cli.output import Output, Result, facts_table, percent, plain
from eenet.cli.samples import ARRAY_SUFFIXES, Images, Source, TextFiles
from eenet.cli.tiers import FILES, Sending
from eenet.errors import InputError
from eenet.imports import known
from eenet.report.sections import Block, Table, exit_shares
from eenet.tables.atomic import atomic_path
from eenet.tables.files import read_arrays, read_json, read_object, write_json

if TYPE_CHECKING:
    from eenet.experiments.recipes import Run
    from eenet.models.model import MultiExitModel
    from eenet.policies import SavedPolicy
    from eenet.policies.scorers import Part
    from eenet.running import AdaptiveModel, Prediction, Tier
    from eenet.running.engines.graphs import TensorSpec

LISTED_SAMPLES = 50
_LONGEST_SHOWN = 60  # characters of a text
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet calculates what begins so


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that stops early, and what is known about its inputs and answers.

    Attributes:
        adaptive: The model with its policy, or some of its stages.
        split: Returns a split of its own data by name.
        array: Returns the samples of an array file.
        files: Returns how files of images or texts become inputs.
        classes: Names of the classes, where known.
        exits: What the exits are called, where the model has some of the original's only.
    """

    adaptive: AdaptiveModel | Tier
    split: Callable[[str], Source]
    array: Callable[[Path], Source]
    files: Callable[[], Images | TextFiles]
    classes: Sequence[str] | None
    exits: tuple[int, ...] | None = None

    def read(self, words: Sequence[str]) -> list[Source]:
        """Return the inputs that the user named: splits, then array files, then all images or texts."""
        splits = [word for word in words if word.startswith("split:")]
        arrays = [word for word in words if Path(word).suffix.lower() in ARRAY_SUFFIXES and word not in splits]
        files = [word for word in words if word not in (*splits, *arrays)]
        sources = [self.split(word.removeprefix("split:")) for word in splits]
        sources += [self.array(Path(word)) for word in arrays]
        if files:
            sources.append(self.files().files(files))
        return sources


def run(
    target: Annotated[
        Path,
        options.place("TARGET", "A run, a bundle, or a folder written by `eenet export` (no torch).", folder=True),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUTS...", help="Images, folders of them, .csv .tsv .txt of texts, arrays, or split:test."
        ),
    ] = None,
    *,
    policy: Annotated[Path | None, options.POLICY_OPTION] = None,
    budget: Annotated[str | None, options.word("B", "Another budget than that of the policy.", *options.BUDGET)] = None,
    batch_size: Annotated[int, options.count("Samples per forward pass.")] = 32,
    regroup: Annotated[
        bool, typer.Option(help="Let samples that stay wait for a full batch before each stage; same answers.")
    ] = True,
    threads: options.ThreadsOption = None,
    state: Annotated[Path | None, options.folder_in("--state", "Go on with what the tier before wrote.")] = None,
    state_out: Annotated[
        Path | None,
        options.folder_out("Samples that go on to the next tier.", names=["--state-out"], replaces=FILES),
    ] = None,
    compress: Annotated[str | None, options.word("C", "Send these as float16 or int8; decisions may flip.")] = None,
    force: options.ForceOption = False,
    parts: options.PartsOption = None,
    out: Annotated[Path | None, options.file_out("Per-sample rows, .csv or .json.", ".csv", ".json")] = None,
    data_root: options.DataRootOption = None,
    output: Output,
) -> Result:
    """Run a model with a policy: every sample stops where the policy lets it.

    Texts are read as in training; columns of labels may be missing, and a .txt have one text per line. Arrays hold
    images as (sample, channel, height, width): uint8 from 0 to 255 or floats from 0 to 1; an .npz has them under
    `images`, and the true classes, if known, under `labels`. Token numbers are under `input_ids` and `attention_mask`.
    An export takes arrays by the names of its inputs, as the model reads them; uint8 images are prepared as the export
    says.

    A folder of `eenet export --tier` answers the samples that leave there and writes the others to --state-out; that of
    `--from` goes on with them: it takes --state in place of INPUTS.

    Examples:

        eenet run run --policy policy photos/ cat.png

        eenet run run --policy policy split:test --budget 40% --out rows.csv

        eenet run run --policy policy reviews.csv --out answers.csv

        eenet run exported inputs.npz --json

        eenet run device inputs.npz --state-out states

        eenet run server --state states
    """
    from eenet.running import Tier
    from eenet.running.progress import track

    opened = _open(target, policy, data_root, threads, output, force=force, parts=parts)
    inputs, adaptive = inputs or [], opened.adaptive
    sending = Sending(state=state, out=state_out, compress=compress)
    sending.require(adaptive, inputs, budget)
    sources = opened.read(inputs)
    if isinstance(adaptive, Tier):
        return _run_tier(sending, sources, opened, batch_size, out, output=output)
    if budget is not None:
        if adaptive.dial is None:
            raise InputError(f"--budget {budget!r} cannot be met: the policy was saved without its dial. Fit it again.")
        output.note(f"Budget per sample: {(adaptive.costs or adaptive.dial.costs).budget(budget).meaning}.")
        adaptive = adaptive.at(budget)
    output.note(f"Running {sum(len(source.names) for source in sources)} samples in batches of {batch_size}.")

    total = sum(-(-len(source.names) // batch_size) for source in sources)
    batches = (batch for source in sources for batch in source.batches(batch_size))
    tracked = track(batches, total, "running", enabled=not output.quiet)
    prediction = adaptive.predict_all(tracked, regroup=regroup)
    named = enumerate(pair for source in sources for pair in source.named())
    samples = [_row(prediction, row, row, pair, opened) for row, pair in named]
    return _finished(samples, sources, opened, out, output)


def _run_tier(
    sending: Sending, sources: Sequence[Source], opened: Opened, batch_size: int, out: Path | None, *, output: Output
) -> Result:
    """Answer the samples that leave on a tier, and write the others."""
    names = [pair for source in sources for pair in source.named()]
    samples, going, sent = [], 0, 0
    for result in sending.run(opened.adaptive, sources, batch_size):
        going, sent = going + len(result.staying), sent + len(result.state or b"")
        if result.prediction is not None:
            samples += [
                _row(result.prediction, row, sample, names[sample] if names else ("", None), opened)
                for row, sample in enumerate(result.sample_ids.tolist())
            ]
    samples.sort(key=lambda sample: sample["sample"])
    value, blocks = _finished(samples, sources, opened, out, output)
    if going:
        blocks = [*blocks, f"{going} samples go on, in {sent} bytes: {sending.out}"]
    return {**value, "going_on": going, "sent_bytes": sent}, blocks


def _finished(
    samples: list[dict[str, Any]], sources: Sequence[Source], opened: Opened, out: Path | None, output: Output
) -> tuple[dict[str, Any], list[Block]]:
    """Write the rows where that was asked for, and return the result."""
    value = _summary(samples, opened)
    if out is not None:
        _write_rows(samples, out)
        output.note(f"wrote {len(samples)} rows to {out}")
    texts = {name for source in sources if source.texts for name in source.names}
    return {**value, "samples": samples}, _tables(value, samples, texts)


def _open(
    target: Path,
    policy: Path | None,
    data_root: Path | None,
    threads: int | None,
    output: Output,
    *,
    force: bool,
    parts: Sequence[str] | None,
) -> Opened:
    """Open a run with a policy, a bundle or an export, whichever a folder is."""
    manifest = target / "manifest.json"
    kind = read_object(manifest, "manifest").get("format") if manifest.is_file() else "eenet run"
    if kind == "eenet run":
        if policy is None:
            raise InputError(f"--policy is missing: the run {str(target)!r} has none. Pass what `eenet fit` wrote.")
        opened = loading.open_run(target, data_root)
        return _of_run(opened, *loading.open_policy(policy, opened, output, force=force, parts=parts), threads)
    if policy is not None:
        raise InputError(f"--policy {str(policy)!r} is one too many: {str(target)!r} has its own. Leave it out.")
    if kind == "eenet bundle":
        return _of_bundle(target, data_root, threads, force=force, parts=names.parts(parts))
    return _of_export(target, threads, names.parts(parts))


def _of_run(
    opened: Run, saved: SavedPolicy, model: MultiExitModel, threads: int | None, *, check_source: bool = False
) -> Opened:
    import torch

    from eenet.running import AdaptiveModel
    from eenet.running.texts import TextPreparation

    if (wanted := threads or environment.threads()) is not None:
        torch.set_num_threads(wanted)

    def files() -> Images | TextFiles:
        match opened.preparation:
            case None:
                raise InputError("files cannot be read: the run does not say how they become inputs. Pass split:test.")
            case TextPreparation() as how:
                columns = opened.stored.get("columns")
                return TextFiles(preparation=how, classes=opened.classes, columns=columns and tuple(columns))
            case how:
                return Images(how)

    return Opened(
        adaptive=AdaptiveModel(model, saved.policy, saved.costs, dial=saved.dial, check_source=check_source),
        split=partial(_split, opened),
        array=lambda path: files().array(path),
        files=files,
        classes=opened.classes,
        exits=saved.exits,
    )


def _of_bundle(
    target: Path, data_root: Path | None, threads: int | None, *, force: bool, parts: Sequence[type[Part]]
) -> Opened:
    require("torch")
    from eenet.experiments.recipes import RECIPES, Run
    from eenet.policies import SavedPolicy
    from eenet.running import Bundle

    info = read_json(target / "info.json", "bundle file")
    if not isinstance(info, dict) or "recipe" not in info:
        raise InputError(
            f"bundle {str(target)!r} cannot be opened here: its info names no recipe that makes the model. Open it in "
            "Python, with Bundle.load and what makes it."
        )
    recipe = RECIPES[known("recipe", str(info["recipe"]), RECIPES)].with_seed(info.get("seed", 0))
    bundle = Bundle.load(target, build=lambda _: recipe.build(), parts=parts)
    opened = Run(recipe=recipe, model=bundle.model, path=target, data_root=data_root)
    saved = SavedPolicy(bundle.policy, bundle.costs, dial=bundle.dial)
    return _of_run(opened, saved, bundle.model, threads, check_source=not force)


def _of_export(target: Path, threads: int | None, parts: Sequence[type[Part]]) -> Opened:
    from eenet.running import AdaptiveModel, Tier, open_export

    opened = open_export(target, threads, parts=parts)
    preparation = opened.manifest.preparation

    def split(name: str) -> Source:
        raise InputError(f"input 'split:{name}' cannot be read: an export knows no data set. Pass arrays or images.")

    def array(path: Path) -> Source:
        arrays, labels = opened.samples(read_arrays(path, "input"), path)
        count = len(next(iter(arrays.values())))

        def read(rows: slice) -> dict[str, np.ndarray]:
            return next(opened.batches({name: array[rows] for name, array in arrays.items()}, count))

        return Source([f"{path.name}:{row}" for row in range(count)], read, labels)

    def files() -> Images:
        if preparation is None:
            taken = ", ".join(f"{one.name} {one.dtype} {_sizes(one)}" for one in opened.manifest.inputs)
            raise InputError(
                f"files cannot be read: the export does not say how they become inputs. Pass an .npz with {taken}."
            )
        return Images(preparation)

    return Opened(
        adaptive=Tier(opened.engine, opened.policy, opened.costs)
        if opened.engine.held
        else AdaptiveModel(opened.engine, opened.policy, opened.costs, dial=opened.dial),
        split=split,
        array=array,
        files=files,
        classes=opened.manifest.classes,
    )


def _sizes(one: TensorSpec) -> str:
    """Return the shape of an input in words, a free size as its limits."""
    limits = {size.axis: f"{size.low} to {size.high or 'any'}" for size in one.free}
    sizes = (limits.get(axis, str(size)) for axis, size in enumerate(one.shape, 1))
    return f"[{', '.join(('sample', *sizes))}]"


def _split(opened: Run, name: str) -> Source:
    data = opened.splits.get(name)
    try:
        labels = data.labels.numpy()
    except InputError:  # masks: a class per pixel, none of the sample
        labels = None
    return Source([f"{name}:{row}" for row in range(len(data))], data.inputs, labels)


def _row(
    prediction: Prediction, row: int, number: int, named: tuple[str, int | None], opened: Opened
) -> dict[str, Any]:
    """Return the row of a sample."""
    name, label = named
    k = int(prediction.exit_index[row])
    sample: dict[str, Any] = {"sample": number, "input": name}
    if prediction.log_probs is not None:
        found = int(prediction.log_probs[row].argmax())
        sample["prediction"] = found
        sample["class"] = str(found) if opened.classes is None else opened.classes[found]
        sample["probability"] = float(np.exp(np.float64(prediction.log_probs[row, found])))
    sample["exit"] = k if opened.exits is None else opened.exits[k]
    sample["cost"] = None if prediction.cost is None else float(prediction.cost[row])
    if label is not None and prediction.log_probs is not None:
        sample["label"] = label
        sample["right"] = sample["prediction"] == label
    return sample


def _summary(samples: Sequence[dict[str, Any]], opened: Opened) -> dict[str, Any]:
    """Return what the samples cost on average, where they left, and how many were right if that is known."""
    adaptive = opened.adaptive
    costs = [sample["cost"] for sample in samples if sample["cost"] is not None]
    known = [sample["right"] for sample in samples if "right" in sample]
    num_exits = adaptive.policy.num_exits if opened.exits is None else opened.exits[-1] + 1
    return {
        "num_samples": len(samples),
        "engine": adaptive.engine.name,
        "unit": None if adaptive.costs is None else adaptive.costs.unit,
        "mean_cost": sum(costs) / len(costs) if costs else None,
        "exit_distribution": [sum(s["exit"] == k for s in samples) / max(1, len(samples)) for k in range(num_exits)],
        "num_labelled": len(known),
        "accuracy": sum(known) / len(known) if known else None,
    }


def _write_rows(samples: Sequence[dict[str, Any]], out: Path) -> None:
    """Write per-sample rows as CSV or JSON, atomically; a name that looks like a formula gets an apostrophe in CSV."""
    if out.suffix.lower() == ".json":
        write_json(out, plain(samples))
        return
    columns = list(dict.fromkeys(key for sample in samples for key in sample))
    with atomic_path(out) as draft, draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for sample in samples:
            names = {key: f"'{value}" for key, value in sample.items() if str(value).startswith(_FORMULA)}
            writer.writerow(sample | {key: name for key, name in names.items() if isinstance(sample[key], str)})


def _shortened(text: str) -> str:
    """Return a text in one line that fits into a table."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_SHOWN else f"{line[: _LONGEST_SHOWN - 3].rstrip()}..."


def _tables(summary: dict[str, Any], samples: Sequence[dict[str, Any]], texts: set[str]) -> list[Block]:
    unit, known, mean = summary["unit"] or "cost", summary["num_labelled"], summary["mean_cost"]
    facts = {
        "samples": summary["num_samples"],
        f"mean cost ({unit})": "-" if mean is None else f"{mean:.4g}",
        "left at exits, %": exit_shares(summary["exit_distribution"]),
        f"accuracy on {known} labelled": percent(summary["accuracy"]) if known else None,
    }
    rows = [
        (
            _shortened(sample["input"]) if sample["input"] in texts else sample["input"],
            sample.get("class", "-"),
            percent(sample.get("probability")),
            str(sample["exit"]),
            "-" if sample["cost"] is None else f"{sample['cost']:.4g}",
        )
        for sample in samples[:LISTED_SAMPLES]
    ]
    listed = [Table(("input", "prediction", "probability", "exit", unit), rows)]
    return [*(listed if len(samples) <= LISTED_SAMPLES else []), facts_table("Summary", facts)]
