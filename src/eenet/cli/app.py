"""The commands, loaded when they are called, and the way every error becomes one line and an exit code."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

from eenet import __version__
from eenet.cli.interrupt import INTERRUPTED, Importing
from eenet.errors import EenetError, InputError, missing_extra

DONE, FAILURE, BAD_INPUT = 0, 1, 2

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Do the main job on handwritten digits: train, record, measure, fit, compare, run, report."),
    "attach": ("attach", "Give exits to a model, check that samples can really leave there, and train them."),
    "train": ("train", "Train a multi-exit model; a run that was stopped continues when the command is repeated."),
    "record": ("train", "Record what every exit says about every sample of a split: the table of fit and compare."),
    "profile": ("measure", "Measure what leaving at each exit costs: operations, and time at every batch size."),
    "fit": ("fit", "Learn where to leave: fit a policy on recorded outputs so that it meets a budget."),
    "compare": ("compare", "Compare policies at equal cost: fitted on VAL, judged on TEST."),
    "advise": ("advise", "Say which exits to keep, and whether early exit pays on this data at all."),
    "run": ("run", "Run a model with a policy: every sample stops where the policy lets it."),
    "bench": ("measure", "Time the adaptive model against the original one without exits, on the test samples."),
    "export": ("export", "Write a model and its policy as a folder that runs without torch."),
    "report": ("report", "Make one self-contained HTML page from the results of compare, profile and bench."),
    "reproduce": (
        "reproduce",
        "Do an experiment of the paper from end to end: train, record, compare, time, write a page.",
    ),
}
"""Each command's module in this package and the first sentence of its help, so that an overview loads none of them."""

_OVERVIEW = """Usage: eenet COMMAND [ARGUMENTS]

Early-exit inference under a budget: train, measure, schedule and run models that stop early.

Commands:
{commands}

eenet COMMAND --help explains a command, eenet --version prints the version.
"""


def command(name: str) -> Callable[..., Any]:
    """Return the function of a command, importing its module; it returns what `Output.result` prints."""
    found: Callable[..., Any] = getattr(importlib.import_module(f"eenet.cli.{COMMANDS[name][0]}"), name)
    return found


def run(words: list[str]) -> int:
    """Run the command line and return its exit code; Ctrl-C is the caller's.

    Args:
        words: What was written after `eenet`.
    """
    try:
        return _dispatch(words)
    except Exception as error:  # the outermost boundary: each error becomes a line and a code
        from eenet.cli.output import error_line

        if type(error).__name__ == "Abort":  # how typer passes Ctrl-C on
            raise KeyboardInterrupt from error
        if "--debug" in words:
            import traceback

            sys.stderr.write("".join(traceback.format_exception(error)))
        message, code = _describe(error)
        if message:
            error_line(message)
        return code


def _dispatch(words: list[str]) -> int:
    first = words[0] if words else "--help"
    if first in ("-h", "--help"):
        lines = (f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items())
        sys.stdout.write(_OVERVIEW.format(commands="\n".join(lines)))
        return DONE
    if first == "--version":
        sys.stdout.write(f"eenet {__version__}\n")
        return DONE
    if first not in COMMANDS:
        from eenet.cli.names import known

        known("command", first, COMMANDS)
    return _call(first, words[1:])


def _call(name: str, words: list[str]) -> int:
    """Let typer read a command's words, run it and print its result."""
    with Importing():
        import typer

        app = typer.Typer(
            add_completion=False,
            pretty_exceptions_enable=False,
            rich_markup_mode="markdown",
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        app.command(name)(_with_options(command(name), shlex.join(["eenet", name, *words])))
        parse: Any = typer.main.get_command(app)
    code = parse(args=words, prog_name=f"eenet {name}", standalone_mode=False)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else DONE


def _with_options(function: Callable[..., Any], line: str) -> Callable[..., None]:
    """Return a command as typer takes it: a parameter that is a dataclass stands for the options of its fields.

    Args:
        function: The command. Its parameter `output` learns the line and prints the result.
        line: What the user wrote.
    """
    import inspect
    from dataclasses import MISSING, fields, is_dataclass
    from typing import get_type_hints

    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not is_dataclass(kind):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name], hints = kind, get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            default = parameter.empty if field.default is MISSING else field.default
            option = inspect.Parameter(
                field.name, parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
            )
            parameters += [option] if field.init else []

    def called(**values: Any) -> None:  # noqa: ANN401 - as many types as options
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind) if field.init})
        values["output"].line = line
        values["output"].result(*function(**values))

    called.__doc__ = function.__doc__
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


def _describe(error: Exception) -> tuple[str, int]:
    if hasattr(error, "format_message"):  # how typer says that the words are wrong; empty after it printed help
        message = error.format_message()
        return f"{message} Add --help for how to call it." if message else "", BAD_INPUT
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra(error, "this command needs it") or error
    if isinstance(error, EenetError):
        return str(error), BAD_INPUT if isinstance(error, InputError) else FAILURE
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}", FAILURE
    if isinstance(error, MemoryError):
        return "out of memory. Use a smaller batch or fewer samples.", FAILURE
    return f"unexpected {type(error).__name__}: {error}. Add --debug for the traceback.", FAILURE
