"""Whatever comes through the door: a right result or one sentence, and nothing else.

The trials run in processes of their own, in which types are not checked: there is the code that users have.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(module: str, *words: object) -> dict[str, int]:
    """Run trials, and return how often what came of them."""
    command = [sys.executable, "-m", f"tests.hostile.{module}", *map(str, words)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)  # and nothing else is printed
    assert found["failures"] == []
    return found["counts"]


def share(counts: dict[str, int], word: str) -> float:
    return sum(count for name, count in counts.items() if name.endswith(word)) / sum(counts.values())


def test_random_tables() -> None:
    counts = run("doors", "any", 50, 0, 120)
    assert sum(counts.values()) == 120 and share(counts, "done") > 0.3


@pytest.mark.slow
def test_many_random_tables() -> None:
    counts = run("doors", "any", 15, 1000, 3500)
    assert sum(counts.values()) == 2500 and share(counts, "done") > 0.4
    assert len(counts) == 11  # every way and every kind of error


@pytest.mark.parametrize("last", [60, pytest.param(800, marks=pytest.mark.slow)])
def test_no_certificate_contradicts_the_samples_that_certify_it(last: int) -> None:
    counts = run("doors", "certified", 40, 0, last)
    assert share(counts, "done") > 0.15


def test_damaged_files(tmp_path: Path) -> None:
    counts = run("damage", tmp_path, "light", 0, 120)
    assert sum(counts.values()) == 120 and share(counts, "refused") > 0.5


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    for package in ("torch", "onnxruntime", "onnxscript", "sklearn"):
        pytest.importorskip(package)
    counts = run("damage", tmp_path, "all", 1000, 2200)
    assert sum(counts.values()) == 1200 and share(counts, "refused") > 0.5
    assert len(counts) == 16  # every way, refused and read
