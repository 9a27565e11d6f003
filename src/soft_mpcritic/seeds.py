"""Folders and settings of runs that are trained side by side, a seed each."""

import dataclasses
from dataclasses import dataclass

from soft_mpcritic.config import Config, ConfigError
from soft_mpcritic.envs import task_for
from soft_mpcritic.memory import Footprint, available_memory
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.training import prepare_run


@dataclass(frozen=True)
class SeedRun:
    """One seed's folder and settings."""

    folder: RunFolder
    settings: RunSettings


def seed_folders(folder: RunFolder) -> list[RunFolder]:
    """The runs in a folder: itself, or those of its seeds in order; none where nothing was trained."""
    if folder.exists or not folder.path.is_dir():
        return [folder] if folder.exists else []
    named = ((entry.name.removeprefix("seed"), RunFolder(entry)) for entry in folder.path.glob("seed*"))
    return [run for _, run in sorted((int(seed), run) for seed, run in named if seed.isdigit() and run.exists)]


def prepare_seeds(folder: RunFolder, asked: RunSettings, num_seeds: int, resume: bool) -> list[SeedRun]:
    """One run per seed from `asked.seed` on: in `folder` itself for one, else in its seed0, seed1, ..

    Raises `ConfigError` where folders or memory do not allow it, before anything is written.
    """
    config, training = fitted(asked.config, asked.total_steps), asked.config.training
    task = task_for(asked.env_id, training)
    env = task.make_device_env(training.simulator)
    Footprint(task, config, env).check(num_seeds, *available_memory())
    seeds = range(asked.seed, asked.seed + num_seeds)
    folders = [folder] if num_seeds == 1 else [RunFolder(folder.path / f"seed{seed}") for seed in seeds]
    present = seed_folders(folder)
    if present and not resume:
        raise ConfigError(f"run folder {folder.path} already holds a run: add --resume, or choose another --run-dir.")
    begun = any(run.has_checkpoints for run in present)  # a process may be killed while it makes the folders
    if begun and [run.path for run in present] != [run.path for run in folders]:
        raise ConfigError(
            f"run folder {folder.path} holds {len(present)} seeds from {present[0].read_settings().seed} on, got "
            f"{num_seeds} from {asked.seed} on: leave --seed and --num-seeds out on resume."
        )
    runs = [SeedRun(run, dataclasses.replace(asked, seed=seed)) for run, seed in zip(folders, seeds, strict=True)]
    return [SeedRun(run.folder, prepare_run(run.folder, run.settings, resume)) for run in runs]


def fitted(config: Config, steps: int) -> Config:
    """`config` with a replay no larger than `steps` environment steps can fill, so that many seeds fit.

    One vector of steps more is kept, so that such a replay never wraps around, and two stretches at least, so that
    these are as long as asked for: a longer run can go on from it.
    """
    training = config.training
    longest = max(steps + training.num_envs, 2 * training.control_stretch * training.num_envs)
    capacity = min(training.capacity, longest)
    return dataclasses.replace(config, training=dataclasses.replace(training, capacity=capacity))
