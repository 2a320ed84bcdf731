"""The commands, loaded when they are called, and the way every error becomes one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eenet import __version__, environment
from eenet.cli.interrupt import INTERRUPTED, Importing
from eenet.errors import EenetError, InputError, missing_extra

DONE, FAILURE, BAD_INPUT = 0, 1, 2
_HELP = "Add --help for how to call it."

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Do the main job on pictures of digits: train, record, measure, fit, compare, run, report."),
    "speedup": (
        "speedup",
        "Make a model stop early and say what that saves: attach, train, record, fit, compare, time.",
    ),
    "attach": ("attach", "Give exits to a model, check that samples can really leave there, and train them."),
    "train": ("train", "Train a multi-exit model; a run that was stopped continues when the command is repeated."),
    "record": ("train", "Record what every exit says about every sample of a split: the table of fit and compare."),
    "profile": ("measure", "Measure what leaving at each exit costs: parameters, operations, and time."),
    "fit": ("fit", "Learn where to leave: fit a policy on recorded outputs so that it meets a budget."),
    "compare": ("compare", "Compare policies at equal cost: fitted on VAL, judged on TEST."),
    "advise": ("advise", "Say which exits to keep, and whether early exit pays on this data at all."),
    "run": ("run", "Run a model with a policy: every sample stops where the policy lets it."),
    "bench": ("measure", "Time the adaptive model against the original one without exits, on the test samples."),
    "export": ("export", "Write a model and its policy as a folder that runs without torch."),
    "serve": ("serve", "Serve a model: requests come and go stage by stage, and the budget is turned while it runs."),
    "size": ("size", "Work out how many replicas each stage needs, so that 99 of 100 requests are answered in time."),
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

eenet COMMAND --help explains a command, with --all every option; eenet --version prints the version.
eenet --install-completion lets the Tab key complete commands and options in this shell.
EENET_THREADS, EENET_DATA and EENET_CACHE are defaults of --threads, --data-root and --download.
"""
_SETTINGS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "markdown",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
_COMPLETING = ("--install-completion", "--show-completion")


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
        code = _dispatch(words)
        sys.stdout.flush()
    except Exception as error:  # the outermost boundary: each error becomes a line and a code
        from eenet.cli.output import error_line

        if type(error).__name__ == "Abort" or Importing.interrupted:  # how typer, and others, pass Ctrl-C on
            raise KeyboardInterrupt from error
        if "--debug" in words:
            import traceback

            sys.stderr.write("".join(traceback.format_exception(error)))
        _give_up_output()
        message, code = _describe(error, words)
        if message:
            error_line(message)
    return code


def _give_up_output() -> None:
    """Let nothing be written to stdout any more if it takes nothing: Python would try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    first = words[0] if words else "--help"
    if "_EENET_COMPLETE" in os.environ or first in _COMPLETING:
        return _complete(words)
    if first in ("-h", "--help"):
        lines = (f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items())
        sys.stdout.write(_OVERVIEW.format(commands="\n".join(lines)))
        return DONE
    if first == "--version":
        sys.stdout.write(f"eenet {__version__}\n")
        return DONE
    if first not in COMMANDS:
        from eenet.imports import known

        known("command", first, COMMANDS)
    return _call(first, words[1:])


def _call(name: str, words: list[str]) -> int:
    """Let typer read a command's words, run it and print its result."""
    environment.limit_threads()
    with Importing():
        import typer

        app = typer.Typer(add_completion=False, **_SETTINGS)
        app.command(name)(_with_options(command(name), shlex.join(["eenet", name, *words])))
        parse: Any = typer.main.get_command(app)
    if not {"-h", "--help"}.isdisjoint(words):
        if "--all" not in words:
            from eenet.cli.help import short_help

            sys.stdout.write(short_help(name, parse))
            return DONE
        words = ["--help"]
    _refuse_repeated(parse, words)
    with _plain_warnings():
        code = parse(args=words, prog_name=f"eenet {name}", standalone_mode=False)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else DONE


def _complete(words: list[str]) -> int:
    """Answer a shell that completes a line, or tell it how to ask; only the command on the line is loaded."""
    with Importing():
        import typer

        app = typer.Typer(add_completion=True, **_SETTINGS)
        app.callback()(lambda: None)
        typed = {*os.environ.get("COMP_WORDS", "").split(), *os.environ.get("_TYPER_COMPLETE_ARGS", "").split()}
        for name, (_, summary) in COMMANDS.items():
            function: Callable[..., None] = _with_options(command(name), "") if name in typed else (lambda: None)
            app.command(name, help=summary)(function)
        parse: Any = typer.main.get_command(app)
    code = parse(args=words, prog_name="eenet", standalone_mode=False)
    return code if isinstance(code, int) else DONE


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as one line: where in eenet it was raised does not help a user."""
    from eenet.cli.output import one_line

    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: one_line(str(message), "Warning: ")
    try:
        yield
    finally:
        warnings.formatwarning = before


def _refuse_repeated(parse: Any, words: list[str]) -> None:  # noqa: ANN401 - a command of typer
    """Refuse an option of one value that is given twice: it is not clear which value counts."""
    context = parse.context_class(parse, resilient_parsing=True)
    given = [one for one in parse.make_parser(context).parse_args(list(words))[2] if one.param_type_name == "option"]
    for option in given:
        switch = option.is_flag and not option.secondary_opts
        if given.count(option) > 1 and not option.multiple and not switch:
            raise InputError(
                f"{option.opts[0]} is given {given.count(option)} times: one value can count. Leave the others out."
            )


def _with_options(function: Callable[..., Any], line: str) -> Callable[..., None]:
    """Return a command as typer takes it: a parameter that is a dataclass stands for the options of its fields.

    Args:
        function: The command. Its parameter `output` learns the line and prints the result.
        line: What the user wrote.
    """
    import inspect
    from dataclasses import fields, is_dataclass
    from typing import get_type_hints

    parameters = inspect.signature(function, eval_str=True).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in parameters if is_dataclass(one.annotation)}
    options = [one.replace(kind=one.KEYWORD_ONLY) for one in parameters if one.name not in groups]
    for kind in groups.values():
        hints = get_type_hints(kind, include_extras=True)
        signature = inspect.signature(kind).parameters.values()
        options += [one.replace(annotation=hints[one.name]) for one in signature]

    def called(**values: Any) -> None:  # noqa: ANN401 - as many types as options
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind) if field.init})
        output, written = values["output"], values.get("out")
        output.line = line
        try:
            result = function(**values)
            written = "stdout"
            output.result(*result)
        except OSError as error:  # that of a full disk names no file
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                error.filename = error.filename or written
            raise

    called.__doc__ = function.__doc__
    called.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return called


def _misread(error: Any, words: list[str]) -> str:  # noqa: ANN401 - an exception of typer
    """Say in one sentence why typer could not read a command's words; empty where it has printed help."""
    said = error.format_message()
    if not said:
        return ""
    name = getattr(error, "option_name", None) or next(iter(getattr(getattr(error, "param", None), "opts", ())), "")
    fact = said.partition(": ")[2] or said
    kind = type(error).__name__
    if kind == "NoSuchOption":
        near = " or ".join(error.possibilities or ())
        return (
            f"{name} is unknown: the command has no such option. " + (f"Did you mean {near}? " if near else "") + _HELP
        )
    if kind == "MissingParameter":
        return f"{said.rstrip('.')}: the command needs it. {_HELP}"
    if not name:
        return f"{said.rstrip('.')}. {_HELP}"
    place = next((i for i, word in enumerate(words) if word.partition("=")[0] == name), len(words))
    given = [*words[place : place + 1], ""][0].partition("=")[2] or " ".join(words[place + 1 : place + 2])
    if kind == "BadOptionUsage" or not given:
        return f"{name} cannot be read: {fact[:1].lower()}{fact[1:].rstrip('.')}. {_HELP}"
    return f"{name} {given!r} cannot be taken: {fact[:1].lower()}{fact[1:].rstrip('.')}. {_HELP}"


def _describe(error: Exception, words: list[str]) -> tuple[str, int]:
    if hasattr(error, "format_message"):
        return _misread(error, words), BAD_INPUT
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra(error, "this command needs it") or error
    if isinstance(error, EenetError):
        return str(error), BAD_INPUT if isinstance(error, InputError) else FAILURE
    if isinstance(error, OSError):
        where = f": {os.fsdecode(error.filename)}" if error.filename else ""
        return f"{error.strerror or error}{where}", FAILURE
    if isinstance(error, MemoryError):
        return "out of memory. Use a smaller batch or fewer samples.", FAILURE
    return f"unexpected {type(error).__name__}: {error}. Add --debug for the traceback.", FAILURE
