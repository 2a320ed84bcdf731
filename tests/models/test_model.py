"""MultiExitModel: forward by hand, stage by stage, on any pytree, and on chosen samples only."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from eenet.errors import ShapeError
from eenet.experiments.zoo import tiny_cnn
from eenet.models import MultiExitModel
from eenet.models.inputs import evaluating


class Times(nn.Module):
    """Multiplies a state in a dictionary and counts its own calls in a part that is no tensor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, state: dict[str, object]) -> dict[str, object]:
        return {"x": state["x"] * self.factor, "calls": state["calls"] + 1, "pair": (state["x"], None)}


class Wrap(nn.Module):
    def forward(self, inputs: Tensor) -> dict[str, object]:
        return {"x": inputs + 1, "calls": 0, "pair": (inputs, None)}


class Pick(nn.Module):
    def forward(self, state: dict[str, object]) -> Tensor:
        return state["x"]


def by_hand() -> MultiExitModel:
    return MultiExitModel([Times(2), Times(3)], [Pick(), Pick()], Wrap())


def test_forward_by_hand() -> None:
    first, last = by_hand()(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    assert first.tolist() == [[4, 6], [2, 0]]
    assert last.tolist() == [[12, 18], [6, 0]]


def test_select_indexes_every_tensor_and_passes_the_rest() -> None:
    model = by_hand()
    state = model.stages[0](model.start(torch.arange(6.0).view(3, 2)))
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        kept = model.select(state, rows)
        assert torch.equal(kept["x"], state["x"][rows])
        assert torch.equal(kept["pair"][0], state["pair"][0][rows])
        assert kept["calls"] == 1 and kept["pair"][1] is None


def test_dropping_samples_between_stages_changes_no_answer() -> None:
    model = tiny_cnn().eval()
    inputs, rows = torch.randn(6, 1, 8, 8), torch.tensor([5, 1, 2])
    with torch.inference_mode():
        whole = model(inputs)
        state = model.select(model.stages[0](model.start(inputs)), rows)
        for k in (1, 2):
            state = model.stages[k](state)
            torch.testing.assert_close(model.heads[k](state), whole[k][rows])


def test_inputs_are_the_first_state_without_a_start() -> None:
    inputs = torch.randn(2, 3)
    assert MultiExitModel([nn.Identity()] * 2, [nn.Identity()] * 2).start(inputs) is inputs


@pytest.mark.parametrize("exits", [2, 3, 5])
def test_tiny_has_the_exits_asked_for(exits: int) -> None:
    model = tiny_cnn(num_classes=7, exits=exits, in_channels=2)
    logits = model(torch.randn(3, 2, 8, 8))
    assert model.num_exits == len(logits) == exits
    assert all(exit_logits.shape == (3, 7) for exit_logits in logits)


def test_refuses_stages_and_heads_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="stages 1 "):
        MultiExitModel([nn.Identity()], [nn.Identity()])
    with pytest.raises(ShapeError, match="heads 1 "):
        MultiExitModel([nn.Identity()] * 2, [nn.Identity()])


def test_blocks_of_evaluation_may_overlap():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[1].eval()
    outer, inner = evaluating(model), evaluating(model)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # as another thread may
    assert not any(module.training for module in model.modules())
    inner.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == [True, True, False]


def test_threads_leave_a_model_in_training_as_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    batches = [torch.randn(5, 4) for _ in range(60)]

    def run(batch):
        with evaluating(model), torch.inference_mode():
            return model(batch)

    wanted = [run(batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, batches))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert torch.equal(model[1].running_mean, torch.zeros(4)) and all(module.training for module in model.modules())
