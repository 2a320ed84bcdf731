"""Several processes do the steps of one, and go on after a kill as if nothing had been."""

import sys
import time

import pytest
import torch
from tests.training import together

from eenet.core.files import load_tensors
from eenet.errors import InputError, MissingExtraError
from eenet.training import fit_exits
from eenet.training.processes import Processes, joined_processes


def test_alone_everything_stays_as_it_is() -> None:
    alone, numbers = joined_processes(), torch.arange(3.0)
    alone.add([numbers])
    alone.copy_from_first([numbers])
    assert alone == Processes() and alone.mark == ()
    assert numbers.tolist() == [0, 1, 2] and torch.equal(alone.share(numbers), numbers)


def test_several_without_accelerate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match="accelerate is missing: 2 processes are to train together"):
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
