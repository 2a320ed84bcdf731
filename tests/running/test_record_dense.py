"""Recording maps: summaries, utilities and confusion counts, in constant memory, beside what the model itself says."""

import numpy as np
import pytest
import torch
from segmenting import CLASSES, SIZE, rectangles, segmenter, trained_segmenter
from torch import nn

from eenet.errors import DataError, InputError, ShapeError, TableError
from eenet.evaluation import load_confusion
from eenet.experiments.data.dataset import ArrayDataset
from eenet.models.model import MultiExitModel
from eenet.running.engines import DenseEngine, EagerEngine
from eenet.running.engines.eager import fingerprint
from eenet.running.maps import label_map, summary
from eenet.running.recording import record, record_dense
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

COSTS = CostTable((1.0, 2.0, 3.0), "ms")


@pytest.mark.parametrize("name", ["val.npz", "val"])
@pytest.mark.parametrize("size", [1, 5, 32])
def test_a_table_holds_what_the_model_says(tmp_path, name, size):
    model, data = segmenter(), rectangles(12)
    write = record if name == "val" else record_dense  # the one recognises the other's data sets
    table = write(model, data, tmp_path / name, batch_size=size, split="val", costs=COSTS)
    confusion = load_confusion(tmp_path / name)
    with torch.no_grad():
        logits = model(data.images)
    targets = data.targets(slice(None))
    counted = targets != -100
    for k in range(3):
        np.testing.assert_allclose(table.features[:, k], summary(logits[k]), atol=1e-4)
        right = (label_map(logits[k], SIZE) == targets) & counted
        share = (right.sum(dim=(1, 2)) / counted.sum(dim=(1, 2))).numpy()
        np.testing.assert_allclose(table.utility[:, k], share, atol=0.01)
        assert np.array_equal(confusion[:, k].sum(axis=(1, 2)), counted.sum(dim=(1, 2)))
        found = confusion[:, k].diagonal(axis1=1, axis2=2).sum(axis=1) / counted.sum(dim=(1, 2)).numpy()
        np.testing.assert_allclose(found, share, atol=0.01)
    assert table.feature_names == ("max_prob", "margin", "certainty", *(f"p{i}" for i in range(CLASSES)))
    assert table.labels is None and not table.has_classes and table.source == fingerprint(model)
    assert (table.split, table.costs) == ("val", COSTS)
    assert np.array_equal(ExitTable.load(tmp_path / name).features, table.features)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_keys_and_types_of_the_file(tmp_path):
    record_dense(segmenter(), rectangles(5), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        kinds = {
            key: (arrays[key].dtype.name, arrays[key].shape) for key in arrays.files if arrays[key].dtype.kind != "U"
        }
    assert kinds == {
        "features": ("float32", (5, 3, CLASSES + 3)),
        "utility": ("float32", (5, 3)),
        "confusion": ("int64", (5, 3, CLASSES, CLASSES)),
    }


def test_mean_iou_of_an_image_by_hand(tmp_path):
    class Said(nn.Module):
        def __init__(self, answers):
            super().__init__()
            self.answers = answers

        def forward(self, images):
            return nn.functional.one_hot(self.answers, 3).permute(0, 3, 1, 2).float().expand(len(images), -1, -1, -1)

    class Data:
        def __len__(self):
            return 1

        def batches(self, batch_size):
            yield torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 0], [1, -100]]])

    model = MultiExitModel(
        [nn.Identity(), nn.Identity()], [Said(torch.tensor([[[0, 2], [1, 0]]])), Said(torch.tensor([[[0, 0], [1, 2]]]))]
    )
    # exit 0: class 0 is right at 1 of 2 pixels, class 1 at its only one; class 2 does not occur, so it does not count
    table = record_dense(model, Data(), tmp_path / "a.npz", utility="miou")
    assert table.utility.tolist() == [[0.75, 1.0]]
    table = record_dense(model, Data(), tmp_path / "b.npz")
    np.testing.assert_allclose(table.utility, [[2 / 3, 1.0]], rtol=1e-6)
    assert np.array_equal(
        record_dense(model, [(torch.zeros(1, 3, 2, 2), [[[0, 0], [1, -100]]])]).utility, table.utility
    )


def test_an_image_without_a_pixel_that_counts_is_worth_1_everywhere(tmp_path):
    data = rectangles(3)
    data.masks[1] = 255
    for utility in ("accuracy", "miou"):
        table = record_dense(segmenter(), data, tmp_path / "a.npz", utility=utility)
        assert table.utility[1].tolist() == [1.0] * 3
        assert not load_confusion(tmp_path / "a.npz")[1].any()


def test_later_exits_of_a_trained_model_are_worth_more(tmp_path):
    table = record_dense(trained_segmenter(), rectangles(40, seed=5), tmp_path / "a.npz", utility="miou")
    worth = table.utility.mean(axis=0)
    assert worth[2] > worth[0] + 0.02
    assert worth[2] > 0.6


def test_an_older_table_of_maps_is_replaced(tmp_path):
    for split in ("old", "new"):
        assert record_dense(segmenter(), rectangles(3), tmp_path / "a", split=split).split == split
    assert (tmp_path / "a" / "confusion.npy").exists()


def test_engines_can_be_recorded(tmp_path):
    model, data = segmenter(), rectangles(6)
    plain = record_dense(model, data, tmp_path / "a.npz", batch_size=6)
    for engine in (EagerEngine(model), DenseEngine(EagerEngine(model))):
        table = record_dense(engine, data, tmp_path / "b.npz", batch_size=6)
        np.testing.assert_allclose(table.features, plain.features, rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_refused(tmp_path, tiny):
    model, data = segmenter(), rectangles(4)
    with pytest.raises(InputError, match="utility 'iou' is unknown"):
        record(model, data, utility="iou")
    with pytest.raises(InputError, match="batch_size 0"):
        record_dense(model, data, tmp_path / "a.npz", batch_size=0)
    classes = ArrayDataset(torch.rand(4, 1, 8, 8), torch.arange(4), mean=(0.5,), std=(0.2,))
    with pytest.raises(ShapeError, match=r"targets of shape \(4,\)"):
        record_dense(model, classes, tmp_path / "a.npz")
    masks = type(data)(torch.rand(4, 1, 8, 8), torch.zeros(4, 8, 8, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"logits of exit 0 .* maps are"):
        record_dense(tiny, masks, tmp_path / "a.npz")
    with pytest.raises(ShapeError, match="masks for labels"):
        record(model, type(data)(data.images, torch.zeros(4)), tmp_path / "a.npz")
    data.masks[2, 0, 0] = 7
    with pytest.raises(DataError, match="targets hold 7"):
        record_dense(model, data, tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []
    record(tiny, classes, tmp_path / "c.npz")
    with pytest.raises(TableError, match="lacks confusion counts"):
        load_confusion(tmp_path / "c.npz")
