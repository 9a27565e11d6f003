"""The command line, a module for each group of commands."""

from soft_mpcritic.cli.command import entry_point, main

__all__ = ["entry_point", "main"]
