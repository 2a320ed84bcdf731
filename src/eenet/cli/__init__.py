"""The command line: every command parses, makes one library call and prints."""

from __future__ import annotations

from eenet.cli.app import main

__all__ = ["main"]
