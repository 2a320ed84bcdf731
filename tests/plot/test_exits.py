import subprocess
import sys

import numpy as np
import pytest

from eenet import plot, report
from eenet.errors import TableError
from eenet.evaluation import calibration, shares_by_budget
from eenet.schedulers import JointScheduler
from eenet.testing import synthetic_table

TABLE = synthetic_table(300, num_exits=5, seed=1)


def test_areas_are_the_shares_of_the_exits():
    dial = JointScheduler().sweep(TABLE)
    budgets, shares = shares_by_budget(dial, TABLE)
    figure = plot.exits_by_budget(dial, TABLE)
    axes = figure.axes[0]
    tops = 100 * shares.cumsum(axis=1)
    for k, area in enumerate(axes.collections):
        at = {(round(x, 6), round(y, 4)) for x, y in area.get_paths()[0].vertices}
        assert {(round(x, 6), round(y, 4)) for x, y in zip(budgets, tops[:, k], strict=True)} <= at
    assert len({area.get_hatch() for area in axes.collections}) == 5
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"exit {k}" for k in (4, 3, 2, 1, 0)]
    assert "[ms]" in axes.get_xlabel()
    assert report.png(figure, dpi=30).startswith(b"\x89PNG")


def test_reliability_diagrams_hold_the_bins_and_the_errors():
    found, figure = calibration(TABLE, 10), plot.reliability(TABLE, bins=10)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert len(drawn) == 5
    for k, axes in enumerate(drawn):
        assert axes.get_title(loc="left") == f"exit {k}   ECE {found.error[k]:.1%}"
        there = found.count[k] > 0
        expected = np.stack([found.confidence[k][there], found.accuracy[k][there]], axis=1)
        assert np.allclose(axes.collections[-1].get_offsets(), expected)


def test_reliability_needs_labels():
    with pytest.raises(TableError, match="labels"):
        plot.reliability(synthetic_table(100, labels=False))


def test_without_matplotlib_the_extra_is_named():
    code = "import sys; sys.modules['matplotlib'] = None\ntry:\n    from eenet import plot\n"
    code += (
        "except ImportError as error:\n    raise\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("MissingExtraError matplotlib is not installed")
    assert "eenet[report]" in shown
