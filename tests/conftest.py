"""Shared by every test: shapes and types are checked while the tests run, one thread, one seed, the data folder."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from jaxtyping import install_import_hook

install_import_hook("eenet", "typechecking.check")  # before the first import of eenet, so that every module is checked

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_configure() -> None:
    """Leave the other cores to the other test processes."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make a test that forgets its own seed repeatable all the same."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets: `EENET_DATA`, else `../shared/data`; a test without it is skipped."""
    root = Path(os.environ.get("EENET_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"the data folder {root} does not exist: set EENET_DATA to the folder with the data sets")
    return root


@pytest.fixture(scope="session")
def benchmark() -> Callable[[str], ModuleType]:
    """What imports a script from the folder of benchmarks, which import each other as scripts do."""

    def load(name: str) -> ModuleType:
        folder = str(Path(__file__).parents[1] / "benchmarks")
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(folder)

    return load
