"""Model predictive path integral control: plans, and the soft value that the critic learns from.

The planner knows neither networks nor environments. It is handed a `returns_fn` from action sequences to returns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from soft_mpcritic.math import effective_sample_size, log_mean_exp
from soft_mpcritic.planning.mixture import Mixture
from soft_mpcritic.types import PlanResult, PlanStats, Prior, ReturnsFn, Sampler

TRUST = 2.0  # deviations for which the slope of the return is believed


@dataclass(frozen=True)
class MPPI:
    """The planner's settings.

    `ratio_discount` is the factor g in L = sum_t g^t log(q/p): the reward's discount makes the value that of the
    nested soft Bellman recursion, 1 that of the trajectory free energy. They agree at discount 1 and at H = 0.
    `keep_nominal` makes the plan itself the first sample: the best sequence is then never worse than the plan,
    at the price of a small bias of the value (that sample is not drawn from q).
    `step_size` is how far the plan moves towards the weighted mean of the samples: 1 is MPPI, less is dynamic mirror
    descent (Wagener et al., 2019), which averages over visits what a handful of samples cannot tell at once.
    `width` is the deviation of the widest proposal in units of the prior's own; the objective is the same with any.
    """

    prior: Prior
    sampler: Sampler
    num_samples: int
    temperature: float
    ratio_discount: float
    iterations: int = 1
    keep_nominal: bool = False
    widths: int = 1
    guided: bool = False
    step_size: float = 1.0
    width: float = 1.0

    def solve(self, key: PRNGKeyArray, plan: Float[Array, "B T A"], returns_fn: ReturnsFn) -> PlanResult:
        """`iterations` rounds of `plan_once`, each around the plan of the one before."""
        keys = jax.random.split(key, self.iterations)
        result = self.plan_once(keys[0], plan, returns_fn)
        if self.iterations == 1:
            return result

        def refine(result: PlanResult, key: PRNGKeyArray) -> tuple[PlanResult, None]:
            return self.plan_once(key, result.plan, returns_fn), None

        return jax.lax.scan(refine, result, keys[1:])[0]

    def plan_once(self, key: PRNGKeyArray, plan: Float[Array, "B T A"], returns_fn: ReturnsFn) -> PlanResult:
        """One MPPI iteration: sample around `plan`, weigh by exp(return / temperature) p / q, average.

        What comes out lies in the box and is finite, whatever goes in and whatever `returns_fn` answers.
        """
        sample_key, draw_key = jax.random.split(key)
        plan = jnp.clip(jnp.where(jnp.isnan(plan), 0.0, plan), -1, 1)
        mixture = Mixture(self.prior, self._centres(plan, returns_fn), self.width)
        actions = mixture.propose(self.sampler(sample_key, (self.num_samples, *plan.shape)))
        if self.keep_nominal:
            actions = actions.at[0].set(plan)
        step_weights = self.ratio_discount ** jnp.arange(plan.shape[1], dtype=plan.dtype)
        log_ratio = mixture.log_ratio(actions) @ step_weights
        weighed = weigh(returns_fn(actions), log_ratio, self.temperature)
        mean = jnp.einsum("kb,kbta->bta", weighed.weights, actions)
        drawn = jax.random.categorical(draw_key, weighed.logits, axis=0)
        sample = jnp.take_along_axis(actions, drawn[None, :, None, None], axis=0)[0]
        solved = weighed.solved[:, None, None] & jnp.all(jnp.isfinite(mean), axis=(1, 2), keepdims=True)
        return PlanResult(
            plan=jnp.where(solved, jnp.clip((1 - self.step_size) * plan + self.step_size * mean, -1, 1), plan),
            sample=jnp.where(solved, jnp.clip(sample, -1, 1), plan),
            value=weighed.value,
            stats=_stats(weighed, actions),
        )

    def _centres(self, plan: Float[Array, "B T A"], returns_fn: ReturnsFn) -> list[Float[Array, "B T A"]]:
        """Where the Gaussians of the proposal stand, from the widest to the narrowest."""
        if not self.guided:
            return [plan] * self.widths
        slope = jax.grad(lambda plan: jnp.sum(returns_fn(plan[None])))(plan)
        widest = self.prior.variance * self.width**2
        return [ascend(plan, slope, widest * 4.0**-m, self.temperature) for m in range(self.widths)]


class Weighed(NamedTuple):
    """Samples weighed by the soft policy."""

    logits: Float[Array, "K B"]
    weights: Float[Array, "K B"]  # sum to one over K, or all 0 where no sample is valid
    value: Float[Array, " B"]
    solved: Bool[Array, " B"]  # at least one valid sample
    valid: Bool[Array, "K B"]
    returns: Float[Array, "K B"]


def weigh(returns: Float[Array, "K B"], log_ratio: Float[Array, "K B"], temperature: float) -> Weighed:
    """omega = softmax_k(J_k / lambda - L_k) and V = lambda (logsumexp_k(J_k / lambda - L_k) - log K).

    Returns that are NaN or infinite count as -inf. The best return is subtracted before the division by lambda:
    at returns of 900 and lambda of 0.1, float32 would otherwise keep three decimals of the exponent.
    """
    valid = jnp.isfinite(returns)
    solved = jnp.any(valid, axis=0)
    best = jnp.where(solved, jnp.max(jnp.where(valid, returns, -jnp.inf), axis=0), 0.0)
    advantage = jnp.where(valid, returns - best[None], 0.0)
    logits = jnp.where(valid, advantage / temperature - log_ratio, -jnp.inf)
    safe_logits = jnp.where(solved[None], logits, 0.0)  # a softmax of -inf alone would be NaN
    weights = jnp.where(solved[None], jax.nn.softmax(safe_logits, axis=0), 0.0)
    value = best + temperature * log_mean_exp(logits)
    return Weighed(safe_logits, weights, value, solved, valid, returns)


def ascend(
    plan: Float[Array, "B T A"], slope: Float[Array, "B T A"], variance: float, temperature: float
) -> Float[Array, "B T A"]:
    """Where a Gaussian of `variance` around the plan should stand, given the slope dJ/dU of the return.

    N(U, s^2 I) tilted by exp(J / lambda), with J linear, is N(U + s^2 slope / lambda, s^2 I). The slope is
    trusted for two deviations (root mean square over the sequence), and not beyond the faces of the box.
    """
    outward = (jnp.abs(plan) >= 1) & (slope * plan > 0)
    slope = jnp.where(outward | ~jnp.isfinite(slope), 0.0, slope)
    length = jnp.sqrt(jnp.mean(slope**2, axis=(1, 2), keepdims=True))
    rate = jnp.minimum(variance / temperature, TRUST * math.sqrt(variance) / jnp.maximum(length, 1e-12))
    return jnp.clip(plan + rate * slope, -1, 1)


def shift(plan: Float[Array, "B T A"]) -> Float[Array, "B T A"]:
    """The plan one step later: (U_1, .., U_H, 0)."""
    return jnp.concatenate([plan[:, 1:], jnp.zeros_like(plan[:, :1])], axis=1)


def fit_horizon(plan: Float[Array, "B T A"], slots: int) -> Float[Array, "B U A"]:
    """The plan cut, or filled up with zeros, to another number of action slots."""
    missing = max(slots - plan.shape[1], 0)
    return jnp.pad(plan, ((0, 0), (0, missing), (0, 0)))[:, :slots]


def from_box(action: Float[Array, "R A"], low: Sequence[float], high: Sequence[float]) -> Float[Array, "R A"]:
    """From the planner's box [-1, 1]^A to the plant's own."""
    lower, upper = jnp.array(low)[None, :], jnp.array(high)[None, :]
    return lower + 0.5 * (action + 1) * (upper - lower)


def _stats(weighed: Weighed, actions: Float[Array, "K B T A"]) -> PlanStats:
    counted = jnp.where(weighed.valid, weighed.returns, 0.0)
    return PlanStats(
        effective_samples=effective_sample_size(weighed.weights),
        best_return=jnp.max(jnp.where(weighed.valid, weighed.returns, -jnp.inf), axis=0),
        mean_return=jnp.sum(counted, axis=0) / jnp.maximum(jnp.sum(weighed.valid, axis=0, dtype=counted.dtype), 1),
        clip_fraction=jnp.mean(jnp.abs(actions) > 1, axis=(0, 2, 3)),
        invalid_fraction=1 - jnp.mean(weighed.valid, axis=0),
    )
