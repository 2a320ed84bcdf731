"""A training that was killed or interrupted and resumed ends with the same bits as one that was not."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.training import resumable
from torch import Tensor

from eenet.errors import InputError
from eenet.experiments.data import load_digits
from eenet.experiments.zoo import tiny_cnn
from eenet.models.weights import load_tensors
from eenet.tables.atomic import holding
from eenet.training import History, TrainSettings, adamw, fit, fit_exits

STEPS = 48


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, Tensor], History]:
    return resumable.run(None)


@pytest.fixture
def uninterrupted(whole) -> dict[str, Tensor]:
    return whole[0]


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    resumable.run(folder)
    return folder


@pytest.fixture
def finished(finished_once, tmp_path) -> Path:
    """A folder of a training that is done, to be changed."""
    return Path(shutil.copytree(finished_once, tmp_path / "run"))


def assert_same(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, what) -> None:
    """Call ``what`` in the middle of a step, once."""
    original, left = fit.exit_losses, [step]

    def losses(*args):
        left[0] -= 1
        if left[0] == -1:
            what()
        return original(*args)

    monkeypatch.setattr(fit, "exit_losses", losses)


def interrupted_and_resumed(
    settings: TrainSettings, step: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """Interrupt a training at some step and resume it; return its weights, those of one that was not interrupted."""
    whole, resumed = resumable.make_model(), resumable.make_model()
    fit_exits(whole, resumable.make_data(), settings, progress=False)
    with monkeypatch.context() as patch:
        stop_at(step, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            fit_exits(resumable.make_model(), resumable.make_data(), settings, out=folder, progress=False)
    fit_exits(resumed, resumable.make_data(), settings, out=folder, progress=False)
    assert_same(resumed.state_dict(), whole.state_dict())
    return whole.state_dict()


@pytest.mark.parametrize("step", [3, 11, 12, 30])
def test_ctrl_c_finishes_the_step_saves_and_resumes_to_the_bit(step, tmp_path, monkeypatch, whole) -> None:
    stop_at(step, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    slow = dataclasses.replace(resumable.SETTINGS, checkpoint_seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        fit_exits(resumable.make_model(), resumable.make_data(), slow, out=tmp_path, progress=False)
    assert len(load_tensors(tmp_path / "checkpoint.safetensors", "checkpoint")["losses"]) == step + 1
    assert not (tmp_path / "model.safetensors").exists()
    weights, history = resumable.run(tmp_path)
    assert_same(weights, whole[0])
    assert_same(load_tensors(tmp_path / "model.safetensors", "model"), whole[0])
    assert len(history.losses) == STEPS and len(history.epoch_losses) == 4
    assert torch.equal(history.losses, whole[1].losses)


def test_adamw_resumes_to_the_bit(tmp_path, monkeypatch) -> None:
    settings = dataclasses.replace(resumable.SETTINGS, optimiser=adamw, lr=1e-3, head_lr=1e-3)
    weights = interrupted_and_resumed(settings, 20, tmp_path, monkeypatch)
    untouched = resumable.make_model().state_dict()
    assert any(not torch.equal(untouched[name], value) for name, value in weights.items())


class Counting(torch.optim.SGD):
    """Counts its steps in a plain number, which no checkpoint holds."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1
        return super().step(closure)


def test_an_optimiser_whose_state_is_no_tensor_is_refused(tmp_path) -> None:
    settings = dataclasses.replace(resumable.SETTINGS, optimiser=lambda groups, momentum: Counting(groups, lr=1.0))
    with pytest.raises(InputError, match="optimiser Counting keeps step as int: a checkpoint holds tensors"):
        fit_exits(resumable.make_model(), resumable.make_data(), settings, out=tmp_path, progress=False)


def test_an_error_inside_a_step_never_reaches_the_checkpoint(tmp_path, monkeypatch, uninterrupted) -> None:
    def fail() -> None:
        raise RuntimeError("power cut")

    stop_at(20, monkeypatch, fail)
    with pytest.raises(RuntimeError, match="power cut"):
        resumable.run(tmp_path)
    assert_same(resumable.run(tmp_path)[0], uninterrupted)


def test_sigkill_in_another_process_then_resumed_to_the_bit(tmp_path, uninterrupted) -> None:
    program = [sys.executable, resumable.__file__, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(Path(fit.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(program, env=env)
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = len(load_tensors(tmp_path / "checkpoint.safetensors", "checkpoint")["losses"])
    assert 0 < done < STEPS, "the training was over before the kill"
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(resumable.run(tmp_path)[0], uninterrupted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:precision bfloat16 is slow")  # on some processors
def test_killed_again_and_again_at_any_moment_with_every_setting_it_ends_with_the_same_bits(tmp_path) -> None:
    chance, path, kills = random.Random(4), tmp_path / "checkpoint.safetensors", 0
    env = os.environ | {"PYTHONPATH": str(Path(fit.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    while not (tmp_path / "model.safetensors").exists():
        process = subprocess.Popen([sys.executable, resumable.__file__, str(tmp_path), "full"], env=env)
        before = path.stat().st_mtime_ns if path.exists() else None
        while process.poll() is None and before == (path.stat().st_mtime_ns if path.exists() else None):
            time.sleep(0.002)
        if kills < 5:
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
            kills += process.wait() != 0
        assert process.wait() in (0, -signal.SIGKILL)
    assert kills >= 3, "the training was over before the kills"
    assert_same(load_tensors(tmp_path / "model.safetensors", "model"), resumable.run_full(None))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_folder_without_a_checkpoint_is_free(finished) -> None:
    (finished / "checkpoint.safetensors").unlink()
    settings = dataclasses.replace(resumable.SETTINGS, epochs=0.1)
    history = fit_exits(resumable.make_model(), resumable.make_data(), settings, out=finished, progress=False)
    assert len(history.losses) == 1


def test_a_finished_training_is_not_done_again(finished, monkeypatch, uninterrupted) -> None:
    monkeypatch.setattr(fit, "exit_losses", None)
    weights, history = resumable.run(finished)
    assert_same(weights, uninterrupted)
    assert len(history.losses) == STEPS


@pytest.mark.parametrize(
    ("change", "samples", "said"),
    [
        ({"lr": 0.5}, 100, "lr 0.04, this training has lr 0.5"),
        ({"seed": 4}, 100, "seed 3, this training has seed 4"),
        ({}, 90, "samples 100, this training has samples 90"),
    ],
)
def test_refuses_to_resume_with_other_settings_or_data(change, samples, said, finished) -> None:
    settings = dataclasses.replace(resumable.SETTINGS, **change)
    data = resumable.make_data().select(slice(0, samples))
    with pytest.raises(InputError, match=said):
        fit_exits(resumable.make_model(), data, settings, out=finished, progress=False)


def test_a_training_resumes_whose_functions_have_moved_to_another_module(finished, uninterrupted) -> None:
    path = finished / "checkpoint.json"
    described = path.read_text(encoding="utf-8")
    assert "eenet.training.schedule.cosine_decay" in described
    path.write_text(described.replace("eenet.training.schedule.", "eenet.training.rates."), encoding="utf-8")
    assert_same(resumable.run(finished)[0], uninterrupted)


def test_no_temporary_files_stay_and_a_damaged_checkpoint_is_refused(finished) -> None:
    names = sorted(path.name for path in finished.iterdir())
    assert names == ["checkpoint.json", "checkpoint.safetensors", "history.json", "model.safetensors"]
    path = finished / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="checkpoint"):
        resumable.run(finished)


def test_outside_the_main_thread_it_trains_all_the_same(uninterrupted) -> None:
    weights: list[dict[str, Tensor]] = []
    thread = threading.Thread(target=lambda: weights.append(resumable.run(None)[0]))
    thread.start()
    thread.join()
    assert_same(weights[0], uninterrupted)


def test_two_trainings_in_one_folder_are_refused_and_the_first_is_named(tmp_path):
    with holding(tmp_path, "training folder"), pytest.raises(InputError, match=rf"in use: process {os.getpid()} on"):
        fit_exits(tiny_cnn(), load_digits().train, TrainSettings(epochs=0.1), out=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    fit_exits(tiny_cnn(), load_digits().train, TrainSettings(epochs=0.1), out=tmp_path, progress=False)
    assert not (tmp_path / ".lock").exists()
