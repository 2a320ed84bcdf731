"""`eenet serve` as a process: it loses nothing when it ends, starts again after a kill, and needs no PyTorch."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from exporting import digits, exported
from listening import ServerProcess, read, sent

from eenet import AdaptiveModel

pytestmark = pytest.mark.slow
INFER = "/v2/models/onnxruntime/infer"
MANY = 500


@pytest.fixture(scope="module")
def export() -> Path:
    return exported("onnxruntime").path


def inputs(rows: slice) -> np.ndarray:
    return digits().inputs(rows).numpy()


def cpu_seconds(number: int) -> float:
    """What a process has taken of the processor."""
    values = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


async def in_flight(server: ServerProcess, number: int, then: int) -> list[httpx.Response | Exception]:
    """Send so many requests at once, and a signal when so many were accepted; return what came back."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=90) as client:

        async def watch() -> None:
            while (await client.get("/numbers")).json()["requests"] < then:
                await asyncio.sleep(0.05)
            server.process.send_signal(number)

        one = sent({"input": inputs(slice(0, 1))}, parameters={"sample_id": 3}, binary=True)
        *answers, _ = await asyncio.gather(
            *(client.post(INFER, **one) for _ in range(MANY)), watch(), return_exceptions=True
        )
        return answers


def test_all_that_was_accepted_is_answered_after_sigterm(export):
    # the stages wait longer than the requests take to come: all are inside when the signal comes
    words = ("--max-batch", 2 * MANY, "--max-wait-ms", 15_000, "--drain-s", 60, "--json", "-q")
    with ServerProcess(export, *words, announce=False) as server:
        answers = asyncio.run(in_flight(server, signal.SIGTERM, MANY))
        expected = AdaptiveModel(export)(inputs(slice(0, 1)), [3])
        for answer in answers:
            assert isinstance(answer, httpx.Response), answer
            found = read(answer)
            assert (found["exit"][0], found["label"][0]) == (expected.exit_index[0], expected.labels[0])
        assert server.process.wait(60) == 0
        value = json.loads(server.process.stdout.read())
        assert (value["requests"], value["answered"], value["failures"]) == (MANY, MANY, 0)


def test_a_killed_server_starts_again_on_its_port(export):
    with ServerProcess(export, "--max-batch", 2 * MANY, "--max-wait-ms", 60_000) as server:
        port = server.url.rpartition(":")[2]
        answers = asyncio.run(in_flight(server, signal.SIGKILL, MANY // 2))
        assert any(isinstance(answer, httpx.HTTPError) for answer in answers)
        server.process.wait(10)
    with ServerProcess(export, port=port) as server:
        assert server.url.endswith(f":{port}")
        answer = read(httpx.post(f"{server.url}{INFER}", **sent({"input": inputs(slice(0, 40))}), timeout=30))
        assert answer["exit"].shape == (40,)
        if Path("/proc/self/stat").exists():
            assert cpu_seconds(server.process.pid) < 5
            assert "torch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
        assert server.end(signal.SIGINT) == 0


def test_the_budget_the_token_and_the_name_are_options(export, tmp_path):
    (tmp_path / "token").write_text("sixteen-characters-and-more\n")
    words = ("--budget", "90%", "--token-file", tmp_path / "token", "--name", "m", "--slo-ms", 500, "--floor", 0.1)
    with ServerProcess(export, *words) as server:
        assert httpx.get(f"{server.url}/v2").status_code == 401
        headers = {"authorization": "Bearer sixteen-characters-and-more"}
        found = httpx.get(f"{server.url}/v2/models/m/budget", headers=headers).json()
        assert found["budget"] == "90%"


def refused(*words: object) -> str:
    """Return what a command says that ends with bad input."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    ran = subprocess.run(
        [sys.executable, "-m", "eenet", "serve", *map(str, words), "-q"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    return ran.stderr


def test_what_cannot_be_served_is_refused_before_it_starts(export, tmp_path):
    (tmp_path / "short").write_text("short")
    assert "--token-file" in refused(export, "--token-file", tmp_path / "short")
    assert "--name" in refused(export, "--name", "a/b")
    assert "out of reach" in refused(export, "--budget", "1%")
    assert "onnxruntime" in refused(export, "--engine", "openvino")
    assert "no such file" in refused(tmp_path / "nothing")
    assert "address" in refused(export, "--host", "192.0.2.1")
    with ServerProcess(export) as server:
        assert "address" in refused(export, "--port", server.url.rpartition(":")[2])
