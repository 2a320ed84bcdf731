"""The application: its commands, and the way every error becomes one line and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from eenet.cli import advise, attach, compare, demo, export, fit, measure, report, reproduce, run, train
from eenet.cli.output import error_line
from eenet.errors import EenetError, InputError

DONE, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="eenet",
    help="Budgeted early-exit inference: train, measure, schedule and run models that stop early.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("attach")(attach.attach)
app.command("train")(train.train)
app.command("record")(train.record)
app.command("profile")(measure.profile)
app.command("fit")(fit.fit)
app.command("compare")(compare.compare)
app.command("advise")(advise.advise)
app.command("run")(run.run)
app.command("bench")(measure.bench)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("reproduce")(reproduce.reproduce)


@app.callback(invoke_without_command=True)
def _root(*, version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from eenet import __version__

        sys.stdout.write(f"eenet {__version__}\n")
        raise typer.Exit(DONE)


def _describe(error: BaseException) -> tuple[str, int]:
    if hasattr(
        error, "format_message"
    ):  # how typer says that the command line itself is wrong; empty after it printed help
        message = error.format_message()
        return f"{message} Add --help for how to call it." if message else "", BAD_INPUT
    if isinstance(error, EenetError):
        return str(error), BAD_INPUT if isinstance(error, InputError) else FAILURE
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}", FAILURE
    if isinstance(error, MemoryError):
        return "out of memory. Use a smaller batch or fewer samples.", FAILURE
    return f"unexpected {type(error).__name__}: {error}. Add --debug for the traceback.", FAILURE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: The words after `eenet`; those of the process if not given.

    Returns:
        0 done, 1 failure, 2 bad input (found before any work starts), 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=words, prog_name="eenet", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost boundary: each error becomes a line and a code
        if "--debug" in words:
            sys.stderr.write("".join(traceback.format_exception(error)))
        message, code = _describe(error)
        if message:
            error_line(message)
    if code == INTERRUPTED:
        error_line("Interrupted.", start="")
    return code if isinstance(code, int) else DONE
