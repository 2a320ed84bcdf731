"""Runs commands in this process, and tables small enough to fit in milliseconds."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eenet.cli import main
from eenet.models.weights import save_tensors
from eenet.schedulers import names
from eenet.tables.files import write_json


@dataclass(frozen=True)
class Ran:
    code: int
    stdout: str
    stderr: str
    quiet: bool

    @property
    def said(self) -> str:
        """What is printed, with single blanks for the ends of lines."""
        return " ".join(self.stdout.split())

    @property
    def value(self) -> Any:
        assert self.code == 0, self.stderr

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.stdout, parse_constant=refuse)


def refused(ran: Ran, *facts: object) -> None:
    """Assert that a command ended with code 2 and one line, besides progress, in which the facts stand."""
    lines = ran.stderr.splitlines()
    assert (ran.code, ran.stdout) == (2, ""), ran.stderr
    assert lines[-1].startswith("Error: ") and "Traceback" not in ran.stderr
    assert not any(line.startswith("Error") for line in lines[:-1])
    assert len(lines) == 1 or not ran.quiet
    for fact in facts:
        assert str(fact).lower() in lines[-1].lower()


def made_run(folder: Path, recipe: str, state: dict[str, Any], budget: str = "60%") -> Path:
    """Make a run of a recipe with given weights, its tables, and a policy, in a folder."""
    write_json(folder / "run" / "recipe.json", {"recipe": recipe, "seed": 0, "data_root": None})
    save_tensors(folder / "run" / "model.safetensors", state)
    for split in ("val", "test"):
        assert main(["record", str(folder / "run"), "--split", split, "--out", str(folder / f"{split}.npz"), "-q"]) == 0
    words = ["fit", str(folder / "val.npz"), "-b", budget, "-p", "max_prob", "--out", str(folder / "policy"), "-q"]
    assert main(words) == 0
    return folder


@pytest.fixture(autouse=True)
def piped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print as into a pipe and know no folder of data, whatever the terminal of whoever runs the tests says."""
    for name in ("COLUMNS", "EENET_DATA", "EENET_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def few_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a few policies by default, which are fitted in no time, in place of all there are."""
    few = ("max_prob", "patience", "vote", "ztw")
    monkeypatch.setattr(names, "POLICIES", {name: names.POLICIES[name] for name in few})


@pytest.fixture
def eenet(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err, "-q" in words or "--quiet" in words)

    return call


def table_arrays(samples: int = 200, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Three exits, four classes; later exits are surer and more often right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=samples)
    logits = rng.normal(size=(samples, 3, 4)).astype(np.float32)
    logits[np.arange(samples)[:, None], np.arange(3)[None], labels[:, None]] += np.array([1.0, 2.0, 3.0])
    arrays = {
        "logits": logits,
        "labels": labels,
        "costs": np.array([1.0, 2.0, 4.0]),
        "cost_unit": np.array("ms"),
        "cost_reference": np.array(3.5),
    } | changes
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "val.npz", **changes: Any) -> Path:
        path = tmp_path / name
        np.savez(path, **table_arrays(**changes))
        return path

    return write
