"""Models rolled along played actions, beside what happened."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from soft_mpcritic.diagnostics.draws import SEED, some
from soft_mpcritic.dynamics import CHANGE_FLOOR
from soft_mpcritic.networks import MLP
from soft_mpcritic.planner import Models, Planner
from soft_mpcritic.replay import Replay
from soft_mpcritic.types import AnyArray, Trajectory

SCALE_ROWS = 2048  # replayed transitions for the deviation of the changes


class ModelErrors(NamedTuple):
    """Members rolled open loop along played actions: step k is x_k = f_n(x_{k-1}, a_{t+k-1}) from x_0 = s_t.

    Differences of observations are divided by the standard deviation of the one-step change over the replay, the unit
    that models are trained in: it is the same for all steps, so that growth shows, and it exists for
    components such as a position along a track, which have no deviation of their own over time. 1 at the first step
    is as bad as to predict the mean change.
    """

    squares: Float[AnyArray, "N W S"]  # mean over windows of ((x_k - s_{t+k}) / deviation)^2, by member
    still: Float[AnyArray, "W S"]  # the same of the prediction that nothing changes, x_k = s_t
    reward_squares: Float[AnyArray, "N W"]  # mean of (r(x_{k-1}, a, x_k) - r_{t+k-1})^2, reward^2
    spread: Float[AnyArray, " R"]  # at step 1: root mean square over components of the members' sample deviation
    miss: Float[AnyArray, " R"]  # at step 1: root mean square over components of (mean of members - truth)

    @property
    def by_member(self) -> Float[np.ndarray, "N W"]:
        """Root mean square error of each member at each step."""
        return np.sqrt(np.mean(self.squares, axis=2))

    @property
    def by_step(self) -> Float[np.ndarray, " W"]:
        """Root mean square error at each step over members and components."""
        return np.sqrt(np.mean(self.squares, axis=(0, 2)))

    @property
    def still_by_step(self) -> Float[np.ndarray, " W"]:
        """Root mean square error at each step of the prediction that nothing changes."""
        return np.sqrt(np.mean(self.still, axis=1))

    @property
    def reward_by_step(self) -> Float[np.ndarray, " W"]:
        """Root mean square error of the reward at each step over members, in units of reward."""
        return np.sqrt(np.mean(self.reward_squares, axis=0))


class Windows(NamedTuple):
    """Up to W played steps on from each of R."""

    obs: Float[AnyArray, "R S"]
    action: Float[AnyArray, "R W A"]
    next_obs: Float[AnyArray, "R W S"]
    reward: Float[AnyArray, "R W"]
    live: Bool[AnyArray, "R W"]  # still within the episode; what is not is filled with zeros


def draw_windows(played: Sequence[Trajectory], rng: np.random.Generator, count: int, width: int) -> Windows:
    """`count` windows that begin anywhere in the episodes, each at most once; empty ones where steps are too few."""
    first = played[0]
    starts = [(episode, time) for episode, t in enumerate(played) for time in range(len(t.reward))]
    obs_size, action_size = first.obs.shape[1], first.action.shape[1]
    windows = Windows(
        obs=np.zeros((count, obs_size), np.float32),
        action=np.zeros((count, width, action_size), np.float32),
        next_obs=np.zeros((count, width, obs_size), np.float32),
        reward=np.zeros((count, width), np.float32),
        live=np.zeros((count, width), bool),
    )
    for row, index in enumerate(some(rng, len(starts), count)):
        episode, time = starts[index]
        trajectory = played[episode]
        here = slice(time, time + width)
        steps = len(trajectory.reward[here])
        windows.obs[row] = trajectory.obs[time]
        windows.action[row, :steps] = trajectory.action[here]
        windows.next_obs[row, :steps] = trajectory.next_obs[here]
        windows.reward[row, :steps] = trajectory.reward[here]
        windows.live[row, :steps] = True
    return windows


def change_deviation(replay: Replay) -> Float[Array, " S"]:
    """Standard deviation of s' - s over replayed transitions, with the floor that normalisation has."""
    batch = replay.take(replay.sample_rows(jax.random.key(SEED), SCALE_ROWS))
    return jnp.maximum(jnp.std(batch.next_obs - batch.obs, axis=0), CHANGE_FLOOR)


def model_errors(planner: Planner, models: Models, windows: Windows, deviation: Float[Array, " S"]) -> ModelErrors:
    """Rolls every member along the windows; see `ModelErrors`. NaN at a step that no window reaches.

    Of observations that also hold how they changed, the first half is compared: the rest follows from it.
    """
    told, reward = roll_members(planner, models, windows.obs, windows.action)
    compared = slice(planner.task.state_size)
    obs, truth, start = told[..., compared], windows.next_obs[None, ..., compared], windows.obs[None, :, None, compared]
    unit, live = deviation[None, None, None, compared], windows.live[None, :, :, None]
    first, first_truth = obs[:, :, 0] / unit[:, :, 0], truth[0, :, 0] / unit[0, :, 0]
    return ModelErrors(
        squares=_live_mean(((obs - truth) / unit) ** 2, live),
        still=_live_mean(((start - truth) / unit) ** 2, live)[0],
        reward_squares=_live_mean((reward - windows.reward[None])[..., None] ** 2, live)[..., 0],
        spread=_root_mean_square(jnp.std(first, axis=0, ddof=1)),
        miss=_root_mean_square(jnp.mean(first, axis=0) - first_truth),
    )


def roll_members(
    planner: Planner, models: Models, obs: Float[AnyArray, "R S"], actions: Float[AnyArray, "R W A"]
) -> tuple[Float[Array, "N R W S"], Float[Array, "N R W"]]:
    """Observations and rewards that each member, kept to the end, predicts for actions played open loop."""

    def roll(member: MLP) -> tuple[Array, Array]:
        def advance(obs: Array, action: Array) -> tuple[Array, tuple[Array, Array]]:
            outcome = planner.model_step(models, member, obs, action)
            return outcome.next_obs, (outcome.next_obs, outcome.reward)

        _, (path, reward) = jax.lax.scan(advance, jnp.asarray(obs), jnp.moveaxis(jnp.asarray(actions), 1, 0))
        return jnp.moveaxis(path, 0, 1), jnp.moveaxis(reward, 0, 1)

    return jax.vmap(roll)(models.dynamics.members)


def _live_mean(values: Float[AnyArray, "N R W X"], live: Bool[AnyArray, "1 R W 1"]) -> Float[Array, "N W X"]:
    return jnp.sum(jnp.where(live, values, 0.0), axis=1) / jnp.sum(live, axis=1, dtype=values.dtype)


def _root_mean_square(rows: Float[Array, "R S"]) -> Float[Array, " R"]:
    return jnp.sqrt(jnp.mean(rows**2, axis=1))
