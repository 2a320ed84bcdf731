"""The training loop: it learns, is repeatable, freezes what it should and leaves the world as it was."""

import dataclasses
import itertools
import signal
import threading
from pathlib import Path

import pytest
import torch
from tests.training import resumable
from torch import nn

from eenet.errors import InputError, RunError, ShapeError
from eenet.experiments.data import ArrayDataset, load_digits
from eenet.experiments.zoo import tiny_cnn
from eenet.models import MultiExitModel, attach, pooled_linear
from eenet.models.weights import load_tensors
from eenet.training import TrainSettings, fit_exits, uniform_weights
from eenet.training.losses import log_shares

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


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_first_phase_leaves_the_backbone_alone_the_second_trains_everything(share: float) -> None:
    model = resumable.make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = dataclasses.replace(resumable.SETTINGS, epochs=1, heads_share=share)
    fit_exits(model, resumable.make_data(), settings, progress=False)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    if share < 1:  # a bias before a batch norm has no effect: rounding alone may change it
        assert changed | {"stages.0.0.bias"} == set(before)
    else:
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


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_parts_do_the_step_of_the_whole_batch(parts: int) -> None:
    losses, weights = [], []
    for accumulate in (1, parts):
        model = without_batch_norm()
        settings = dataclasses.replace(
            resumable.SETTINGS, epochs=1, distillation_from=0.2, distillation=1.0, accumulate=accumulate
        )
        losses.append(fit_exits(model, resumable.make_data(), settings, progress=False).losses)
        weights.append(model.state_dict())
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(weights[0], weights[1])


def without_batch_norm() -> MultiExitModel:
    torch.manual_seed(2)
    stages = [nn.Sequential(nn.Conv2d(a, 6, 3, padding=1), nn.ReLU()) for a in (3, 6)]
    return MultiExitModel(stages, [pooled_linear((1, 6, 8, 8), 4) for _ in stages])


def test_parts_of_dense_batches_count_by_what_there_is_to_learn() -> None:
    class Masks(ArrayDataset):
        def targets(self, rows):
            masks = (self.images[rows, 0] > 100).long()
            masks[:, :3][self.labels[rows] == 0] = -100
            masks[self.labels[rows] == 1] = -100
            return masks

        def training_batch(self, rows, augment, generator):
            return self.prepare(self.images[rows]), self.targets(rows)

    data = resumable.make_data()
    masks = Masks(data.images, data.labels, mean=data.mean, std=data.std)
    weights = []
    for accumulate in (1, 8):
        torch.manual_seed(2)
        stages = [nn.Sequential(nn.Conv2d(a, 6, 3, padding=1, stride=2), nn.ReLU()) for a in (3, 6)]
        model = MultiExitModel(stages, [nn.Conv2d(6, 2, 1) for _ in stages])
        settings = TrainSettings(epochs=1, batch_size=8, lr=0.2, accumulate=accumulate, distillation_from=0.5)
        history = fit_exits(model, masks, settings, progress=False)
        weights.append(model.state_dict())
    torch.testing.assert_close(weights[0], weights[1])
    assert history.losses[-1].sum() < history.losses[0].sum()


@pytest.mark.filterwarnings("ignore:precision bfloat16 is slow")  # on some processors
def test_bfloat16_computes_in_it_and_keeps_weights_in_float32() -> None:
    seen: list[torch.dtype] = []

    def note(model, inputs):
        logits = model(inputs)
        seen.append(logits[0].dtype)
        return logits

    model = resumable.make_model()
    settings = dataclasses.replace(QUICK, precision="bfloat16", gradients=note)
    history = fit_exits(model, resumable.make_data(), settings, progress=False)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    plain = fit_exits(resumable.make_model(), resumable.make_data(), QUICK, progress=False)
    torch.testing.assert_close(history.losses[0], plain.losses[0], rtol=0.02, atol=0.02)
    assert history.losses.dtype == torch.float32


def test_weighted_samples_train_and_the_history_tells_the_plain_losses() -> None:
    def first_sample_only(logits, targets):
        weights = torch.zeros(len(targets), len(logits))
        weights[0] = len(targets)
        return weights

    data, histories = resumable.make_data(), []
    for sample_weighting in (None, first_sample_only):
        settings = dataclasses.replace(QUICK, sample_weighting=sample_weighting)
        histories.append(fit_exits(without_batch_norm(), data, settings, progress=False).losses)
    assert torch.equal(histories[0][0], histories[1][0])  # before any step
    assert not torch.equal(histories[0][1:], histories[1][1:])


def test_an_error_while_a_batch_is_made_reaches_the_caller_and_leaves_no_thread() -> None:
    calls: list[int] = []

    def fail(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no such image")
        return images

    model = resumable.make_model()
    with pytest.raises(RuntimeError, match="no such image"):
        fit_exits(model, resumable.make_data(), dataclasses.replace(QUICK, augment=fail), progress=False)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("eenet-batches")]


def test_a_training_that_diverges_says_so_and_leaves_no_result(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, lr=1e6)
    with pytest.raises(RunError, match=r"loss (nan|inf) of exit \d at step \d+ is no number: .* Pass a smaller lr"):
        fit_exits(tiny_cnn(width=8), load_digits().train, settings, out=tmp_path, progress=False)
    assert not (tmp_path / "model.safetensors").exists()
    kept = tmp_path / "checkpoint.safetensors"
    assert not kept.exists() or load_tensors(kept, "checkpoint")["losses"].isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_that_is_no_number_is_named_and_nothing_is_learnt_from_it(value: float) -> None:
    inputs, model = torch.randn(40, 1, 8, 8), tiny_cnn(width=8)
    inputs[13, 0, 2, 2] = value
    with pytest.raises(InputError, match=f"inputs of sample 13 contain {value}"):
        fit_exits(model, (inputs, torch.arange(40) % 10), TrainSettings(epochs=1, batch_size=8), progress=False)
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def test_weights_of_exits_may_be_whole_numbers_but_not_too_few() -> None:
    data, short = load_digits().train, dataclasses.replace(QUICK, epochs=0.05)
    whole = dataclasses.replace(short, weighting=lambda num_exits: (1, 2, 3))
    assert len(fit_exits(tiny_cnn(width=8), data, whole, progress=False).losses) == 1
    few = dataclasses.replace(short, weighting=lambda num_exits: (1.0, 2.0))
    with pytest.raises(ShapeError, match="weighting with 2 weights does not fit: the model has 3 exits"):
        fit_exits(tiny_cnn(width=8), data, few, progress=False)


def test_a_balanced_training_does_not_learn_how_frequent_classes_are() -> None:
    torch.manual_seed(0)
    images = torch.full((640, 1, 8, 8), 128, dtype=torch.uint8)  # nothing to see: only the frequency can be learnt
    data = ArrayDataset(images, torch.tensor([0] * 480 + [1] * 160), mean=(0.0,), std=(1.0,))
    for balanced, wanted in ((False, [0.75, 0.25]), (True, [0.5, 0.5])):
        settings = TrainSettings(epochs=20, batch_size=64, lr=0.1, weight_decay=0, balanced=balanced)
        model = MultiExitModel([nn.Flatten(), nn.Identity()], [nn.Linear(64, 2), nn.Linear(64, 2)])
        fit_exits(model, data, settings, progress=False)
        with torch.inference_mode():
            told = model(data.inputs(slice(1)))[1].softmax(1)[0].tolist()
        assert told == pytest.approx(wanted, abs=0.03)


def test_what_its_owner_froze_stays_frozen() -> None:
    model = resumable.make_model()
    model.stages[0].requires_grad_(False)
    before = [parameter.clone() for parameter in model.stages[0].parameters()]
    fit_exits(model, resumable.make_data(), resumable.SETTINGS, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.stages[0].parameters(), strict=True))
    assert {parameter.requires_grad for parameter in model.stages[0].parameters()} == {False}
    assert {parameter.requires_grad for parameter in model.stages[1].parameters()} == {True}


def test_a_frozen_model_answers_as_before_and_only_its_heads_learn() -> None:
    net = Sized().train()
    images, labels = torch.rand(64, 3, 6, 6), torch.randint(4, (64,))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    model = attach(net, images[:2], exits=3)
    data = ArrayDataset(images, labels, mean=(0.5,) * 3, std=(0.2,) * 3)
    model.eval()
    before = [logits.clone() for logits in model(data.inputs(slice(None)))]
    fit_exits(model, data, dataclasses.replace(QUICK, epochs=2), progress=False)
    after = model(data.inputs(slice(None)))
    assert torch.equal(before[-1], after[-1])  # batch norms kept their statistics
    assert not torch.equal(before[0], after[0])


def test_what_an_early_head_shares_with_the_model_stays_when_heads_learn_alone() -> None:
    net = Sized()
    images, labels = torch.rand(64, 3, 6, 6), torch.randint(4, (64,))

    def lens(shape: tuple[int, ...], num_classes: int) -> nn.Module:
        scale = nn.Conv2d(shape[1], shape[1], 1)
        return nn.Sequential(scale, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.classify)

    model = attach(net, images[:2], exits=3, heads=lens)
    data = ArrayDataset(images, labels, mean=(0.5,) * 3, std=(0.2,) * 3)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fit_exits(model, data, dataclasses.replace(QUICK, heads_share=1.0), progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_heads_that_have_nothing_of_their_own_cannot_learn_alone() -> None:
    shared = nn.Linear(8, 10)
    model = MultiExitModel([nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Linear(8, 8)], [shared, shared])
    with pytest.raises(InputError, match="no early head has weights of its own"):
        fit_exits(model, load_digits().train, dataclasses.replace(QUICK, heads_share=0.5), progress=False)


def test_shares_of_classes_leave_out_samples_without_one() -> None:
    labels = torch.tensor([0, 0, 1, -100, -100])
    assert torch.allclose(log_shares(labels, 2).exp(), torch.tensor([2 / 3, 1 / 3]))


@pytest.mark.parametrize("wanted", [True, False])
def test_progress_goes_to_stderr_and_only_when_wanted(wanted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    fit_exits(resumable.make_model(), resumable.make_data(), QUICK, progress=wanted)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("train" in err) == wanted
