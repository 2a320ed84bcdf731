"""`eenet reproduce`: the paper's experiments, and ours beside them, with one command each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import loading, names, paths
from eenet.cli.options import DataRootOption, DebugFlag, DownloadFlag, JsonFlag, QuietFlag, SeedOption
from eenet.cli.output import Output, percent, text_table
from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.core.table import ExitTable
    from eenet.reproduce import Scale
    from eenet.schedulers import Scheduler


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of an experiment, for example sst2-bert.")],
    *,
    scale: Annotated[
        str, typer.Option("--scale", metavar="small|paper", help="What two cores can do, or the paper's settings.")
    ] = "small",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the run and all results.")],
    pages: Annotated[
        Path | None, typer.Option("--pages", metavar="DIR", help="Folder for the page; default: that of --out.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the CPU, in training and timing; default: all.")
    ] = None,
    data_root: DataRootOption = None,
    download: DownloadFlag = False,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Do an experiment of the paper from end to end: train, record, compare all policies, time, write a page.

    Experiments: cifar10-resnet56-3, cifar10-resnet56-6, cifar100-densenet121, imagenet-msdnet35, cityscapes-hrnet,
    sst2-bert, agnews-bert, camvid-hrnet, tinyimagenet-msdnet. Every step leaves a file in DIR; a command that was
    stopped goes on where it was when it is given again.

    Examples:

        eenet reproduce cifar10-resnet56-6 --data-root data --out out/cifar10-resnet56-6

        eenet reproduce cifar100-densenet121 --data-root data --download --out out/cifar100-densenet121

        eenet reproduce imagenet-msdnet35 --scale paper --data-root imagenet --out out/msdnet
    """
    output = Output(as_json=as_json, quiet=quiet)
    experiment = names.experiment(name)
    chosen = _scale(scale)
    for folder, option in ((out, "--out"), (pages or out, "--pages")):
        paths.output_folder(folder, option)
    loading.prepare_data(experiment.recipes[chosen], data_root, download=download)

    import torch

    from eenet import reproduce as experiments

    if threads is not None:
        torch.set_num_threads(threads)
    value = experiments.reproduce(
        experiment,
        out,
        schedulers=partial(_policies, seed=seed),
        scale=chosen,
        data_root=data_root,
        pages=pages,
        seed=seed,
        note=output.note,
        progress=not quiet,
    )
    output.result(value, *_tables(value))


def _policies(table: ExitTable, seed: int) -> dict[str, Scheduler]:
    """Return all policies that can be fitted on a table."""
    unsuited = names.unsuited(table)
    return {name: one for name, one in names.schedulers(None, seed).items() if name not in unsuited}


def _scale(text: str) -> Scale:
    from eenet.reproduce import SCALES

    chosen = next((known for known in SCALES if known == text), None)
    if chosen is None:
        raise InputError(f"--scale {text!r} is unknown: there are {' and '.join(SCALES)}. Pass one of them.")
    return chosen


def _tables(value: dict[str, Any]) -> list[Any]:
    budget = value["budget"]
    lines = [
        (f"{budget['measure']} of the exits, %", " ".join(percent(utility) for utility in budget["utility"])),
        (f"budget that loses at most {100 * budget['loss']:g} points", budget["budget"]),
        (f"{budget['measure']} there on the test side", percent(budget["test_utility"])),
        ("page", value["page"]),
    ]
    rows = [(row["engine"], row["batch_size"], f"{row['speedup']:.2f}") for row in value["bench"]["rows"]]
    areas = sorted(value["area"].items(), key=lambda item: -item[1])
    return [
        text_table(value["name"], ("what", "value"), lines),
        text_table("Real speed-up at that budget", ("engine", "batch", "times"), rows),
        text_table("Areas", ("policy", "area"), [(name, percent(area)) for name, area in areas]),
    ]
