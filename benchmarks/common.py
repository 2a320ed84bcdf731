"""What the scripts share: their command line, recorded tables, and measurements beside the limits we set ourselves."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eenet.report import markdown_table
from eenet.tables import CostTable, ExitTable

if TYPE_CHECKING:  # some scripts measure what needs no PyTorch
    from eenet.models import MultiExitModel
    from eenet.training.dataset import LabelledDataset

RESULTS = Path("docs/results")


def command_line(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the text, with the number of threads as an option."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="for training and everything else")
    return parser


def data_option(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the data sets."""
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("EENET_DATA", "../shared/data")))


def given(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options; threads are set before any training, whose result depends on them."""
    import torch

    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return options


def log(text: str) -> None:
    """Say on stderr what is going on."""
    print(text, file=sys.stderr, flush=True)


def recorded(
    model: MultiExitModel, data: LabelledDataset, folder: Path, split: str, costs: CostTable, **settings: int
) -> ExitTable:
    """Return what every exit says about a split; recorded in the folder if it is not there yet."""
    from eenet.running import record

    path = folder / f"{split}.npz"
    if not path.is_file():
        record(model, data, path, split=split, costs=costs, **settings)
    return ExitTable.load(path)


def described(tables: dict[str, ExitTable]) -> dict[str, Any]:
    """Return what the exits cost and get right, as JSON values."""
    own = tables["test"].require_costs()
    right = {name: table.require_utility("accuracy").mean(axis=0).tolist() for name, table in tables.items()}
    return {"unit": own.unit, "costs": list(own.cumulative), "reference": own.reference, "accuracy": right}


def row(what: str, unit: str, measured: float, limit: float | None = None, note: str = "") -> dict[str, Any]:
    """Return a measurement with the limit we set ourselves, if there is one."""
    within = None if limit is None else measured <= limit
    return {"what": what, "measured": measured, "unit": unit, "limit": limit, "within": within, "note": note}


def show(rows: list[dict[str, Any]], **about: object) -> None:
    """Print measurements as JSON (``as_json``) or as a table."""
    if about.pop("as_json", False):
        print(json.dumps({**about, "rows": rows}))
        return
    cells = [
        (
            one["what"],
            f"{one['measured']:.3g} {one['unit']}",
            "" if one["limit"] is None else f"{one['limit']:g}",
            {None: "", True: "yes", False: "NO"}[one["within"]],
            one["note"],
        )
        for one in rows
    ]
    print(markdown_table(("what", "measured", "limit", "within", "note"), cells), end="")
