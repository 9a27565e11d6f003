"""Vectors of Gymnasium environments, stepped by host code, that can be put back where they were."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from soft_mpcritic.envs.device import HostedVector, make_device_env
from soft_mpcritic.envs.registry import Task
from soft_mpcritic.types import Experience


@runtime_checkable
class Vector(Protocol):
    """E environments of one task, stepped from the host."""

    num_envs: int

    def reset(self, seed: int | Sequence[int]) -> np.ndarray: ...

    def step(self, actions: np.ndarray) -> Experience: ...

    def close(self) -> None: ...


class BadObservationError(RuntimeError):
    """An environment answered with a number that is not finite; the message names where and what."""


class Resumable(gym.Wrapper):
    """Remembers how its running episode came about, so that it can be lived again.

    A snapshot holds the random state that the episode's reset started from and the actions since. That is plain
    data, and it is exact for every environment that draws its randomness from Gymnasium's `np_random`.
    """

    def __init__(self, env: gym.Env, index: int) -> None:
        super().__init__(env)
        self.index = index
        self._origin: dict[str, Any] = {}
        self._actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is None:
            self._origin = {"random_state": self.unwrapped.np_random.bit_generator.state}
        else:
            self._origin = {"seed": seed}
        self._actions = []
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        taken = action.copy()
        answer = self.env.step(action)
        self._actions.append(taken)  # not one that the environment raised at: it is to be tried again
        return answer

    def snapshot(self) -> dict[str, Any]:
        """JSON-ready: where the episode started and the actions since."""
        return {**self._origin, "actions": [action.tolist() for action in self._actions]}

    def restore(self, snapshots: Sequence[dict[str, Any]]) -> np.ndarray:
        """Lives the episode of this environment's own snapshot again; the observation it ends on."""
        snapshot = snapshots[self.index]
        if "random_state" in snapshot:
            self.unwrapped.np_random.bit_generator.state = snapshot["random_state"]
        obs, _ = self.reset(seed=snapshot.get("seed"))
        for action in snapshot["actions"]:
            obs, *_ = self.step(np.asarray(action, self.action_space.dtype))
        return np.asarray(obs)


class EnvVector:
    """E environments of one task. Episodes that end start anew within the same step."""

    def __init__(self, task: Task, num_envs: int = 1, vectorization: str = "sync", **options: Any) -> None:
        def maker(index: int):
            return lambda: Resumable(task.make_env(**options), index)

        # A goal of one's own is JAX's, which does not survive in a forked process.
        vector = (
            SyncVectorEnv
            if vectorization == "sync"
            else partial(AsyncVectorEnv, context="spawn" if task.judged else None)
        )
        self._envs = vector([maker(i) for i in range(num_envs)], autoreset_mode=AutoresetMode.SAME_STEP)
        self._dtype = self._envs.single_action_space.dtype
        self.num_envs = num_envs
        self._lost = False  # are processes gone that environments lived in?

    def reset(self, seed: int | Sequence[int]) -> np.ndarray:
        """First observations [E, S]; environment e gets seed + e, or the e-th of a list."""
        obs, _ = self._envs.reset(seed=seed if isinstance(seed, int) else list(seed))
        return _finite(obs.astype(np.float32), "first observation")

    def step(self, actions: np.ndarray) -> Experience:
        """Steps all by actions [E, A] in the task's units; raises `BadObservationError` for NaN or infinity."""
        try:
            obs, reward, terminated, truncated, info = self._envs.step(actions.astype(self._dtype))
        except Exception:
            self._lost = isinstance(self._envs, AsyncVectorEnv)
            raise
        start_obs = obs.astype(np.float32)
        done = terminated | truncated
        next_obs = start_obs
        if done.any():
            next_obs = start_obs.copy()
            for index in np.flatnonzero(done):
                next_obs[index] = info["final_obs"][index]
        _finite(next_obs, "observation")
        _finite(start_obs, "first observation")
        return Experience(_finite(reward.astype(np.float32), "reward"), next_obs, terminated, done, start_obs)

    def snapshot(self) -> list[dict[str, Any]]:
        """What `restore` needs to bring all environments back here; empty where one has taken its process down."""
        return [] if self._lost else list(self._envs.call("snapshot"))

    def restore(self, snapshots: Sequence[dict[str, Any]]) -> np.ndarray:
        """Observations [E, S] after every environment has lived its running episode again."""
        return np.stack(self._envs.call("restore", snapshots)).astype(np.float32)

    @property
    def first_env(self) -> gym.Env:
        """The first environment itself, for rendering; synchronous vectors only."""
        return self._envs.envs[0]  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        self._envs.close()


def make_vector(task: Task, num_envs: int) -> Vector:
    """Gymnasium's environments, or for a task that it does not have the device's."""
    return EnvVector(task, num_envs) if task.has_gymnasium else HostedVector(make_device_env(task.env_id), num_envs)


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    if np.isfinite(values).all():
        return values
    env, *component = np.argwhere(~np.isfinite(values))[0]
    where = f"component {component[0]} of the {what}" if component else f"the {what}"
    raise BadObservationError(f"{where} of environment {env} is {values[tuple([env, *component])]}")
