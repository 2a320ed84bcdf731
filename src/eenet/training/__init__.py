"""Training a model with exits: losses as plain functions, settings, and a loop that resumes after a kill."""

from eenet.training.fit import History, fit_exits
from eenet.training.gradients import Forward, plain_gradients, rescaled_gradients
from eenet.training.losses import (
    Weighting,
    distillation_loss,
    exit_loss,
    exit_losses,
    increasing_weights,
    uniform_weights,
)
from eenet.training.optimisers import Optimiser, adamw, sgd
from eenet.training.rates import LearningRate, constant, cosine_decay, step_decay
from eenet.training.settings import TrainSettings
from eenet.training.weighting import SampleWeighting, expected_exit_weights

__all__ = [
    "fit_exits",
    "TrainSettings",
    "History",
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
    "uniform_weights",
    "SampleWeighting",
    "expected_exit_weights",
    "exit_loss",
    "exit_losses",
    "distillation_loss",
]
