"""Data in the forms that people have it in: taken where it is clear what is meant, else refused in one line."""

import collections
import warnings

import numpy as np
import pytest
import torch
from replaying import ReplayEngine, policies
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from eenet.errors import BundleError, EenetError, InputError, RunError, ShapeError, TableError
from eenet.models.attach import attach
from eenet.models.model import MultiExitModel
from eenet.policies import ConfidenceScorer, ScorePolicy
from eenet.running.adaptive import AdaptiveModel
from eenet.running.benchmark import bench
from eenet.running.bundle import Bundle
from eenet.running.engines import EagerEngine
from eenet.running.inputs import batches_of, gathered, samples_in
from eenet.running.measuring import measure
from eenet.running.recording import record

COUNT = 21
POLICY = ScorePolicy(ConfidenceScorer("max_prob"), np.array([0.3, -np.inf]))
X = torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(COUNT) % 3


class Named(nn.Module):
    """Reads one input by name."""

    def forward(self, inputs):
        return inputs["x"]


def linear(start=None) -> MultiExitModel:
    torch.manual_seed(1)
    return MultiExitModel([nn.Linear(8, 8), nn.Linear(8, 8)], [nn.Linear(8, 3), nn.Linear(8, 3)], start=start).eval()


@pytest.fixture
def model() -> MultiExitModel:
    return linear()


@pytest.fixture
def named() -> MultiExitModel:
    return linear(Named())


class Rows(Dataset):
    """A data set of torch: samples by number."""

    def __init__(self, row, count=COUNT):
        self.row, self.count = row, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.row(i)


class Table:
    """A data set as those of Hugging Face: rows by number, no class of torch, and a shape that is no array's."""

    def __init__(self, row, count=COUNT):
        self.row, self.count, self.shape = row, count, (count, 2)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.row(range(self.count)[i])


class Stream(IterableDataset):
    def __init__(self, row):
        self.row = row

    def __iter__(self):
        return (self.row(i) for i in range(COUNT))


def pair(i):
    return X[i], int(Y[i])


TAKEN = {
    "TensorDataset": lambda: TensorDataset(X, Y),
    "Dataset": lambda: Rows(pair),
    "Dataset of arrays": lambda: Rows(lambda i: (X[i].numpy(), np.int64(Y[i]))),
    "Subset": lambda: Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(COUNT)),
    "ConcatDataset": lambda: ConcatDataset([TensorDataset(X[:9], Y[:9]), TensorDataset(X[9:], Y[9:])]),
    "IterableDataset": lambda: Stream(pair),
    "list of samples": lambda: [pair(i) for i in range(COUNT)],
    "batches by number": lambda: Table(lambda i: (X[7 * i :][:7], Y[7 * i :][:7]), 3),
    "deque": lambda: collections.deque([(X[:9], Y[:9]), (X[9:], Y[9:])]),
    "generator of samples": lambda: (pair(i) for i in range(COUNT)),
    "list of batches": lambda: [(X[:9], Y[:9]), (X[9:], Y[9:].tolist())],
    "list of lists": lambda: [[X[:9], Y[:9]], [X[9:], Y[9:]]],
    "generator of batches": lambda: ((x, y) for x, y in zip(X.split(4), Y.split(4), strict=True)),
    "one pair": lambda: (X, Y),
    "one pair in a list": lambda: [X.numpy(), Y.tolist()],
    "DataLoader": lambda: DataLoader(Rows(pair), batch_size=4),
    "DataLoader of a stream": lambda: DataLoader(Stream(pair), batch_size=4),
    "DataLoader without batches": lambda: DataLoader(Rows(pair), batch_size=None),
    "doubles": lambda: [(X.double(), Y.to(torch.uint8))],
    "lists of numbers": lambda: [(X.tolist(), Y)],
}
BY_NAME = {
    "rows of lists": lambda: Table(lambda i: {"x": X[i].tolist(), "label": int(Y[i])}),
    "rows of arrays": lambda: Table(lambda i: {"x": X[i].numpy(), "labels": np.int64(Y[i])}),
    "rows of tensors": lambda: Table(lambda i: {"x": X[i], "labels": Y[i]}),
    "Dataset of mappings": lambda: Rows(lambda i: {"x": X[i], "label": Y[i]}),
    "list of rows": lambda: [{"x": X[i], "label": int(Y[i])} for i in range(COUNT)],
    "one mapping": lambda: {"x": X, "labels": Y},
    "one mapping of lists": lambda: {"x": X.tolist(), "label": Y.tolist()},
    "UserDict": lambda: [collections.UserDict({"x": X, "label": Y})],
    "mapping and labels": lambda: [({"x": X}, Y)],
    "one mapping and labels": lambda: ({"x": X.numpy()}, Y.tolist()),
    "both names, equal": lambda: [{"x": X, "label": Y, "labels": Y.numpy()}],
    "no label under one name": lambda: [{"x": X, "label": None, "labels": Y}],
    "DataLoader": lambda: DataLoader(Rows(lambda i: {"x": X[i], "label": Y[i]}), batch_size=4),
}


@pytest.mark.parametrize("form", [*TAKEN, *(f"by name: {name}" for name in BY_NAME)])
def test_labelled_data_of_any_form(form, tmp_path):
    by_name = form.startswith("by name: ")
    make = BY_NAME[form.removeprefix("by name: ")] if by_name else TAKEN[form]
    model = linear(Named() if by_name else None)
    with torch.no_grad():
        wanted = torch.stack(linear()(X), dim=1).numpy()
    for path in (None, tmp_path / "a.npz"):
        table = record(model, make(), path, batch_size=8, progress=False)
        np.testing.assert_allclose(table.logits, wanted, atol=1e-5)
        assert np.array_equal(table.labels, Y)
    adaptive = AdaptiveModel(model, POLICY)
    np.testing.assert_array_equal(
        adaptive.predict_all(make(), batch_size=8).exit_index,
        adaptive({"x": X} if by_name else X).exit_index,
    )


UNLABELLED = {
    "tensor": lambda: X,
    "array": X.numpy,
    "split in two": lambda: X.split(11),
    "list of batches": lambda: [X[:4], X[4:]],
    "generator": lambda: (part for part in X.split(4)),
    "deque": lambda: collections.deque(X.split(4)),
    "Dataset": lambda: Rows(lambda i: X[i]),
    "Dataset of one": lambda: TensorDataset(X),
    "DataLoader of one": lambda: DataLoader(TensorDataset(X), batch_size=4),
    "IterableDataset": lambda: Stream(lambda i: X[i]),
    "rows": lambda: Table(lambda i: X[i].numpy()),
}


@pytest.mark.parametrize("form", UNLABELLED)
def test_inputs_alone_are_predicted_and_not_recorded(model, form):
    adaptive = AdaptiveModel(model, POLICY)
    assert np.array_equal(adaptive.predict_all(UNLABELLED[form]()).exit_index, adaptive(X).exit_index)
    ran = []
    model.stages[0].register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises((InputError, ShapeError), match="without labels"):
        record(model, UNLABELLED[form](), progress=False)
    assert not ran


REFUSED = {
    "labels first": (lambda: [(Y, X)], "first has 1 axes and whose second has 2: labels come second"),
    "labels first, rows": (lambda: Rows(lambda i: (int(Y[i]), X[i])), "labels come second"),
    "three values": (lambda: [(X, Y, Y)], "3 values together: which of them .* is not clear"),
    "no values": (lambda: [()], "0 values together"),
    "both names": (lambda: [{"x": X, "label": Y, "labels": 2 - Y}], "'labels' and with 'label', and these differ"),
    "another name": (lambda: [{"x": X, "target": Y}], "of 'x', 'target' without labels"),
    "no label": (lambda: [{"x": X, "labels": None}], "without labels"),
    "one hot": (lambda: [(X, torch.eye(3)[Y].long())], r"labels of shape \(21, 3\)"),
    "one hot, rows": (lambda: Rows(lambda i: (X[i], torch.eye(3)[Y[i]].long())), r"labels of shape \(21, 3\)"),
    "a column": (lambda: [(X, Y[:, None])], r"labels of shape \(21, 1\)"),
    "fractions": (lambda: [(X, Y.float())], "labels of float32 do not fit"),
    "booleans": (lambda: [(X, Y > 0)], "labels of bool do not fit"),
    "names": (lambda: [(X, ["cat"] * COUNT)], "labels of <U3 do not fit"),
    "names, rows": (lambda: Rows(lambda i: (X[i], "cat")), "labels of type str do not fit"),
    "fewer labels": (lambda: [(X, Y[:20])], "labels of 20 samples do not fit: the batch has 21"),
    "ragged": (lambda: Table(lambda i: (X[i][: 3 + i % 3], 1)), r"shapes \(3,\), \(4,\), \(5,\) do not fit together"),
    "other names": (
        lambda: Table(lambda i: {"x" if i < 3 else "y": X[i], "label": 1}),
        r"differ in their names: all samples need \['x'\]",
    ),
    "texts": (lambda: Table(lambda i: {"text": "hi", "x": X[i], "label": 1}), "'text' of type str do not fit"),
    "things": (lambda: Rows(lambda i: (object(), 1)), "inputs of type object do not fit: numbers are needed"),
    "positions": (
        lambda: DataLoader(Rows(lambda i: {"x": X[i].tolist(), "label": 1}), batch_size=4),
        "'x' in lists of arrays do not fit",
    ),
    "positions, pairs": (lambda: DataLoader(Rows(lambda i: (X[i].tolist(), 1)), batch_size=4), "inputs in lists of"),
    "empty": (list, "0 samples"),
    "an empty iterator": (lambda: iter(()), "no batch: there is nothing to record"),
    "empty data set": (lambda: Rows(pair, 0), "0 samples"),
    "an empty batch": (lambda: [(X[:0], Y[:0])], "at least 1"),
    "splits": (lambda: {"train": Rows(pair), "test": Rows(pair)}, "no array"),
    "nothing": (lambda: None, "of type NoneType yields no batches"),
    "a path": (lambda: "data/", "without labels"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_clear_is_refused_before_the_model_runs(model, form, tmp_path):
    make, said = REFUSED[form]
    model.stages[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
    for path in (None, tmp_path / "a"):
        with pytest.raises(InputError, match=said) as caught:
            record(model, make(), path, progress=False)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["labels first", "labels first, rows", "three values", "both names", "fewer labels"])
def test_predicting_refuses_it_too(model, form):
    make, said = REFUSED[form]
    with pytest.raises(InputError, match=said):
        AdaptiveModel(model, POLICY).predict_all(make())


def test_an_iterator_is_read_once(model):
    batches = ((x, y) for x, y in zip(X.split(4), Y.split(4), strict=True))
    record(model, batches, progress=False)
    with pytest.raises(InputError, match="an iterator that was read before"):
        record(model, batches, progress=False)
    with pytest.raises(InputError, match="an iterator that was read before"):
        AdaptiveModel(model, POLICY).predict_all(batches)


def test_rows_that_are_no_table_are_found_when_they_come(model):
    later = [(X, Y), (X, torch.where(torch.arange(COUNT) == 5, 7, Y)), (X, Y)]
    read = []
    with pytest.raises(TableError, match="labels of row 26, 7, is out of range: there are 3 classes"):
        record(model, (read.append(i) or batch for i, batch in enumerate(later)), progress=False)
    assert read == [0, 1]
    broken = torch.where(torch.arange(COUNT)[:, None] == 5, torch.nan, X)
    with pytest.raises(TableError, match="logits of row 26 contains NaN"):
        record(model, [(X, Y), (broken, Y)], progress=False)
    with pytest.raises(RunError, match=r"exit 0 returns NaN or infinity for sample 5 \(id 5\)"):
        AdaptiveModel(model, POLICY)(broken)
    one = MultiExitModel([nn.Linear(8, 8), nn.Linear(8, 8)], [nn.Linear(8, 1), nn.Linear(8, 1)])
    with pytest.raises(ShapeError, match="1 logit per sample: a choice of classes has at least 2"):
        AdaptiveModel(one, POLICY)(X)


def test_an_impossible_class_is_a_logit():
    said = MultiExitModel([nn.Identity()] * 2, [nn.Identity()] * 2)
    x = torch.tensor([[0.0, -torch.inf, 1.0]])
    assert AdaptiveModel(said, POLICY)(x).labels.tolist() == [2]
    assert np.isneginf(record(said, (x, torch.tensor([2])), progress=False).logits[0, 0, 1])
    for row in ([0.0, torch.inf, 1.0], [-torch.inf] * 3):
        with pytest.raises(RunError, match="NaN or infinity for sample 0"):
            AdaptiveModel(said, POLICY)(torch.tensor([row]))


@pytest.mark.parametrize(
    ("settings", "count", "said"),
    [
        ({"shuffle": True}, COUNT, "with a RandomSampler: rows are in its order"),
        ({"drop_last": True}, 20, "with drop_last: 1 of 21 samples are left out"),
        ({"sampler": WeightedRandomSampler([1.0] * COUNT, 10)}, 10, "with a WeightedRandomSampler"),
    ],
)
def test_what_a_loader_does_to_the_order_is_said(model, settings, count, said):
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, **settings)
    with pytest.warns(UserWarning, match=said):
        assert record(model, loader, progress=False).num_samples == count
    with pytest.warns(UserWarning, match=said):
        assert len(AdaptiveModel(model, POLICY).predict_all(loader).exit_index) == count


def test_a_loader_in_order_is_not_warned_about(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record(model, DataLoader(TensorDataset(X, Y), batch_size=7, drop_last=True), progress=False)


def test_masks_by_sample():
    heads = [nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)]
    dense = MultiExitModel([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)], heads).eval()
    images, masks = torch.randn(9, 3, 5, 6), torch.randint(3, (9, 5, 6))
    wanted = record(dense, [(images, masks)], progress=False)
    for data in (TensorDataset(images, masks), (images, masks), list(zip(images, masks, strict=True))):
        assert samples_in(data, with_labels=True) == 9
        found = record(dense, data, progress=False)
        np.testing.assert_allclose(found.features, wanted.features, atol=1e-5)
        assert np.array_equal(found.utility, wanted.utility)


def images_model() -> MultiExitModel:
    torch.manual_seed(2)
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)]
    return MultiExitModel([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)], heads).eval()


IMAGES = torch.randn(7, 3, 6, 5, generator=torch.Generator().manual_seed(3))
ALIKE = {
    "float64": IMAGES.double(),
    "bfloat16": IMAGES.bfloat16(),
    "float16 array": IMAGES.numpy().astype(np.float16),
    "channels last": IMAGES.to(memory_format=torch.channels_last),
    "not contiguous": IMAGES.transpose(2, 3).contiguous().transpose(2, 3),
    "with gradients": IMAGES.clone().requires_grad_(),
    "big-endian": IMAGES.numpy().astype(">f4"),
    "reversed": np.ascontiguousarray(IMAGES.numpy()[:, ::-1])[:, ::-1],
    "reversed samples": np.ascontiguousarray(IMAGES.numpy()[::-1])[::-1],
    "wider than double": IMAGES.numpy().astype(np.longdouble),
    "list of tensors": list(IMAGES),
    "list of arrays": list(IMAGES.numpy()),
    "lists": IMAGES.tolist(),
}


@pytest.mark.parametrize("form", ALIKE)
def test_a_batch_of_any_kind(form):
    model = images_model()
    wanted = AdaptiveModel(model, POLICY)(IMAGES).log_probs
    for optimise in (True, False):
        found = AdaptiveModel(model, POLICY, optimise=optimise)(ALIKE[form]).log_probs
        np.testing.assert_allclose(found, wanted, atol=2e-2 if "16" in form else 1e-5)
    if "list" not in form:
        np.testing.assert_allclose(
            record(model, (ALIKE[form], Y[:7]), progress=False).logits,
            record(model, (IMAGES, Y[:7]), progress=False).logits,
            atol=2e-2 if "16" in form else 1e-5,
        )


def test_inputs_take_the_format_of_the_model():
    half, double = images_model().bfloat16(), images_model().double()
    for given in (IMAGES, IMAGES.numpy(), IMAGES.double(), IMAGES.half()):
        assert len(AdaptiveModel(half, POLICY)(given).labels) == len(AdaptiveModel(double, POLICY)(given).labels) == 7


NO_BATCH = {
    "one image": (IMAGES[0], r"inputs of shape \(6, 5\) float32 per sample do not fit"),
    "empty": (IMAGES[:0], "at least 1"),
    "a number": (torch.tensor(1.0), "at least 1"),
    "bytes": ((IMAGES * 50).byte(), r"of shape \(3, 6, 5\) uint8 per sample do not fit: the model's stage 0"),
    "channels at the end": (IMAGES.permute(0, 2, 3, 1), r"of shape \(6, 5, 3\)"),
    "grey": (IMAGES[:, :1], r"of shape \(1, 6, 5\)"),
    "another size in a list": ([IMAGES[0], IMAGES[1, :, :4]], r"\(3, 4, 5\), \(3, 6, 5\) do not fit together"),
    "lists of several lengths": ([[1.0, 2.0], [1.0]], "lists of different lengths"),
    "complex": (IMAGES.to(torch.complex64), "complex64 per sample do not fit"),
    "on no device": (IMAGES.to("meta"), "start cannot be run"),
    "texts": (np.array(["a", "b"]), "<U1 per sample do not fit"),
    "a list of texts": (["a", "b"], "of type list do not fit"),
    "a batch of a loader": ([IMAGES, Y[:7]], "do not fit together"),
    "the same in a tuple": ((IMAGES, Y[:7]), "do not fit: the model's stage 0"),
    "a loader": (DataLoader(TensorDataset(IMAGES)), "DataLoader are no batch: .* go to predict_all"),
    "a data set": (TensorDataset(IMAGES), "TensorDataset are no batch"),
    "a text": ("abc", "of type str are no batch"),
    "nothing": (None, "of type NoneType are no batch"),
}


@pytest.mark.parametrize("form", NO_BATCH)
def test_what_is_no_batch_is_refused_in_one_line(form):
    given, said = NO_BATCH[form]
    for optimise in (True, False):
        with pytest.raises(InputError, match=said) as caught:
            AdaptiveModel(images_model(), POLICY, optimise=optimise)(given)
        assert "\n" not in str(caught.value)


def test_a_single_sample_of_numbers_is_refused(model):
    with pytest.raises(InputError, match=r"of shape \(\) float32 per sample do not fit"):
        AdaptiveModel(model, POLICY)(X[0])


def test_labels_in_a_mapping_are_no_inputs(named):
    adaptive = AdaptiveModel(named, POLICY)
    wanted = adaptive({"x": X}).exit_index
    for batch in ({"x": X, "labels": Y}, {"x": X.tolist(), "label": Y}, collections.UserDict({"x": X, "labels": Y})):
        assert np.array_equal(adaptive(batch).exit_index, wanted)
    for batch, said in (
        ({"y": X}, "inputs named y do not fit: .*'x'"),
        ({"labels": Y}, "no array"),
        ({"x": [[1.0], [1.0, 2.0]]}, "'x' in lists of different lengths"),
        ({"x": list(X)}, "'x' in lists of arrays"),
    ):
        with pytest.raises(InputError, match=said):
            adaptive(batch)


def test_names_of_an_attached_model():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))
            self.last = nn.Linear(8, 3)

        def forward(self, inputs, mask):
            return self.last(self.blocks(inputs * mask))

    batch = {"inputs": X, "mask": torch.ones(COUNT, 8)}
    model = attach(Two().eval(), batch, exits=["blocks.0"])
    with torch.no_grad():
        for a, b in zip(model(batch), model(**batch), strict=True):  # an argument of the name `inputs`
            assert torch.equal(a, b)
        assert torch.equal(model(inputs=batch)[0], model(batch)[0])
    adaptive = AdaptiveModel(model, POLICY)
    assert len(adaptive(batch).labels) == len(adaptive.predict_all([{**batch, "labels": Y}]).labels) == COUNT
    for wrong in ({"inputs": X}, {"inputs": X, "masks": batch["mask"]}, {**batch, "more": X}, X):
        with pytest.raises(InputError, match="do not fit"):
            adaptive(wrong)
    with pytest.raises(InputError, match="both given"):
        model(X, mask=batch["mask"])


def test_a_single_argument_called_inputs():
    backbone = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)), nn.Linear(8, 3)).eval()

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = backbone

        def forward(self, inputs):
            return self.net(inputs)

    by_name, plain = attach(One(), {"inputs": X}, exits=["net.0"]), attach(backbone, X, exits=["0"])
    with torch.no_grad():
        wanted = backbone(X)
        for found in (by_name(inputs=X), by_name({"inputs": X}), plain(inputs=X), plain(X)):
            assert torch.equal(found[-1], wanted)


def test_what_a_model_of_somebody_raises_is_one_line():
    class Picky(nn.Module):
        def forward(self, x):
            raise ValueError("first line\nsecond line")

    model = MultiExitModel([nn.Identity(), Picky()], [nn.Identity(), nn.Identity()])
    with pytest.raises(InputError, match=r"stage 1 cannot be run on them \(ValueError: first line\)") as caught:
        AdaptiveModel(model, ScorePolicy("max_prob", np.array([np.inf, -np.inf])))(X)
    assert isinstance(caught.value.__cause__, ValueError)
    tokens = MultiExitModel([nn.Embedding(5, 3), nn.Linear(3, 3)], [nn.Identity(), nn.Identity()])
    with pytest.raises(InputError, match="IndexError: index out of range"):
        AdaptiveModel(tokens, POLICY)(np.array([1, 9]))

    class Answer(nn.Module):
        def forward(self, x):
            return {"logits": x}

    model = MultiExitModel([nn.Identity(), nn.Identity()], [Answer(), Answer()])
    with pytest.raises(InputError, match="output of a head of type dict"):
        AdaptiveModel(model, POLICY)(X)


def test_not_enough_memory_is_no_wrong_input():
    class Large(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    model = MultiExitModel([Large(), Large()], [nn.Identity(), nn.Identity()])
    with pytest.raises(RunError, match=r"stage 0 has not enough memory .* smaller batches"):
        AdaptiveModel(model, POLICY)(X)


DATA = {
    "tensor": lambda: X,
    "array": X.numpy,
    "lists": X.tolist,
    "list of samples": lambda: list(X),
    "pair": lambda: (X, Y),
    "batches": lambda: X.split(4),
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4),
    "Dataset": lambda: Rows(pair),
    "generator": lambda: ((x, y) for x, y in zip(X.split(4), Y.split(4), strict=True)),
}


@pytest.mark.parametrize("form", DATA)
def test_bench_and_measure_read_data_of_any_form(model, form):
    np.testing.assert_allclose(torch.as_tensor(gathered(DATA[form]())), X, atol=1e-6)
    report = bench(model, POLICY, DATA[form](), batch_sizes=(1, 4), passes=1, progress=False)
    assert report.samples == COUNT
    profile = measure(model, DATA[form](), batch_sizes=(4,), passes=1, progress=False)
    assert profile.flops.cumulative == measure(model, X, batch_sizes=()).flops.cumulative


def test_measure_reads_no_more_than_it_needs(model):
    read = []
    batches = (read.append(i) or (x, None) for i, x in enumerate(X.split(4)))
    measure(model, batches, batch_sizes=(5,), passes=1, progress=False)
    assert read == [0, 1]


def test_what_cannot_be_run_together_is_refused(model):
    with pytest.raises(ShapeError, match="differ in shape from batch to batch"):
        bench(model, POLICY, [(X, Y), (torch.randn(2, 7), Y[:2])], batch_sizes=(1,))
    for nothing in ([], iter(())):
        with pytest.raises(InputError, match="nothing to run"):
            bench(model, POLICY, nothing, batch_sizes=(1,))
    for run in (lambda: bench(model, POLICY, X[:, :7], batch_sizes=(1,)), lambda: measure(model, X[:, :7])):
        with pytest.raises(InputError, match=r"of shape \(7,\) float32 per sample do not fit"):
            run()


def test_mappings_are_joined_by_name(named):
    data = [{"x": X[:9], "labels": Y[:9]}, {"x": X[9:], "labels": Y[9:]}]
    assert torch.equal(gathered(data)["x"], X)
    assert bench(named, POLICY, data, batch_sizes=(4,), passes=1, progress=False).samples == COUNT
    assert [len(inputs["x"]) for inputs, _ in batches_of({"x": X, "labels": Y}, 8)] == [8, 8, 5]


def test_bench_refuses_a_policy_of_another_model(model):
    table = record(model, (X, Y), progress=False)
    policy = POLICY.from_source(table.source)
    bench(model, policy, X, batch_sizes=(4,), passes=1, progress=False)
    other = linear()
    with torch.no_grad():
        other.heads[0].bias.add_(1)
    for arguments in ({"model": other}, {"model": model, "engines": [EagerEngine(other)]}):
        with pytest.raises(InputError, match=r"policy of source .* does not fit"):
            bench(policy=policy, inputs=X, batch_sizes=(4,), **arguments)
    bench(other, policy, X, batch_sizes=(4,), passes=1, progress=False, check_source=False)


WRAPPED = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_pytorch_wraps_around_a_model_is_taken_off(model, wrapper, tmp_path):
    wrapped = WRAPPED[wrapper](model)
    wanted = AdaptiveModel(model, POLICY)(X).log_probs
    assert np.array_equal(AdaptiveModel(wrapped, POLICY)(X).log_probs, wanted)
    assert record(wrapped, (X, Y), device="cpu", progress=False).source == EagerEngine(model).source
    assert bench(wrapped, POLICY, X, batch_sizes=(4,), passes=1, progress=False).samples == COUNT
    Bundle(model=wrapped, policy=POLICY).save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle", lambda _: linear())
    assert np.array_equal(loaded.adaptive()(X).log_probs, wanted)


def test_somebodys_own_wrapper_is_not_taken_off(model, tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

        def forward(self, x):
            return self.module(x / 255)

    for run in (
        lambda: AdaptiveModel(Scaled(), POLICY),
        lambda: record(Scaled(), (X, Y)),
        lambda: bench(Scaled(), POLICY, X),
        lambda: measure(Scaled(), X),
        lambda: Bundle(model=Scaled(), policy=POLICY),
    ):
        with pytest.raises(InputError, match="model of type Scaled has no exits"):
            run()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bundles_keep_the_number_format(model, dtype, tmp_path):
    model.to(dtype)
    policy = POLICY.from_source(record(model, (X, Y), progress=False).source)
    Bundle(model=model, policy=policy).save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle", lambda _: linear())
    assert {weight.dtype for weight in loaded.model.parameters()} == {dtype}
    assert all(weight.requires_grad for weight in loaded.model.parameters())
    wanted = AdaptiveModel(model, policy)(X).log_probs
    assert np.array_equal(loaded.adaptive()(X).log_probs, wanted)
    with pytest.raises((BundleError, InputError)):
        Bundle.load(tmp_path / "bundle", lambda _: nn.Linear(8, 3))


def test_engines_that_know_no_torch_read_the_same_forms(logits):
    adaptive = AdaptiveModel(ReplayEngine(logits), policies(logits)["max_prob"])
    rows = np.arange(120)[:, None]
    wanted = adaptive(rows).exit_index
    for data in (rows, np.split(rows, 6), Table(lambda i: rows[i], 120), [(rows, rows[:, 0])]):
        assert np.array_equal(adaptive.predict_all(data, batch_size=50).exit_index, wanted)
    with pytest.raises(InputError, match=r"batch_size 0 .* at least 1"):
        adaptive.predict_all(rows, batch_size=0)
    with pytest.raises(EenetError, match="yields no batches"):
        adaptive.predict_all(5)


@pytest.mark.parametrize("kind", ["BatchEncoding", "ModelOutput"])
def test_mappings_of_transformers(named, kind):
    transformers = pytest.importorskip("transformers")
    make = transformers.BatchEncoding if kind == "BatchEncoding" else transformers.utils.ModelOutput
    adaptive = AdaptiveModel(named, POLICY)
    batch = make({"x": X, "labels": Y})
    assert np.array_equal(adaptive(batch).exit_index, adaptive({"x": X}).exit_index)
    assert np.array_equal(record(named, [batch], progress=False).labels, Y)
    assert len(adaptive.predict_all([batch]).labels) == COUNT
