"""What made a run: version, commit, machine and the libraries it was made with."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[2]  # of a checkout, if this is one
TOLD_BY = ("JAX_", "XLA_", "OMP_", "CUDA_VISIBLE_DEVICES")  # variables of the environment that change numbers


def provenance(packages: Sequence[str]) -> dict[str, Any]:
    """JSON-ready; equal for two processes means that equal seeds give equal numbers."""
    return {
        "version": metadata.version("soft-mpcritic"),
        "commit": commit(),
        "platform": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "processor": _processor(),
            "cores": _usable_cores(),  # JAX takes as many threads
            "device": jax.devices()[0].device_kind,
            "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(TOLD_BY)},
        },
        "packages": {name: metadata.version(name) for name in packages},
    }


def commit() -> str | None:
    """Of the checkout that this runs from, "-dirty" where files were changed, or of what pip installed; else None."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            return told.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None
    try:
        source = json.loads(metadata.distribution("soft-mpcritic").read_text("direct_url.json") or "{}")
        return source.get("vcs_info", {}).get("commit_id")
    except (ValueError, metadata.PackageNotFoundError):
        return None


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
