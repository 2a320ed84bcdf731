"""The paper's experiments, and ours beside them, from data to a page with one command."""

from eenet.experiments.pages import machine
from eenet.experiments.reproduce.known import EXPERIMENTS, SCALES, Experiment, Scale
from eenet.experiments.reproduce.page import write_page
from eenet.experiments.reproduce.run import Steps, reproduce

__all__ = ["EXPERIMENTS", "SCALES", "Experiment", "Scale", "Steps", "machine", "reproduce", "write_page"]
