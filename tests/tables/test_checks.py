"""Numbers from outside, and stored tables that somebody else wrote: taken or refused in one sentence."""

import io
import math
import zipfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eenet.errors import InputError, ShapeError, TableError
from eenet.tables import CostTable, ExitTable
from eenet.tables.checks import instance, listed, names_of, number, rows_of
from eenet.testing import synthetic_table


@pytest.mark.parametrize(
    "value",
    [3, 3.0, Fraction(3), Decimal(3), np.float16(3), np.int8(3), np.uint64(3), np.longdouble(3), np.array(3.0),
     np.array(3, ">i4")],
    ids=repr,
)  # fmt: skip
def test_any_real_number_is_one(value: object) -> None:
    assert (found := number(value, "x")) == 3 and type(found) is float
    assert (found := number(value, "x", 3, 3, whole=True)) == 3 and type(found) is int


def test_what_a_range_leaves_out_is_named() -> None:
    assert number(0.5, "x", above=0, below=1) == 0.5
    for value in (0, 1, math.nan):
        with pytest.raises(
            InputError, match=rf"x {value} cannot be used: a finite number above 0 and below 1 is needed"
        ):
            number(value, "x", above=0, below=1)


def test_classes_and_lists_are_checked_by_hand() -> None:
    costs = CostTable((1, 2), "ms")
    assert instance(costs, CostTable, "costs") is costs
    with pytest.raises(InputError, match="costs of type int does not fit: a CostTable is needed"):
        instance(3, CostTable, "costs")
    with pytest.raises(InputError, match="table of type list does not fit: an ExitTable is needed"):
        instance([3], ExitTable, "table")
    assert listed((3, 4), "x") == listed(iter([3, 4]), "x") == listed(np.array([3, 4]), "x") == [3, 4]
    for value in (3, "34", b"34", {3: 4}, np.array(3)):
        with pytest.raises(InputError, match=r"x .* cannot be used: a list is needed"):
            listed(value, "x")


def test_rows_are_slices_numbers_or_a_mask() -> None:
    assert rows_of(slice(1, None), 3) == slice(1, None)
    assert rows_of([2, -3], 3).tolist() == [2, -3]
    assert rows_of([True, False, True], 3).tolist() == [True, False, True]
    for value, said in (([3], "rows 3 is out"), ([-4], "rows -4 is out"), ([], "rows are empty"), ([0.0], "float64")):
        with pytest.raises(InputError, match=said):
            rows_of(value, 3)
    for value in (slice(3, 9), [False] * 3, [True] * 2, [[0]], 0, slice(0.5, 2)):
        with pytest.raises(InputError, match="rows"):
            rows_of(value, 3)


def test_numbers_of_torch() -> None:
    torch = pytest.importorskip("torch")
    assert number(torch.tensor(3, dtype=torch.bfloat16, requires_grad=True), "x") == 3
    for value in (torch.tensor(True), torch.tensor([3.0]), torch.tensor(3j), torch.tensor(3.0, device="meta")):
        with pytest.raises(InputError, match=r"x .* cannot be used"):
            number(value, "x")


@pytest.mark.parametrize(
    "value",
    [True, np.True_, None, "3", b"3", 3j, np.complex64(3), math.nan, math.inf, 10**400, Decimal("NaN"), [3],
     np.array([3.0]), np.array("3"), np.datetime64(3, "s"), np.timedelta64(3, "s"), np.array(3, object), {},
     "x" * 10_000],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_what_is_no_number_is_refused(value: object) -> None:
    for whole in (False, True):
        with pytest.raises(TableError, match=r"speed .* cannot be used: a .* number is needed") as error:
            number(value, "speed", whole=whole, error=TableError)
        assert len(str(error.value)) < 600


def test_numbers_out_of_range_are_refused() -> None:
    for value, limits, fact in (
        (1, {"low": 2}, "at least 2"),
        (3, {"high": 2}, "at most 2"),
        (0, {"above": 0}, "above 0"),
        (5, {"low": 1, "high": 2}, "from 1 to 2"),
        (2.5, {"whole": True}, "a whole number"),
    ):
        with pytest.raises(InputError, match=f"x {value} cannot be used: .*{fact}"):
            number(value, "x", **limits)


LOGITS = np.array([[[2, 0], [3, 0]], [[1, 0], [0, 1]]], np.float32)


@pytest.mark.parametrize(
    ("given", "error", "fact"),
    [
        ({"logits": [[[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]]}, TableError, "logits of type list is no array"),
        ({"logits": np.ma.masked_less(LOGITS, 1)}, TableError, "logits of row 0 contains NaN"),
        ({"labels": np.ma.masked_equal([0, 1], 1)}, TableError, "labels of type float64"),
        ({"utility": [[1.0, 1.0], [1.0]]}, TableError, "utility of type list is no array"),
        ({"logits": LOGITS.astype(complex)}, TableError, "complex"),
        ({"logits": LOGITS > 0}, TableError, "bool"),
        ({"logits": LOGITS.astype(object)}, TableError, "object"),
        ({"cost": [[1e-300, 1.0], [1.0, 2.0]]}, TableError, "cost of row 0"),
        ({"cost": [[1.0, 2.0], [1.0, 1e300]]}, TableError, "cost of row 1"),
        ({"cost": [[1.0, 2.0], [1.0, math.inf]]}, TableError, "cost of row 1"),
    ],
    ids=str,
)
def test_tables_that_are_refused(given: dict[str, Any], error: type[Exception], fact: str) -> None:
    with pytest.raises(error, match=fact):
        ExitTable(**{"logits": LOGITS, "labels": [0, 1]} | given)


@pytest.mark.parametrize("names", ["ab", ["a", 5], [["a"], ["b"]], None, 5], ids=str)
def test_names_are_texts(names: Any) -> None:
    with pytest.raises(TableError, match="feature_names"):
        names_of(names)


@pytest.mark.parametrize(
    "costs", [[1e-31, 1], [1, 1e31], [True, 2], ["1", 2], [1, None], [1, 10**400], "12", 5, {}], ids=str
)
def test_costs_that_are_refused(costs: Any) -> None:
    with pytest.raises(TableError, match="cost"):
        CostTable.from_dict({"cumulative": costs, "unit": "ms"})
    for key, value in (("unit", 5), ("unit", ""), ("unit", ["ms"]), ("reference", True), ("reference", "3")):
        with pytest.raises(TableError, match=f"cost_{key}"):
            CostTable.from_dict({"cumulative": [1, 2], "unit": "ms"} | {key: value})


def stored(path: Path, **changes: Any) -> Path:
    """Write a table as numpy does, some arrays changed, or left out where they are None."""
    arrays = {"logits": LOGITS, "labels": np.array([0, 1]), "costs": np.array([1.0, 2.0]), "cost_unit": np.array("ms")}
    arrays = {name: value for name, value in (arrays | changes).items() if value is not None}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.mkdir()
        for name, value in arrays.items():
            np.save(path / f"{name}.npy", value)
    return path


@pytest.mark.parametrize("name", ["t.npz", "t"])
@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"probs": LOGITS}, "outputs of several kinds"),
        ({"features": LOGITS}, "outputs of several kinds"),
        ({"logits": None}, "lacks outputs"),
        ({"logits": np.array(1.0)}, r"shape \(\)"),
        ({"logits": LOGITS.astype("c8")}, "complex64"),
        ({"logits": LOGITS > 0}, "bool"),
        ({"logits": LOGITS.astype("M8[s]")}, "datetime64"),
        ({"logits": LOGITS.astype([("a", "f4")])}, "cannot be used"),
        ({"labels": np.array(["a", "b"])}, "labels of type <U1"),
        ({"labels": np.array(0)}, "labels of shape"),
        ({"utility": LOGITS[..., 0] > 0}, "utility of type bool"),
        ({"cost_unit": np.array(5)}, "cost_unit"),
        ({"cost_unit": np.array(["ms", "s"])}, "cost_unit"),
        ({"cost_unit": np.array(b"ms")}, "cost_unit"),
        ({"cost_unit": None}, "cost_unit"),
        ({"cost_reference": np.array("3")}, "cost_reference"),
        ({"cost_reference": np.array([3.0, 4.0])}, "cost_reference"),
        ({"costs": np.array([[1.0, 2.0], [2.0, 1.0]])}, "cost of row 1"),
        ({"costs": np.array([[1.0, np.inf], [1.0, 2.0]])}, "cost of row 0"),
        ({"costs": np.array([True, False])}, "costs"),
        ({"costs": np.array(1.0)}, "costs"),
        ({"split": np.array(["a", "b"])}, "split"),
        ({"split": np.zeros(0)}, "split"),
        ({"source": np.array(5)}, "source"),
        ({"feature_names": np.array("ab")}, "feature_names"),
        ({"feature_names": np.array([1, 2])}, "feature_names"),
    ],
    ids=str,
)
def test_stored_tables_that_are_refused(name: str, changes: dict[str, Any], fact: str, tmp_path: Path) -> None:
    path = stored(tmp_path / name, **changes)
    with pytest.raises((TableError, ShapeError), match=fact) as error:
        ExitTable.load(path)
    assert len(str(error.value)) < 600 and str(error.value).isprintable()


def test_text_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for key in ("cost_unit", "split"):
        path = stored(tmp_path / key, split=np.array("val"))
        content = bytearray((path / f"{key}.npy").read_bytes())
        for code in (0xFFFFFFFF, 0x110000, 0xD800):  # beyond the last character there is, and half a character
            content[-4:] = code.to_bytes(4, "little")
            (path / f"{key}.npy").write_bytes(content)
            with pytest.raises(TableError, match=key):
                ExitTable.load(path)


def test_other_keys_are_ignored_whatever_they_are_called(tmp_path: Path) -> None:
    path = stored(tmp_path / "t.npz", **{"a/b": np.arange(3), "../x": np.arange(3), "\x1b": np.arange(3)})
    table = ExitTable.load(path)
    assert np.array_equal(table.logits, LOGITS) and table.split == "t"


def test_any_flipped_bit_of_a_table_file_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    table = synthetic_table(4, num_exits=2, num_classes=2)
    table.save(path)
    whole = path.read_bytes()
    first = whole.index(b"PK\x01\x02")  # the list of what is in it, which no checksum covers
    places = [*range(0, first, 37), *range(first, len(whole))]
    for place in places:
        for bit in (0, 2, 5):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = ExitTable.load(path)
            except TableError:
                continue
            for key in ("logits", "labels", "utility"):
                assert np.array_equal(getattr(found, key), getattr(table, key)), (place, bit, key)
            assert (found.costs, found.split, found.source) == (table.costs, table.split, table.source), (place, bit)


def test_a_flipped_bit_in_a_packed_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez_compressed(path, logits=LOGITS, labels=np.array([0, 1]))
    whole = path.read_bytes()
    for place in range(whole.index(b"PK\x01\x02")):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            assert np.array_equal(ExitTable.load(path).logits, LOGITS), place
        except TableError:
            continue


def test_archives_packed_otherwise_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, LOGITS)
    for way in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / "t.npz", "w", way) as archive:
            archive.writestr("logits.npy", file.getvalue())
        with pytest.raises(TableError, match="packed in a way"):
            ExitTable.load(tmp_path / "t.npz")


def test_labels_of_texts_are_told_to_be_whole_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", logits=np.zeros((2, 2, 3), np.float32), labels=np.array(["cat", "dog"]))
    with pytest.raises(TableError, match=r"labels of type <U3 .* class numbers are needed. Save int64\."):
        ExitTable.load(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", logits=np.array([["a"]]), labels=np.array([0]))
    with pytest.raises(TableError, match=r"logits of type <U1 .* Save float32\."):
        ExitTable.load(tmp_path / "t.npz")


def test_missing_costs_are_named_with_their_keys() -> None:
    with pytest.raises(TableError, match="'costs' and 'cost_unit', or pass costs"):
        ExitTable(logits=np.zeros((2, 2, 3), np.float32)).require_costs()
