"""What a training logs: every step's losses and rates, to a function, a recorder, or TensorBoard."""

import dataclasses
import os
import signal

import pytest
from tests.training import resumable
from tests.training.test_resume import stop_at

from eenet.errors import InputError
from eenet.training import Log, fit_exits

SETTINGS = dataclasses.replace(resumable.SETTINGS, epochs=1)


class Recorder:
    """Keeps what it is given, as a run of Weights and Biases takes it."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.steps.append((step, values))


def train(log, out=None):
    return fit_exits(resumable.make_model(), resumable.make_data(), SETTINGS, out=out, progress=False, log=log)


def test_an_object_with_log_gets_every_step() -> None:
    recorder: Log = Recorder()
    history = train(recorder)
    assert [step for step, _ in recorder.steps] == list(range(12))
    for (_, values), losses in zip(recorder.steps, history.losses.tolist(), strict=True):
        assert [values["loss/exit_0"], values["loss/exit_1"]] == losses
        assert values.keys() == {"loss/exit_0", "loss/exit_1", "lr", "head_lr"}
    rates = [values["lr"] for _, values in recorder.steps]
    assert rates[:2] == [0.0, 0.0] and max(rates) > 0.03  # the heads alone first


def test_a_function_too_and_the_training_is_the_same() -> None:
    found = []
    history = train(lambda values, step: found.append(step))
    assert found == list(range(12))
    assert history.losses.equal(train(None).losses)


def test_a_resumed_training_logs_the_steps_that_are_left(tmp_path, monkeypatch) -> None:
    recorder = Recorder()
    with monkeypatch.context() as patch:
        stop_at(4, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(recorder, tmp_path)
    train(recorder, tmp_path)
    assert [step for step, _ in recorder.steps] == list(range(12))


def test_what_cannot_log_is_refused_before_any_work(tmp_path, unchecked) -> None:
    with pytest.raises(InputError, match="log of type int cannot be used"):
        train(3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_reads_what_was_logged(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: `make test-fits` installs it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        history = train(lambda values, step: [writer.add_scalar(name, one, step) for name, one in values.items()])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = events.Scalars("loss/exit_1")
    assert [one.step for one in found] == list(range(12))
    assert [one.value for one in found] == pytest.approx(history.losses[:, 1].tolist())
