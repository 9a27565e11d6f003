"""From an environment's id to everything that the agent must know of it, with clear refusals."""

import difflib
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Space

from soft_mpcritic.config import ConfigError
from soft_mpcritic.envs.device import DEVICE_TASKS, OWN_TASKS
from soft_mpcritic.envs.tasks import TASKS, TaskSpec, unknown

EPISODE_STEPS = 1000  # time limit of an environment that comes without: an evaluation must end


@dataclass(frozen=True)
class Task:
    """A task as the agent sees it: sizes, the box of its actions and what is known of it beside."""

    env_id: str
    obs_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    spec: TaskSpec

    @property
    def action_size(self) -> int:
        return len(self.action_low)

    @property
    def has_gymnasium(self) -> bool:
        return self.env_id not in OWN_TASKS

    def make_env(self, **options: Any) -> gym.Env:
        """A new environment of this task; `options` go to `gymnasium.make`."""
        return gym.make(self.env_id, disable_env_checker=True, **{**self.spec.env_options, **options})


def make_task(env_id: str, backend: str = "host", goal: str = "known") -> Task:
    """Looks the task up and checks its spaces; raises `ConfigError` in one line for whatever does not fit.

    With the `goal` "learned", any environment of Gymnasium will do.
    """
    if env_id in OWN_TASKS:
        return _own_task(env_id, backend)
    _check_registered(env_id)
    if backend == "device" and env_id not in DEVICE_TASKS:
        raise ConfigError(
            f"environment {env_id!r} has no device version: use one of {', '.join(DEVICE_TASKS)}, or --backend host."
        )
    spec = TASKS[env_id] if env_id in TASKS else _unknown_spec(env_id)
    obs_space, action_space = _checked_spaces(env_id, spec)
    if env_id not in TASKS and goal == "known":
        raise ConfigError(
            f"environment {env_id!r} has no known reward and termination here: add --objective.goal learned, add a "
            f"TaskSpec, or use one of {', '.join(TASKS)}."
        )
    low, high = action_space.low.astype(float), action_space.high.astype(float)
    return Task(env_id, obs_space.shape[0], tuple(low.tolist()), tuple(high.tolist()), spec)


def _own_task(env_id: str, backend: str) -> Task:
    if backend != "device":
        raise ConfigError(f"environment {env_id!r} exists on the device only: add --backend device.")
    own = OWN_TASKS[env_id]
    return Task(env_id, own.obs_size, (-1.0,) * own.action_size, (1.0,) * own.action_size, own.spec)


def _unknown_spec(env_id: str) -> TaskSpec:
    endless = gym.registry[_name(env_id)].max_episode_steps is None
    return TaskSpec(unknown, unknown, {"max_episode_steps": EPISODE_STEPS} if endless else {})


def _check_registered(env_id: str) -> None:
    """Of Gymnasium's "module:id", the module is imported first: it registers the id."""
    module, name = env_id.rpartition(":")[0], _name(env_id)
    try:
        if module:
            import_module(module)
    except Exception as error:  # whatever a foreign module raises
        told = " ".join(str(error).split())
        raise ConfigError(f"module {module!r} of {env_id!r} cannot be imported: {told}; check PYTHONPATH.") from error
    if name not in gym.registry:
        near = difflib.get_close_matches(name, list(gym.registry), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "gymnasium.registry lists what is installed."
        raise ConfigError(f"environment {env_id!r} is not registered with Gymnasium: {hint}")


def _name(env_id: str) -> str:
    return env_id.rpartition(":")[2]


def _checked_spaces(env_id: str, spec: TaskSpec) -> tuple[Box, Box]:
    """Spaces of observations and actions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium deprecates old versions at length
            env = gym.make(env_id, disable_env_checker=True, **spec.env_options)
    except Exception as error:  # whatever the constructor of a foreign environment raises
        raise ConfigError(f"environment {env_id!r} cannot be made: {' '.join(str(error).split())}") from error
    try:
        action_space = _checked_action(env_id, env.action_space)
        return _checked_observation(env_id, env.observation_space), action_space
    finally:
        env.close()


def _checked_action(env_id: str, space: Space) -> Box:
    if not isinstance(space, Box):
        raise ConfigError(
            f"action space of {env_id!r} must be a Box, got {space}: sampled action sequences need real numbers; "
            "discrete actions suit DQN or PPO."
        )
    if len(space.shape) != 1:
        raise ConfigError(f"action space of {env_id!r} must be a vector, got shape {space.shape}: flatten it first.")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ConfigError(
            f"action space of {env_id!r} must have finite bounds, got {space}: wrap it in gymnasium's RescaleAction."
        )
    return space


def _checked_observation(env_id: str, space: Space) -> Box:
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ConfigError(
            f"observation space of {env_id!r} must be a Box vector, got {_brief(space)}: "
            "wrap it in gymnasium's FlattenObservation."
        )
    return space


def _brief(space: Space) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else text[:77] + "..."
