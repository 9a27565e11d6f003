"""Pendulums to balance: InvertedPendulum-v5, InvertedDoublePendulum-v5, Pendulum-v1."""

import jax.numpy as jnp

from soft_mpcritic.envs.tasks.spec import Action, Obs, PerRow, TaskSpec, never


def inverted_pendulum_reward(obs: Obs, action: Action, next_obs: Obs) -> PerRow:
    """1 while the pole is within 0.2 rad of upright."""
    return (jnp.abs(next_obs[:, 1]) <= 0.2).astype(obs.dtype)


def inverted_pendulum_termination(obs: Obs, action: Action, next_obs: Obs) -> PerRow:
    """The pole is further than 0.2 rad from upright."""
    return 1 - inverted_pendulum_reward(obs, action, next_obs)


def _double_pendulum_tip(obs: Obs) -> tuple[PerRow, PerRow]:
    """Position of the upper pole's tip, m: both poles are 0.6 m, the second angle is relative to the first."""
    cart, sin1, sin2, cos1, cos2 = obs[:, 0], obs[:, 1], obs[:, 2], obs[:, 3], obs[:, 4]
    sin12 = sin1 * cos2 + cos1 * sin2
    cos12 = cos1 * cos2 - sin1 * sin2
    return cart + 0.6 * (sin1 + sin12), 0.6 * (cos1 + cos12)


def double_pendulum_termination(obs: Obs, action: Action, next_obs: Obs) -> PerRow:
    """The tip is at or under 1 m."""
    _, height = _double_pendulum_tip(next_obs)
    return (height <= 1).astype(obs.dtype)


def double_pendulum_reward(obs: Obs, action: Action, next_obs: Obs) -> PerRow:
    """10 alive - 0.01 x^2 - (y - 2)^2 - 0.001 v1^2 - 0.005 v2^2, of the tip (x, y) and the joint speeds v.

    Observed speeds are clipped at 10 rad/s, so that a fall faster than that is punished less than by the simulator.
    """
    x, y = _double_pendulum_tip(next_obs)
    speed1, speed2 = next_obs[:, 6], next_obs[:, 7]
    alive = 10 * (1 - double_pendulum_termination(obs, action, next_obs))
    return alive - 0.01 * x**2 - (y - 2) ** 2 - 1e-3 * speed1**2 - 5e-3 * speed2**2


def pendulum_reward(obs: Obs, action: Action, next_obs: Obs) -> PerRow:
    """-(angle^2 + 0.1 speed^2 + 0.001 a^2), of the state before the step; the angle is 0 when upright."""
    cos, sin, speed = obs[:, 0], obs[:, 1], obs[:, 2]
    return -(jnp.arctan2(sin, cos) ** 2 + 0.1 * speed**2 + 1e-3 * action[:, 0] ** 2)


PENDULUMS = {
    "InvertedPendulum-v5": TaskSpec(inverted_pendulum_reward, inverted_pendulum_termination, total_steps=5_000),
    "InvertedDoublePendulum-v5": TaskSpec(double_pendulum_reward, double_pendulum_termination, total_steps=15_000),
    "Pendulum-v1": TaskSpec(pendulum_reward, never, total_steps=5_000),
}
