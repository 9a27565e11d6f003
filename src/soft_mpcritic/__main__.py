"""python -m soft_mpcritic is the command soft-mpcritic."""

from soft_mpcritic.cli import entry_point

entry_point()
