"""The example of Lightning trains a model with exits, and its callback fits a policy that keeps its budget."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "lightning_exits.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Lightning: few workers, no logger
def test_it_trains_fits_and_stops_early() -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed: `make test-fits` installs it")
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("lightning_exits", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    accuracy, share = example.main(epochs=2)
    assert accuracy > 0.8 and share <= 0.63
