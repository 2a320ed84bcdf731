"""Checks of compiled engines in a process of their own: what checks types while tests run cannot be compiled."""

import sys

import numpy as np
import pytest
import torch
from foreign import FAMILIES, Reader, check_engine, of_length
from replaying import quantile_policy
from torch._dynamo.utils import counters

from eenet.errors import ShapeError
from eenet.experiments.zoo import tiny_cnn
from eenet.models.attach import attach
from eenet.models.model import MultiExitModel
from eenet.policies.replay import Replayer
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines import CompiledEngine, Engine
from eenet.running.inputs import Inputs, rows_of
from eenet.running.recording import outputs
from eenet.tables.table import ExitTable


def convolutional() -> tuple[MultiExitModel, Inputs]:
    """Images, laid out channels last by the engine."""
    return tiny_cnn(exits=3), torch.randn(3, 1, 8, 8)


def attached(family: str) -> tuple[MultiExitModel, Inputs]:
    """A model of others: keyword inputs, states that are tuples."""
    model, inputs = FAMILIES[family]()
    return attach(model, inputs, exits=3), inputs


def more_of(inputs: Inputs, count: int) -> Inputs:
    """Return many samples, no two of them alike where they are numbers."""
    many = rows_of(inputs, np.arange(count) % 3)
    if isinstance(many, dict):
        return {key: leaf + torch.randn_like(leaf) if leaf.is_floating_point() else leaf for key, leaf in many.items()}
    return many + torch.randn_like(many)


def check_decisions(engine: Engine, many: Inputs, count: int) -> None:
    """Check that running decides as replay, whatever the batch size, and that nothing is compiled for it."""
    table = ExitTable(logits=outputs(engine, many))
    policy = quantile_policy(table.logits, "max_prob", 0.5)
    wanted = Replayer(table).exit_index(policy)
    before = counters["stats"]["unique_graphs"]
    for size in (count, 20, 7, 1):
        batches = [rows_of(many, slice(first, first + size)) for first in range(0, count, size)]
        for regroup in (False, True):
            found = AdaptiveModel(engine, policy).predict_all(batches, regroup=regroup).exit_index
            assert int((found != wanted).sum()) <= count // 20, (size, regroup)  # scores next to a threshold
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["graph_break"]


def check_lengths() -> None:
    """Check that texts of every length are run by what was compiled beforehand."""
    ids = torch.randint(50, (3, 12))
    model = attach(Reader().eval(), ids, exits=["layers.0"]).eval()
    engine = CompiledEngine(model, ids)
    before = counters["stats"]["unique_graphs"]
    for length in (2, 9, 12, 33, 40):
        check_engine(engine, model, of_length(ids, length))
    assert counters["stats"]["unique_graphs"] == before
    for run in (engine.start, engine.full):
        with pytest.raises(ShapeError, match="token 41 do not fit: the stages take 2 to 40"):
            run(of_length(ids, 41))


def main(name: str) -> None:
    """Check one model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if name == "texts":
        check_lengths()
        return
    model, inputs = convolutional() if name == "convolutional" else attached(name)
    engine = CompiledEngine(model.train(), inputs)
    assert model.training
    assert engine.name == "compiled" and engine.dtype == "float32"
    check_engine(engine, model.eval(), inputs)
    check_decisions(engine, more_of(inputs, 60), 60)


if __name__ == "__main__":
    main(sys.argv[1])
