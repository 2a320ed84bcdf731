"""The training loop: it learns, is repeatable, freezes what it should and leaves the world as it was."""

import dataclasses
import itertools
import signal

import pytest
import torch
from tests.training import resumable
from torch import nn

from eenet.data import load_digits
from eenet.models import attach, tiny_cnn
from eenet.training import TrainSettings, fit_exits, uniform_weights

QUICK = TrainSettings(epochs=1, batch_size=32, lr=0.1, weighting=uniform_weights)


def test_digits_are_learnt() -> None:
    splits, model = load_digits(), tiny_cnn(width=8)
    history = fit_exits(model, splits.train, dataclasses.replace(QUICK, epochs=3), progress=False)
    with torch.inference_mode():
        logits = model(splits.test.inputs(slice(None)))
    accuracy = [(exit_logits.argmax(1) == splits.test.labels).float().mean().item() for exit_logits in logits]
    assert min(accuracy) > 0.7
    assert history.losses.shape == (72, 3)
    assert history.epoch_losses[2][2] < history.epoch_losses[0][2]


def test_the_first_phase_leaves_the_backbone_alone() -> None:
    model = resumable.make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = dataclasses.replace(resumable.SETTINGS, epochs=1, heads_share=1.0)
    fit_exits(model, resumable.make_data(), settings, progress=False)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"heads.0.2.weight", "heads.0.2.bias"}


class Sized(nn.Module):
    """A model from elsewhere with batch norms and dropout, for images of any size."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 6, 6, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Dropout(0.2))
            for a, b in itertools.pairwise(widths)
        )
        self.classify = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.classify(x.reshape(x.shape[0], 6, x.shape[2] * x.shape[3]).mean(dim=2))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_attached_model_is_trained_as_it_stands_and_not_as_its_stages(share: float) -> None:
    torch.manual_seed(0)
    model = attach(Sized(), torch.randn(2, 3, 10, 10), exits=2)  # stages of images larger than those of the data
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = dataclasses.replace(resumable.SETTINGS, epochs=1, heads_share=share)
    history = fit_exits(model, resumable.make_data(), settings, progress=False)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    head = {name for name in before if name.startswith("heads.0.") and name in dict(model.named_parameters())}
    assert head and head <= changed
    whole = {name for name in before if name.startswith("whole.")}
    assert whole <= changed if share == 0.0 else changed == head
    assert bool(history.losses.isfinite().all()) and not any(part.training for part in model.modules())


def test_the_joint_phase_trains_everything() -> None:
    model = resumable.make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit_exits(model, resumable.make_data(), resumable.SETTINGS, progress=False)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_same_seed_same_weights_other_seed_others() -> None:
    results = []
    for seed in (0, 0, 1):
        model = resumable.make_model()
        fit_exits(model, resumable.make_data(), dataclasses.replace(QUICK, seed=seed), progress=False)
        results.append(model.heads[0][2].weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_random_state_signals_and_mode_are_as_before() -> None:
    model, state, handler = resumable.make_model(), torch.get_rng_state(), signal.getsignal(signal.SIGINT)
    torch.set_rng_state(state)
    fit_exits(model, resumable.make_data(), QUICK, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not model.training


def test_every_sample_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    seen: list[torch.Tensor] = []

    def note(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(images.flatten(1).sum(1))
        return images

    data = resumable.make_data()
    settings = dataclasses.replace(QUICK, epochs=2, batch_size=50, augment=note)
    fit_exits(resumable.make_model(), data, settings, progress=False)
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    everything = data.images.flatten(1).sum(1).sort().values
    assert torch.equal(first.sort().values, everything) and torch.equal(second.sort().values, everything)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("wanted", [True, False])
def test_progress_goes_to_stderr_and_only_when_wanted(wanted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    fit_exits(resumable.make_model(), resumable.make_data(), QUICK, progress=wanted)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("train" in err) == wanted
