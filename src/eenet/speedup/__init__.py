"""From a model and data to one that stops early, and what that saves, in one call."""

from eenet.speedup.one_call import SpeedUp, speed_up

__all__ = ["SpeedUp", "speed_up"]
