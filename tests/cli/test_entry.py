"""How the process starts and ends: light imports, Ctrl-C at any time, extras that are missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import refused

from eenet import errors
from eenet.cli.interrupt import require

HEAVY = ("torch", "numpy", "scipy", "typer", "rich", "matplotlib")


def python(code, *words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def loaded(*commands: list[object]) -> list[str]:
    """Run commands, one after the other, in a process of their own and return which heavy modules they imported."""
    code = f"""import sys
from eenet.cli.entry import main
for words in {[[str(word) for word in words] for words in commands]!r}:
    assert main(words) == 0, words
sys.stderr.write(" ".join(name for name in {HEAVY!r} if name in sys.modules))"""
    ran = python(code)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr.splitlines()[-1].split() if ran.stderr else []


def test_the_overview_and_the_version_load_nothing():
    assert loaded(["--help"], ["--version"], []) == []


def test_the_help_of_a_command_loads_no_torch():
    commands = [[command, "--help"] for command in ("fit", "run", "train")]
    assert not {"torch", "scipy", "matplotlib"} & set(loaded(*commands))


def test_commands_on_tables_load_no_torch(write_table, tmp_path):
    table, policy = write_table(), ("-b", "60%", "-p", "max_prob", "-q")
    commands = (
        ["compare", table, table, *policy, "--out", tmp_path / "comparison"],
        ["fit", table, *policy, "--out", tmp_path / "policy"],
        ["fit", table, *policy, "--guarantee", "budget", "--out", tmp_path / "policy"],
        ["advise", table, "-q"],
        ["report", tmp_path / "comparison", "--out", tmp_path / "page.html", "-q"],
    )
    assert "torch" not in loaded(*commands)


def test_a_warning_is_one_line(write_table, tmp_path):
    words = [sys.executable, "-m", "eenet", "fit", write_table(samples=30), "-b", "60%", "-p", "max_prob", "-q"]
    ran = subprocess.run(
        [*map(str, words), "--out", str(tmp_path / "policy")], capture_output=True, text=True, check=True, timeout=120
    )
    (line,) = ran.stderr.splitlines()
    assert line.startswith("Warning: ") and "30 samples is small" in line


@pytest.mark.parametrize("module", ["eenet.cli.app", "typer", "numpy", "eenet.schedulers.certify"])
def test_ctrl_c_during_imports_ends_with_130_and_one_line(module, write_table, tmp_path):
    code = f"""import builtins, os, signal, sys
plain = builtins.__import__
def interrupted(name, *more):
    if name == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)
    return plain(name, *more)
builtins.__import__ = interrupted
from eenet.cli.entry import main
sys.exit(main())"""
    ran = python(code, "fit", write_table(), "--budget", "60%", "--out", tmp_path / "new")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "Interrupted.\n")


def test_ctrl_c_while_a_string_is_run_ends_with_130_too(tmp_path):
    # Python notes such an interrupt as unhandled, and a module that is run with -m would end by the signal
    (tmp_path / "interrupted.py").write_text(
        """import os, signal, sys
from eenet.cli import app, entry
app.run = lambda words: exec("os.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass")
sys.exit(entry.main())"""
    )
    command = [sys.executable, "-m", "interrupted"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("package", ["eenet", "eenet.cli"])
def test_the_package_runs_as_a_module(package):
    command = [sys.executable, "-m", package, "fitt"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "Did you mean fit?" in ran.stderr and ran.stderr.count("\n") == 1


@pytest.mark.parametrize(("module", "extra"), errors.EXTRAS.items())
def test_a_missing_module_names_the_extra_that_brings_it(module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(errors.MissingExtraError, match=rf'{module} .*pip install "eenet\[{extra}\]"'):
        require(module)


def test_an_import_that_fails_later_names_the_extra_too(eenet, write_table, tmp_path, monkeypatch):
    def broken(*words: object, **more: object) -> None:
        raise ModuleNotFoundError("No module named 'openvino.runtime'", name="openvino.runtime")

    monkeypatch.setattr("eenet.cli.fit._fitted", broken)
    ran = eenet("fit", write_table(), "-b", "60%", "--out", tmp_path / "new", "-q")
    refused(ran, 'pip install "eenet[openvino]"')


def test_extras_of_the_table_are_those_of_the_package():
    import tomllib

    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(errors.EXTRAS.values()) == set(extras) - {"all", "dev", "docs", "fits"}
