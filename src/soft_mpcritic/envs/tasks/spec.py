"""What a task tells beside its spaces, and the terms that tasks share."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from soft_mpcritic.config import ConfigError
from soft_mpcritic.types import Dynamics, Reward, Termination

Obs = Float[Array, "R S"]
Action = Float[Array, "R A"]  # in the task's units
PerRow = Float[Array, " R"]


@runtime_checkable
class Additive(Protocol):
    """A reward that adds up, over steps under one action, to a function of where they begin and end."""

    def over(self, steps: int) -> Reward:
        """What `steps` such steps earn."""
        ...


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task beside its spaces."""

    reward: Reward
    termination: Termination
    env_options: Mapping[str, Any] = field(default_factory=dict, hash=False)  # for gymnasium.make
    positions: tuple[int, ...] = ()  # components that only the reward needs: absolute positions along a track
    angles: tuple[int, ...] = ()  # components that are angles without bounds: a turn more changes nothing
    total_steps: int = 100_000  # a training budget that suffices
    nominal: Dynamics | None = None  # physics as far as they are known

    def repeated(self, times: int) -> "TaskSpec":
        """What is known of `times` steps under one action, or of fewer where one ends the episode, taken as one.

        A termination that asks where a step leads holds for the last of them; rewards that do not add up are unknown.
        """
        if times == 1:
            return self
        reward = self.reward.over(times) if isinstance(self.reward, Additive) else unknown
        return replace(self, reward=reward)


@dataclass(frozen=True)
class Repeated:
    """Physics of `times` steps under one action."""

    dynamics: Dynamics
    times: int

    def __call__(self, obs: Obs, action: Action) -> Obs:
        return jax.lax.fori_loop(0, self.times, lambda _, obs: self.dynamics(obs, action), obs)


def never(obs: Obs, action: Action, next_obs: Obs) -> PerRow:
    """The task has no end of its own."""
    return jnp.zeros_like(obs[:, 0])


def unknown(obs: Obs, action: Action, next_obs: Obs) -> PerRow:
    """Stands for what nobody told: it is learned, and this never asked."""
    raise ConfigError("reward and termination are not known here, and learned instead: ask what was learned.")


@dataclass(frozen=True)
class Either:
    """One way to end or the other; of probabilities, the larger."""

    one: Termination
    other: Termination

    def __call__(self, obs: Obs, action: Action, next_obs: Obs) -> PerRow:
        return jnp.maximum(self.one(obs, action, next_obs), self.other(obs, action, next_obs))


def squares(rows: Float[Array, "R _"]) -> PerRow:
    """|x|^2 of every row x."""
    return jnp.sum(rows**2, axis=-1)
