"""Bodies that run or swim along x: Hopper, Walker2d, HalfCheetah, Swimmer and Ant, all -v5.

All are paid for speed, minus the cost of control; those that can fall get 1 for every healthy step, and end when they
are not. The speed comes from absolute positions, so the environments are made to show them, first in the observation;
the networks see the rest only, which is the tasks' standard observation, unless `training.observe_position`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp

from soft_mpcritic.envs.tasks.spec import Action, Obs, PerRow, TaskSpec, never, squares
from soft_mpcritic.types import Reward, Termination


def forward_speed(obs: Obs, next_obs: Obs, step: float) -> PerRow:
    """Mean speed along x over a step of so many seconds, m/s.

    float32 rounds either position by up to |x| 2^-24, hence the speed by up to |x| 2^-23 / step: at x = 10 m,
    1.5e-4 m/s for a step of 0.008 s.
    """
    return (next_obs[:, 0] - obs[:, 0]) / step


@dataclass(frozen=True)
class SpeedLessEffort:
    """Speed + healthy - effort |a|^2, summed over `steps` of `step` seconds under one action: speeds add up to a way.

    `healthy` is 1 or 0 for an observation, without it all are 0. Of several steps the last is asked for all: where an
    earlier one ends the episode, up to steps - 1 healthy ones and the effort of those to come are missed.
    """

    step: float
    effort: float
    healthy: Callable[[Obs], PerRow] | None = None
    steps: int = 1

    def __call__(self, obs: Obs, action: Action, next_obs: Obs) -> PerRow:
        earned = forward_speed(obs, next_obs, self.step) - self.steps * self.effort * squares(action)
        return earned if self.healthy is None else earned + self.steps * self.healthy(next_obs)

    def over(self, steps: int) -> "SpeedLessEffort":
        """What so many steps earn."""
        return replace(self, steps=steps)


@dataclass(frozen=True)
class Fallen:
    """Ends the episode where `healthy`, 1 or 0 for an observation, is 0."""

    healthy: Callable[[Obs], PerRow]

    def __call__(self, obs: Obs, action: Action, next_obs: Obs) -> PerRow:
        return 1 - self.healthy(next_obs)


def hopper_healthy(obs: Obs) -> PerRow:
    """Torso over 0.7 m and tilted by less than 0.2 rad, any other state within +-100.

    The last is about speeds that the observation clips at 10: the joint angles alone are tested here.
    """
    height, angle, joints = obs[:, 1], obs[:, 2], obs[:, 2:]
    healthy = (height > 0.7) & (jnp.abs(angle) < 0.2) & jnp.all(jnp.abs(joints) < 100, axis=-1)
    return healthy.astype(obs.dtype)


def walker_healthy(obs: Obs) -> PerRow:
    """Torso between 0.8 and 2 m, and tilted by less than 1 rad."""
    height, angle = obs[:, 1], obs[:, 2]
    return ((height > 0.8) & (height < 2) & (jnp.abs(angle) < 1)).astype(obs.dtype)


def ant_healthy(obs: Obs) -> PerRow:
    """Torso from 0.2 to 1 m high."""
    height = obs[:, 2]
    return ((height >= 0.2) & (height <= 1)).astype(obs.dtype)


def ant_reward(obs: Obs, action: Action, next_obs: Obs) -> PerRow:
    """Speed + healthy - 0.5 |a|^2 - 0.0005 |contact|^2, of the contact forces clipped to +-1.

    The contact forces stay in the observation, because their cost is a function of just what is observed there,
    clipped as it is. The speed is not: the simulator takes the torso's positions from the last stage of its
    integrator, up to 7 mm from the states that the steps end in. One step is off by up to 0.14 m/s for that; but what
    it gains the next ones lose, and an undiscounted return is off by less than 0.01 m / 0.05 s = 0.2.
    """
    contact = jnp.clip(next_obs[:, 29:], -1, 1)
    speed = forward_speed(obs, next_obs, 0.05)
    return speed + ant_healthy(next_obs) - 0.5 * squares(action) - 5e-4 * squares(contact)


def _on_track(reward: Reward, termination: Termination, *positions: int, angles: tuple[int, ...] = ()) -> TaskSpec:
    shown = {"exclude_current_positions_from_observation": False}
    return TaskSpec(reward, termination, env_options=shown, positions=positions, angles=angles, total_steps=200_000)


LOCOMOTION = {
    "Hopper-v5": _on_track(SpeedLessEffort(0.008, 1e-3, hopper_healthy), Fallen(hopper_healthy), 0),
    "Walker2d-v5": _on_track(SpeedLessEffort(0.008, 1e-3, walker_healthy), Fallen(walker_healthy), 0),
    "HalfCheetah-v5": _on_track(SpeedLessEffort(0.05, 0.1), never, 0, angles=(2,)),  # how far it has tumbled over
    "Swimmer-v5": _on_track(SpeedLessEffort(0.04, 1e-4), never, 0, 1, angles=(2,)),  # where it heads
    "Ant-v5": _on_track(ant_reward, Fallen(ant_healthy), 0, 1),
}
