"""Every Python example in the README and the docs runs, in the order of its page (see `examples`)."""

import re
from pathlib import Path

import pytest
from examples import PAGES, blocks, extras, name, run

from eenet.cli import main

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ eenet (?P<words>[^#\n]+)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)(?P<path>[^)#\s]+)")


def some(page: Path) -> object:
    """A page, among the slow tests where another runs what it says on a smaller model."""
    return pytest.param(page, marks=pytest.mark.slow) if name(page) == "docs/speed_up.md" else page


@pytest.mark.parametrize("page", [some(page) for page in PAGES if blocks(page)], ids=name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    missing = [
        match["path"]
        for match in LINK.finditer(FENCE.sub("", page.read_text(encoding="utf-8")))
        if not (page.parent / match["path"]).exists()
    ]
    assert not missing


COMMANDS = sorted({match["words"].strip() for page in PAGES for match in COMMAND.finditer(page.read_text("utf-8"))})


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_and_options_exist(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words.split()
    assert main([command, "--help", "--all"]) == 0
    shown = capsys.readouterr().out
    assert [word for word in rest if word.startswith("-") and f" {word} " not in shown] == []


def test_a_broken_example_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nassert False\n```\n\n<!-- not run: no data -->\n```python\nno_such_name\n```\n")
    assert blocks(page) == [(3, "assert False\n")]


def test_the_extras_of_a_page_are_those_it_tells_to_install(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '`pip install "eenet[torch,onnx]"`, or `".[sklearn]"`, `".[all]"` for everything; `x[hub]` is no extra\n'
    )
    assert extras(page) == {"torch", "onnx", "sklearn"}
