"""Help, exit codes and the shape of what is printed."""

import inspect
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eenet as package
from eenet.cli import names
from eenet.cli.app import COMMANDS, _with_options, command
from eenet.cli.help import USUAL
from eenet.cli.options import whole_numbers
from eenet.cli.output import Output, percent, plain
from eenet.errors import InputError
from eenet.experiments.zoo import tiny_cnn
from eenet.report.sections import Table
from eenet.running.engines import programs
from eenet.schedulers import Scheduler
from eenet.schedulers.names import POLICIES


def test_the_commands_are_those_of_the_contract():
    assert set(COMMANDS) == {
        *("demo", "attach", "train", "record", "profile", "fit", "compare", "advise", "run", "bench", "export"),
        *("report", "reproduce", "speedup", "serve", "size"),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_says_what_the_commands_say(name, eenet):
    first = (inspect.getdoc(command(name)) or "").partition("\n")[0]
    assert COMMANDS[name][1] == first
    assert first in eenet("--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name, eenet):
    short, full = eenet(name, "--help"), eenet(name, "--help", "--all")
    for ran in (short, full):
        assert (ran.code, ran.stderr) == (0, "")
        assert f"eenet {name}" in ran.stdout.split("Examples")[1]
        written = () if name == "serve" else ("--out",)  # a server answers, and writes nothing
        assert all(option in ran.stdout for option in ("--json", "--quiet", "--debug", *written))
    assert len(full.stdout) > len(short.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_names_every_option(name, eenet, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown, full = (eenet(name, "--help", *more).stdout for more in ((), ("--all",)))
    assert shown.count("\n") < 24 and max(map(len, shown.splitlines())) <= 80
    options = set(re.findall(r"^│[ *]+(--[a-z-]+)", full, re.MULTILINE)) - {"--help"}
    assert options and options <= set(re.findall(r"--[a-z-]+", shown))
    known = inspect.signature(_with_options(command(name), "")).parameters
    assert set(USUAL[name]) <= set(known)


@pytest.mark.parametrize(
    ("words", "place", "found"), [("eenet com", 1, "compare"), ("eenet compare --spl", 2, "--splits")]
)
def test_a_shell_completes_commands_and_options(words, place, found):
    asked = {"_EENET_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    line = [sys.executable, "-m", "eenet"]
    ran = subprocess.run(line, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [found]


def test_help_and_version(eenet):
    assert eenet("--help").code == 0
    assert eenet("--version").stdout == f"eenet {package.__version__}\n"
    assert "compare" in eenet().stdout


def test_every_name_makes_its_object(monkeypatch):
    for name in POLICIES:
        assert isinstance(names.scheduler(name, 3), Scheduler) and names.scheduler(name, 3).seed == 3
    model, inputs = tiny_cnn(exits=2).eval(), torch.randn(2, 1, 8, 8)
    graphs = programs._programs(model, inputs, whole=True)  # exporting takes most of the time: once for both
    monkeypatch.setattr(programs, "_programs", lambda *_, **__: graphs)
    for name in ("eager", "onnxruntime", "openvino"):  # compiling takes its time and has tests of its own
        assert names.engine(name, model, inputs).name == name
    assert set(names.ENGINES) == {"eager", "onnxruntime", "openvino", "compiled"}


def test_engines_and_number_formats_are_crossed_and_checked():
    assert names.engines(None, None) == [("eager", "float32")]
    both = ["float32", "bfloat16"]
    assert names.engines(["openvino", "eager", "eager"], both) == [
        (name, dtype) for name in ("openvino", "eager") for dtype in both
    ]
    with pytest.raises(InputError, match=r"dtype 'bfloat16' is not offered by the engine onnxruntime: .*eager"):
        names.engines(["eager", "onnxruntime"], both)
    with pytest.raises(InputError, match=r"engine 'openvin' is unknown: .*Did you mean openvino"):
        names.engines(["openvin"], None)
    with pytest.raises(InputError, match=r"dtype 'bf16' is unknown: .*bfloat16"):
        names.engines(["eager"], ["bf16"])


def test_results_become_json_without_nan():
    value = {"path": Path("a"), 1: (1.5, math.nan, math.inf, None, True), "nested": [{"x": -math.inf}]}
    assert plain(value) == {"path": "a", "1": [1.5, None, None, None, True], "nested": [{"x": None}]}


ROWS = [
    {"policy": "max_prob", "cost": "1.5", "shares": "49 · 34 · 17", "where": "the original model without exits"},
    {"policy": "eenet_published", "cost": "2", "shares": "100 · 0 · 0", "where": "/a/path-that/has-no-blank.json"},
]
HEADINGS = {"policy": "{policy}", "test cost [MFLOPs]": "{cost}", "exits [%]": "{shares}", "where": "{where}"}


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100])
def test_tables_fit_and_break_no_word(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    caption = "What is shown is said in a caption of a few words."
    Output().result({}, [Table.of(ROWS, HEADINGS, caption, least=("exits [%]",)), caption])
    shown = capsys.readouterr().out
    words = {word for row in ROWS for key, cell in row.items() for word in cell.split() if key != "shares"}
    assert words | {"cost", "[MFLOPs]"} <= set(shown.replace(":", "").split())
    assert ("49 · 34 · 17" in " ".join(shown.split())) == ("Left out" not in shown)
    assert max(map(len, shown.splitlines())) <= max(width, len("    ") + max(map(len, words)))


def test_a_pipe_is_100_columns_wide_and_its_paragraphs_too(capsys):
    Output().result({}, ["word " * 50, Table(("a", "b"), [("1", "word " * 40)])])
    assert {len(line) <= 100 for line in capsys.readouterr().out.splitlines()} == {True}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_one_line_and_none_for_what_is_quick_or_piped(terminal, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("eenet.cli.output.time.monotonic", lambda: now[0])
    output = Output()
    for number, name in enumerate("abc", 1):
        output.step(name, number, 3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    for number, name in enumerate("abc", 1):
        output.step(name, number, 3)
        now[0] += 6.0
    shown = capsys.readouterr().err
    if not terminal:
        assert shown == ""
        return
    assert "[2/3] b" in shown and "\n" not in shown and shown.endswith("\r\x1b[K")


def test_percentages():
    assert [percent(value) for value in (0.927, None, math.nan)] == ["92.70%", "-", "-"]


def test_whole_numbers():
    assert whole_numbers("1, 32,128,1", "--batch-size") == [1, 32, 128, 1]
    for text in ("", "1,", "-1", "1.5", "a"):
        with pytest.raises(InputError, match="--batch-size"):
            whole_numbers(text, "--batch-size")
