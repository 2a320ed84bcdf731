"""The group of every sample: in tables, files, frames, outcomes and recordings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eenet.errors import ShapeError, TableError
from eenet.tables import ExitTable, read_outcomes
from eenet.testing import synthetic_table

STREETS = np.array(["a", "b", "a", "c", "b", "a"])


def table(group: object = STREETS) -> ExitTable:
    return replace(synthetic_table(6), group=group)


@pytest.mark.parametrize("name", ["table.npz", "table"])
@pytest.mark.parametrize("group", [STREETS, np.array([5, 5, 1, 2, 2, 9])])
def test_groups_are_saved_selected_and_joined(tmp_path: Path, name: str, group: np.ndarray) -> None:
    table(group).save(tmp_path / name)
    loaded = ExitTable.load(tmp_path / name)
    assert np.array_equal(loaded.group, group)
    assert loaded.select([3, 0]).group.tolist() == group[[3, 0]].tolist()
    assert np.array_equal(ExitTable.concat([loaded, loaded.select(slice(2))]).group, np.append(group, group[:2]))
    assert np.array_equal(loaded.until(2).group, group)
    assert np.array_equal(loaded.with_fallback(cost=1.0).group, group)


def test_groups_are_counted_and_shown() -> None:
    assert table().group_index.tolist() == [0, 1, 0, 2, 1, 0]
    assert table().num_groups == 3
    assert "6 samples in 3 groups" in repr(table())
    assert synthetic_table(6).group_index.tolist() == list(range(6))
    assert "group" not in repr(synthetic_table(6))
    pytest.importorskip("pandas")
    frame = table().to_frame()
    assert frame[frame["exit"] == 1]["group"].tolist() == STREETS.tolist()
    assert "group" not in synthetic_table(6).to_frame()


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        (np.zeros(5, dtype=int), ShapeError, r"group of shape \(5,\) .* 6 samples"),
        (np.zeros(6), TableError, "group of type float64"),
        (np.array(["\ud800"] * 6), TableError, "group of type"),
        (np.array([None] * 6), TableError, "group of type object"),
    ],
)
def test_what_is_no_group_is_refused(group: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        table(group)


def test_tables_with_and_without_groups_are_not_joined() -> None:
    with pytest.raises(TableError, match="group is missing in table 1"):
        ExitTable.concat([table(), synthetic_table(6)])


def test_outcomes_take_their_groups_from_a_named_column() -> None:
    wide = {"small.utility": [1, 0], "small.cost": [1, 1], "small.score": [0.9, 0.2], "document": ["x", "y"]}
    wide |= {"large.utility": [1, 1], "large.cost": [9, 9], "group": [0, 0]}
    assert read_outcomes(wide, group="document").group.tolist() == ["x", "y"]
    assert read_outcomes(wide).group is None
    with pytest.raises(TableError, match=r"'page' is no column .* document"):
        read_outcomes(wide, group="page")
    with pytest.raises(TableError, match="no value in row 1"):
        read_outcomes(wide | {"document": ["x", ""]}, group="document")


def test_long_outcomes_have_one_group_per_sample() -> None:
    long = {
        "sample": ["p", "p", "q", "q"],
        "stage": ["small", "large"] * 2,
        "utility": [1, 1, 0, 1],
        "cost": [1, 9, 1, 9],
        "score": [0.9, 0.0, 0.2, 0.0],
        "document": ["x", "x", "y", "y"],
    }
    found = read_outcomes(long, group="document")
    assert found.group.tolist() == ["x", "y"]
    assert found.feature_names == ("score",)
    with pytest.raises(TableError, match="'document' has 'x' and 'z'"):
        read_outcomes(long | {"document": ["x", "z", "y", "y"]}, group="document")
