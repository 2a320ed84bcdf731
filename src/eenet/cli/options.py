"""The options that commands share, and the readers of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eenet.errors import InputError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
DebugFlag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
BudgetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        "-b",
        metavar="B",
        help="Mean cost per sample: 3.2 (the table's unit), 2.5ms, or 60% (of the original model). Repeatable.",
    ),
]
PoliciesOption = Annotated[
    list[str] | None,
    typer.Option("--policy", "-p", metavar="NAME", help="Name of a policy. Repeatable."),
]
GroupsOption = Annotated[
    Path | None,
    typer.Option(
        "--groups",
        metavar="FILE",
        help="Group of every TEST sample, to see who pays: .npy, or text with one number or name per line.",
    ),
]
CostsOption = Annotated[
    Path | None,
    typer.Option("--costs", metavar="FILE", help="Costs written by `eenet profile`; replaces the table's own."),
]
CostBatchOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, metavar="b", help="Which batch size's latency of --costs to use (unit ms)."),
]
CostEngineOption = Annotated[
    str | None, typer.Option("--engine", metavar="E", help="Which engine's latency of --costs to use.")
]
CostDtypeOption = Annotated[
    str | None, typer.Option("--dtype", metavar="D", help="Which number format's latency of --costs to use.")
]
BatchSizesOption = Annotated[
    str, typer.Option("--batch-size", metavar="N,N,...", help="Batch sizes to measure, separated by commas.")
]
EnginesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="E",
        help="Engine to measure: eager (default), onnxruntime, openvino, compiled. Repeatable.",
    ),
]
DtypesOption = Annotated[
    list[str] | None,
    typer.Option("--dtype", metavar="D", help="Number format to measure: float32 (default), bfloat16. Repeatable."),
]
PassesOption = Annotated[int, typer.Option("--passes", min=1, help="How often everything is timed.")]
TableArgument = Annotated[Path, typer.Argument(metavar="VAL", help="Exit table to fit on (.npz, or a folder of .npy).")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `eenet train` or `eenet attach`.")]
PolicyFolderOption = Annotated[
    Path, typer.Option("--policy", "-p", metavar="POLICY", help="Folder written by `eenet fit`.")
]
DataRootOption = Annotated[
    Path | None, typer.Option("--data-root", metavar="DIR", help="Folder that holds the recipe's data set.")
]
DownloadFlag = Annotated[
    bool,
    typer.Option("--download", help="Fetch the data set into --data-root where it is not there (CIFAR-10, CIFAR-100)."),
]


def whole_numbers(text: str, option: str) -> list[int]:
    """Read whole numbers above 0, separated by commas.

    Args:
        text: What the user wrote, for example `1,32,128`.
        option: Name of the option, for the message.

    Raises:
        InputError: If a part is not a whole number above 0.
    """
    numbers = []
    for part in text.split(","):
        word = part.strip()
        if not word.isdecimal() or int(word) < 1:
            raise InputError(
                f"{option} {text!r} is no list of whole numbers above 0: {word!r} is none. Pass for example 1,32,128."
            )
        numbers.append(int(word))
    return list(dict.fromkeys(numbers))
