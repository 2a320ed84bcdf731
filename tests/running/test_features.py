"""Models whose exits return numbers that are no logits: recorded, fitted, run."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eenet.errors import InputError, ShapeError, TableError
from eenet.models import MultiExitModel
from eenet.policies import replay
from eenet.running import AdaptiveModel, EagerEngine, record
from eenet.running.engines import FeatureEngine
from eenet.schedulers import StoppingScheduler
from eenet.tables import CostTable, regression_utility


def loader(data):
    return DataLoader(TensorDataset(*data), batch_size=64)


COSTS = CostTable((1.0, 2.0), "ms")
WORTH = partial(regression_utility, scale=0.5)


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    model = MultiExitModel([nn.Linear(4, 6), nn.Tanh()], [nn.Linear(6, 2), nn.Linear(6, 2)])
    return FeatureEngine(EagerEngine(model.eval()))


@pytest.fixture(scope="module")
def data(engine):
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, last = (one.numpy() for one in engine.inner.model(x))
    targets = np.where(x[:, :1].numpy() > 0, first, last)  # half of the samples are answered best at each exit
    return x, torch.from_numpy(targets)


def test_what_is_recorded_is_what_exits_return(engine, data, tmp_path):
    table = record(engine, loader(data), tmp_path / "table.npz", utility=WORTH, costs=COSTS, progress=False)
    with torch.no_grad():
        wanted = np.stack([one.numpy() for one in engine.inner.model(data[0])], axis=1)
    assert np.allclose(table.outputs, wanted, atol=1e-6) and not table.has_classes
    assert np.allclose(table.utility, WORTH(wanted, data[1].numpy()), atol=1e-6)
    assert record(engine, loader(data), utility=WORTH, costs=COSTS, progress=False).source == table.source


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_samples_leave_with_the_prediction_of_their_exit(engine, data, size):
    table = record(engine, loader(data), utility=WORTH, costs=COSTS, progress=False)
    policy = StoppingScheduler(folds=2).fit(table, budget="70%")
    wanted = replay(policy, table).exit_index
    assert 0 < wanted.sum() < len(wanted)
    adaptive = AdaptiveModel(engine, policy, COSTS)
    found = adaptive.predict_all(data[0], batch_size=size)
    assert np.array_equal(found.exit_index, wanted)
    assert np.allclose(found.outputs, table.outputs[np.arange(200), wanted], atol=1e-6)


def test_what_does_not_fit_is_refused(engine, data):
    with pytest.raises(
        InputError, match=r"utility 'likelihood' is unknown: there are accuracy and miou.* or a function"
    ):
        record(engine, data, utility="likelihood")
    with pytest.raises(TableError, match="utility of type <U1"):
        record(engine, loader(data), utility=lambda seen, _: np.full(seen.shape[:2], "a"), progress=False)
    with pytest.raises(ShapeError, match="do not fit predictions"):
        record(engine, loader((data[0], data[1][:, :1].repeat(1, 3))), utility=WORTH, progress=False)
