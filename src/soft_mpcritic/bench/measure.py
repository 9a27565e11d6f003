"""What every benchmark needs: times of calls, the machine's own limit, and a description of the machine."""

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soft_mpcritic.compilation import jit

WARM_UP = 5


@dataclass(frozen=True)
class Timing:
    """Seconds per call."""

    median: float
    p10: float
    p90: float
    p99: float

    @staticmethod
    def of(seconds: list[float]) -> "Timing":
        median, p10, p90, p99 = np.percentile(seconds, (50, 10, 90, 99)).tolist()
        return Timing(median, p10, p90, p99)


def time_in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int, block: int = 10) -> dict[str, Timing]:
    """Times of all calls, taken in alternating blocks, so that a slow spell of the machine hits every one of them.

    Every call must return when its work is done, arrays included. The first calls are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    done = 0
    while done < rounds:
        for name, call in calls.items():
            for _ in range(block):
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
        done += block
    return {name: Timing.of(times) for name, times in seconds.items()}


def matrix_product_rate(rows: int = 640, width: int = 256, products: int = 50, rounds: int = 15) -> float:
    """The machine's own float32 rate, FLOP/s: the best of several chains of [rows, width] @ [width, width]."""
    left = jnp.ones((rows, width)) / width
    right = jnp.ones((width, width)) / width

    @jit
    def chain(left: jax.Array, right: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, value: value @ right, left)

    chain(left, right).block_until_ready()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        chain(left, right).block_until_ready()
        times.append(time.perf_counter() - started)
    return products * 2 * rows * width**2 / min(times)


def machine() -> dict[str, Any]:
    """What a reader must know to compare: processor, cores, device, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "platform": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("soft-mpcritic", "jax", "jaxlib", "mujoco")},
    }


def machine_in_words(record: Mapping[str, Any]) -> str:
    """The part of a record that tells what it was measured on."""
    told = record["machine"]
    rate = record["matrix_product_gflops"]
    return f"{told['processor']} with {told['cores']} cores; matrix products at {rate:.0f} GFLOP/s"


def peak_memory() -> int:
    """The most memory that this process ever held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
