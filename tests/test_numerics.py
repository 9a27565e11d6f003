"""float32 against float64, rewards of extreme sizes, long horizons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import Config
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.planning.mppi import weigh
from soft_mpcritic.types import Transition
from tests.systems import System, learn, never, small_config


def system(scale: float = 1.0) -> System:
    return System(
        step=lambda obs, action: 0.95 * obs + 0.2 * jnp.concatenate([action, -action], axis=-1),
        spec=TaskSpec(lambda obs, action, next_obs: -scale * jnp.sum(next_obs**2, axis=-1), never),
        obs_size=2,
    )


def settings(scale: float = 1.0, **changes: object) -> Config:
    return small_config(objective__temperature=0.125 * scale, critic__scale=scale, training__seed_steps=8, **changes)


def soft_value(returns: np.ndarray, ratios: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """V and the weights, written down once more in float64."""
    logits = returns.astype(np.float64) / temperature - ratios.astype(np.float64)
    top = logits.max(axis=0)
    shifted = np.exp(logits - top)
    return temperature * (top + np.log(shifted.mean(axis=0))), shifted / shifted.sum(axis=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_soft_values_of_float32_are_those_of_float64(scale, offset):
    """Errors within some units of the last place of the largest return; weights within a thousandth."""
    rng = np.random.default_rng(0)
    returns = (scale * (rng.normal(size=(256, 50)) + offset)).astype(np.float32)
    ratios = rng.normal(size=(256, 50)).astype(np.float32)
    temperature = 0.1 * scale
    value, weights = soft_value(returns, ratios, temperature)
    weighed = weigh(jnp.asarray(returns), jnp.asarray(ratios), temperature)
    np.testing.assert_allclose(weighed.value, value, rtol=1e-6, atol=1e-5 * scale)
    np.testing.assert_allclose(weighed.weights, weights, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("horizon", [*(pytest.param(few, marks=pytest.mark.slow) for few in (0, 4)), 50])
def test_returns_and_targets_of_float32_are_those_of_float64(horizon):
    """The same samples through the same networks, in both precisions; a long horizon adds up more errors."""
    long = {"planner__horizon": horizon, "target_planner__horizon": horizon}
    agent = Agent(
        system().task, settings(target_planner__scenarios="all_members", **long)
    )  # members drawn depend on bits
    models = learn(system(), agent.config, jax.random.key(0), 20).models
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (5, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (16, 5, horizon + 1, 1)).astype(np.float32)

    def returns(models, obs, actions) -> np.ndarray:
        of = agent.planner.returns_fn(agent.config.target_planner, models, models.target_critic, jax.random.key(1), obs)
        return np.asarray(jax.jit(of)(actions))

    narrow = returns(models, jnp.asarray(obs), jnp.asarray(actions))
    with jax.enable_x64(True):
        wide_models = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), models)
        wide = returns(wide_models, jnp.asarray(obs, jnp.float64), jnp.asarray(actions, jnp.float64))
    assert wide.dtype == np.float64 and np.isfinite(narrow).all()
    np.testing.assert_allclose(narrow, wide, rtol=1e-4, atol=1e-4 * np.abs(wide).max())
    ratios = np.zeros_like(narrow)
    value, _ = soft_value(wide, ratios, 0.125)
    np.testing.assert_allclose(
        weigh(jnp.asarray(narrow), jnp.asarray(ratios), 0.125).value, value, rtol=1e-4, atol=1e-4 * np.abs(wide).max()
    )


@pytest.mark.slow
@pytest.mark.parametrize("power", [-10, 10])
@pytest.mark.parametrize("loss", ["mse", "hl_gauss"])
def test_a_change_of_the_unit_of_reward_changes_nothing_that_is_learned(power, loss):
    """By powers of two, about 1e-3 and 1e3: 12 steps of learning differ by rounding alone."""
    scale = 2.0**power
    one = learn(system(), settings(critic__loss=loss, critic__bins=11), jax.random.key(0), 12)
    other = learn(system(scale), settings(scale, critic__loss=loss, critic__bins=11), jax.random.key(0), 12)
    for name in ("dynamics", "critic"):
        for a, b in zip(*(jax.tree.leaves(getattr(s.models, name)) for s in (one, other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.replay.plans, other.replay.plans, rtol=1e-3, atol=1e-4)
    rewards = [np.asarray(s.replay.take(jnp.arange(12)).reward) for s in (one, other)]
    assert np.any(rewards[0])
    np.testing.assert_allclose(scale * rewards[0], rewards[1], rtol=1e-4, atol=1e-5 * scale)


def test_a_long_horizon_through_untrained_models_does_not_overflow():
    agent = Agent(system().task, settings(planner__horizon=50, target_planner__horizon=50))
    models = agent.planner.init_models(jax.random.key(0))
    obs = jnp.array([[1.0, -1.0], [1e3, 1e3], [-1e6, 1e6]])
    result = jit(agent.planner.plan)(models, jax.random.key(1), obs, jnp.zeros((3, 51, 1)))
    assert np.isfinite(result.plan).all() and (np.abs(result.plan) <= 1).all()
    assert np.isfinite(result.value[:2]).all() and (result.stats.invalid_fraction == 0).all()


def test_targets_leave_out_the_value_after_the_end():
    """r alone where an episode ended, whatever V is there; and r + gamma V elsewhere."""
    agent = Agent(system().task, settings())
    models = agent.planner.init_models(jax.random.key(0))
    ones = jnp.ones((2, 2))
    batch = Transition(ones, jnp.ones((2, 1)), jnp.array([3.0, 3.0]), ones, jnp.array([0.0, 1.0]))
    targets, result = jit(agent.learner.targets)(models, jax.random.key(1), batch, jnp.zeros((2, 5, 1)))
    expected = [3 + agent.config.objective.discount * float(result.value[0]), 3.0]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
