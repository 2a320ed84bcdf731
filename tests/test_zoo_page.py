"""The page of the ready-made models says what is counted."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_page_is_what_its_command_writes() -> None:
    for name in ("torchvision", "timm", "transformers"):
        pytest.importorskip(name)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        page = importlib.import_module("zoo_page").page()
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    assert (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8") == page
