"""A fork: a run that goes on from what another one learned, under other settings, in a folder of its own."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.checkpoint import Checkpoints, Which
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import Config, ConfigError, check
from soft_mpcritic.files import why
from soft_mpcritic.planning import fit_horizon
from soft_mpcritic.run_folder import RunFolder, RunSettings, changes
from soft_mpcritic.seeds import seed_folders
from soft_mpcritic.training import check_memory, make_agent

TABLES = ("metrics.csv", "evaluations.csv")  # rows up to the fork stay: a curve is drawn from its beginning
BOUND = (  # of training: the checkpoint holds environments, what their observations mean, and a replay that may be full
    "action_repeat",
    "backend",
    "capacity",
    "num_envs",
    "observe_change",
    "observe_position",
    "simulator",
    "vectorization",
    "wrap_angles",
)


def fork(source: RunFolder, target: RunFolder, asked: RunSettings, at: Which = "newest") -> str:
    """Makes `target` a run as `asked` that goes on from a checkpoint of `source`; what it is, in words.

    The source stays as it is; the fork is resumed as any run. Whatever was learned, kept and counted is taken over,
    and optimisers with it, so that settings may change that do not shape these: variance, temperature, discount, step
    sizes, batches, numbers of samples, how control plans. Plans are cut or filled up to other horizons.
    Raises `ConfigError`, before anything is written, where settings do not go with the checkpoint.
    """
    stored = source.read_settings()
    changed = changes(stored, asked)
    _check_bound(stored, asked, changed)
    _check_new(target)
    state, progress = _learned(source, stored, asked, at)
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


def fork_seeds(source: RunFolder, target: RunFolder, asked: RunSettings, num_seeds: int, at: Which = "newest") -> str:
    """`fork` of seeds that were trained side by side, into a folder of theirs: `asked.seed` and those that follow it.

    The newest checkpoint is that which all of them have, as they go on together.
    Raises `ConfigError` as `fork` does, and where `source` does not hold these seeds or such a checkpoint.
    """
    present = {run.read_settings().seed: run for run in seed_folders(source)}
    seeds = range(asked.seed, asked.seed + num_seeds)
    if not present.keys() >= set(seeds):
        raise ConfigError(
            f"a fork of seeds {seeds[0]} to {seeds[-1]} needs them all, and {source.path} holds "
            f"{', '.join(map(str, present)) or 'none'}: set --seed and --num-seeds to what it holds."
        )
    common = set.intersection(*(set(Checkpoints(present[seed]).sound_steps()) for seed in seeds))
    step = max(common, default=-1) if at == "newest" else at
    kept = ", ".join(map(str, sorted(common))) or "there is none"
    rule = f"be newest or a step that all seeds of {source.path} keep ({kept})"
    check(step in common, "fork_at", rule, at, "or fork one seed's folder at a time")
    _check_new(target)
    told = [
        fork(present[seed], RunFolder(target.path / f"seed{seed}"), dataclasses.replace(asked, seed=seed), at=step)
        for seed in seeds
    ]
    return f"{told[0]}, for all {num_seeds} seeds"


def _learned(
    source: RunFolder, stored: RunSettings, asked: RunSettings, at: Which
) -> tuple[AgentState, dict[str, Any]]:
    """The checkpoint `at` of `source` as a run as `asked` reads it."""
    agent = make_agent(asked)
    check_memory(agent)
    checkpoints = Checkpoints(source)
    step, total = checkpoints.chosen(at), asked.total_steps
    check(
        total > step, "total_steps", f"be > {step}, what {source.path} has behind it", total, "say where it shall end"
    )
    fresh = jit(agent.init)(jax.random.key(asked.seed))
    try:
        learned, progress = checkpoints.load(_fitted(fresh, stored.config), step)
    except ConfigError as error:
        changed = changes(stored, asked)
        told = f" Changed are {', '.join(changed)}; sizes of networks cannot." if changed else ""
        raise ConfigError(f"{error}{told}") from error
    return _fitted(learned, asked.config), progress


def _fitted(state: AgentState, config: Config) -> AgentState:
    """The state with plans as long as `config` has them, and with a push where it has one.

    Plans that were shorter end in zeros, as shifted ones do. Exploring that was under no push begins with one of zero,
    and draws another within some `push_hold` steps.
    """
    pending, pushed = state.pending, config.training.push > 0
    push = jnp.zeros_like(pending.action) if pending.push is None else pending.push
    pending = dataclasses.replace(
        pending, plan=fit_horizon(pending.plan, config.planner.horizon + 1), push=push if pushed else None
    )
    replay = state.replay.fit_horizon(config.target_planner.horizon + 1)
    return dataclasses.replace(state, pending=pending, replay=replay)


def _check_new(target: RunFolder) -> None:
    if seed_folders(target):
        raise ConfigError(f"run folder {target.path} already holds a run: choose another --run-dir for the fork.")


def _check_bound(stored: RunSettings, asked: RunSettings, changed: Mapping[str, Sequence[Any]]) -> None:
    bound = {f"training.{name}" for name in BOUND}
    told = {"env_id": (stored.env_id, asked.env_id), "seed": (stored.seed, asked.seed)}
    told |= {name: (old, new) for name, (old, new) in changed.items() if name in bound}
    for name, (old, new) in told.items():
        check(old == new, name, f"stay {old!r} in a fork", repr(new), "leave it, or start another run")


def _told(changed: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{name} {new} instead of {old}" for name, (old, new) in changed.items()) or "the same settings"
