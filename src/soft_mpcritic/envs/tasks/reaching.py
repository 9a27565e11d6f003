"""A hand that reaches for a target: Reacher-v5."""

import jax.numpy as jnp

from soft_mpcritic.envs.tasks.spec import Action, Obs, PerRow, TaskSpec, never, squares


def reacher_reward(obs: Obs, action: Action, next_obs: Obs) -> PerRow:
    """-(distance + |a|^2), of the fingertip from the target after the step, m; both move in one plane."""
    return -(jnp.sqrt(squares(next_obs[:, 8:])) + squares(action))


REACHING = {"Reacher-v5": TaskSpec(reacher_reward, never, total_steps=15_000)}
