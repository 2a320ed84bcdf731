"""Recording: what every exit says, in order, in constant memory, all or nothing."""

import errno
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from eenet.errors import DataError, InputError, RunError, ShapeError, TableError
from eenet.experiments.data.dataset import ArrayDataset
from eenet.models.model import MultiExitModel
from eenet.running import recording
from eenet.running.engines import EagerEngine
from eenet.running.engines.eager import fingerprint
from eenet.running.progress import track
from eenet.running.recording import outputs, record
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

COSTS = CostTable(cumulative=(1.0, 2.0, 3.0), unit="ms", reference=2.5)


@pytest.fixture
def dataset() -> ArrayDataset:
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    return ArrayDataset(images, torch.arange(50) % 10, mean=(0.5,), std=(0.2,))


class Faulty:
    """A data set whose third batch fails, or whose length is wrong."""

    def __init__(self, dataset, *, error=None, length=None):
        self.dataset, self.error = dataset, error
        self.length = len(dataset) if length is None else length

    def __len__(self):
        return self.length

    def batches(self, batch_size):
        for i, batch in enumerate(self.dataset.batches(batch_size)):
            if self.error is not None and i == 2:
                raise self.error
            yield batch


@pytest.mark.parametrize("name", ["val.npz", "val", None])
def test_groups_are_recorded(tiny, dataset, tmp_path, name):
    groups = [f"street {i // 5}" for i in range(50)]
    path = None if name is None else tmp_path / name
    assert record(tiny, dataset, path, group=groups).group.tolist() == groups
    with pytest.raises(ShapeError, match=r"group of shape \(49,\) .* 50 samples"):
        record(tiny, dataset, path, group=groups[:-1])
    with pytest.raises(TableError, match="group of type float64"):
        record(tiny, dataset, path, group=np.zeros(50))


@pytest.mark.parametrize("name", ["val.npz", "val"])
@pytest.mark.parametrize("size", [1, 16, 64])
def test_a_table_comes_back_with_everything(tiny, dataset, tmp_path, name, size):
    table = record(tiny, dataset, tmp_path / name, batch_size=size, split="val", costs=COSTS)
    with torch.no_grad():
        expected = torch.stack(tiny(dataset.inputs(slice(None))), dim=1)
    np.testing.assert_allclose(table.logits, expected, atol=1e-5)
    assert np.array_equal(table.labels, dataset.labels)
    assert table.source == fingerprint(tiny)
    assert table.split == "val"
    assert table.costs == COSTS
    again = ExitTable.load(tmp_path / name)
    assert np.array_equal(again.logits, table.logits)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing else is left behind


def test_one_batch_is_recorded_to_the_bit(tiny, dataset, tmp_path):
    table = record(tiny, dataset, tmp_path / "a.npz", batch_size=50)
    with torch.no_grad():
        assert np.array_equal(table.logits, torch.stack(tiny(dataset.inputs(slice(None))), dim=1))
    assert table.split == "a"
    assert table.costs is None


def test_numpy_reads_the_file_without_pickle(tiny, dataset, tmp_path):
    record(tiny, dataset, tmp_path / "a.npz", costs=COSTS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {*("logits", "labels", "split", "source", "costs", "cost_unit", "cost_reference")}
        assert arrays["logits"].dtype == np.float32
        assert arrays["labels"].dtype == np.int64


def test_memory_is_that_of_one_batch(tiny, dataset, tmp_path, monkeypatch):
    sizes, append = [], recording._append
    monkeypatch.setattr(
        recording, "_append", lambda path, part, rows: (sizes.append(len(part)), append(path, part, rows))
    )
    record(tiny, dataset, tmp_path / "a", batch_size=16)
    assert sizes == [16, 16, 16, 16, 16, 16, 2, 2]  # logits and labels in turns, never more than a batch


def test_flags_are_restored_and_nothing_is_learned(tiny, dataset, tmp_path):
    tiny.train()
    tiny.heads[1].eval()
    flags = [part.training for part in tiny.modules()]
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    record(tiny, dataset, tmp_path / "a.npz", device="cpu")
    assert [part.training for part in tiny.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())


@pytest.mark.parametrize("name", ["old.npz", "old"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken image")])
def test_an_interruption_leaves_the_old_table(tiny, dataset, tmp_path, name, error):
    record(tiny, dataset, tmp_path / name, batch_size=8, split="old")
    tiny.train()
    with pytest.raises(type(error)):
        record(tiny, Faulty(dataset, error=error), tmp_path / name, batch_size=8, split="new")
    assert tiny.training
    assert ExitTable.load(tmp_path / name).split == "old"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["new.npz", "new"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tiny, dataset, tmp_path, name, monkeypatch):
    def full(path, array, rows):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recording, "_append", full)
    with pytest.raises(RunError, match=rf"output .*{name} could not be written: No space left on device") as caught:
        record(tiny, dataset, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_really_full_device_is_an_error_and_no_crash():
    with pytest.raises(OSError, match="No space left"):
        recording._append(Path("/dev/full"), np.zeros((4, 3), np.float32), 0)


@pytest.mark.parametrize("name", [None, "a.npz"])
def test_batches_that_do_not_add_up_are_refused(tiny, dataset, tmp_path, name):
    path = None if name is None else tmp_path / name
    with pytest.raises(RunError, match="yielded 50 samples: its length is 60"):
        record(tiny, Faulty(dataset, length=60), path)
    model = MultiExitModel([torch.nn.Identity()] * 2, [torch.nn.Identity()] * 2)
    with pytest.raises(ShapeError, match=r"logits of shape \(2, 2, 4\) do not fit: .* \(2, 3\)"):
        record(
            model,
            [(torch.randn(5, 3), torch.zeros(5, dtype=int)), (torch.randn(2, 4), torch.zeros(2, dtype=int))],
            path,
        )
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_found_before_any_work(tiny, dataset, tmp_path):
    with pytest.raises(InputError, match="batch_size 0"):
        record(tiny, dataset, tmp_path / "a.npz", batch_size=0)
    with pytest.raises(ShapeError, match="costs with 2 exits"):
        record(tiny, dataset, tmp_path / "a.npz", costs=CostTable(cumulative=(1.0, 2.0), unit="ms"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"contains thesis\.txt"):
        record(tiny, dataset, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["x_train.npy", "y_val.npy", "logits_old.npy"])
def test_somebody_elses_arrays_are_not_replaced(tiny, dataset, tmp_path, name):
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / name, np.zeros(3))
    with pytest.raises(InputError, match=f"contains {name}"):
        record(tiny, dataset, tmp_path / "mine")
    assert (tmp_path / "mine" / name).exists()


class Labelled:
    """The same images with other labels."""

    def __init__(self, dataset, labels):
        self.dataset, self.labels = dataset, labels

    def __len__(self):
        return len(self.dataset)

    def batches(self, batch_size):
        labels = self.labels.split(batch_size)
        for (inputs, _), part in zip(self.dataset.batches(batch_size), labels, strict=True):
            yield inputs, part


@pytest.mark.parametrize("name", ["old.npz", "old"])
def test_what_is_no_table_leaves_the_old_one(tiny, dataset, tmp_path, name):
    record(tiny, dataset, tmp_path / name, split="old")
    with pytest.raises(TableError, match="labels"):
        record(tiny, Labelled(dataset, torch.arange(50)), tmp_path / name, split="new")
    for labels in (torch.rand(50) * 9, torch.zeros(50, dtype=torch.float64)):
        with pytest.raises(DataError, match=f"labels of {labels.numpy().dtype} do not fit"):
            record(tiny, Labelled(dataset, labels), tmp_path / name, split="new")
    with torch.no_grad():
        tiny.heads[1][-1].bias.fill_(float("nan"))
    with pytest.raises(TableError, match="logits"):
        record(tiny, dataset, tmp_path / name, split="new")
    assert ExitTable.load(tmp_path / name).split == "old"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_engine_stays_where_it_is(tiny, dataset, tmp_path):
    with pytest.raises(InputError, match="device meta cannot be had: the engine computes on cpu"):
        record(EagerEngine(tiny), dataset, tmp_path / "a.npz", device="meta")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_can_be_recorded(tiny, dataset, tmp_path):
    engine = EagerEngine(tiny)
    table = record(engine, dataset, tmp_path / "a.npz", batch_size=50)
    assert np.array_equal(table.logits, outputs(engine, dataset.inputs(slice(None))))


def forms(dataset):
    """The data set in all forms that are taken, in batches of 16."""
    inputs, labels = dataset.inputs(slice(None)), torch.as_tensor(dataset.labels)
    pairs = list(zip(inputs.split(16), labels.split(16), strict=True))
    return {
        "loader": DataLoader(TensorDataset(inputs, labels), batch_size=16),
        "tuples": pairs,
        "generator": ((part.numpy(), names.numpy()) for part, names in pairs),
        "labels in lists": [(part, names.tolist()) for part, names in pairs],
        "batches": dataset,
    }


@pytest.mark.parametrize("name", ["loader", "tuples", "generator", "labels in lists", "batches"])
@pytest.mark.parametrize("where", [None, "a.npz", "a"])
def test_data_sets_of_any_form_to_memory_or_disk(tiny, dataset, tmp_path, name, where):
    wanted = record(tiny, dataset, batch_size=16)
    path = None if where is None else tmp_path / where
    table = record(tiny, forms(dataset)[name], path, batch_size=16, costs=COSTS)
    assert np.array_equal(table.logits, wanted.logits) and np.array_equal(table.labels, wanted.labels)
    assert (table.costs, table.source) == (COSTS, wanted.source)
    assert (path is None) == (list(tmp_path.iterdir()) == [])


class Keywords(torch.nn.Module):
    def forward(self, inputs):
        return inputs["a"] * inputs["b"]


@pytest.mark.parametrize("key", ["labels", "label"])
def test_mappings_with_labels(key):
    model = MultiExitModel([torch.nn.Identity()] * 2, [torch.nn.Identity()] * 2, start=Keywords())
    a, b, labels = torch.randn(9, 3), torch.randn(9, 3), torch.arange(9) % 3
    table = record(model, [{"a": a[:5], "b": b[:5], key: labels[:5]}, {"a": a[5:], "b": b[5:], key: labels[5:]}])
    assert np.array_equal(table.logits[:, 0], a * b)
    assert np.array_equal(table.labels, labels)


def test_what_is_no_labelled_data_set_is_refused(tiny, dataset, tmp_path):
    images = dataset.inputs(slice(None))
    for data, said in (
        ([images], "without labels"),
        ([{"x": images}], "without labels"),
        ([], "0 samples"),
        (5, "yields no batches"),
    ):
        for path in (None, tmp_path / "a.npz"):
            with pytest.raises(InputError, match=said):
                record(tiny, data, path)
    with pytest.raises(InputError, match="inputs named x do not fit"):
        record(tiny, [{"x": images, "label": dataset.labels}])
    with pytest.raises(DataError, match="labels of <U1"):
        record(tiny, [(images, ["a"] * 50)])
    assert list(tmp_path.iterdir()) == []


def test_the_bar_waits_two_seconds(monkeypatch, capsys):
    assert list(track("abc", 3, "quick")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
    ticks = itertools.count(0, 3)
    monkeypatch.setattr("eenet.running.progress.time.monotonic", lambda: float(next(ticks)))
    assert list(track("abc", 3, "slow", enabled=False)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
    assert list(track("abc", 3, "in a log file")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track("abc", 3, "slow")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "slow" in err
