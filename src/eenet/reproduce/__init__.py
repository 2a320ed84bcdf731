"""The paper's experiments, and ours beside them, from data to a page with one command."""

from eenet.reproduce.experiment import SCALES, Experiment, Scale
from eenet.reproduce.known import EXPERIMENTS
from eenet.reproduce.page import machine, write_page
from eenet.reproduce.run import reproduce
from eenet.reproduce.steps import Steps

__all__ = ["EXPERIMENTS", "SCALES", "Experiment", "Scale", "Steps", "machine", "reproduce", "write_page"]
