"""The page of the ready-made models says what is counted."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_page_is_what_its_command_writes(benchmark) -> None:
    for name in ("torchvision", "timm", "transformers"):
        pytest.importorskip(name)
    page = benchmark("zoo_page").page()
    assert (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8") == page
