"""`eenet profile` and `eenet bench`: what exits cost, and what stopping early really saves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eenet.cli import loading, paths
from eenet.cli.names import unknown
from eenet.cli.options import (
    BatchSizesOption,
    DebugFlag,
    JsonFlag,
    PolicyFolderOption,
    QuietFlag,
    RunArgument,
    SeedOption,
    whole_numbers,
)
from eenet.cli.output import Output
from eenet.cli.show import bench_table, profile_tables

ENGINES = ("eager",)
