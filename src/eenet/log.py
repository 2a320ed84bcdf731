"""The logger ``eenet``: messages of the library that are no warnings, silent until somebody listens."""

from __future__ import annotations

import logging

logger = logging.getLogger("eenet")
logger.addHandler(logging.NullHandler())
