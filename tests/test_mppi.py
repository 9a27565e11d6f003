"""MPPI against closed forms (DESIGN section 3), direct NumPy formulas, limits and invariances.

Monte Carlo tolerances are 4 standard errors. With weights omega, the delta method gives the soft value the standard
error lambda sqrt(1 / ESS - 1 / K), and a component of the plan at most about sigma / sqrt(ESS).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from soft_mpcritic.planning import (
    MPPI,
    SAMPLERS,
    GaussianPrior,
    Scenarios,
    UniformPrior,
    antithetic,
    fit_horizon,
    iid,
    shift,
)
from soft_mpcritic.types import StepOutcome

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


@functools.partial(jax.jit, static_argnums=(0, 3))
def compiled_solve(planner, key, plan, returns_fn):
    return planner.solve(key, plan, returns_fn)


def standard_error(result, temperature, num_samples):
    ess = np.asarray(result.stats.effective_samples, np.float64)
    return temperature * np.sqrt(np.maximum(1 / ess - 1 / num_samples, 0))


def fixed_points(num_samples, tail, seed=0):
    """A sampler that ignores its key: the same points for every problem."""
    points = np.random.default_rng(seed).uniform(-0.99, 0.99, size=(num_samples, 1, *tail)).astype(np.float32)
    return lambda key, shape: jnp.broadcast_to(jnp.asarray(points), shape)


def table(returns):
    """A returns_fn that ignores the actions."""
    values = jnp.asarray(returns, jnp.float32)
    return lambda actions: values


def quadratic_return(actions):
    return -jnp.sum((actions - 0.3) ** 2, axis=(2, 3))


COMMON = (3, 2, 1)  # B, T, A of most tests, with K = 64: operations are then compiled once for all of them


def gaussian_planner(num_samples=64, **changes):
    settings = {"prior": GaussianPrior(0.1), "sampler": antithetic, "temperature": 0.2, "ratio_discount": 0.9}
    return MPPI(**{**settings, "num_samples": num_samples, **changes})


# --- closed forms -----------------------------------------------------------------------------------------------

SLOPES = np.array([[0.8], [-0.5]])  # [T, A]
STARTS = np.array([[[0.0], [0.0]], [[0.5], [-0.3]], [[0.0], [0.3]], [[0.9], [0.1]]])  # [B, T, A]
LINEAR_SAMPLES = 16384


def linear_return(actions):
    return jnp.einsum("kbta,ta->kb", actions, jnp.asarray(SLOPES, jnp.float32))


@every_sampler
def test_linear_return_with_gaussian_prior_from_any_start(sampler):
    variance, temperature = 0.3, 0.5
    planner = MPPI(GaussianPrior(variance), sampler, LINEAR_SAMPLES, temperature, ratio_discount=1.0)
    result = compiled_solve(planner, jax.random.key(0), jnp.asarray(STARTS, jnp.float32), linear_return)
    exact = variance * (SLOPES**2).sum() / (2 * temperature)
    error = standard_error(result, temperature, LINEAR_SAMPLES)
    assert np.all(error < 0.05 * exact)
    assert np.all(np.abs(result.value - exact) < 4 * error)
    plan_error = math.sqrt(variance) / np.sqrt(np.asarray(result.stats.effective_samples))
    assert np.all(np.abs(np.asarray(result.plan) - variance * SLOPES / temperature) < 4 * plan_error[:, None, None])


@pytest.mark.parametrize("sampler", [iid, SAMPLERS["sobol"]], ids=["iid", "sobol"])
def test_linear_return_with_uniform_prior_from_any_start(sampler):
    variance, temperature = 0.4, 0.5
    planner = MPPI(UniformPrior(variance), sampler, LINEAR_SAMPLES, temperature, ratio_discount=1.0)
    result = compiled_solve(planner, jax.random.key(0), jnp.asarray(STARTS, jnp.float32), linear_return)
    ratio = SLOPES / temperature
    exact = temperature * np.log(np.sinh(ratio) / ratio).sum()
    error = standard_error(result, temperature, LINEAR_SAMPLES)
    assert np.all(error < 0.05 * exact)
    assert np.all(np.abs(result.value - exact) < 4 * error)
    plan_error = math.sqrt(variance) / np.sqrt(np.asarray(result.stats.effective_samples))
    langevin = 1 / np.tanh(ratio) - 1 / ratio
    assert np.all(np.abs(np.asarray(result.plan) - langevin) < 4 * plan_error[:, None, None])


DRIFT = np.array([[1.0, 0.3], [-0.2, 0.9]])
GAIN = np.array([[0.1], [0.7]])
STATE_COST = np.diag([1.0, 0.4])
ACTION_COST = np.array([[0.2]])
LQ_VARIANCE, LQ_TEMPERATURE = 0.3, 0.8
LQ_OBS = np.array([[0.6, -0.2], [-0.3, 0.5]])


def soft_riccati(discount):
    """P of the fixed point and k, what the constant grows by in one step: c = k + discount c."""
    cost = STATE_COST.copy()
    soft_action_cost = ACTION_COST + LQ_TEMPERATURE / 2 * np.eye(1) / LQ_VARIANCE
    for _ in range(2000):
        cross = discount * DRIFT.T @ cost @ GAIN
        curvature = soft_action_cost + discount * GAIN.T @ cost @ GAIN
        cost = STATE_COST + discount * DRIFT.T @ cost @ DRIFT - cross @ np.linalg.solve(curvature, cross.T)
    spread = np.eye(1) + 2 / LQ_TEMPERATURE * LQ_VARIANCE * (ACTION_COST + discount * GAIN.T @ cost @ GAIN)
    return cost, LQ_TEMPERATURE / 2 * np.log(np.linalg.det(spread))


def quadratic_form(rows, matrix):
    return jnp.einsum("ri,ij,rj->r", rows, jnp.asarray(matrix, jnp.float32), rows)


def lq_step(member, obs, action):
    drift, gain = member
    reward = -quadratic_form(obs, STATE_COST) - quadratic_form(action, ACTION_COST)
    return StepOutcome(obs @ drift.T + action @ gain.T, reward, jnp.ones_like(reward))


def solve_lq(discount, constant, horizon, mode):
    """The soft value by planning `horizon` steps before Q(s, a) = r + discount (-s'Ps' - constant)."""
    cost, _ = soft_riccati(discount)
    members = (jnp.asarray(DRIFT[None], jnp.float32), jnp.asarray(GAIN[None], jnp.float32))

    def terminal_value(obs, action):
        outcome = lq_step(jax.tree.map(lambda leaf: leaf[0], members), obs, action)
        return outcome.reward - discount * (quadratic_form(outcome.next_obs, cost) + constant)

    def returns_fn(actions):
        scenarios = Scenarios(mode, discount)
        return scenarios.returns(
            jax.random.key(0), lq_step, members, terminal_value, jnp.asarray(LQ_OBS, jnp.float32), actions
        )

    planner = MPPI(GaussianPrior(LQ_VARIANCE), iid, 16384, LQ_TEMPERATURE, discount)
    return compiled_solve(planner, jax.random.key(1), jnp.zeros((2, horizon + 1, 1)), returns_fn)


def lq_value(discount, constant):
    cost, _ = soft_riccati(discount)
    return -np.einsum("bi,ij,bj->b", LQ_OBS, cost, LQ_OBS) - constant


@pytest.mark.parametrize("discount", [0.6, 0.99])
def test_linear_quadratic_value_without_a_horizon_at_any_discount(discount):
    constant = soft_riccati(discount)[1] / (1 - discount)
    result = solve_lq(discount, constant, horizon=0, mode="per_step")
    error = standard_error(result, LQ_TEMPERATURE, 16384)
    assert np.all(error < 0.02)
    assert np.all(np.abs(result.value - lq_value(discount, constant)) < 4 * error)


@pytest.mark.parametrize(("horizon", "mode"), [(0, "per_step"), (2, "per_sample"), (2, "all_members"), (4, "per_step")])
def test_undiscounted_linear_quadratic_value_at_any_horizon(horizon, mode):
    # The constant diverges at discount 1: from a terminal constant of 0, every step and Q's own action add k.
    growth = soft_riccati(1.0)[1]
    result = solve_lq(1.0, 0.0, horizon, mode)
    error = standard_error(result, LQ_TEMPERATURE, 16384)
    assert np.all(error < 0.02)
    assert np.all(np.abs(result.value - lq_value(1.0, (horizon + 1) * growth)) < 4 * error)


def affine_solve(ratio_discount, plan):
    """A linear system with a linear reward and its exact soft Q, discounted: the optimal proposal is in the family."""
    horizon, discount, temperature, variance = 4, 0.8, 0.5, 0.1
    state_slope, action_slope = np.array([0.3, -0.2]), np.array([0.5])
    value_slope = np.linalg.solve(np.eye(2) - discount * DRIFT.T, state_slope)
    slope = action_slope + discount * GAIN.T @ value_slope  # of r + discount V(s') in the action
    constant = variance * slope @ slope / (2 * temperature) / (1 - discount)
    drift, gain = jnp.asarray(DRIFT[None], jnp.float32), jnp.asarray(GAIN[None], jnp.float32)

    def weighted(rows, weights):
        return rows @ jnp.asarray(weights, jnp.float32)

    def step(member, obs, action):
        reward = weighted(obs, state_slope) + weighted(action, action_slope)
        return StepOutcome(obs @ member[0].T + action @ member[1].T, reward, jnp.ones_like(reward))

    def terminal_value(obs, action):
        outcome = step((drift[0], gain[0]), obs, action)
        return outcome.reward + discount * (weighted(outcome.next_obs, value_slope) + float(constant))

    def returns_fn(actions):
        return Scenarios("per_step", discount).returns(
            jax.random.key(0), step, (drift, gain), terminal_value, jnp.asarray(LQ_OBS, jnp.float32), actions
        )

    optimum = variance * slope / temperature  # of every step, whatever the state
    assert np.all(np.abs(optimum) < 1)
    steps = np.arange(horizon + 1)
    start = np.broadcast_to(plan(optimum, discount**steps)[None, :, None], (2, horizon + 1, 1))
    planner = MPPI(GaussianPrior(variance), iid, 256, temperature, ratio_discount=discount if ratio_discount else 1.0)
    result = compiled_solve(planner, jax.random.key(0), jnp.asarray(start, jnp.float32), returns_fn)
    soft_bellman = LQ_OBS @ value_slope + constant
    # Free energy: gamma^t slope on each action instead; so each step's gain is weighed by gamma^2t, not gamma^t.
    gains = variance * slope @ slope / (2 * temperature) * (discount ** (2 * steps) - discount**steps)
    return result, soft_bellman, soft_bellman + gains.sum()


def test_discounted_ratio_weights_make_every_sample_worth_the_soft_bellman_value():
    result, soft_bellman, _ = affine_solve(True, lambda optimum, discounts: optimum * np.ones_like(discounts))
    np.testing.assert_allclose(result.stats.effective_samples, 256, rtol=1e-4)
    np.testing.assert_allclose(result.value, soft_bellman, atol=1e-5)


def test_unit_ratio_weights_make_every_sample_worth_the_free_energy():
    result, soft_bellman, free_energy = affine_solve(False, lambda optimum, discounts: optimum * discounts)
    np.testing.assert_allclose(result.stats.effective_samples, 256, rtol=1e-4)
    np.testing.assert_allclose(result.value, free_energy, atol=1e-5)
    assert np.all(soft_bellman - free_energy > 0.01)


# --- one iteration against the formulas -------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [GaussianPrior(0.2), UniformPrior(0.2)])
def test_one_iteration_is_the_formula(prior):
    shape, temperature, discount = (6, 3, 4, 2), 0.3, 0.7
    sampler = fixed_points(6, shape[2:])
    plan = jnp.asarray(np.random.default_rng(1).uniform(-0.9, 0.9, size=shape[1:]), jnp.float32)
    returns = np.random.default_rng(2).normal(size=shape[:2])
    result = MPPI(prior, sampler, 6, temperature, discount).solve(jax.random.key(0), plan, table(returns))

    actions = prior.propose(sampler(None, shape), plan)
    ratio = np.asarray(prior.log_ratio(actions, plan), np.float64)
    logits = returns / temperature - (ratio * discount ** np.arange(4)).sum(axis=-1)
    weights = softmax(logits, axis=0)
    mean = np.clip(np.einsum("kb,kbta->bta", weights, np.asarray(actions, np.float64)), -1, 1)
    np.testing.assert_allclose(result.plan, mean, atol=1e-5)
    np.testing.assert_allclose(result.value, temperature * (logsumexp(logits, axis=0) - np.log(6)), atol=1e-5)
    np.testing.assert_allclose(result.stats.effective_samples, 1 / (weights**2).sum(axis=0), rtol=1e-4)
    np.testing.assert_allclose(result.stats.best_return, returns.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.stats.mean_return, returns.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(result.stats.invalid_fraction, 0)
    outside = (np.abs(np.asarray(actions)) > 1).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(result.stats.clip_fraction, outside, atol=1e-6)


def test_clip_fraction_counts_components_outside_the_box():
    plan = jnp.array([[[0.0], [1.0]], [[0.0], [0.0]], [[-1.0], [1.0]]])
    result = gaussian_planner(prior=GaussianPrior(1e-4)).solve(jax.random.key(0), plan, quadratic_return)
    np.testing.assert_array_equal(result.stats.clip_fraction, [0.25, 0.0, 0.5])  # of each pair, one is outside


@every_sampler
@pytest.mark.parametrize("temperature", [1e-6, 0.1, 1e6])
def test_effective_samples_lie_between_one_and_k(sampler, temperature):
    planner = gaussian_planner(sampler=sampler, temperature=temperature)
    ess = np.asarray(planner.solve(jax.random.key(0), jnp.zeros(COMMON), quadratic_return).stats.effective_samples)
    assert np.all((ess >= 1 - 1e-5) & (ess <= 64 * (1 + 1e-5)))


def test_the_drawn_sample_follows_the_weights():
    problems = 20_000
    planner = gaussian_planner(4, sampler=fixed_points(4, (2, 1)), temperature=0.5)
    returns = np.broadcast_to(np.array([0.0, 1.0, 0.6, -5.0])[:, None], (4, problems))
    plan = jnp.zeros((problems, 2, 1))
    result = planner.solve(jax.random.key(0), plan, table(returns))
    actions = np.asarray(planner.prior.propose(planner.sampler(jax.random.key(0), (4, 1, 2, 1)), plan[:1]))
    candidates = np.clip(actions[:, 0], -1, 1)
    chosen = np.all(np.asarray(result.sample)[None] == candidates[:, None], axis=(2, 3))
    np.testing.assert_array_equal(chosen.sum(axis=0), 1)
    weights = softmax(returns[:, 0] / 0.5)
    error = np.sqrt(weights * (1 - weights) / problems)
    assert np.all(np.abs(chosen.mean(axis=1) - weights) < 4 * error)


def test_two_iterations_are_two_chained_ones():
    plan = jnp.full(COMMON, 0.2)
    twice = gaussian_planner(iterations=2)
    first_key, second_key = jax.random.split(jax.random.key(0))
    first = twice.plan_once(first_key, plan, quadratic_return)
    chained = twice.plan_once(second_key, first.plan, quadratic_return)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        twice.solve(jax.random.key(0), plan, quadratic_return),
        chained,
    )
    assert np.all(first.value != chained.value)


@pytest.mark.parametrize("temperature", [0.01, 10.0])
def test_a_kept_plan_makes_the_best_return_no_worse_than_the_plans(temperature):
    best = jnp.full(COMMON, 0.3)
    of_plan = quadratic_return(best[None])[0]
    planner = gaussian_planner(temperature=temperature)
    without = planner.solve(jax.random.key(0), best, quadratic_return)
    kept = dataclasses.replace(planner, keep_nominal=True).solve(jax.random.key(0), best, quadratic_return)
    assert np.all(without.stats.best_return < of_plan)
    np.testing.assert_array_equal(kept.stats.best_return, of_plan)


@pytest.mark.parametrize("step_size", [0.25, 0.5])
def test_a_step_size_moves_the_plan_that_much_of_the_way_and_leaves_the_value(step_size):
    plan, key = jnp.full(COMMON, -0.2), jax.random.key(0)
    whole = gaussian_planner().solve(key, plan, quadratic_return)
    part = dataclasses.replace(gaussian_planner(), step_size=step_size).solve(key, plan, quadratic_return)
    np.testing.assert_allclose(part.plan - plan, step_size * (whole.plan - plan), atol=1e-6)
    np.testing.assert_array_equal(part.value, whole.value)
    np.testing.assert_array_equal(part.sample, whole.sample)


def test_small_steps_come_nearer_than_one_visits_samples_can_tell():
    """At a low temperature a solve of 8 samples goes to the best one, off by the noise of sampling each time.

    Small steps a average the noise of some 2 / a visits: the distance that remains is a fraction of it.
    """

    def remaining(step_size: float) -> float:
        planner = gaussian_planner(num_samples=8, temperature=0.01, iterations=100, step_size=step_size)
        result = compiled_solve(planner, jax.random.key(0), jnp.zeros((64, 4, 2)), quadratic_return)
        return float(jnp.sqrt(jnp.mean((result.plan - 0.3) ** 2)))

    assert remaining(0.1) < 0.5 * remaining(1.0)


def test_shift_moves_every_action_one_slot_earlier_and_ends_in_zero():
    plan = jnp.arange(1.0, 13.0).reshape(2, 3, 2)
    expected = [[[3, 4], [5, 6], [0, 0]], [[9, 10], [11, 12], [0, 0]]]
    np.testing.assert_array_equal(shift(plan), expected)


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_fit_horizon_cuts_the_end_or_fills_it_with_zeros(slots):
    plan = np.arange(1.0, 13.0, dtype=np.float32).reshape(2, 3, 2)
    fitted = np.asarray(fit_horizon(jnp.asarray(plan), slots))
    assert fitted.shape == (2, slots, 2)
    np.testing.assert_array_equal(fitted[:, :3], plan[:, :slots])
    np.testing.assert_array_equal(fitted[:, 3:], 0)


# --- limits and invariances -------------------------------------------------------------------------------------


def random_returns(num_samples=64, problems=3):
    return np.random.default_rng(4).normal(size=(num_samples, problems)).astype(np.float32)


def value_at(temperature, returns):
    planner = gaussian_planner(len(returns), temperature=temperature)
    return planner.solve(jax.random.key(0), jnp.zeros((returns.shape[1], 2, 1)), table(returns))


def test_a_high_temperature_gives_the_mean_return_of_the_prior():
    returns = random_returns()
    second_order = returns.var(axis=0) / (2 * 100.0)
    np.testing.assert_allclose(value_at(100.0, returns).value, returns.mean(axis=0) + second_order, atol=1e-3)


def test_a_low_temperature_gives_the_best_sample():
    planner = gaussian_planner(sampler=fixed_points(64, (2, 1)), temperature=1e-5)
    returns = random_returns()
    result = planner.solve(jax.random.key(0), jnp.zeros(COMMON), table(returns))
    points = planner.sampler(jax.random.key(0), (64, *COMMON))
    actions = np.clip(np.asarray(planner.prior.propose(points, jnp.zeros(COMMON))), -1, 1)
    best = actions[returns.argmax(axis=0), np.arange(3)]
    np.testing.assert_allclose(result.value, returns.max(axis=0), atol=1e-4)
    np.testing.assert_allclose(result.plan, best, atol=1e-6)
    np.testing.assert_allclose(result.sample, best, atol=1e-6)


def test_the_value_falls_as_the_temperature_grows():
    values = np.array([value_at(temperature, random_returns()).value for temperature in (0.01, 0.1, 1.0, 10.0)])
    assert np.all(np.diff(values, axis=0) < -0.01)


def test_a_constant_added_to_the_returns_moves_the_value_alone():
    before, after = value_at(0.2, random_returns()), value_at(0.2, random_returns() + 32)
    np.testing.assert_allclose(after.value, before.value + 32, rtol=1e-6)
    np.testing.assert_allclose(after.plan, before.plan, atol=1e-4)


def test_a_large_constant_costs_no_precision_at_a_low_temperature():
    returns = np.round(random_returns() * 64) / 64  # exact in float32 at this offset
    before, after = value_at(0.07, returns), value_at(0.07, returns + 8192)
    np.testing.assert_allclose(after.plan, before.plan, atol=1e-6)


def test_the_order_of_samples_does_not_matter():
    order = np.random.default_rng(5).permutation(64)
    points = np.random.default_rng(6).uniform(-0.9, 0.9, size=(64, *COMMON)).astype(np.float32)
    plan = jnp.full(COMMON, 0.3)
    straight, mixed = (
        gaussian_planner(sampler=lambda key, shape, p=p: jnp.asarray(p)).solve(
            jax.random.key(0), plan, quadratic_return
        )
        for p in (points, points[order])
    )
    np.testing.assert_allclose(straight.plan, mixed.plan, atol=1e-6)
    np.testing.assert_allclose(straight.value, mixed.value, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), straight.stats, mixed.stats)


@every_sampler
@pytest.mark.parametrize("change", [5.0, np.nan, 1e30])
def test_a_problem_does_not_depend_on_the_others(sampler, change):
    planner = gaussian_planner(sampler=sampler)
    plan, returns = jnp.full(COMMON, 0.2), random_returns()
    others = returns.copy()
    others[::2, 1:] += np.float32(change)
    before = planner.solve(jax.random.key(0), plan, table(returns))
    after = planner.solve(jax.random.key(0), plan.at[1:].set(-0.7), table(others))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), before, after)
    assert np.all(np.asarray(before.plan[1:] != after.plan[1:]).any(axis=(1, 2)))


# --- hard inputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("invalid", [np.nan, np.inf, -np.inf])
def test_an_invalid_return_never_wins(invalid):
    returns = random_returns()
    broken = returns.copy()
    broken[:16, 1] = invalid
    planner = gaussian_planner(sampler=fixed_points(64, (2, 1)))
    plan = jnp.zeros(COMMON)
    result = planner.solve(jax.random.key(0), plan, table(broken))
    actions = np.asarray(planner.prior.propose(planner.sampler(jax.random.key(0), (64, *COMMON)), plan), np.float64)
    valid = returns[16:, 1]
    expected = np.einsum("k,kta->ta", softmax(valid / 0.2), actions[16:, 1])
    np.testing.assert_allclose(result.plan[1], np.clip(expected, -1, 1), atol=1e-5)
    assert result.value[1] == pytest.approx(0.2 * (logsumexp(valid / 0.2) - np.log(64)), abs=1e-5)
    assert result.stats.best_return[1] == valid.max()
    assert result.stats.mean_return[1] == pytest.approx(valid.mean(), abs=1e-5)
    np.testing.assert_array_equal(result.stats.invalid_fraction, [0, 0.25, 0])


@pytest.mark.parametrize("invalid", [np.nan, np.inf, -np.inf])
def test_an_invalid_sample_is_never_drawn(invalid):
    returns = np.full((64, 3), invalid)
    returns[17] = -1e3
    result = gaussian_planner().solve(jax.random.key(0), jnp.zeros(COMMON), table(returns))
    np.testing.assert_allclose(result.sample, result.plan, atol=1e-6)
    np.testing.assert_array_equal(result.stats.effective_samples, 1)


@pytest.mark.parametrize("invalid", [np.nan, np.inf, -np.inf])
def test_a_problem_without_a_valid_sample_keeps_its_plan(invalid):
    returns = random_returns()
    broken = returns.copy()
    broken[:, 1] = invalid
    plan = jnp.asarray(np.random.default_rng(7).uniform(-1, 1, size=COMMON), jnp.float32)
    planner = gaussian_planner()
    result = planner.solve(jax.random.key(0), plan, table(broken))
    np.testing.assert_array_equal(result.plan[1], plan[1])
    np.testing.assert_array_equal(result.sample[1], plan[1])
    assert result.value[1] == -np.inf
    assert result.stats.effective_samples[1] == 0
    assert result.stats.invalid_fraction[1] == 1
    assert result.stats.best_return[1] == -np.inf
    healthy = planner.solve(jax.random.key(0), plan, table(returns))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[::2], b[::2]), result, healthy)
    assert np.all(np.isfinite(healthy.value))


@pytest.mark.parametrize("prior", [GaussianPrior(4.0), UniformPrior(4.0)])
@pytest.mark.parametrize("start", [-3.0, 1.0])
def test_plan_and_sample_stay_in_the_box(prior, start):
    planner = gaussian_planner(prior=prior, temperature=1e-3)
    result = planner.solve(jax.random.key(0), jnp.full(COMMON, start), lambda a: jnp.sum(a, axis=(2, 3)))
    assert np.all(np.abs(result.plan) <= 1)
    assert np.all(np.abs(result.sample) <= 1)
    assert np.abs(result.plan).max() > 0.8  # a box that is really reached


@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_extreme_returns_and_temperatures_stay_finite_and_between_the_extremes(size, temperature):
    returns = (random_returns() * size).astype(np.float32)
    result = value_at(temperature, returns)
    assert np.all(np.isfinite(result.plan))
    assert np.all(np.isfinite(result.sample))
    assert np.all(np.asarray(result.stats.invalid_fraction) == 0)
    rounding = 1e-6 * np.maximum(temperature, np.abs(returns).max())  # float32 resolves no less of lambda log(..)
    assert np.all(returns.min(axis=0) - rounding <= result.value)
    assert np.all(result.value <= returns.max(axis=0) + rounding)


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_stay_finite_around_any_plan(temperature):
    planner = gaussian_planner(temperature=temperature)
    result = planner.solve(jax.random.key(0), jnp.full(COMMON, 0.9), lambda a: 1e30 * quadratic_return(a))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result))


def test_a_single_sample_is_the_plan():
    result = compiled_solve(gaussian_planner(1), jax.random.key(0), jnp.zeros(COMMON), quadratic_return)
    np.testing.assert_array_equal(result.plan, result.sample)
    np.testing.assert_array_equal(result.stats.effective_samples, 1)
    np.testing.assert_allclose(result.value, result.stats.best_return, rtol=1e-6)


def test_a_second_call_compiles_nothing():
    traces = []

    def returns_fn(actions):
        traces.append(actions.shape)
        return quadratic_return(actions)

    solve = jax.jit(lambda key, plan: gaussian_planner(iterations=3).solve(key, plan, returns_fn))
    first = solve(jax.random.key(0), jnp.zeros(COMMON))
    compiled = len(traces)
    second = solve(jax.random.key(1), first.plan)
    assert len(traces) == compiled <= 2  # the first round and the body of the scan over the others
    assert np.any(np.asarray(first.plan != second.plan))
