"""Data as people have it trains a model as our own data sets do, to the bit; what cannot be trained on is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from eenet.errors import InputError, ShapeError
from eenet.experiments.data import ArrayDataset, random_crop_flip
from eenet.models import MultiExitModel, attach
from eenet.training import TrainSettings, fit_exits
from eenet.training.samples import as_dataset

SETTINGS = TrainSettings(epochs=1, batch_size=5, lr=0.1)
MASKS, IMAGES = torch.randint(0, 3, (21, 4, 4)), torch.rand(21, 1, 4, 4)
X, Y = torch.randn(21, 8), torch.arange(21) % 3


def linear(first: int = 3, last: int = 3) -> MultiExitModel:
    torch.manual_seed(0)
    return MultiExitModel([nn.Linear(8, 8), nn.Linear(8, 8)], [nn.Linear(8, first), nn.Linear(8, last)])


class Rows(Dataset):
    """Samples by number, in any form."""

    def __init__(self, form, x=X, y=Y) -> None:
        self.form, self.x, self.y = form, x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int):
        return self.form(self.x[row], self.y[row])


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


class Own:
    """Neither a sequence nor iterable: batches by their size, as `record` takes them."""

    def batches(self, size: int):
        return zip(X.split(size), Y.split(size), strict=True)


PAIRS = TensorDataset(X, Y)
FORMS = {
    "tensors": lambda: (X, Y),
    "numpy, double": lambda: (X.numpy().astype(np.float64), Y.numpy().astype(np.uint8)),
    "TensorDataset": lambda: PAIRS,
    "DataLoader": lambda: DataLoader(PAIRS, batch_size=4, shuffle=True),
    "DataLoader of a Subset": lambda: DataLoader(Subset(PAIRS, range(21)), batch_size=4, drop_last=True),
    "DataLoader with a collate_fn": lambda: DataLoader(
        Rows(lambda x, y: [x, y]), collate_fn=lambda rows: (torch.stack([x for x, _ in rows]), [y for _, y in rows])
    ),
    "DataLoader of a stream": lambda: DataLoader(Stream(), batch_size=4),
    "samples of numpy": lambda: Rows(lambda x, y: (x.numpy().astype(np.float64), int(y))),
    "list of samples": lambda: list(zip(X, Y, strict=True)),
    "generator of batches": lambda: zip(X.split(4), Y.split(4), strict=True),
    "list of lists": lambda: [[x, y] for x, y in zip(X.split(4), Y.split(4), strict=True)],
    "own": Own,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_trains_to_the_same_bits(form: str) -> None:
    trained = []
    for data in (FORMS[form](), as_dataset((X, Y))):
        model = linear()
        fit_exits(model, data, SETTINGS, progress=False)
        trained.append(model.state_dict())
    torch.testing.assert_close(trained[0], trained[1], rtol=0, atol=0)


class Named(nn.Module):
    """A text model that takes a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.last = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids) * attention_mask[:, :, None]
        for block in self.blocks:
            x = x + block(x)
        return self.last(x[:, 0])


IDS = torch.randint(1, 20, (21, 6))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def texts(**changes):
    return {**BATCH, "labels": Y} | changes


def encoding(batch):
    return pytest.importorskip("transformers").BatchEncoding(batch)


@pytest.mark.parametrize(
    "form",
    [
        texts,
        lambda: encoding(texts()),
        lambda: [encoding({name: value[:9] for name, value in texts().items()}) for _ in range(2)],
        lambda: [{"input_ids": [1, 2, 3, 4, 5, 6], "attention_mask": [1] * 6, "label": 1}] * 7,
        lambda: DataLoader(Rows(lambda x, y: {"input_ids": x, "attention_mask": torch.ones_like(x), "label": y}, IDS)),
    ],
)
def test_mappings_with_labels_under_either_name(form) -> None:
    model = attach(Named(), BATCH, exits=3)
    assert bool(fit_exits(model, form(), SETTINGS, progress=False).losses.isfinite().all())


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (lambda: (IDS, Y), r"inputs \(one tensor\).*\(attention_mask, input_ids\).*mask"),
        (lambda: {"input_ids": IDS, "labels": Y}, r"inputs \(input_ids\) do not fit"),
        (lambda: {"input_ids": IDS, "mask": IDS, "labels": Y}, r"inputs \(input_ids, mask\) do not fit"),
    ],
)
def test_inputs_by_other_names_than_attached_are_refused(data, facts) -> None:
    model = attach(Named(), BATCH, exits=3)
    with pytest.raises(ShapeError, match=facts):
        fit_exits(model, data(), SETTINGS, progress=False)
    with pytest.raises(ShapeError, match=r"inputs \(input_ids\)"):
        model.start({"input_ids": IDS})


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (lambda: [], "dataset is empty"),
        (lambda: iter(()), "no batch"),
        (lambda: 7, "type int cannot be trained on"),
        (lambda: [X, X], "without labels"),
        (lambda: [{"x": X}], "without labels"),
        (lambda: (X, Y[:-1]), r"labels .*\(20,\) do not fit 21 samples"),
        (lambda: (X, Y.float()), "labels of type float32"),
        (lambda: (X, np.array(["a"] * 21)), "labels of type ndarray"),
        (lambda: [(["a", "b"], [0, 1])], "inputs of type list"),
        (
            lambda: Rows(lambda x, y: (x[: 2 + int(y)], y)),
            r"inputs of shapes \(2,\), \(3,\), \(4,\) do not fit together",
        ),
        (lambda: [(X, Y), (X[:, :3], Y)], "batches that do not go together"),
        (lambda: DataLoader(PAIRS, sampler=WeightedRandomSampler([1.0] * 21, 21)), "WeightedRandomSampler"),
        (lambda: (X[:, :5], Y), r"the model, which fails on inputs of shape \(1, 5\) \(float32\)"),
        (lambda: (X, torch.where(Y == 2, 7, Y)), "label 7 of sample 2 .* 3 classes"),
        (lambda: (X, torch.where(Y == 2, -1, Y)), "label -1 of sample 2"),
        (lambda: (X, torch.full((21,), -100)), "-100 for all 21 samples"),
        (lambda: (IMAGES, MASKS), "fails on inputs of shape"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(data, facts, tmp_path) -> None:
    with pytest.raises(InputError, match=facts):
        fit_exits(linear(), data(), SETTINGS, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_heads_of_different_classes_are_refused() -> None:
    with pytest.raises(ShapeError, match="5, 3 classes"):
        fit_exits(linear(first=5), (X, Y), SETTINGS, progress=False)


def test_a_batch_norm_needs_two_samples_in_every_part_where_it_learns() -> None:
    def model() -> MultiExitModel:
        stages = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Linear(8, 8)]
        return MultiExitModel(stages, [nn.Linear(8, 3), nn.Linear(8, 3)])

    for batch_size, accumulate in ((1, 1), (5, 3)):
        settings = TrainSettings(epochs=1, batch_size=batch_size, accumulate=accumulate)
        with pytest.raises(InputError, match=rf"batch_size {batch_size} is too small: the batch norm 'stages\.0\.1'"):
            fit_exits(model(), (X, Y), settings, progress=False)
    fit_exits(model(), (X, Y), TrainSettings(epochs=1, batch_size=1, heads_share=1.0), progress=False)
    frozen = model()
    frozen.stages[0].requires_grad_(False)
    fit_exits(frozen, (X, Y), TrainSettings(epochs=1, batch_size=1), progress=False)


@pytest.mark.parametrize("form", [lambda y: (IMAGES, y), lambda y: Rows(lambda x, mask: (x, mask), IMAGES, y)])
def test_maps_of_classes(form) -> None:
    stages = [nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)]
    model = MultiExitModel(stages, [nn.Conv2d(4, 3, 1) for _ in stages])
    data = as_dataset(form(MASKS))
    assert len(data.select(slice(3, 9))) == 6 and torch.equal(
        data.select(slice(3, 9)).targets(slice(1, 2))[0], MASKS[4]
    )
    assert bool(fit_exits(model, data, SETTINGS, progress=False).losses.isfinite().all())
    with pytest.raises(InputError, match="label 9 of sample 20 does not fit"):
        fit_exits(model, form(torch.cat((MASKS[:-1], MASKS[-1:] * 0 + 9))), SETTINGS, progress=False)
    with pytest.raises(InputError, match="labels are asked for"):
        _ = data.labels


def test_maps_for_a_model_without_maps_are_refused() -> None:
    model = MultiExitModel([nn.Flatten(), nn.Identity()], [nn.Linear(16, 3), nn.Linear(16, 3)])
    with pytest.raises(ShapeError, match="labels of 3 axes do not fit logits of 2"):
        fit_exits(model, (IMAGES, MASKS), SETTINGS, progress=False)


def test_images_can_be_augmented_and_nothing_else() -> None:
    images = (torch.rand(12, 3, 8, 8), torch.arange(12) % 3)
    model = MultiExitModel([nn.Flatten(), nn.Identity()], [nn.Linear(192, 3), nn.Linear(192, 3)])
    settings = TrainSettings(epochs=1, batch_size=4, augment=random_crop_flip)
    assert len(fit_exits(model, images, settings, progress=False).losses) == 3
    with pytest.raises(InputError, match="augment does not fit"):
        fit_exits(linear(), (X, Y), settings, progress=False)


def test_it_is_resumed_on_the_same_data_only_and_our_own_pass_unchanged(tmp_path) -> None:
    fit_exits(linear(), PAIRS, SETTINGS, out=tmp_path, progress=False)
    fit_exits(linear(), (X, Y), SETTINGS, out=tmp_path, progress=False)
    with pytest.raises(InputError, match="cannot be resumed: it was made with data"):
        fit_exits(linear(), (X, (Y + 1) % 3), SETTINGS, out=tmp_path, progress=False)
    own = ArrayDataset(IMAGES, MASKS[:, 0, 0], mean=(0.5,), std=(0.5,))
    assert as_dataset(own) is own
    with pytest.raises(InputError, match="without labels"):
        as_dataset(TensorDataset(X))
