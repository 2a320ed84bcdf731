"""Shared by every test: shapes and types are checked while the tests run, one thread, one seed, the data folder.

Where PyTorch is not installed, the test files that need it are left out.
"""

import ast
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from jaxtyping import config, install_import_hook

for _library in ("OMP", "OPENBLAS", "MKL"):  # before NumPy: the other cores are the other test processes'
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
install_import_hook("eenet", "typechecking.check")  # before the first import of eenet, so that every module is checked

import numpy as np  # noqa: E402
import pytest  # noqa: E402

try:
    import torch
except ModuleNotFoundError:  # what needs no PyTorch is tested without it, too
    torch = None
NEED_TORCH = ("torch", "eenet.models", "eenet.training", "eenet.experiments")


def pytest_configure() -> None:
    """Leave the other cores to the other test processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it, and so would children
    if torch is not None:
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the hundreds of thousands of objects of modules and tests, which all stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what cannot be imported without PyTorch, where it is missing: files, and folders by their conftest."""
    path = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    if torch is None and path != Path(__file__) and path.suffix == ".py" and path.is_file() and needs_torch(path):
        return True
    return None


@cache
def needs_torch(path: Path) -> bool:
    """Tell whether a test file imports PyTorch, or something that does, at its top."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            own = Path(__file__).parent / "support" / f"{name}.py"
            if f"{name}.".startswith(tuple(f"{one}." for one in NEED_TORCH)) or (own.is_file() and needs_torch(own)):
                return True
    return False


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Leave out the checks of shapes and types."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make a test that forgets its own seed repeatable all the same."""
    if torch is not None:
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
