"""A client of another project talks to the server; EENET_TRITON names a Python that has tritonclient[http]."""

import os
import subprocess
from pathlib import Path

import pytest
from exporting import exported
from listening import ServerProcess

pytestmark = pytest.mark.slow


def test_tritonclient_speaks_json_and_binary():
    python = os.environ.get("EENET_TRITON", "")
    if not Path(python).is_file():
        pytest.skip("EENET_TRITON names no Python of an environment with tritonclient[http]")
    with ServerProcess(exported("onnxruntime").path) as server:
        words = [
            python,
            str(Path(__file__).parents[1] / "support" / "foreign_client.py"),
            server.url.removeprefix("http://"),
        ]
        ran = subprocess.run([*words, "onnxruntime"], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith("labels")
