"""Learning from scratch on problems whose values are known on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.config import Config, override
from soft_mpcritic.envs.tasks import TaskSpec
from tests.systems import System, always, learn, never, small_config, soft_riccati


def q_values(system: System, config: Config, state: AgentState, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Mean of the target critic's heads: the slow copy has the least noise."""
    features = Agent(system.task, config).planner.features(state.models, jnp.asarray(obs, jnp.float32))
    return np.asarray(state.models.target_critic.heads(features, jnp.asarray(action, jnp.float32)).mean(0))


def test_a_constant_reward_is_worth_its_geometric_sum():
    system = System(lambda s, a: 0.9 * s, TaskSpec(lambda s, a, n: jnp.ones(s.shape[0]), never), obs_size=2)
    config = small_config(objective__discount=0.5, critic__learning_rate=3e-3, critic__target_step=0.05)
    state = learn(system, config, jax.random.key(0), 600, 2)
    grid = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))
    np.testing.assert_allclose(q_values(system, config, state, grid[:, :2], grid[:, 2:]), 2.0, atol=0.05)


@pytest.mark.parametrize("end_value", [0.0, -1.5])
def test_after_a_termination_only_its_worth_counts(end_value: float):
    system = System(lambda s, a: s, TaskSpec(lambda s, a, n: a[:, 0], always), obs_size=1)
    changes = {"critic__learning_rate": 3e-3, "critic__unit": "reward", "critic__target_step": 0.05}
    changes["objective__end_value"] = end_value
    config = small_config(objective__temperature=1.0, **changes)  # warm enough to keep trying bad actions
    state = learn(system, config, jax.random.key(0), 1000, 2)
    actions = np.linspace(-0.6, 0.6, 9)[:, None]
    expected = actions[:, 0] + 0.99 * end_value
    np.testing.assert_allclose(q_values(system, config, state, np.zeros((9, 1)), actions), expected, atol=0.1)


def test_a_time_limit_is_no_termination():
    """With episodes of two steps, a critic that took truncation for termination would say 1 to 1.5, not 2."""
    spec = TaskSpec(lambda s, a, n: jnp.ones(s.shape[0]), never)
    system = System(lambda s, a: 0.9 * s, spec, obs_size=1, length=2)
    config = small_config(objective__discount=0.5, critic__learning_rate=3e-3, critic__target_step=0.05)
    state = learn(system, config, jax.random.key(1), 600, 2)
    grid = np.linspace(-0.5, 0.5, 9)[:, None]
    np.testing.assert_allclose(q_values(system, config, state, grid, np.zeros((9, 1))), 2.0, atol=0.05)


def test_credit_reaches_back_over_two_steps_without_a_planning_horizon():
    """First action decides where one lands, and only the landing place pays, one step later.

    From the left (s < 0) a step leads to s' = 1 + a; from the right it pays a' = s and ends. Soft value at the right
    is s; hence Q(left, a) = gamma (1 + a).
    """

    def step(obs, action):
        return jnp.where(obs < 0, 2 + action, obs)

    spec = TaskSpec(
        lambda s, a, n: jnp.where(s[:, 0] < 0, 0.0, s[:, 0]), lambda s, a, n: (s[:, 0] >= 0).astype(jnp.float32)
    )
    system = System(step, spec, obs_size=1)
    changes = {"critic__learning_rate": 3e-3, "critic__unit": "reward", "critic__target_step": 0.05}
    warm = small_config(objective__temperature=1.0, **changes)  # enough to keep trying bad actions
    config = override(warm, {"planner.horizon": 0, "target_planner.horizon": 0, "training.num_envs": 4})
    state = learn(system, config, jax.random.key(0), 1600, 2)
    actions = np.linspace(-0.5, 0.5, 5)[:, None]
    values = q_values(system, config, state, np.full((5, 1), -0.5), actions)
    np.testing.assert_allclose(values, 0.99 * (2 + actions[:, 0]), atol=0.15)


A = np.array([[0.9, 0.3], [-0.2, 0.8]])
B = np.array([[0.1], [0.5]])
COST, EFFORT, VARIANCE, TEMPERATURE, DISCOUNT = np.eye(2), 0.1 * np.eye(1), 0.1, 0.2, 0.9


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("horizon", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_fitted_value_iteration_finds_the_soft_lqr(horizon):
    """The whole agent, from scratch, on x' = Ax + Bu with r = -(x'Cx + u'Ru): its Q is the closed form's.

    P follows from the Hessian of Q: Q_xx - Q_xu (Q_uu + (lambda / 2) Sigma^-1)^-1 Q_ux, each with its sign turned.
    """
    a, b = jnp.asarray(A, jnp.float32), jnp.asarray(B, jnp.float32)

    def reward(obs, action, next_obs):
        return -jnp.sum(obs**2, axis=-1) - 0.1 * jnp.sum(action**2, axis=-1)

    system = System(lambda s, u: s @ a.T + u @ b.T, TaskSpec(reward, never), obs_size=2, spread=1.5, length=10)
    config = override(
        small_config(),
        {
            "objective.temperature": TEMPERATURE,
            "objective.variance": VARIANCE,
            "objective.discount": DISCOUNT,
            "planner.horizon": horizon,
            "target_planner.horizon": horizon,
            "target_planner.num_samples": 16,
            "training.num_envs": 8,
            "training.seed_steps": 400,
            "training.capacity": 20_000,
            "critic.heads": 1,
            "critic.layer_norm": False,
            "critic.width": 64,
            "critic.batch_size": 128,
            "critic.learning_rate": 1e-3,
            "critic.target_step": 0.02,
            "dynamics.width": 64,
            "dynamics.batch_size": 64,
        },
    )
    state = learn(system, config, jax.random.key(0), 600, 4)
    exact = soft_riccati(A, B, COST, EFFORT, VARIANCE * np.eye(1), TEMPERATURE, DISCOUNT)
    learned = value_matrix(system, config, state)
    error = np.linalg.norm(learned - exact) / np.linalg.norm(exact)
    print(f"horizon {horizon}: relative error of P {error:.4f}")
    assert error < 0.03


def value_matrix(system: System, config: Config, state: AgentState) -> np.ndarray:
    """P out of the learned Q, by a least-squares quadratic over states and actions of the training's range."""
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3)) * [1.0, 1.0, 0.6]
    values = q_values(system, config, state, points[:, :2], points[:, 2:])
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    columns = [points[:, i] * points[:, j] for i, j in pairs] + list(points.T) + [np.ones(len(points))]
    coefficients = np.linalg.lstsq(np.stack(columns, 1), values, rcond=None)[0]
    form = np.zeros((3, 3))
    for (i, j), coefficient in zip(pairs, coefficients, strict=False):
        form[i, j] += 0.5 * coefficient
        form[j, i] += 0.5 * coefficient
    form = -form
    effort = form[2:, 2:] + 0.5 * TEMPERATURE / VARIANCE
    return form[:2, :2] - form[:2, 2:] @ np.linalg.solve(effort, form[2:, :2])
