"""Environments as pure functions, and E of them at once with time limits and new episodes."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from soft_mpcritic.envs.guard import LARGEST, EnvironmentFaultError
from soft_mpcritic.types import Experience

UNSOUND = f"is not finite, or beyond {LARGEST:g}"


class Outcome(NamedTuple):
    """What one step of one environment leads to; `state` is any pytree."""

    state: Any
    obs: Float[Array, " S"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]


@runtime_checkable
class DeviceEnv(Protocol):
    """One environment as two pure functions. Time limits are not its business."""

    @property
    def max_steps(self) -> int:
        """Length at which an episode is truncated."""
        ...

    @property
    def step_bytes(self) -> int:
        """Memory that a step takes beside the state, about."""
        ...

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Float[Array, " S"]]:
        """A first state and its observation."""
        ...

    def step(self, state: Any, action: Float[Array, " A"]) -> Outcome:
        """One step with an action in the task's units."""
        ...


@dataclasses.dataclass(frozen=True)
class HeldEnv:
    """An environment of which a step is `steps` of another's with one action, or fewer where one ends the episode."""

    env: DeviceEnv
    steps: int

    @property
    def max_steps(self) -> int:
        return -(-self.env.max_steps // self.steps)

    @property
    def step_bytes(self) -> int:
        return self.env.step_bytes

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Float[Array, " S"]]:
        return self.env.reset(key)

    def step(self, state: Any, action: Float[Array, " A"]) -> Outcome:
        """Rewards add up; the last of several steps may go beyond a time limit."""

        def once_more(_: Int[Array, ""], so_far: Outcome) -> Outcome:
            further = self.env.step(so_far.state, action)
            further = further._replace(reward=so_far.reward + further.reward)
            return jax.tree.map(lambda old, new: jnp.where(so_far.terminated, old, new), so_far, further)

        return jax.lax.fori_loop(1, self.steps, once_more, self.env.step(state, action))


@dataclasses.dataclass(frozen=True)
class ChangingEnv:
    """An environment whose observations are followed by how they have changed since the last step, 0 at first."""

    env: DeviceEnv

    @property
    def max_steps(self) -> int:
        return self.env.max_steps

    @property
    def step_bytes(self) -> int:
        return self.env.step_bytes

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Float[Array, " S"]]:
        state, obs = self.env.reset(key)
        return (state, obs), jnp.concatenate([obs, jnp.zeros_like(obs)])

    def step(self, state: Any, action: Float[Array, " A"]) -> Outcome:
        """`state` holds the last observation beside the environment's own."""
        own, before = state
        outcome = self.env.step(own, action)
        obs = jnp.concatenate([outcome.obs, outcome.obs - before])
        return outcome._replace(state=(outcome.state, outcome.obs), obs=obs)


class VectorState(eqx.Module):
    """Where E environments are."""

    envs: Any  # their states, with a leading axis E
    time: Int[Array, " E"]  # steps in the running episodes
    key: Key[Array, " E"]  # each of its environment's next episode


@dataclasses.dataclass(frozen=True)
class DeviceVector:
    """E copies of one environment, for compiled loops. Episodes that end start anew within the same step."""

    env: DeviceEnv
    num_envs: int = 1

    def reset(self, key: PRNGKeyArray) -> tuple[VectorState, Float[Array, "E S"]]:
        """First states and observations."""
        first, following = jax.random.split(key, (2, self.num_envs))
        envs, obs = jax.vmap(self.env.reset)(first)
        return VectorState(envs, jnp.zeros(self.num_envs, jnp.int32), following), obs

    def step(self, state: VectorState, actions: Float[Array, "E A"]) -> tuple[VectorState, Experience]:
        """Steps all by actions in the task's units; a time limit ends an episode but is no termination."""
        return self._renewed(state, jax.vmap(self.env.step)(state.envs, actions))

    def guarded_step(
        self, state: VectorState, actions: Float[Array, "E A"], longest: Int[Array, ""] | int = 0
    ) -> tuple[VectorState, Experience, Bool[Array, " E"]]:
        """`step` that says which environments answered with numbers that can be learned from.

        Of the others, the episode is cut, and there are zeros in the place of what they answered. All are cut after
        `longest` steps, if the task does not end them before; 0 never does.
        """
        outcome = jax.vmap(self.env.step)(state.envs, actions)
        sound = sound_rows(outcome.obs) & sound_rows(outcome.reward[:, None])
        over = (jnp.asarray(longest) > 0) & (state.time + 1 >= longest)
        state, met = self._renewed(state, outcome, cut=~sound | over)
        started = sound_rows(jnp.asarray(met.start_obs))
        experience = Experience(
            jnp.where(sound, met.reward, 0.0),
            jnp.where(sound[:, None], met.next_obs, 0.0),
            met.terminated & sound,
            met.done,
            jnp.where(started[:, None], met.start_obs, 0.0),
        )
        return state, experience, sound & started

    def _renewed(
        self, state: VectorState, outcome: Outcome, cut: Bool[Array, " E"] | None = None
    ) -> tuple[VectorState, Experience]:
        """What `outcome` [E] leads to: new episodes where one is over, or is to be `cut`."""
        time = state.time + 1
        done = outcome.terminated | (time >= self.env.max_steps)
        done = done if cut is None else done | cut
        fresh = jax.vmap(self.env.reset)(state.key)  # the same ones until they are needed
        envs, start_obs = jax.tree.map(
            lambda new, old: jnp.where(done.reshape(-1, *[1] * (old.ndim - 1)), new, old),
            fresh,
            (outcome.state, outcome.obs),
        )
        following = jax.vmap(lambda key: jax.random.split(key, 1)[0])(state.key)
        state = VectorState(envs, jnp.where(done, 0, time), jnp.where(done, following, state.key))
        return state, Experience(outcome.reward, outcome.obs, outcome.terminated, done, start_obs)

    def snapshot(self, state: VectorState) -> list[Any]:
        """JSON-ready: all that `restore` needs, to the bit."""
        plain = (state.envs, state.time, jax.random.key_data(state.key))
        return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(plain)]

    def restore(self, snapshot: Sequence[Any]) -> VectorState:
        """The state of a snapshot."""
        shapes, structure = jax.tree.flatten(jax.eval_shape(self.reset, jax.random.key(0))[0])
        *values, key = snapshot  # the key is the last leaf
        arrays = [jnp.asarray(value, shape.dtype) for value, shape in zip(values, shapes[:-1], strict=True)]
        keys = jax.random.wrap_key_data(jnp.asarray(key, jnp.uint32).reshape(self.num_envs, -1))
        return jax.tree.unflatten(structure, [*arrays, keys])


def sound_rows(rows: Float[Array, "E S"]) -> Bool[Array, " E"]:
    """Which rows hold numbers that can be learned from; NaN is none."""
    return jnp.all(jnp.abs(rows) <= LARGEST, axis=-1)


class HostedVector:
    """E device environments that are stepped from the host, as `EnvVector` is."""

    def __init__(self, env: DeviceEnv, num_envs: int) -> None:
        self.num_envs = num_envs
        self._vector = DeviceVector(env, num_envs)
        self._step = jax.jit(self._vector.guarded_step)

    def reset(self, seed: int | Sequence[int]) -> np.ndarray:
        """First observations [E, S]; environment e gets seed + e, or the e-th of a list."""
        seeds = [seed + e for e in range(self.num_envs)] if isinstance(seed, int) else list(seed)
        keys = jnp.stack([jax.random.key(s) for s in seeds])
        envs, obs = self._reset(keys)
        following = jax.vmap(lambda key: jax.random.split(key, 1)[0])(keys)
        self._state = VectorState(envs, jnp.zeros(self.num_envs, jnp.int32), following)
        return np.asarray(obs)

    def step(self, actions: np.ndarray) -> Experience:
        """Steps all by actions [E, A] in the task's units."""
        self._state, experience, sound = self._step(self._state, jnp.asarray(actions))
        for env in np.flatnonzero(~np.asarray(sound)).tolist():
            raise EnvironmentFaultError(f"observation or reward of environment {env} {UNSOUND}")
        return Experience(*(np.asarray(part) for part in experience))

    def close(self) -> None:
        """Nothing to let go of."""

    @cached_property
    def _reset(self) -> Any:
        return jax.jit(jax.vmap(self._vector.env.reset))
