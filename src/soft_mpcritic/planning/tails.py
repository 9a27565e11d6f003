"""The last action of a plan: nothing follows it but Q, so Q may choose it before the search begins."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from soft_mpcritic.planning.scenarios import ensemble_size
from soft_mpcritic.types import StepFn, TerminalValue


def choose_tail(
    key: PRNGKeyArray,
    count: int,
    step: StepFn,
    members: PyTree,
    terminal_value: TerminalValue,
    obs: Float[Array, "B S"],
    plan: Float[Array, "B T A"],
) -> Float[Array, "B T A"]:
    """The plan with that last action, of its own and `count` drawn uniformly in the box, that Q likes best.

    Q is asked where the plan leads by one member for the whole batch, drawn anew for every step. A shifted plan ends in
    an action that nobody has thought of yet, and a narrow search leaves it nearly there: Q would be asked about
    anything but what an agent would do. This costs one rollout, and no step of a model for a candidate.
    """
    horizon = plan.shape[1] - 1
    member_key, tail_key = jax.random.split(key)
    schedule = jax.random.randint(member_key, (max(horizon, 1),), 0, ensemble_size(members))

    def advance(time: Int[Array, ""], obs: Float[Array, "B S"]) -> Float[Array, "B S"]:
        member = jax.tree.map(lambda leaf: leaf[schedule[time]], members)
        return step(member, obs, plan[:, time]).next_obs

    end = jax.lax.fori_loop(0, horizon, advance, obs)
    drawn = jax.random.uniform(tail_key, (count, *plan[:, -1].shape), minval=-1, maxval=1)
    tails = jnp.concatenate([plan[None, :, -1], drawn])
    worth = jax.vmap(lambda tail: terminal_value(end, tail))(tails)
    best = jnp.argmax(jnp.where(jnp.isfinite(worth), worth, -jnp.inf), axis=0)  # the plan's own, where Q says nothing
    return plan.at[:, -1].set(tails[best, jnp.arange(best.shape[0])])
