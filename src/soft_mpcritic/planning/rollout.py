"""The return of action sequences through a model that may end episodes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from soft_mpcritic.types import StepOutcome, TerminalValue, Trace

UNROLL_UP_TO = 8  # short horizons are unrolled: the compiler then fuses across steps


def rollout_return(
    step_at: Callable[[Int[Array, ""], Float[Array, "R S"], Float[Array, "R A"]], StepOutcome],
    terminal_value: TerminalValue | None,
    obs: Float[Array, "R S"],
    actions: Float[Array, "T R A"],
    discount: float,
    trace: Trace = 1.0,
    end_value: float = 0.0,
) -> Float[Array, " R"]:
    """J = sum_{t<H} gamma^t (c_t r_t + gamma (c_t - c_{t+1}) v) + gamma^H c_H Q(s_H, a_H).

    c_t is the probability of being alive at t, v the `end_value`. `step_at(t, obs, action)` is the model's step at time
    t. The step on which an episode ends still pays its reward, and then v; everything later, Q included, is weighed by
    c. Without a `terminal_value` the last action is not used.

    With a `trace` lambda it is the TD(lambda) mean of such returns over 1 to H steps (Sutton and Barto, 2018,
    eq. 12.3), (1 - lambda) sum_{h<H} lambda^{h-1} J_h + lambda^{H-1} J_H: less hangs on the last steps, known least.
    """
    horizon = actions.shape[0] - 1

    def advance(carry, inputs):
        obs, weight, total = carry
        time, action = inputs
        outcome = step_at(time, obs, action)
        ended = discount * (1 - outcome.continuation) * end_value
        total = total + weight * (outcome.reward + ended)
        return (outcome.next_obs, discount * weight * outcome.continuation, total), None

    def stop_or_advance(carry, inputs):
        assert terminal_value is not None
        obs, weight, total = carry
        _, action = inputs
        total = total + (1 - trace) * weight * terminal_value(obs, action)
        return advance((obs, trace * weight, total), inputs)

    rows = obs.shape[0]
    carry, times = (obs, jnp.ones(rows), jnp.zeros(rows)), jnp.arange(horizon)
    steps, later = (times, actions[:-1]), advance
    at_end_only = isinstance(trace, int | float) and trace == 1
    if not at_end_only and terminal_value is not None and horizon > 1:
        carry, _ = advance(carry, (times[0], actions[0]))
        steps, later = (times[1:], actions[1:-1]), stop_or_advance
    unroll = max(horizon, 1) if horizon <= UNROLL_UP_TO else 1
    (obs, weight, total), _ = jax.lax.scan(later, carry, steps, unroll=unroll)
    if terminal_value is None:
        return total
    return total + weight * terminal_value(obs, actions[-1])
