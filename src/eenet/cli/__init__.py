"""The command line: every command parses, makes one library call and prints."""

from eenet.cli.entry import main

__all__ = ["main"]
