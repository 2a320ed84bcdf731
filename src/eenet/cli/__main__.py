"""`python -m eenet.cli` is the same as `eenet`."""

from __future__ import annotations

import sys

from eenet.cli.app import main

sys.exit(main())
