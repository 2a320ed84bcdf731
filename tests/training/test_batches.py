"""Batches made ahead are those of their step, in parts and shares that add up.

Several processes do the steps of one, and go on after a kill as if nothing had been.
"""

import dataclasses
import sys
import threading
import time

import pytest
import torch
from tests.training import resumable, together

from eenet.errors import InputError, MissingExtraError
from eenet.models.weights import load_tensors
from eenet.training import fit_exits
from eenet.training.batches import Batch, Batches, Processes, joined_processes
from eenet.training.settings import Schedule


def batches(processes: Processes | None = None, **settings) -> Batches:
    data = resumable.make_data()
    changed = dataclasses.replace(resumable.SETTINGS, **settings)
    schedule = Schedule(settings=changed, samples=len(data))
    return Batches(data, schedule, processes or Processes(), torch.device("cpu"))


def test_batches_made_ahead_are_those_of_their_step_from_any_step_on() -> None:
    alone = batches()
    for first in (0, 7, 47, 48):
        made = list(batches().ahead(first))
        assert len(made) == 48 - first
        for step, batch in enumerate(made, start=first):
            assert torch.equal(batch.inputs, alone.make(step).inputs)
            assert torch.equal(batch.targets, alone.make(step).targets)


def test_the_next_batch_is_made_while_one_is_used_and_closing_ends_the_thread() -> None:
    made: list[str] = []

    def note(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        made.append(threading.current_thread().name)
        return images

    ahead = batches(augment=note).ahead(0)
    next(ahead)
    deadline = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(made) == 2 and all(name.startswith("eenet-batches") for name in made)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("eenet-batches")]


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_parts_are_the_batch_in_order_and_of_nearly_one_size(count: int) -> None:
    batch = Batch({"x": torch.arange(8.0).view(8, 1), "y": torch.arange(8)}, torch.arange(8), 8)
    parts = list(batch.parts(count))
    assert torch.equal(torch.cat([targets for _, targets in parts]), batch.targets)
    assert all(torch.equal(inputs["y"], targets) and len(inputs["x"]) == len(targets) for inputs, targets in parts)
    sizes = [len(targets) for _, targets in parts]
    assert min(sizes) >= max(1, max(sizes) - 1)


def test_the_shares_of_processes_make_up_the_batch() -> None:
    whole = batches(augment=None).make(3)
    shares = [batches(Processes(count=3, rank=rank), augment=None).make(3) for rank in range(3)]
    assert torch.equal(torch.cat([share.inputs for share in shares]), whole.inputs)
    assert {share.samples for share in shares} == {8}


def test_each_process_draws_its_own_chance() -> None:
    def draw(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)

    one, two = (batches(Processes(count=2, rank=rank), augment=draw).make(0).inputs for rank in range(2))
    assert not torch.equal(one, two)


def test_alone_everything_stays_as_it_is() -> None:
    alone, numbers = joined_processes(), torch.arange(3.0)
    alone.add([numbers])
    alone.copy_from_first([numbers])
    assert alone == Processes() and alone.mark == ()
    assert numbers.tolist() == [0, 1, 2] and torch.equal(alone.share(numbers), numbers)


def test_several_without_accelerate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match="accelerate is not installed: 2 processes are to train together"):
        fit_exits(together.make_model(), together.resumable.make_data(), together.SETTINGS, progress=False)


def test_more_processes_than_samples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eenet.training.fit.joined_processes", lambda: Processes(count=10))
    with pytest.raises(InputError, match="batch_size 9 is too small: 10 processes share a batch"):
        fit_exits(together.make_model(), together.resumable.make_data(), together.SETTINGS, progress=False)


@pytest.mark.slow
def test_two_processes_do_the_steps_of_one_and_survive_a_kill(tmp_path) -> None:
    pytest.importorskip("accelerate")
    wanted, history = together.run(None)
    folders = tmp_path / "whole", tmp_path / "killed"
    assert [process.wait(120) for process in together.start(folders[0], 2)] == [0, 0]
    whole = load_tensors(folders[0] / "model.safetensors", "model")
    torch.testing.assert_close(whole, dict(wanted))
    losses = load_tensors(folders[0] / "checkpoint.safetensors", "checkpoint")["losses"]
    torch.testing.assert_close(losses, history.losses)

    killed = together.start(folders[1], 2)
    deadline = time.monotonic() + 120
    while not (folders[1] / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    for process in killed:
        process.kill()
        process.wait()
    assert not (folders[1] / "model.safetensors").exists(), "the training was over before the kill"
    assert [process.wait(120) for process in together.start(folders[1], 2)] == [0, 0]
    resumed = load_tensors(folders[1] / "model.safetensors", "model")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
