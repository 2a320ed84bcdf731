"""Training a model with exits: losses as plain functions, settings, and a loop that resumes after a kill."""

from eenet.training.adapter import MultiExitLoss, TrainerAdapter
from eenet.training.fit import History, Log, LogFunction, fit_exits
from eenet.training.losses import (
    Forward,
    SampleWeighting,
    Weighting,
    distillation_loss,
    exit_losses,
    expected_exit_weights,
    increasing_weights,
    paper_weights,
    plain_gradients,
    rescaled_gradients,
    uniform_weights,
)
from eenet.training.schedule import LearningRate, Optimiser, adamw, constant, cosine_decay, sgd, step_decay
from eenet.training.settings import TrainSettings, attached_settings, paper_loss

__all__ = [
    "fit_exits",
    "TrainSettings",
    "attached_settings",
    "paper_loss",
    "History",
    "Log",
    "LogFunction",
    "Optimiser",
    "sgd",
    "adamw",
    "LearningRate",
    "constant",
    "cosine_decay",
    "step_decay",
    "Forward",
    "plain_gradients",
    "rescaled_gradients",
    "Weighting",
    "increasing_weights",
    "paper_weights",
    "uniform_weights",
    "SampleWeighting",
    "expected_exit_weights",
    "exit_losses",
    "MultiExitLoss",
    "TrainerAdapter",
    "distillation_loss",
]
