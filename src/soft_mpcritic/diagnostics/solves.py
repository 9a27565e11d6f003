"""Target solves beside others at the same states: from nothing, of patience, and of far more samples."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.config import PlannerConfig
from soft_mpcritic.planner import Models, Planner
from soft_mpcritic.planning import MPPI
from soft_mpcritic.types import AnyArray, PlanResult, ReturnsFn, Transition

PATIENCE = 8  # solves as configured, one after another, that stand for planning anew
REFERENCE_ROUNDS = 2


class SolveSample(NamedTuple):
    """Soft values of R replayed next states by four solves with the same models and the same draw of members."""

    stored: Float[AnyArray, " R"]  # the target solve as configured, from the plan kept in the replay
    cold: Float[AnyArray, " R"]  # the same samples around a plan of zeros
    fresh: Float[AnyArray, " R"]  # the last of `PATIENCE` solves as configured, one after another, from zeros
    reference: Float[AnyArray, " R"]  # see `compare_solves`
    effective_samples: Float[AnyArray, " R"]  # of the solve as configured, in [1, K]
    reference_effective_samples: Float[AnyArray, " R"]
    plan_age: Float[AnyArray, " R"]  # updates since the kept plan was refined


def compare_solves(
    planner: Planner,
    reference_samples: int,
    models: Models,
    key: PRNGKeyArray,
    obs: Float[Array, "R S"],
    start: Float[Array, "R T A"],
    plan_age: Float[Array, " R"],
) -> SolveSample:
    """The target solve as configured against others at the same states; members are drawn once for all of them.

    The reference draws many iid samples, `REFERENCE_ROUNDS` times, without the nominal plan among them, and starts
    where `PATIENCE` solves as configured have led from the kept plan. exp(V / lambda) is unbiased around any plan that
    other samples found, but its logarithm is too low on average, the more so the fewer the effective samples: around
    a good plan more samples count. It stays a bound from below; how good, its effective samples say.
    """
    sample_key, reference_key, scenario_key = jax.random.split(key, 3)
    config = planner.config.target_planner
    returns_fn = planner.returns_fn(config, models, models.target_critic, scenario_key, obs)
    thorough = PlannerConfig(config.horizon, num_samples=reference_samples, sampler="iid", keep_nominal=False)
    starts = jnp.stack([start, jnp.zeros_like(start)])
    patient = partial(solve_again, planner.mppi(config), returns_fn, PATIENCE, sample_key)
    solved = jax.vmap(patient)(starts)
    kept, scratch = (jax.tree.map(lambda leaf, lane=lane: leaf[lane], solved) for lane in (0, 1))
    reference = solve_again(planner.mppi(thorough), returns_fn, REFERENCE_ROUNDS, reference_key, kept.plan[-1])
    return SolveSample(
        stored=kept.value[0],
        cold=scratch.value[0],
        fresh=scratch.value[-1],
        reference=reference.value[-1],
        effective_samples=kept.stats.effective_samples[0],
        reference_effective_samples=reference.stats.effective_samples[-1],
        plan_age=plan_age,
    )


def solve_again(
    mppi: MPPI, returns_fn: ReturnsFn, rounds: int, key: PRNGKeyArray, start: Float[Array, "R T A"]
) -> PlanResult:
    """`rounds` solves, each around the plan of the one before; results have a leading axis of rounds."""

    def again(plan: Array, key: PRNGKeyArray) -> tuple[Array, PlanResult]:
        result = mppi.solve(key, plan, returns_fn)
        return result.plan, result

    return jax.lax.scan(again, start, jax.random.split(key, rounds))[1]


def draw_problems(count: int, state: AgentState, key: PRNGKeyArray) -> tuple[Transition, Array, Array]:
    """Replayed transitions, the plans kept with them, and how many updates old these are."""
    rows = state.replay.sample_rows(key, count)
    plans, planned_at = state.replay.take_plans(rows)
    return state.replay.take(rows), plans, state.updates.astype(planned_at.dtype) - planned_at
