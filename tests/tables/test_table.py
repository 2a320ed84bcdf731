"""Exit tables: what is derived, stored and refused."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from eenet.errors import InputError, ShapeError, TableError
from eenet.policies import ConfidenceScorer, Ensemble, replay, static_policy
from eenet.tables.arrays import FLOOR, log_softmax
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable
from eenet.testing import synthetic_table

LOGITS = np.array(
    [[[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], [[3.0, 0.0], [1.0, 0.0]]],
    dtype=np.float32,
)
LABELS = np.array([0, 1, 1])


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_utility_by_hand():
    assert ExitTable(logits=LOGITS, labels=LABELS).utility.tolist() == [[1, 0], [1, 1], [0, 0]]


def test_utility_is_judged_by_what_a_policy_answers_with():
    # log-probabilities in float32 cannot hold the difference: the first of the two classes is the answer
    logits = np.array([[[-1e-8, 0.0], [0.0, 5.0]]], dtype=np.float32)
    table = ExitTable(logits=logits, labels=[1], costs=CostTable((1.0, 2.0), "ms"))
    trace = replay(static_policy(ConfidenceScorer("max_prob"), 0, 2), table)
    assert trace.log_probs.argmax(axis=1).tolist() == [0] and table.utility.tolist() == [[0.0, 1.0]]
    assert ExitTable(logits=logits, labels=[1], utility=table.utility).utility_is_accuracy


@pytest.mark.parametrize("name", ["table.npz", "table"])
def test_a_table_survives_the_disk(tmp_path, name):
    costs = CostTable((1.0, 2.0, 3.0, 4.0), "ms", 3.5)
    table = replace(synthetic_table(50), costs=costs, split="val", source="abc")
    table.save(tmp_path / name)
    table.save(tmp_path / name)  # replacing an earlier one
    again = ExitTable.load(tmp_path / name)
    assert (again.costs, again.split, again.source) == (table.costs, "val", "abc")
    for key in ("logits", "labels", "utility"):
        assert np.array_equal(getattr(again, key), getattr(table, key))
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_a_large_folder_is_mapped_and_not_read(tmp_path):
    table = synthetic_table(4000, num_exits=3, num_classes=50)
    table.save(tmp_path / "table")
    stored = np.load(tmp_path / "table" / "logits.npy", mmap_mode="r")
    assert isinstance(stored, np.memmap)
    again = ExitTable.load(tmp_path / "table")
    assert np.array_equal(again.logits, table.logits)
    again.logits[0] = 0  # copy on write: the file stays as it is
    assert np.array_equal(ExitTable.load(tmp_path / "table").logits, table.logits)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probabilities_serve_as_well(tmp_path, dtype):
    table = synthetic_table(60)
    probs = np.exp(table.seen()).astype(dtype)
    probs[0, 0] = np.eye(5, dtype=dtype)[2]  # zeros are clamped
    loaded = ExitTable.load(write(tmp_path / "t.npz", probs=probs, labels=table.labels))
    log_probs = loaded.seen()
    assert np.isfinite(log_probs).all()
    assert np.allclose(np.exp(log_probs[1:]), probs[1:], atol=2e-3)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "u4", "u8", ">i4", ">i8"])
def test_labels_of_any_whole_type_serve(tmp_path, dtype):
    loaded = ExitTable.load(write(tmp_path / "t.npz", logits=LOGITS, labels=LABELS.astype(dtype)))
    assert np.array_equal(loaded.labels, LABELS)
    assert np.array_equal(loaded.utility, ExitTable(logits=LOGITS, labels=LABELS).utility)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
def test_outputs_of_any_floating_type_serve(tmp_path, dtype):
    loaded = ExitTable.load(write(tmp_path / "t.npz", logits=LOGITS.astype(dtype)))
    assert np.array_equal(loaded.logits.astype(np.float32), LOGITS)


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"contains thesis\.txt"):
        ExitTable(logits=LOGITS).save(tmp_path / "table")
    assert (tmp_path / "table" / "thesis.txt").read_text() == "mine"


def test_exits_are_combined_where_that_means_something():
    table = synthetic_table(50)
    assert table.combinable
    assert not table.transformed(Ensemble(weight=np.eye(4), bias=np.zeros((4, 5)))).combinable
    assert not ExitTable(logits=LOGITS, utility=np.ones((3, 2))).combinable
    given = ExitTable(logits=LOGITS, labels=LABELS, utility=np.full((3, 2), 0.5))
    assert (given.utility == 0.5).all() and not given.combinable


BAD = {
    "nan": ({"logits": np.where(np.arange(12).reshape(3, 2, 2) == 5, np.nan, 0.0)}, "logits of row 1 contains NaN"),
    "inf": (
        {"logits": np.where(np.arange(12).reshape(3, 2, 2) == 11, np.inf, 0.0)},
        "logits of row 2 contains NaN or infinity",
    ),
    "huge": ({"logits": np.full((3, 2, 2), 1e300)}, "finite float32"),
    "labels too large": ({"labels": np.array([0, 1, 2])}, "labels of row 2, 2, is out of range"),
    "labels negative": ({"labels": np.array([0, -1, 1])}, "labels of row 1"),
    "labels beyond every signed number": (
        {"labels": np.array([0, 2**64 - 1, 1], dtype=np.uint64)},
        f"labels of row 1, {2**64 - 1}",
    ),
    "labels not whole": ({"labels": np.array([0.0, 1.0, 1.0])}, "labels of type"),
    "labels too few": ({"labels": np.array([0, 1])}, "labels of shape"),
    "one exit": ({"logits": np.zeros((3, 1, 2))}, "1 exit"),
    "one class": ({"logits": np.zeros((3, 2, 1))}, "1 columns"),
    "empty": ({"logits": np.zeros((0, 2, 2)), "labels": np.zeros(0, dtype=int)}, "no samples"),
    "flat": ({"logits": np.zeros((3, 4))}, "logits of shape"),
    "whole logits": ({"logits": np.zeros((3, 2, 2), dtype=int)}, "floating point"),
    "words": ({"logits": np.full((3, 2, 2), "a")}, "numbers are needed"),
    "utility above 1": ({"utility": np.array([[0, 1], [0, 1.5], [0, 0]])}, "utility of row 1 is out of range"),
    "utility misshapen": ({"utility": np.zeros((3, 3))}, "utility of shape"),
    "costs falling": ({"costs": np.array([2.0, 1.0]), "cost_unit": np.array("ms")}, "not increasing"),
    "costs without unit": ({"costs": np.array([1.0, 2.0])}, "cost_unit is missing"),
    "costs too many": ({"costs": np.array([1.0, 2.0, 3.0]), "cost_unit": np.array("ms")}, "costs of 3 exits"),
    "costs by sample too many": ({"costs": np.ones((3, 3)).cumsum(1), "cost_unit": np.array("ms")}, "exits"),
    "costs by sample falling": (
        {"costs": np.array([[1.0, 3.0], [2.0, 1.0], [1.0, 9.0]]), "cost_unit": np.array("ms")},
        "cost of row 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_by_name(tmp_path, case):
    changed, message = BAD[case]
    arrays = {"logits": LOGITS, "labels": LABELS} | changed
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
    with pytest.raises(TableError, match="'features' is needed, found labels"):
        ExitTable.load(write(tmp_path / "t.npz", labels=np.array([0, 1])))


def test_damaged_files_are_refused(tmp_path):
    whole = write(tmp_path / "whole.npz", logits=LOGITS).read_bytes()
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
    again = ExitTable.concat([table.select(slice(0, 4)), table.select(np.arange(4, 10))])
    assert np.array_equal(again.logits, table.logits)
    assert np.array_equal(again.labels, table.labels)
    with pytest.raises(ShapeError, match="table 1"):
        ExitTable.concat([table, synthetic_table(10, num_exits=3)])
    with pytest.raises(TableError, match="labels is missing in table 1"):
        ExitTable.concat([table, synthetic_table(10, labels=False)])
    with pytest.raises(TableError, match="sources differ"):
        ExitTable.concat([replace(table, source=source) for source in ("a", "b")])
    with pytest.raises(TableError, match="exit_names of tables to join differ"):
        ExitTable.concat([replace(table, exit_names=names) for names in (tuple("abcd"), tuple("abdc"))])
    cost = np.tile([1.0, 2.0, 3.0, 4.0], (10, 1))
    with pytest.raises(TableError, match="FLOPs and ms: it has one unit"):
        ExitTable.concat([replace(table, cost=cost, costs=CostTable(tuple(cost[0]), unit)) for unit in ("ms", "FLOPs")])


def test_keeping_some_exits_is_recording_a_model_without_the_others():
    table = synthetic_table(30).with_costs(CostTable((1.0, 2.0, 3.0, 4.0), "ms", 3.5))
    kept = table.keeping([1, 3])
    assert (kept.num_exits, kept.costs) == (2, CostTable((2.0, 4.0), "ms", 3.5))
    for key in ("logits", "utility"):
        assert np.array_equal(getattr(kept, key), getattr(table, key)[:, [1, 3]])
    assert np.array_equal(kept.labels, table.labels)
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


def test_tensors_lists_and_arrays_of_any_kind_make_the_same_table():
    torch = pytest.importorskip("torch")
    wanted = ExitTable(logits=LOGITS, labels=LABELS)
    tensor = torch.from_numpy(LOGITS.copy())
    for logits in (
        LOGITS.tolist(),
        LOGITS.astype(">f4"),
        LOGITS.astype(np.float16),
        np.flip(np.flip(LOGITS, 0).copy(), 0),
        tensor,
        tensor.bfloat16(),
        tensor.clone().requires_grad_(),
        tensor.double().transpose(0, 1).contiguous().transpose(0, 1),
    ):
        made = ExitTable(logits=logits, labels=torch.tensor([0, 1, 1], dtype=torch.int32))
        assert np.array_equal(made.seen(), wanted.seen()) and np.array_equal(made.utility, wanted.utility)


def test_features_take_the_place_of_logits(tmp_path):
    features = np.arange(12, dtype=np.float64).reshape(3, 2, 2)
    table = ExitTable(features=features, feature_names=("score", "length"), utility=[[0, 1], [1, 1], [0, 0]])
    table.save(tmp_path / "t.npz")
    again = ExitTable.load(tmp_path / "t.npz")
    assert not again.has_classes and again.feature_names == ("score", "length") and again.num_columns == 2
    assert np.array_equal(again.seen(), features.astype(np.float32)) and again.seen().dtype == np.float32
    assert np.array_equal(again.seen_at(slice(1, 3), 1), features[1:, 1])
    with pytest.raises(TableError, match="utility is missing"):
        ExitTable(features=features, labels=LABELS)
    with pytest.raises(TableError, match="both given, or neither"):
        ExitTable(features=features, logits=LOGITS, utility=np.ones((3, 2)))
    with pytest.raises(ShapeError, match="feature_names of 1"):
        ExitTable(features=features, utility=np.ones((3, 2)), feature_names=("score",))


def test_costs_may_differ_from_sample_to_sample(tmp_path):
    cost = np.array([[1.0, 3.0], [2.0, 5.0], [3.0, 4.0]])
    table = ExitTable(logits=LOGITS, labels=LABELS, cost=cost, costs=CostTable((9.0, 99.0), "ms", 4.5))
    assert table.costs == CostTable((2.0, 4.0), "ms", 4.5)  # the means, in the unit given
    table.save(tmp_path / "t.npz")
    again = ExitTable.load(tmp_path / "t.npz")
    assert np.array_equal(again.cost, cost) and again.costs == table.costs
    assert np.array_equal(again.leaving_costs, cost)
    assert again.select([0, 1]).costs == CostTable((1.5, 4.0), "ms", 4.5)
    same = again.with_costs(CostTable((1.0, 2.0), "s"))
    assert same.cost is None and same.leaving_costs.tolist() == [[1.0, 2.0]] * 3
    assert ExitTable(logits=LOGITS, cost=cost).costs == CostTable((2.0, 4.0), "units")


def test_logits_that_are_plainly_probabilities_are_noticed():
    probs = np.array([[[0.25, 0.75], [0.5, 0.5]], [[1.0, 0.0], [0.125, 0.875]]], dtype=np.float32)
    with pytest.warns(UserWarning, match="look like probabilities"):
        ExitTable(logits=probs, labels=[0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ExitTable(logits=probs + 0.5, labels=[0, 1])
        ExitTable.from_probs(probs, labels=[0, 1])


def test_log_probabilities_by_hand():
    found = log_softmax(np.array([[0.0, 0.0], [1000.0, -1e30], [-np.inf, 3.0]]))
    assert found.dtype == np.float32
    assert found.tolist() == [[-np.float32(np.log(2))] * 2, [0.0, FLOOR], [FLOOR, 0.0]]
    for bad in ([np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]):
        assert np.isnan(log_softmax(np.array([bad]))).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_log_probabilities_of_a_row_do_not_depend_on_the_others(dtype):
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(700, 3, 130)) * 10).astype(dtype)
    whole = log_softmax(logits)
    assert np.allclose(np.exp(whole.astype(np.float64)).sum(axis=2), 1, atol=1e-5)
    for axes in ((0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)):  # nor on how numbers lie in memory
        same = np.ascontiguousarray(logits.transpose(axes)).transpose(np.argsort(axes))
        for size in (1, 7, 64, 700):
            assert np.array_equal(log_softmax(same[:size]), whole[:size])
            assert np.array_equal(log_softmax(same[:size, 1]), whole[:size, 1])


@pytest.mark.parametrize("damage", ["bit", "swapped", "gone"])
def test_a_changed_folder_is_refused(tmp_path, damage):
    synthetic_table(50).save(tmp_path / "t")
    file = tmp_path / "t" / "logits.npy"
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[-3] ^= 1
        file.write_bytes(content)
    elif damage == "swapped":
        file.write_bytes((tmp_path / "t" / "utility.npy").read_bytes())
    else:
        file.unlink()
    with pytest.raises(TableError, match=r"logits\.npy"):
        ExitTable.load(tmp_path / "t")


def test_a_folder_of_ones_own_needs_no_checksums_but_a_stored_one_takes_no_more_files(tmp_path):
    (tmp_path / "own").mkdir()
    np.save(tmp_path / "own" / "logits.npy", LOGITS)
    assert ExitTable.load(tmp_path / "own").num_samples == 3
    ExitTable(logits=LOGITS).save(tmp_path / "t")
    np.save(tmp_path / "t" / "utility.npy", np.ones((3, 2)))
    with pytest.raises(TableError, match=r"utility\.npy is not in the manifest"):
        ExitTable.load(tmp_path / "t")


def test_costs_without_a_unit_are_refused():
    with pytest.raises((TableError, TypeError), match="CostTable"):
        ExitTable(logits=LOGITS, costs=[1.0, 2.0])
