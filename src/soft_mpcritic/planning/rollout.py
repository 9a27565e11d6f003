"""The return of action sequences through a model that may end episodes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from soft_mpcritic.types import StepOutcome, TerminalValue

UNROLL_UP_TO = 8  # short horizons are unrolled: the compiler then fuses across steps


def rollout_return(
    step_at: Callable[[Int[Array, ""], Float[Array, "R S"], Float[Array, "R A"]], StepOutcome],
    terminal_value: TerminalValue | None,
    obs: Float[Array, "R S"],
    actions: Float[Array, "T R A"],
    discount: float,
) -> Float[Array, " R"]:
    """J = sum_{t<H} gamma^t c_t r_t + gamma^H c_H Q(s_H, a_H), with c_t the probability of being alive at t.

    `step_at(t, obs, action)` is the model's step at time t. The step on which an episode ends still pays its
    reward; everything later, Q included, is weighed by c. Without a `terminal_value` the last action is not used.
    """
    horizon = actions.shape[0] - 1

    def advance(carry, inputs):
        obs, weight, total = carry
        time, action = inputs
        outcome = step_at(time, obs, action)
        total = total + weight * outcome.reward
        return (outcome.next_obs, discount * weight * outcome.continuation, total), None

    rows = obs.shape[0]
    start = (obs, jnp.ones(rows), jnp.zeros(rows))
    times = jnp.arange(horizon)
    unroll = max(horizon, 1) if horizon <= UNROLL_UP_TO else 1
    (obs, weight, total), _ = jax.lax.scan(advance, start, (times, actions[:-1]), unroll=unroll)
    if terminal_value is None:
        return total
    return total + weight * terminal_value(obs, actions[-1])
