"""A training process to be killed: tiny networks, many checkpoints, and a disk that takes its time."""

import os
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.training import Run, prepare_run, stop_requests
from soft_mpcritic.types import Episode
from tests.systems import small_config

ENV_ID = "InvertedPendulum-v5"
SLOWEST = 0.03  # s that a write takes to reach the disk, at most: kills shall find writes under way
READY, WRITING = "ready", "writing"
CONFIG = small_config(
    training__log_every=10,
    training__evaluate_every=40,
    training__checkpoint_every=10,
    training__num_envs=2,
    dynamics__width=8,
    critic__width=8,
    planner__horizon=2,
    target_planner__horizon=2,
)


class Silent:
    """An observer that says nothing."""

    def on_metrics(self, row: dict[str, Any]) -> None: ...

    def on_evaluation(self, env_step: int, episodes: list[Episode]) -> None: ...


def train(path: Path, steps: int, cache: Path, told: Connection | None = None) -> None:
    """Trains to `steps` in `path`, from where it is; tells when it is ready and whenever it writes to the disk."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if told is not None:
        os.fsync = _slow(os.fsync, told)
    folder = RunFolder(path)
    settings = prepare_run(folder, RunSettings(ENV_ID, "default", 0, steps, CONFIG), resume=True)
    with folder.held(), stop_requests() as stop_requested:
        run = Run(folder, settings, Silent())
        if told is not None:
            told.send(READY)
        run.go(stop_requested)
        run.finish()
        run.close()


def _slow(fsync: Any, told: Connection) -> Any:
    def slow(descriptor: int) -> None:
        told.send(WRITING)
        time.sleep(random.uniform(0, SLOWEST))
        fsync(descriptor)

    return slow
