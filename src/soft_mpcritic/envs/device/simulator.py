"""Gymnasium's MuJoCo tasks in compiled loops, stepped by MuJoCo itself.

The loop calls out to the host, once a step for all environments of all seeds. What lies between two steps is MuJoCo's
own state, all its 64 bits, as data of the loop: any state can be gone on from, in any order, and an episode is
Gymnasium's to the bit.
"""

from functools import lru_cache
from threading import Lock
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from soft_mpcritic.envs.device.vector import Outcome
from soft_mpcritic.envs.tasks import TaskSpec

FIRST_STATES_KEPT = 4096  # a vector asks for the next first state at every step, until an episode ends


class SimulatorEnv:
    """One MuJoCo task of Gymnasium as pure functions. A state is W words of 32 bits, two to a number."""

    def __init__(self, env_id: str, spec: TaskSpec) -> None:
        env: Any = gym.make(env_id, disable_env_checker=True, **spec.env_options)
        self._env, self._max_steps = env.unwrapped, env.spec.max_episode_steps
        self._alone = Lock()  # a compiled step may ask for first states while it steps, by another thread
        self._mujoco: Any = mujoco  # without types
        self._kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._integrated = np.empty(self._mujoco.mj_stateSize(self._env.model, self._kind))
        self._first = lru_cache(FIRST_STATES_KEPT)(self._drawn)
        words, obs = self._first(np.uint32(0))
        self._shapes = (jax.ShapeDtypeStruct(words.shape, jnp.uint32), jax.ShapeDtypeStruct(obs.shape, jnp.float32))

    @property
    def max_steps(self) -> int:
        return self._max_steps

    @property
    def step_bytes(self) -> int:
        return sum(shape.size * shape.dtype.itemsize for shape in self._shapes)

    def reset(self, key: PRNGKeyArray) -> tuple[UInt32[Array, " W"], Float[Array, " S"]]:
        """What Gymnasium draws, with a seed that follows from `key`."""
        draw = np.vectorize(self._first, otypes=("uint32", "float32"), signature="()->(w),(s)")
        return jax.pure_callback(draw, self._shapes, jax.random.bits(key), vmap_method="broadcast_all")

    def step(self, state: UInt32[Array, " W"], action: Float[Array, " A"]) -> Outcome:
        shapes = (*self._shapes, jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_))
        types = tuple(str(shape.dtype) for shape in shapes)
        advance = np.vectorize(self._stepped, otypes=types, signature="(w),(a)->(w),(s),(),()")
        return Outcome(*jax.pure_callback(advance, shapes, state, action, vmap_method="broadcast_all"))

    # ------------------------------------------------------------ on the host

    def _drawn(self, seed: np.integer) -> tuple[np.ndarray, np.ndarray]:
        with self._alone:
            obs, _ = self._env.reset(seed=int(seed))
            return self._words(), obs

    def _stepped(self, words: np.ndarray, action: np.ndarray) -> tuple[Any, ...]:
        with self._alone:
            self._put(words)
            obs, reward, terminated, _, _ = self._env.step(action)
            return self._words(), obs, reward, terminated

    def _words(self) -> np.ndarray:
        """What the simulator goes on from, and where it last saw the bodies: some rewards start from there."""
        self._mujoco.mj_getState(self._env.model, self._env.data, self._integrated, self._kind)
        return np.concatenate([self._integrated, self._env.data.xpos.ravel()]).view(np.uint32)

    def _put(self, words: np.ndarray) -> None:
        numbers, bodies = words.view(np.float64), self._env.data.xpos
        self._mujoco.mj_setState(self._env.model, self._env.data, numbers[: -bodies.size], self._kind)
        bodies[:] = numbers[-bodies.size :].reshape(bodies.shape)
