"""From any environment with Box spaces to vectors of numbers, with clear refusals of all others."""

from functools import lru_cache, partial
from typing import Any

import gymnasium as gym
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Box, Space
from gymnasium.wrappers import FlattenObservation, TimeLimit, TransformAction

from soft_mpcritic.config import ConfigError
from soft_mpcritic.types import Reward, Termination

EPISODE_STEPS = 1000  # time limit of an environment that comes without: an evaluation must end
ENDLESS = 1e9  # bounds so wide are none: the suite of dm_control writes 1e10 for infinity
LIKELY = 0.5  # probability from which on a termination of one's own ends an episode


def adapt(env: gym.Env) -> gym.Env:
    """Observations and actions as vectors, and a time limit; what is so already stays as it is."""
    if not _is_limited(env):
        env = TimeLimit(env, EPISODE_STEPS)
    if not _is_vector(env.observation_space):
        env = FlattenObservation(env)
    original, flat = env.action_space, spaces.flatten_space(env.action_space)
    if not _is_vector(original) or _rounds_out(flat):
        env = TransformAction(env, partial(_fitted, original, flat), flat)
    return env


def _is_limited(env: gym.Env) -> bool:
    """Has the environment a time limit, by its registration or by a wrapper of its user's?"""
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return True
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TimeLimit):
            return True
        env = env.env
    return False


def _fitted(original: Space, flat: Any, action: np.ndarray) -> Any:
    """An action of the plant's own shape, in its bounds to the last bit."""
    return spaces.unflatten(original, np.clip(action, flat.low, flat.high))


def _rounds_out(box: Any) -> bool:
    """May the map from [-1, 1] end beyond the upper bound, for want of digits?"""
    low, high = (bound.astype(np.float32) for bound in (box.low, box.high))
    return bool((low + (high - low) > high).any())


class Held(gym.Wrapper):
    """Takes `steps` steps with one action, or fewer where one of them ends the episode; rewards add up."""

    def __init__(self, env: gym.Env, steps: int) -> None:
        super().__init__(env)
        self._steps = steps

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, earned, terminated, truncated, info = self.env.step(action)
        for _ in range(self._steps - 1):
            if terminated or truncated:
                break
            obs, reward, terminated, truncated, info = self.env.step(action)
            earned = float(earned) + float(reward)
        return obs, earned, terminated, truncated, info


class Changing(gym.Wrapper):
    """Observations followed by how they have changed since the last step, 0 at first."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        any_change = np.full(space.shape, np.inf)
        low, high = (np.append(*ends).astype(float) for ends in ((space.low, -any_change), (space.high, any_change)))
        self.observation_space = Box(low, high, dtype=np.float64)  # of bytes, say, changes would be none
        self._obs = np.zeros(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._obs = np.array(obs, float)  # a copy: environments may write the next one into the same array
        return np.append(self._obs, np.zeros_like(self._obs)), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        next_obs, reward, terminated, truncated, info = self.env.step(action)
        before, self._obs = self._obs, np.array(next_obs, float)
        return np.append(self._obs, self._obs - before), reward, terminated, truncated, info


class Judged(gym.Wrapper):
    """An environment with a goal of one's own: another reward, or one more way to end, as JAX functions."""

    def __init__(self, env: gym.Env, reward: Reward | None, termination: Termination | None) -> None:
        super().__init__(env)
        self._judges = [None if judge is None else _of_one_row(judge) for judge in (reward, termination)]
        self._obs = np.zeros(0, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._obs = np.array(obs, np.float32)  # a copy: environments may write the next one into the same array
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        next_obs, reward, terminated, truncated, info = self.env.step(action)
        row = [self._obs, np.asarray(action, np.float32), np.array(next_obs, np.float32)]
        self._obs = row[-1]
        own_reward, own_end = self._judges
        reward = reward if own_reward is None else float(own_reward(*row))
        terminated = terminated or (own_end is not None and float(own_end(*row)) > LIKELY)
        return next_obs, reward, terminated, truncated, info


@lru_cache
def _of_one_row(judge: Reward | Termination) -> Any:
    """Compiled once for all environments of a process."""
    return jax.jit(lambda obs, action, next_obs: judge(obs[None], action[None], next_obs[None])[0])


def check_action(env_id: str, space: Space) -> None:
    """Raises `ConfigError` unless actions are real numbers between finite bounds."""
    leaves = _leaves(space)
    boxes = [leaf for leaf in leaves if isinstance(leaf, Box)]
    place = f"action space of {env_id!r}"
    if not boxes:
        raise ConfigError(
            f"{place} must be a Box, got {_brief(space)}: sampled action sequences need real numbers; discrete actions "
            "suit DQN or PPO."
        )
    if len(boxes) < len(leaves):
        raise ConfigError(
            f"{place} must be of Boxes alone, got {_brief(space)}: hybrid actions suit PPO with a head for every part, "
            "or P-DQN; or fix the discrete ones in a wrapper."
        )
    for box in boxes:
        if not np.issubdtype(box.dtype, np.floating):
            raise ConfigError(
                f"{place} must be of real numbers, got {_brief(box)}: whole numbers suit DQN or PPO; or round in a "
                "wrapper of your own."
            )
        if not (np.abs([box.low, box.high]) < ENDLESS).all():
            raise ConfigError(
                f"{place} must have finite bounds, got {_brief(box)}: say what the plant can take, with gymnasium's "
                f"TransformAction(env, lambda a: a, Box(-1, 1, {box.shape})), and scale in the function if need be."
            )


def check_observation(env_id: str, space: Space) -> None:
    """Raises `ConfigError` unless observations can be flattened to a vector, and are no images."""
    place = f"observation space of {env_id!r}"
    if not space.is_np_flattenable:
        raise ConfigError(
            f"{place} must be a vector, or what gymnasium's FlattenObservation makes one of, got {_brief(space)}: "
            "write a wrapper that answers with a Box."
        )
    for leaf in _leaves(space):
        if isinstance(leaf, Box) and _shows_image(leaf):
            raise ConfigError(
                f"{place} must not hold images, got {_brief(leaf)}: models of vectors learn nothing from pixels; "
                "observe the state instead, or features of a vision encoder in an ObservationWrapper."
            )
    if spaces.flatdim(space) < 1:
        raise ConfigError(f"{place} must hold at least one number, got {_brief(space)}: observe something.")


def _shows_image(box: Box) -> bool:
    """Bytes in two dimensions or more; or real numbers, as large as a picture, with one to four channels."""
    if box.dtype == np.uint8:
        return len(box.shape) >= 2
    shape = sorted(box.shape)
    return len(shape) == 3 and shape[0] <= 4 and shape[1] >= 16


def _is_vector(space: Space) -> bool:
    return isinstance(space, Box) and len(space.shape) == 1


def _leaves(space: Space) -> list[Space]:
    """The parts of which Dicts and Tuples are made."""
    if isinstance(space, spaces.Dict):
        return [leaf for part in space.values() for leaf in _leaves(part)]
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space for leaf in _leaves(part)]
    return [space]


def _brief(space: Space) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else text[:77] + "..."
