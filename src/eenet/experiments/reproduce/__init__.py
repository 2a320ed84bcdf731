"""The paper's experiments, and ours beside them, from data to a page with one command."""

from eenet.experiments.reproduce.known import EXPERIMENTS, SCALES, Experiment, Scale
from eenet.experiments.reproduce.run import Reproduction

__all__ = ["EXPERIMENTS", "SCALES", "Experiment", "Reproduction", "Scale"]
