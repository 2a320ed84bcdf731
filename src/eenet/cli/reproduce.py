"""`eenet reproduce`: the paper's experiments, and ours beside them, with one command each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eenet import environment
from eenet.cli import names
from eenet.cli.interrupt import require
from eenet.cli.loading import Data
from eenet.cli.options import SeedOption, ThreadsOption, folder_out, word
from eenet.cli.output import Output, Result, facts_table, percent
from eenet.imports import known
from eenet.report.sections import Table

if TYPE_CHECKING:
    from eenet.schedulers import Scheduler
    from eenet.tables.table import ExitTable


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of an experiment, for example sst2-bert.")],
    *,
    scale: Annotated[str, word("small|paper", "What two cores can do, or the paper's settings.")] = "small",
    out: Annotated[Path, folder_out("Folder for the run and all results.")],
    pages: Annotated[
        Path | None, folder_out("Folder for the page; default: that of --out.", names=("--pages",))
    ] = None,
    threads: ThreadsOption = None,
    data: Data,
    seed: SeedOption = 0,
    output: Output,
) -> Result:
    """Do an experiment of the paper from end to end: train, record, compare, time, write a page.

    Experiments: cifar10-resnet56-3, cifar10-resnet56-6, cifar100-densenet121, imagenet-msdnet35, cityscapes-hrnet,
    sst2-bert, agnews-bert, camvid-hrnet, tinyimagenet-msdnet. Every step leaves a file in DIR; a command that was
    stopped continues when it is repeated. NAME paper writes the page of the paper's tables, with ours beside them
    where --out contains their folders.

    Examples:

        eenet reproduce cifar10-resnet56-6 --data-root data --out out/cifar10-resnet56-6

        eenet reproduce cifar100-densenet121 --data-root data --download --out out/cifar100-densenet121

        eenet reproduce imagenet-msdnet35 --scale paper --data-root imagenet --out out/msdnet

        eenet reproduce paper --out out --pages docs/results
    """
    require("torch", "matplotlib")
    import torch

    from eenet.experiments import reproduce as experiments

    if name == "paper":
        from eenet.experiments.reproduce.parity import write_paper_page

        beside = "" if pages is None else f" --pages {pages}"
        page = write_paper_page(pages or out, out, f"eenet reproduce paper --out {out}{beside}")
        return {"page": str(page)}, [facts_table("The paper's tables", {"page": str(page)})]
    experiment = experiments.EXPERIMENTS[known("experiment", name, [*experiments.EXPERIMENTS, "paper"])]
    chosen = known("--scale", scale, experiments.SCALES)
    folder = data.prepare(experiment.recipes[chosen])
    if (wanted := threads or environment.threads()) is not None:
        torch.set_num_threads(wanted)

    def policies(table: ExitTable) -> dict[str, Scheduler]:
        unsuited = names.unsuited(table)
        return {name: one for name, one in names.schedulers(None, seed).items() if name not in unsuited}

    value = experiments.Reproduction(
        experiment=experiment,
        out=out,
        schedulers=policies,
        scale=chosen,
        data_root=folder,
        seed=seed,
        note=output.note,
        progress=not output.quiet,
    ).page(pages)
    budget = value["budget"]
    facts = {
        f"{budget['measure']} of the exits, %": " ".join(percent(utility) for utility in budget["utility"]),
        f"budget that loses at most {100 * budget['loss']:g} points": budget["budget"],
        f"{budget['measure']} there on TEST": percent(budget["test_utility"]),
        "page": value["page"],
    }
    columns = {"engine": "{engine}", "batch": "{batch_size}", "times": "{speedup:.2f}"}
    areas = sorted(value["area"].items(), key=lambda item: -item[1])
    return value, [
        facts_table(value["name"], facts),
        Table.of(value["bench"]["rows"], columns, "Real speed-up at that budget"),
        Table(("policy", "area"), [(name, percent(area)) for name, area in areas], "Areas"),
    ]
