"""Q and soft values beside the returns that came of them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from soft_mpcritic.planner import Models, Planner
from soft_mpcritic.types import AnyArray, Trajectory

TAIL = 0.05  # greatest weight gamma^n of what a time limit cut off, n steps later, for a return to count as whole


class ValueSample(NamedTuple):
    """Values at R played steps beside what came of them, in units of reward."""

    q: Float[AnyArray, " R"]  # least head of Q(s_t, a_t), as planning sees it
    soft_value: Float[AnyArray, " R"]  # V(s_t) of the online solve that chose a_t
    ret: Float[AnyArray, " R"]  # sum_{k>=t} gamma^(k-t) r_k, and what an end is worth to the objective


def discounted_returns(reward: Float[np.ndarray, " L"], discount: float, after: float = 0.0) -> Float[np.ndarray, " L"]:
    """G_t = r_t + gamma G_{t+1} with G_L = `after`: what was paid from every step on."""
    returns, later = np.zeros(len(reward)), after
    for time in reversed(range(len(reward))):
        later = float(reward[time]) + discount * later
        returns[time] = later
    return returns


def counted_steps(trajectory: Trajectory, discount: float) -> int:
    """How many first steps of an episode have a whole return.

    All of them after a termination. After a time limit those t with gamma^(L - t) <= `TAIL`: what was cut off weighs
    no more than that. Nothing is bootstrapped, as a wrong value could not be found out by itself.
    """
    length = len(trajectory.reward)
    if trajectory.terminated:
        return length
    left = length - np.arange(length)
    return int(np.sum(discount**left <= TAIL))


def action_values(
    planner: Planner, models: Models, obs: Float[Array, "R S"], action: Float[Array, "R A"]
) -> Float[Array, " R"]:
    """Q(s, a) that control uses: the least head of the critic that it asks."""
    return planner.control_critic(models).least(planner.valued(models, obs), action)
