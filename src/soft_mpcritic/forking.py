"""A fork: a run that goes on from what another one learned, under other settings, in a folder of its own."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.checkpoint import Checkpoints
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import ConfigError, to_dict
from soft_mpcritic.files import why
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.training import check_memory, make_agent

TABLES = ("metrics.csv", "evaluations.csv")  # rows up to the fork stay: a curve is drawn from its beginning
BOUND = (  # of training: what environments were, and what their observations mean, is in the checkpoint
    "action_repeat",
    "backend",
    "num_envs",
    "observe_change",
    "observe_position",
    "simulator",
    "vectorization",
    "wrap_angles",
)


def fork(source: RunFolder, target: RunFolder, asked: RunSettings) -> str:
    """Makes `target` a run as `asked` that goes on from the newest checkpoint of `source`; what it is, in words.

    The source stays as it is; the fork is resumed as any run. Whatever was learned, kept and counted is taken over,
    and optimisers with it, so that settings may change that do not shape these: variance, temperature, discount, step
    sizes, batches, numbers of samples, how control plans.
    Raises `ConfigError`, before anything is written, where settings do not go with the checkpoint.
    """
    stored = source.read_settings()
    changed = changes(stored, asked)
    _check_bound(stored, asked, changed)
    if target.exists:
        raise ConfigError(f"run folder {target.path} already holds a run: choose another --run-dir for the fork.")
    state, progress = _learned(source, asked, changed)
    step = progress["env_step"]
    with target.held():
        try:
            checkpoints = Checkpoints(target)
            checkpoints.go_on_from(None)  # a fork that was killed may have left one
            checkpoints.save(step, state, progress)
            for name in filter(lambda name: (source.path / name).is_file(), TABLES):
                shutil.copyfile(source.path / name, target.path / name)
        except OSError as error:
            raise ConfigError(f"run folder {target.path} cannot be written: {why(error)}; choose another.") from error
        origin = {"run": str(source.path), "env_step": step, "changed": changed}
        target.create(asked, forks=[*source.forks(), origin])  # last: a folder without it holds no run
    return f"goes on from step {step} of {source.path}, with {_told(changed)}"


def _learned(
    source: RunFolder, asked: RunSettings, changed: Mapping[str, Sequence[Any]]
) -> tuple[AgentState, dict[str, Any]]:
    """The newest checkpoint of `source` as a run as `asked` reads it."""
    agent = make_agent(asked)
    check_memory(agent)
    checkpoints = Checkpoints(source)
    step = checkpoints.newest_sound()
    if step is not None and asked.total_steps <= step:
        raise ConfigError(
            f"total_steps must be > {step}, the steps that {source.path} has behind it, got {asked.total_steps}: "
            "say up to where the fork shall go."
        )
    try:
        return checkpoints.load(jit(agent.init)(jax.random.key(asked.seed)), step)
    except ConfigError as error:
        told = f" Changed are {', '.join(changed)}; sizes of networks and plans cannot." if changed else ""
        raise ConfigError(f"{error}{told}") from error


def changes(stored: RunSettings, asked: RunSettings) -> dict[str, list[Any]]:
    """Settings by name that differ, with what they were and what they shall be."""
    old, new = to_dict(stored.config), to_dict(asked.config)
    return {
        f"{section}.{name}": [old[section][name], value]
        for section, values in new.items()
        for name, value in values.items()
        if value != old[section][name]
    }


def _check_bound(stored: RunSettings, asked: RunSettings, changed: dict[str, list[Any]]) -> None:
    told = {"env_id": (stored.env_id, asked.env_id), "seed": (stored.seed, asked.seed)}
    fixed = {name: pair for name, pair in told.items() if pair[0] != pair[1]}
    fixed |= {f"training.{name}": changed[f"training.{name}"] for name in BOUND if f"training.{name}" in changed}
    for name, (old, new) in fixed.items():
        raise ConfigError(f"{name} was {old!r} and cannot become {new!r} in a fork: leave it, or start another run.")


def _told(changed: dict[str, list[Any]]) -> str:
    return ", ".join(f"{name} {new} instead of {old}" for name, (old, new) in changed.items()) or "the same settings"
