"""`--help` within one screen: what a command does, its usual options, the names of the others, an example."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

USUAL = {
    "demo": ("out", "everything"),
    "speedup": ("data", "budget", "out", "everything"),
    "attach": ("exits", "out", "data", "epochs"),
    "train": ("out", "data_root", "download"),
    "record": ("split", "out"),
    "profile": ("batch_size", "engine", "out"),
    "fit": ("budget", "out", "policy", "guarantee"),
    "compare": ("budget", "policy", "out", "everything"),
    "advise": ("budget", "costs", "everything"),
    "run": ("policy", "budget", "out"),
    "bench": ("policy", "batch_size", "engine", "everything"),
    "export": ("policy", "engine", "out"),
    "serve": ("budget", "slo_ms", "port", "token_file"),
    "size": ("rate", "slo_ms", "budget", "shares", "table"),
    "report": ("out", "title"),
    "reproduce": ("out", "scale", "data_root"),
}
"""By command, the parameters whose options are explained at first, with those that must be given."""

_PIPE_WIDTH = 100
_NAME = 22  # columns of an option's name


def short_help(name: str, parse: Any) -> str:  # noqa: ANN401 - a command of typer
    """Return a command's help in a screenful.

    Args:
        name: Of the command.
        parse: It, as typer made it.
    """
    width = min(shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns, _PIPE_WIDTH)
    arguments = [one for one in parse.params if one.param_type_name == "argument"]
    options = [one for one in parse.params if one.param_type_name == "option"]
    usual = [one for one in options if one.name in USUAL[name] or one.required]
    rare = " ".join(one.opts[0] for one in options if one not in usual)
    first, *_ = (inspect.getdoc(parse.callback) or "").split("\n\n")
    words = " ".join(_shown(one) for one in arguments)
    lines = [
        *_wrapped(f"Usage: eenet {name} {words} [OPTIONS]".replace("  ", " "), width),
        "",
        *_wrapped(first, width),
        "",
        *(line for one in (*arguments, *usual) for line in _explained(_shown(one), one.help, width)),
        *_explained("Rare options:", rare, width),
        "",
        "Examples:",
        *_wrapped(_example(parse), width, "  ", "      "),
        "",
        f"eenet {name} --help --all explains every option.",
    ]
    return "\n".join(lines) + "\n"


def _shown(one: Any) -> str:  # noqa: ANN401 - a parameter of typer
    """Return how an argument or option is written."""
    if one.param_type_name == "argument":
        return str(one.metavar)
    value = "" if one.is_flag else one.metavar or ("TEXT" if isinstance(one.default, str) else "N")
    return f"{', '.join(sorted(one.opts, key=len))} {value}".rstrip()


def _example(parse: Any) -> str:  # noqa: ANN401 - a command of typer
    """Return the first example in a command's description."""
    _, _, after = (inspect.getdoc(parse.callback) or "").partition("Examples:")
    return next(iter(re.findall(r"^ +eenet .*$", after, re.MULTILINE)), "")


def _explained(name: str, text: str | None, width: int) -> Iterator[str]:
    """Yield the lines about one option: its name, and what it means beside it."""
    indent = " " * (_NAME + 4)
    if len(name) > _NAME:
        yield f"  {name}"
        name = ""
    start = f"  {name:<{_NAME}}  "
    yield from _wrapped(text or "", width, start, indent)


def _wrapped(text: str, width: int, start: str = "", indent: str = "") -> Iterable[str]:
    wrapper = textwrap.TextWrapper(width, start, indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(" ".join(text.split())) or [start.rstrip()]
