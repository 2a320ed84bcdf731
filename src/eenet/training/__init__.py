"""Training a model with exits: losses as plain functions, settings, and a loop that resumes after a kill."""

from eenet.training.fit import History, fit_exits
from eenet.training.losses import (
    Weighting,
    distillation_loss,
    exit_loss,
    exit_losses,
    increasing_weights,
    uniform_weights,
)
from eenet.training.settings import TrainSettings

__all__ = [
    "fit_exits",
    "TrainSettings",
    "History",
    "Weighting",
    "increasing_weights",
    "uniform_weights",
    "exit_loss",
    "exit_losses",
    "distillation_loss",
]
