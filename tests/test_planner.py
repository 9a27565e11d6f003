"""What the settings of the two solves change, and what they leave alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from soft_mpcritic.compilation import jit
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.parts import Parts
from soft_mpcritic.planner import Models, Planner
from soft_mpcritic.planning import shift
from tests.systems import System, never, small_config

OBS = np.array([[0.3, -0.2], [0.1, 0.5]], np.float32)


def make(reward, **changes: object) -> tuple[Planner, Models]:
    system = System(lambda s, a: s, TaskSpec(reward, never), obs_size=2)
    planner = Planner(system.task, small_config(**changes))
    return planner, planner.init_models(jax.random.key(1))


def going_up_and_left(obs, action, next_obs):
    return next_obs[:, 1] - 2 * obs[:, 0] + action[:, 0] * next_obs[:, 0]


@pytest.mark.parametrize("terminal_value", [True, False])
@pytest.mark.parametrize("horizon", [0, 3])
def test_without_a_terminal_value_returns_are_sums_of_discounted_model_rewards(horizon, terminal_value):
    discount = 0.9
    planner, models = make(
        going_up_and_left,
        objective__terminal_value=terminal_value,
        objective__discount=discount,
        planner__horizon=horizon,
        dynamics__members=1,
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2, horizon + 1, 1)).astype(np.float32)
    returns = planner.returns_fn(planner.config.planner, models, models.critic, jax.random.key(0), jnp.asarray(OBS))(
        jnp.asarray(actions)
    )

    member = jax.tree.map(lambda leaf: leaf[0], models.dynamics.members)
    expected = np.zeros((5, 2))
    for sample in range(5):
        obs = OBS
        for time in range(horizon):
            action = actions[sample, :, time]
            outcome = planner.model_step(models, member, jnp.asarray(obs), jnp.asarray(action))
            next_obs = np.asarray(outcome.next_obs)
            expected[sample] += discount**time * (next_obs[:, 1] - 2 * obs[:, 0] + action[:, 0] * next_obs[:, 0])
            obs = next_obs
    if terminal_value:
        assert np.abs(returns - expected).min() > 1e-4
    else:
        np.testing.assert_allclose(returns, expected, atol=1e-5)


@pytest.mark.parametrize("solve", ["plan", "value"])
def test_the_value_of_a_constant_reward_without_a_terminal_value(solve):
    """From zeros proposal and prior are one, so that a constant return is the soft value, whatever was sampled."""
    planner, models = make(
        lambda obs, action, next_obs: jnp.full(obs.shape[0], 1.5),
        objective__terminal_value=False,
        objective__discount=0.9,
        planner__horizon=3,
        planner__iterations=1,
        target_planner__horizon=3,
    )
    result = getattr(planner, solve)(models, jax.random.key(0), jnp.asarray(OBS), jnp.zeros((2, 4, 1)))
    np.testing.assert_allclose(result.value, 1.5 * (1 + 0.9 + 0.81), rtol=1e-5)


@pytest.mark.parametrize("cold", ["planner", "target_planner"])
@pytest.mark.parametrize("solve", ["planner", "target_planner"])
def test_a_cold_solve_knows_nothing_of_the_start_that_is_given(solve, cold):
    """And the setting is that of one planner alone."""
    planner, models = make(going_up_and_left, **{f"{cold}__warm_start": False})
    solver = jax.jit({"planner": planner.plan, "target_planner": planner.value}[solve])
    start = 0.5 * jnp.ones((2, 5, 1))
    from_start = solver(models, jax.random.key(0), jnp.asarray(OBS), start)
    from_zeros = solver(models, jax.random.key(0), jnp.asarray(OBS), jnp.zeros_like(start))
    if solve == cold:
        jax.tree.map(np.testing.assert_array_equal, from_start, from_zeros)
    else:
        assert np.abs(from_start.plan - from_zeros.plan).min() > 1e-3


@pytest.mark.parametrize("traced", ["planner", "target_planner"])
def test_each_planner_has_a_trace_of_its_own(traced):
    """Without one, a plan of three steps is worth what its first step and Q after that are."""
    planner, models = make(
        going_up_and_left,
        planner__horizon=3,
        target_planner__horizon=3,
        dynamics__members=1,
        **{f"{traced}__trace": 0.0},
    )
    actions = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, 2, 4, 1)).astype(np.float32))

    def returns(config, slots):
        ask = planner.returns_fn(config, models, models.critic, jax.random.key(0), jnp.asarray(OBS))
        return ask(actions[:, :, :slots])

    for name in ("planner", "target_planner"):
        config = getattr(planner.config, name)
        apart = np.abs(returns(config, 4) - returns(config, 2))
        assert apart.max() < 1e-5 if name == traced else apart.min() > 1e-4


def half_likely(obs, action, next_obs):
    return jnp.full(obs.shape[0], 0.5)


@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_an_imagined_step_is_one_that_the_models_make_of_the_plan_and_all_depths_occur(horizon):
    """With samples that are the plan itself: the step at depth d of its rollout, and what is left of it from there."""
    system = System(lambda s, a: s, TaskSpec(going_up_and_left, half_likely), obs_size=2)
    config = small_config(dynamics__members=1, target_planner__horizon=horizon)
    planner = Planner(system.task, config, Parts(sampler=lambda key, shape: jnp.zeros(shape)))
    models = planner.init_models(jax.random.key(1))
    plan = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, horizon + 1, 1)), jnp.float32)
    imagine = jit(planner.imagine)

    steps, obs, left = [], jnp.asarray(OBS), plan
    member = jax.tree.map(lambda leaf: leaf[0], models.dynamics.members)
    for time in range(horizon + 1):
        outcome, left = planner.model_step(models, member, obs, plan[:, time]), shift(left)
        steps.append((obs, plan[:, time], outcome.reward, outcome.next_obs, left))
        obs = outcome.next_obs

    depths = set()
    for seed in range(30):
        step, alive, start = imagine(models, jax.random.key(seed), jnp.asarray(OBS), plan)
        depth = round(-np.log2(alive[0]))
        depths.add(depth)
        for told, expected in zip((*step[:4], start), steps[depth], strict=True):
            np.testing.assert_allclose(told, expected, atol=1e-6)
        np.testing.assert_allclose(step.terminated, 0.5)
        np.testing.assert_allclose(alive, 0.5**depth)
    assert depths == set(range(min(1, horizon), horizon + 1))


def test_imagined_steps_stray_as_far_as_the_samples_of_targets():
    def strayed(**widths: float) -> float:
        config = small_config(target_planner__horizon=0, objective__prior="uniform", **widths)
        planner = Planner(System(lambda s, a: s, TaskSpec(going_up_and_left, half_likely), obs_size=2).task, config)
        models = planner.init_models(jax.random.key(1))
        imagined = jit(planner.imagine)(models, jax.random.key(0), jnp.zeros((64, 2)), jnp.zeros((64, 1, 1)))
        return float(jnp.std(imagined.transition.action))

    assert strayed(target_planner__width=0.1) < 0.2 * strayed()
    assert strayed(planner__width=0.1) == strayed()


def test_with_caution_a_known_termination_counts_by_its_probability_under_errors_of_the_models():
    """An edge at 0.5: probability Phi((s - 0.5) / (caution d)) with d the deviation of a change, to within 1 / 32."""

    def beyond(obs, action, next_obs):
        return (next_obs[:, 0] > 0.5).astype(obs.dtype)

    def ends(caution: float) -> np.ndarray:
        system = System(lambda s, a: s, TaskSpec(going_up_and_left, beyond), obs_size=2)
        planner = Planner(system.task, small_config(objective__caution=caution))
        models = planner.init_models(jax.random.key(1))
        changes = jnp.array([[deviation, 0.3], [-deviation, -0.3]])
        models = dataclasses.replace(models, change_scale=models.change_scale.update(changes))
        return np.asarray(planner.judge(models, next_obs, jnp.zeros((len(next_obs), 1)), next_obs)[1])

    deviation = 0.2
    next_obs = jnp.stack([jnp.linspace(0.3, 0.7, 50), jnp.linspace(-1, 1, 50)], axis=1)
    sure = np.asarray(next_obs[:, 0] > 0.5)
    np.testing.assert_array_equal(ends(0.0), sure)
    np.testing.assert_array_equal(ends(1e-6), sure)
    expected = norm.cdf((np.asarray(next_obs[:, 0]) - 0.5) / (0.3 * deviation))
    assert np.abs(ends(0.3) - expected).max() <= 1 / 32 + 1e-5
    assert np.all(np.diff(ends(0.3)) >= 0)
