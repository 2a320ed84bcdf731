"""`python -m eenet` is the same as `eenet`."""

import sys

from eenet.cli.entry import main

sys.exit(main())
