"""How sampled action sequences meet an ensemble of models, and the risk measures that join their returns.

The ensemble is any pytree whose leaves have a leading axis N: learned networks, or known models with their
parameters randomised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from soft_mpcritic.math import log_mean_exp
from soft_mpcritic.planning.rollout import rollout_return
from soft_mpcritic.types import RiskMeasure, StepFn, TerminalValue, Trace

ScenarioMode = Literal["per_step", "per_sample", "all_members"]


def mean_return(returns: Float[Array, "N K B"]) -> Float[Array, "K B"]:
    """Risk neutral."""
    return jnp.mean(returns, axis=0)


def worst_return(returns: Float[Array, "N K B"]) -> Float[Array, "K B"]:
    """The least return of any member."""
    return jnp.min(returns, axis=0)


@dataclass(frozen=True)
class EntropicReturn:
    """-(1 / aversion) log mean_n exp(-aversion J_n): from the mean (0) to the worst member (infinity)."""

    aversion: float  # > 0, per unit of reward

    def __call__(self, returns: Float[Array, "N K B"]) -> Float[Array, "K B"]:
        return -log_mean_exp(-self.aversion * returns) / self.aversion


@dataclass(frozen=True)
class CVaRReturn:
    """Mean of the worst fraction alpha of the members' returns; a member may count in part.

    Closed form for N equally likely outcomes: weights min(1, alpha N - i) / (alpha N) on the i-th worst, i from 0.
    """

    alpha: float  # in (0, 1]; 1 is the mean

    def __call__(self, returns: Float[Array, "N K B"]) -> Float[Array, "K B"]:
        count = self.alpha * returns.shape[0]
        weights = jnp.clip(count - jnp.arange(returns.shape[0], dtype=returns.dtype), 0, 1) / count
        return jnp.tensordot(weights, jnp.sort(returns, axis=0), axes=1)


@dataclass(frozen=True)
class Scenarios:
    """Rolls [K, B] action sequences through an ensemble.

    per_step: one member, drawn anew for every time step, serves the whole batch.
    per_sample: sample k keeps member k mod N to the end of the horizon.
    all_members: every sample meets every member, and `risk` joins the N returns of the trajectory.
    """

    mode: ScenarioMode
    discount: float
    risk: RiskMeasure = mean_return
    trace: Trace = 1.0  # lambda of `rollout_return`
    end_value: float = 0.0  # v of `rollout_return`

    def returns(
        self,
        key: PRNGKeyArray,
        step: StepFn,
        members: PyTree,
        terminal_value: TerminalValue | None,
        obs: Float[Array, "B S"],
        actions: Float[Array, "K B T A"],
    ) -> Float[Array, "K B"]:
        """Returns of every sample; `key` draws the members in mode per_step, and is not used otherwise."""
        num_samples = actions.shape[0]

        def member_returns(member: Any, actions: Float[Array, "J B T A"]) -> Float[Array, "J B"]:
            return self._batch_return(lambda _, s, a: step(member, s, a), terminal_value, obs, actions)

        if self.mode == "per_step":
            schedule = jax.random.randint(key, (actions.shape[2],), 0, ensemble_size(members))

            def step_at(time, obs, action):
                return step(jax.tree.map(lambda leaf: leaf[schedule[time]], members), obs, action)

            return self._batch_return(step_at, terminal_value, obs, actions)
        if self.mode == "per_sample":
            groups = _deal(actions, ensemble_size(members))
            returns = jax.vmap(member_returns)(members, groups)
            return jnp.swapaxes(returns, 0, 1).reshape(-1, actions.shape[1])[:num_samples]
        returns = jax.vmap(member_returns, in_axes=(0, None))(members, actions)
        valid = jnp.all(jnp.isfinite(returns), axis=0)  # a member at +infinity would hide behind the worst one
        return jnp.where(valid, self.risk(returns), jnp.nan)

    def _batch_return(
        self, step_at: Callable, terminal_value: TerminalValue | None, obs: Array, actions: Array
    ) -> Float[Array, "K B"]:
        """`rollout_return` on [K, B] sequences as K B contiguous rows, one matrix product per layer and step."""
        num_samples, problems, slots, size = actions.shape
        rows = jnp.moveaxis(actions, 2, 0).reshape(slots, num_samples * problems, size)
        obs = jnp.broadcast_to(obs[None], (num_samples, *obs.shape)).reshape(num_samples * problems, -1)
        returns = rollout_return(step_at, terminal_value, obs, rows, self.discount, self.trace, self.end_value)
        return returns.reshape(num_samples, problems)


def ensemble_size(members: PyTree) -> int:
    """N, read off the leading axis of the first leaf."""
    return jax.tree.leaves(members)[0].shape[0]


def _deal(actions: Float[Array, "K B T A"], hands: int) -> Float[Array, "N J B T A"]:
    """Deals sample k to hand k mod N; the last round is filled up with repeats, which the caller drops."""
    rounds = -(-actions.shape[0] // hands)
    repeats = jnp.concatenate([actions] * (1 + (rounds * hands - 1) // actions.shape[0]))[: rounds * hands]
    return jnp.swapaxes(repeats.reshape(rounds, hands, *actions.shape[1:]), 0, 1)
