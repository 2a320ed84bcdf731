"""Small tables are treated alike by whatever learns from them: it goes on, after one warning."""

import warnings
from collections.abc import Callable

import pytest

from eenet import advise, compare
from eenet.schedulers import AutoScheduler, GeometricScheduler, JointScheduler
from eenet.schedulers.base import LEAST_SAMPLES
from eenet.testing import synthetic_table

MANY = {"max_prob": GeometricScheduler(), "joint": JointScheduler(), "auto": AutoScheduler(folds=2)}
WAYS: dict[str, Callable[[int], object]] = {
    "fit": lambda n: MANY["joint"].fit(synthetic_table(n), budget="60%"),
    "compare, calibration set": lambda n: compare(synthetic_table(n), synthetic_table(80), MANY, ["60%"], resamples=9),
    "compare, test set": lambda n: compare(synthetic_table(80), synthetic_table(n), MANY, ["60%"], resamples=9),
    "compare, both, splits": lambda n: compare(synthetic_table(n), synthetic_table(n), MANY, ["60%"], splits=2),
    "advise": lambda n: advise(synthetic_table(n), resamples=9),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_warning(way: str) -> None:
    for count, said in ((LEAST_SAMPLES - 1, 1), (LEAST_SAMPLES, 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            WAYS[way](count)
        messages = [str(one.message) for one in caught]
        assert len(messages) == said, messages
        assert all("49 samples is small: with fewer than 50" in message for message in messages)
