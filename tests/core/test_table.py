"""Exit tables: what is derived, stored and refused."""

import numpy as np
import pytest
import torch

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable
from eenet.errors import InputError, ShapeError, TableError
from eenet.schedulers import fit_calibration
from eenet.testing import synthetic_table

LOGITS = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], [[3.0, 0.0], [1.0, 0.0]]])
LABELS = torch.tensor([0, 1, 1])


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_utility_by_hand():
    assert ExitTable(logits=LOGITS, labels=LABELS).utility.tolist() == [[1, 0], [1, 1], [0, 0]]


def test_given_utility_wins():
    given = torch.full((3, 2), 0.5)
    assert torch.equal(ExitTable(logits=LOGITS, labels=LABELS, utility=given).utility, given)


@pytest.mark.parametrize("name", ["table.npz", "table"])
def test_a_table_survives_the_disk(tmp_path, name):
    table = synthetic_table(50)
    table = ExitTable(
        logits=table.logits,
        labels=table.labels,
        features=torch.randn(50, 4, 3),
        costs=CostTable((1.0, 2.0, 3.0, 4.0), "ms", 3.5),
        split="val",
    )
    table.save(tmp_path / name)
    table.save(tmp_path / name)  # replacing an earlier one
    again = ExitTable.load(tmp_path / name)
    assert (again.costs, again.split) == (table.costs, "val")
    for key in ("logits", "labels", "utility", "features"):
        assert torch.equal(getattr(again, key), getattr(table, key))
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_a_large_folder_is_mapped_and_not_read(tmp_path):
    table = synthetic_table(4000, num_exits=3, num_classes=50)
    table.save(tmp_path / "table")
    stored = np.load(tmp_path / "table" / "logits.npy", mmap_mode="r")
    assert isinstance(stored, np.memmap)
    again = ExitTable.load(tmp_path / "table")
    assert torch.equal(again.logits, table.logits)
    again.logits[0] = 0  # copy on write: the file stays as it is
    assert torch.equal(ExitTable.load(tmp_path / "table").logits, table.logits)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probabilities_serve_as_well(tmp_path, dtype):
    table = synthetic_table(60)
    probs = table.logits.softmax(dim=2).numpy().astype(dtype)
    probs[0, 0] = np.eye(5, dtype=dtype)[2]  # zeros are clamped
    loaded = ExitTable.load(write(tmp_path / "t.npz", probs=probs, labels=table.labels.numpy()))
    log_probs = loaded.log_probs(slice(None))
    assert torch.isfinite(log_probs).all()
    assert torch.allclose(log_probs[1:].exp(), torch.from_numpy(probs[1:]).float(), atol=2e-3)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "u4", "u8", ">i4", ">i8"])
def test_labels_of_any_whole_type_serve(tmp_path, dtype):
    loaded = ExitTable.load(write(tmp_path / "t.npz", logits=LOGITS.numpy(), labels=LABELS.numpy().astype(dtype)))
    assert torch.equal(loaded.labels, LABELS)
    assert torch.equal(loaded.utility, ExitTable(logits=LOGITS, labels=LABELS).utility)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
def test_outputs_of_any_floating_type_serve(tmp_path, dtype):
    loaded = ExitTable.load(write(tmp_path / "t.npz", logits=LOGITS.numpy().astype(dtype)))
    assert torch.equal(loaded.logits.float(), LOGITS)


def test_a_label_beyond_every_whole_number_of_torch_is_out_of_range(tmp_path):
    labels = np.array([0, 2**64 - 1, 1], dtype=np.uint64)
    with pytest.raises(TableError, match="labels of row 1, -1, is out of range"):
        ExitTable.load(write(tmp_path / "t.npz", logits=LOGITS.numpy(), labels=labels))


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds thesis\.txt"):
        ExitTable(logits=LOGITS).save(tmp_path / "table")
    assert (tmp_path / "table" / "thesis.txt").read_text() == "mine"


def test_exits_are_combined_where_that_means_something():
    table = synthetic_table(50)
    assert table.combinable
    assert not table.transformed(fit_calibration(table)).combinable
    assert not ExitTable(logits=LOGITS, utility=torch.ones(3, 2)).combinable
    assert not ExitTable(logits=LOGITS, labels=LABELS, utility=torch.full((3, 2), 0.5)).combinable


BAD = {
    "nan": ({"logits": np.where(np.arange(12).reshape(3, 2, 2) == 5, np.nan, 0.0)}, "logits of row 1 holds NaN"),
    "inf": (
        {"logits": np.where(np.arange(12).reshape(3, 2, 2) == 11, np.inf, 0.0)},
        "logits of row 2 holds NaN or infinity",
    ),
    "huge": ({"logits": np.full((3, 2, 2), 1e300)}, "finite float32"),
    "labels too large": ({"labels": np.array([0, 1, 2])}, "labels of row 2, 2, is out of range"),
    "labels negative": ({"labels": np.array([0, -1, 1])}, "labels of row 1"),
    "labels not whole": ({"labels": np.array([0.0, 1.0, 1.0])}, "labels of type"),
    "labels too few": ({"labels": np.array([0, 1])}, "labels of shape"),
    "one exit": ({"logits": np.zeros((3, 1, 2))}, "1 exit"),
    "one class": ({"logits": np.zeros((3, 2, 1))}, "1 class"),
    "empty": ({"logits": np.zeros((0, 2, 2)), "labels": np.zeros(0, dtype=int)}, "no samples"),
    "flat": ({"logits": np.zeros((3, 4))}, "logits of shape"),
    "whole logits": ({"logits": np.zeros((3, 2, 2), dtype=int)}, "floating point"),
    "words": ({"logits": np.full((3, 2, 2), "a")}, "numbers are needed"),
    "utility above 1": ({"utility": np.array([[0, 1], [0, 1.5], [0, 0]])}, "utility of row 1 is out of range"),
    "utility misshapen": ({"utility": np.zeros((3, 3))}, "utility of shape"),
    "costs falling": ({"costs": np.array([2.0, 1.0]), "cost_unit": np.array("ms")}, "not increasing"),
    "costs without unit": ({"costs": np.array([1.0, 2.0])}, "cost_unit is missing"),
    "costs too many": ({"costs": np.array([1.0, 2.0, 3.0]), "cost_unit": np.array("ms")}, "costs of 3 exits"),
    "features misshapen": ({"features": np.zeros((2, 2, 2))}, "features of shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_by_name(tmp_path, case):
    changed, message = BAD[case]
    arrays = {"logits": LOGITS.numpy(), "labels": LABELS.numpy()} | changed
    with pytest.raises(InputError, match=message) as error:
        ExitTable.load(write(tmp_path / "t.npz", **arrays))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("probs", [[[0.5, 0.4], [0.5, 0.5]], [[-0.1, 1.1], [0.5, 0.5]]])
def test_probabilities_that_do_not_sum_to_one_are_refused(tmp_path, probs):
    with pytest.raises(TableError, match="probs of row 1, exit 0"):
        ExitTable.load(
            write(tmp_path / "t.npz", probs=np.array([[[0.5, 0.5], [0.5, 0.5]], probs]), labels=np.array([0, 1]))
        )


def test_missing_outputs_name_what_was_found(tmp_path):
    with pytest.raises(TableError, match="'logits' or 'probs' is needed, found labels"):
        ExitTable.load(write(tmp_path / "t.npz", labels=np.array([0, 1])))


def test_damaged_files_are_refused(tmp_path):
    whole = write(tmp_path / "whole.npz", logits=LOGITS.numpy()).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(TableError):
            ExitTable.load(tmp_path / "cut.npz")
    with pytest.raises(TableError, match="no such file"):
        ExitTable.load(tmp_path / "none.npz")


class Trap:
    """Unpickling this would be noticed."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickled_objects_are_never_loaded(tmp_path):
    objects = np.array([Trap()], dtype=object)
    np.savez(tmp_path / "t.npz", logits=objects)
    with pytest.raises(TableError, match="pickle"):
        ExitTable.load(tmp_path / "t.npz")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "logits.npy", objects)
    with pytest.raises(TableError, match="pickle"):
        ExitTable.load(tmp_path / "folder")


def test_select_and_concat_are_inverse():
    table = synthetic_table(10)
    again = ExitTable.concat([table.select(slice(0, 4)), table.select(torch.arange(4, 10))])
    assert torch.equal(again.logits, table.logits)
    assert torch.equal(again.labels, table.labels)
    with pytest.raises(ShapeError, match="table 1"):
        ExitTable.concat([table, synthetic_table(10, num_exits=3)])
    with pytest.raises(TableError, match="labels is missing in table 1"):
        ExitTable.concat([table, synthetic_table(10, labels=False)])


def test_keeping_some_exits_is_recording_a_model_without_the_others():
    table = synthetic_table(30)
    table = ExitTable(
        logits=table.logits,
        labels=table.labels,
        features=torch.randn(30, 4, 3),
        confidence=torch.rand(30, 4),
        costs=CostTable((1.0, 2.0, 3.0, 4.0), "ms", 3.5),
    )
    kept = table.keeping([1, 3])
    assert (kept.num_exits, kept.costs) == (2, CostTable((2.0, 4.0), "ms", 3.5))
    for key in ("logits", "utility", "features", "confidence"):
        assert torch.equal(getattr(kept, key), getattr(table, key)[:, [1, 3]])
    assert torch.equal(kept.labels, table.labels)
    cheaper = CostTable((1.8, 3.6), "ms", 3.5)
    assert table.keeping([1, 3], cheaper).costs == cheaper


@pytest.mark.parametrize("exits", [[3], [1, 2], [3, 1], [1, 1, 3], [-1, 3], [1, 4]])
def test_exits_that_cannot_be_kept_are_refused(exits):
    with pytest.raises(InputError, match="cannot be kept: at least 2 of 0 to 3"):
        synthetic_table(30).keeping(exits)


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    table = synthetic_table(10)
    table.save(tmp_path / "t.npz")
    before = (tmp_path / "t.npz").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        synthetic_table(20).save(tmp_path / "t.npz")
    assert (tmp_path / "t.npz").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]
