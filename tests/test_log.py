"""The logger of the library: silent by default, heard by whoever listens."""

import logging
import subprocess
import sys

from eenet import AutoScheduler
from eenet.testing.planted import synthetic_table


def test_whoever_listens_hears_why_auto_chose(caplog):
    with caplog.at_level(logging.INFO, logger="eenet"):
        dial = AutoScheduler().sweep(synthetic_table(num_samples=200, seed=0))
    assert dial.reason in [record.getMessage() for record in caplog.records if record.name == "eenet"]


def test_nobody_hears_anything_by_default():
    code = "from eenet.log import logger; logger.info('a'); logger.error('b')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")
