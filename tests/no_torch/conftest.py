"""These tests run where PyTorch is not installed: `make test-no-torch` makes that environment and an export for it."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = ["test_*.py"] if find_spec("torch") else []


@pytest.fixture(scope="session")
def made() -> Path:
    """What `make_export.py` wrote: an export, inputs, tables, a policy, and the answers that are expected."""
    return Path(os.environ["EENET_EXPORT"])
