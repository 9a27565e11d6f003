"""Known rewards and terminations of Gymnasium tasks, as JAX functions of (obs, action, next_obs) in the task's units.

One small spec a task. Each is tested against the simulator on random steps; where an observation clips a quantity
that the simulator does not, the docstring says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from soft_mpcritic.types import Reward, Termination


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task beside its spaces."""

    reward: Reward
    termination: Termination
    env_options: Mapping[str, Any] = field(default_factory=dict, hash=False)  # for gymnasium.make
    positions: tuple[int, ...] = ()  # components that only the reward needs: absolute positions along a track
    total_steps: int = 100_000  # a training budget that suffices


def _double_pendulum_tip(obs: Float[Array, "R S"]) -> tuple[Float[Array, " R"], Float[Array, " R"]]:
    """Position of the upper pole's tip, m: both poles are 0.6 m, the second angle is relative to the first."""
    cart, sin1, sin2, cos1, cos2 = obs[:, 0], obs[:, 1], obs[:, 2], obs[:, 3], obs[:, 4]
    sin12 = sin1 * cos2 + cos1 * sin2
    cos12 = cos1 * cos2 - sin1 * sin2
    return cart + 0.6 * (sin1 + sin12), 0.6 * (cos1 + cos12)


def double_pendulum_termination(
    obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"]
) -> Float[Array, " R"]:
    """The tip is at or under 1 m."""
    _, height = _double_pendulum_tip(next_obs)
    return (height <= 1).astype(obs.dtype)


def double_pendulum_reward(
    obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"]
) -> Float[Array, " R"]:
    """10 alive - 0.01 x^2 - (y - 2)^2 - 0.001 v1^2 - 0.005 v2^2, of the tip (x, y) and the joint speeds v.

    Observed speeds are clipped at 10 rad/s, so that a fall faster than that is punished less than by the simulator.
    """
    x, y = _double_pendulum_tip(next_obs)
    speed1, speed2 = next_obs[:, 6], next_obs[:, 7]
    alive = 10 * (1 - double_pendulum_termination(obs, action, next_obs))
    return alive - 0.01 * x**2 - (y - 2) ** 2 - 1e-3 * speed1**2 - 5e-3 * speed2**2


def pendulum_reward(
    obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"]
) -> Float[Array, " R"]:
    """-(angle^2 + 0.1 speed^2 + 0.001 a^2), of the state before the step; the angle is 0 when upright."""
    cos, sin, speed = obs[:, 0], obs[:, 1], obs[:, 2]
    return -(jnp.arctan2(sin, cos) ** 2 + 0.1 * speed**2 + 1e-3 * action[:, 0] ** 2)


def never(obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"]) -> Float[Array, " R"]:
    """The task has no end of its own."""
    return jnp.zeros_like(obs[:, 0])


HOPPER_STEP = 0.008  # s


def hopper_termination(
    obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"]
) -> Float[Array, " R"]:
    """Unhealthy: torso at or under 0.7 m, tilted by 0.2 rad or more, or any other state out of +-100.

    The last is about speeds that the observation clips at 10: the joint angles alone are tested here.
    """
    height, angle, joints = next_obs[:, 1], next_obs[:, 2], next_obs[:, 2:]
    healthy = (height > 0.7) & (jnp.abs(angle) < 0.2) & jnp.all(jnp.abs(joints) < 100, axis=-1)
    return 1 - healthy.astype(obs.dtype)


def hopper_reward(
    obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"]
) -> Float[Array, " R"]:
    """Forward speed over the step, m/s, + 1 while healthy - 0.001 |a|^2."""
    speed = (next_obs[:, 0] - obs[:, 0]) / HOPPER_STEP
    healthy = 1 - hopper_termination(obs, action, next_obs)
    return speed + healthy - 1e-3 * jnp.sum(action**2, axis=-1)


TASKS: dict[str, TaskSpec] = {
    "InvertedDoublePendulum-v5": TaskSpec(double_pendulum_reward, double_pendulum_termination, total_steps=15_000),
    "Pendulum-v1": TaskSpec(pendulum_reward, never, total_steps=5_000),
    "Hopper-v5": TaskSpec(
        hopper_reward,
        hopper_termination,
        env_options={"exclude_current_positions_from_observation": False},
        positions=(0,),
        total_steps=200_000,
    ),
}
