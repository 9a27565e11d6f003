"""Checks that several commands make of what they are given."""

from pathlib import Path

from soft_mpcritic.config import check

PICTURES = (".png", ".pdf", ".svg")


def check_seed(seed: int) -> None:
    """Raises `ConfigError` for what is no seed."""
    check(0 <= seed < 2**32, "seed", "lie in [0, 2^32)", seed, "use a smaller whole number")


def check_parent(name: str, path: Path) -> None:
    """Raises `ConfigError` for a file that cannot be made, as its folder is missing."""
    check(path.parent.is_dir(), name, "lie in a folder that exists", path, f"make {path.parent} first")
