"""Writers and commands that are stopped anywhere: old or new, whole, and nothing left after the next run.

The trials run in processes of their own, which fork.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.hostile.doors import LONGEST

from eenet import load_policy
from eenet.testing import synthetic_table

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}


def run(module: str, *words: object) -> None:
    command = [sys.executable, "-m", f"tests.hostile.{module}", *map(str, words)]
    ran = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["failures"] == []


def need(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package)


@pytest.mark.parametrize("name", ["costs.json", "page.html"])
def test_a_fault_before_every_operation(name: str, tmp_path: Path) -> None:
    run("writers", tmp_path, "plain", name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "torch"])
def test_a_fault_before_every_operation_of_every_writer(kind: str, tmp_path: Path) -> None:
    if kind == "torch":
        need("torch", "onnxruntime", "onnxscript", "sklearn")
    run("writers", tmp_path, kind)


@pytest.mark.slow
def test_kills_of_every_command(tmp_path: Path) -> None:
    need("torch", "onnxruntime", "onnxscript", "sklearn", "matplotlib")
    run("commands", tmp_path, 20)


@pytest.fixture
def words(tmp_path: Path) -> dict[str, list[str]]:
    synthetic_table(300).save(tmp_path / "val.npz")
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [], "device": "one", "threads": 1}))
    return {
        "fit": ["fit", "val.npz", "-b", "60%", "-p", "joint", "--out", "policy"],
        "report": ["report", "bench.json", "--out", "page.html"],
    }


@pytest.mark.parametrize("name", ["fit", "report"])
def test_real_kills(name: str, words: dict[str, list[str]], tmp_path: Path) -> None:
    if name == "report":
        need("matplotlib")
    command = [sys.executable, "-m", "eenet", *words[name], "-q"]
    before = {*os.listdir(tmp_path)}
    start = time.monotonic()
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    whole, taken = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}, time.monotonic() - start
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            time.sleep(taken * np.random.default_rng([number, int(start)]).uniform(0.3, 1))
            process.send_signal(number)
            said = process.communicate()[1].decode()
        assert process.returncode in {0, 130, -number}, said
        assert len(said) < LONGEST and "Traceback" not in said
        if name == "fit":
            assert load_policy(tmp_path / "policy").info["budget_input"] == "60%"
        else:
            assert (tmp_path / "page.html").read_text().endswith("</html>\n")
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert {*os.listdir(tmp_path)} == {*whole} and len(whole) == len(before) + 1
