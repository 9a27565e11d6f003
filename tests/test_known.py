"""Planning with known models: against LQR, swinging up, warm and cold, under randomised parameters, and in MuJoCo."""

from pathlib import Path
from typing import Any

import gymnasium.envs.mujoco
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from soft_mpcritic import KnownModel, MjxDynamics, ModelPlanner, ObjectiveConfig, PlannerConfig, plan
from soft_mpcritic.config import ConfigError
from tests.systems import soft_riccati

A = np.array([[1.0, 0.2], [0.0, 1.0]])
B = np.array([[0.02], [0.2]])
C, R = np.diag([1.0, 0.1]), np.array([[0.1]])
LIMIT = 10.0  # of the input: far beyond what is needed
OBS = np.array([[1.0, 0.0], [-0.5, 0.8]])


def drift(obs, action):
    return obs @ jnp.asarray(A.T, jnp.float32) + action @ jnp.asarray(B.T, jnp.float32)


def cost(obs, action, next_obs):
    weighed = (obs**2) @ jnp.asarray(np.diag(C), jnp.float32)
    return -weighed - float(R[0, 0]) * action[:, 0] ** 2


def quadratic(p):
    """Q of the linear system, for the value -x'Px."""

    def value(obs, action):
        after = drift(obs, action)
        return cost(obs, action, after) - jnp.sum((after @ jnp.asarray(p, jnp.float32)) * after, axis=-1)

    return value


def linear(terminal_value=None) -> KnownModel:
    return KnownModel(drift, cost, 2, (-LIMIT,), (LIMIT,), terminal_value=terminal_value)


SIGMA, TEMPERATURE = 0.25, 1.0  # in the plant's units
SOFT = R + 0.5 * TEMPERATURE / SIGMA * np.eye(1)


@pytest.mark.parametrize("horizon", [2, 15])
@pytest.mark.parametrize("with_value", [True, False], ids=["terminal value", "none"])
def test_a_plan_for_a_linear_system_is_that_of_a_soft_lqr(horizon, with_value, optimized):
    """With the value of the infinite horizon at its end a plan of any length is LQR; without, that of its length."""
    endless = soft_riccati(A, B, C, R, SIGMA * np.eye(1), TEMPERATURE, 1.0, 2000)
    p = endless if with_value else soft_riccati(A, B, C, R, SIGMA * np.eye(1), TEMPERATURE, 1.0, horizon)
    before = endless if with_value else soft_riccati(A, B, C, R, SIGMA * np.eye(1), TEMPERATURE, 1.0, horizon - 1)
    gain = np.linalg.solve(SOFT + B.T @ before @ B, B.T @ before @ A)

    objective = ObjectiveConfig(variance=SIGMA / LIMIT**2, temperature=TEMPERATURE, discount=1.0)
    planner = PlannerConfig(horizon=horizon, num_samples=4096, iterations=8, keep_nominal=False)
    result = plan(linear(quadratic(endless) if with_value else None), OBS, planner, objective)
    np.testing.assert_allclose(result.plan[:, 0, 0], -(OBS @ gain.T)[:, 0], atol=0.04)

    lost = 0.0  # by what is random in the soft policy, step by step
    for t in range(horizon + 1 if with_value else horizon):
        rest = endless if with_value else soft_riccati(A, B, C, R, SIGMA * np.eye(1), TEMPERATURE, 1.0, t)
        lost += 0.5 * TEMPERATURE * np.log(1 + 2 / TEMPERATURE * SIGMA * (R + B.T @ rest @ B)).item()
    exact = -np.einsum("bi,ij,bj->b", OBS, p, OBS) - lost
    error = TEMPERATURE / np.sqrt(np.asarray(result.stats.effective_samples))
    assert np.all(np.abs(result.value - exact) < 5 * error)
    assert np.all(np.asarray(result.stats.effective_samples) > 200)


def test_a_warm_started_controller_is_as_good_as_lqr(optimized):
    """At a low temperature the plan is LQR's own; the controller keeps it from tick to tick."""
    r = 1.0
    p = soft_riccati(A, B, C, np.array([[r]]), np.eye(1), 0.0, 1.0, 2000)

    def dearer(obs, action, next_obs):
        return cost(obs, action, next_obs) - (r - R[0, 0]) * action[:, 0] ** 2

    def value(obs, action):
        after = drift(obs, action)
        return dearer(obs, action, after) - jnp.sum((after @ jnp.asarray(p, jnp.float32)) * after, axis=-1)

    model = KnownModel(drift, dearer, 2, (-LIMIT,), (LIMIT,), terminal_value=value)
    planner = PlannerConfig(horizon=4, num_samples=128, iterations=4, widths=4, guided=True)
    objective = ObjectiveConfig(variance=0.0025, temperature=0.01, discount=1.0)
    controller = ModelPlanner(model, planner, objective).controller()
    obs, total = OBS[0], 0.0
    for _ in range(60):
        action = controller(obs)
        total += obs @ C @ obs + r * float(action @ action)
        obs = A @ obs + B @ action
    best = OBS[0] @ p @ OBS[0]
    assert best < total < 1.02 * best


# ------------------------------------------------------------------ a pendulum to swing up


def swing(obs, action):
    """Angle from upright and its speed; the torque cannot hold the pendulum level."""
    angle, speed = obs[:, 0], obs[:, 1]
    speed = jnp.clip(speed + 0.05 * (15 * jnp.sin(angle) + 3 * action[:, 0]), -8, 8)
    return jnp.stack([angle + 0.05 * speed, speed], axis=-1)


def upright(obs, action, next_obs):
    return jnp.cos(next_obs[:, 0]) - 0.01 * next_obs[:, 1] ** 2


PENDULUM = KnownModel(swing, upright, 2, (-2.0,), (2.0,))


def height_at_the_end(planner: PlannerConfig) -> float:
    controller = ModelPlanner(PENDULUM, planner, ObjectiveConfig(variance=0.3)).controller()
    obs, heights = np.array([np.pi, 0.0]), []
    for _ in range(120):
        obs = np.asarray(swing(jnp.asarray(obs[None], jnp.float32), jnp.asarray(controller(obs)[None])))[0]
        heights.append(np.cos(obs[0]))
    return float(np.mean(heights[-30:]))


def test_a_pendulum_swings_up_by_its_equations_if_it_looks_far_ahead_and_keeps_its_plan(optimized):
    far = PlannerConfig(horizon=30, num_samples=128, iterations=1)
    assert height_at_the_end(far) > 0.97
    assert height_at_the_end(PlannerConfig(horizon=3, num_samples=128, iterations=1)) < 0.5
    few = PlannerConfig(horizon=30, num_samples=16, iterations=1)
    cold = PlannerConfig(horizon=30, num_samples=16, iterations=1, warm_start=False)
    assert height_at_the_end(few) > height_at_the_end(cold) + 0.3


def test_a_plan_starts_where_it_is_told_in_the_plants_units():
    start = np.linspace(-2, 2, 6)[None, :, None]
    kept = PlannerConfig(horizon=5, num_samples=1, keep_nominal=True)
    np.testing.assert_allclose(plan(PENDULUM, [3.0, 0.0], kept, start=start).plan, start, atol=1e-5)
    np.testing.assert_allclose(
        plan(PENDULUM, [3.0, 0.0], kept, start=start[0, :3]).plan[0, :3], start[0, :3], atol=1e-5
    )
    np.testing.assert_allclose(plan(PENDULUM, [3.0, 0.0], kept).plan, 0, atol=1e-6)


# ------------------------------------------------------------------ randomised models


def pushed(obs, action, strength):
    return obs + strength * action


def near_one(obs, action, next_obs):
    return -((next_obs[:, 0] - 1) ** 2)


@pytest.mark.parametrize(("risk", "best"), [("mean", 0.8), ("worst", 1.0)])
def test_randomised_models_are_an_ensemble_under_the_same_risk_measures(risk, best):
    """Strength 0.5 or 1.5: in the mean, E k / E k^2 = 0.8 is the best push; the worst case is least bad at 1."""
    model = KnownModel(pushed, near_one, 1, (-2.0,), (2.0,), parameters=jnp.array([0.5, 1.5]))
    objective = ObjectiveConfig(risk=risk, temperature=0.003, variance=0.1)
    planner = PlannerConfig(horizon=1, num_samples=1024, iterations=4, widths=2, scenarios="all_members")
    result = plan(model, [0.0], planner, objective)
    np.testing.assert_allclose(result.plan[0, 0, 0], best, atol=0.03)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dynamics": lambda obs, action: obs[:, :1]}, "dynamics .* must return shape \\(4, 2\\)"),
        ({"dynamics": lambda obs: obs}, "dynamics .* cannot be traced by JAX: TypeError"),
        ({"reward": lambda obs, action, next_obs: obs}, "reward .*<lambda> must return shape \\(6,\\)"),
        ({"terminal_value": lambda obs, action: action}, "terminal value .*<lambda> must return shape"),
        ({"action_high": (np.inf,)}, "action_low and action_high must be finite and ordered"),
        ({"action_high": (1.0, 1.0)}, "action_low and action_high must be finite and ordered"),
        ({"parameters": {"a": jnp.ones(2), "b": jnp.ones(3)}}, "parameters must have one leading axis"),
        ({"obs_size": 0}, "obs_size must be >= 1"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(changes, words):
    sound: dict[str, Any] = {"dynamics": swing, "reward": upright, "obs_size": 2, "action_low": (-2.0,)}
    with pytest.raises(ConfigError, match=words):
        KnownModel(**{**sound, "action_high": (2.0,), **changes})


def test_observations_and_starts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"obs must have shape \(1, 2\), got \(1, 3\)"):
        plan(PENDULUM, [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="obs must be finite"):
        plan(PENDULUM, [np.nan, 2.0])
    with pytest.raises(ConfigError, match=r"start must have shape \(1, 21, 1\), got \(2, 21, 1\)"):
        plan(PENDULUM, [1.0, 2.0], start=np.zeros((2, 21, 1)))


# ------------------------------------------------------------------ MuJoCo


def pole() -> Any:
    path = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "inverted_pendulum.xml"
    return getattr(mujoco, "MjModel").from_xml_path(str(path))  # noqa: B009


def simulated(model: Any, obs: np.ndarray, action: float, steps: int) -> np.ndarray:
    bindings: Any = mujoco
    data = bindings.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = obs[:2], obs[2:], action
    for _ in range(steps):
        bindings.mj_step(model, data)
    return np.concatenate([data.qpos, data.qvel])


@pytest.mark.slow
def test_a_mujoco_model_steps_as_its_simulator_does_whatever_its_masses():
    model = pole()
    dynamics = MjxDynamics(model, frame_skip=2)
    assert (dynamics.obs_size, dynamics.action_low, dynamics.action_high) == (4, (-3.0,), (3.0,))
    obs, action = np.array([0.1, 0.2, -0.3, 0.5], np.float32), 1.5
    rows = jnp.asarray(obs[None]), jnp.asarray([[action]], jnp.float32)
    np.testing.assert_allclose(dynamics(*rows)[0], simulated(model, obs, action, 2), atol=1e-4)
    heavy = np.array(model.body_mass, np.float32) * 2
    lighter = np.asarray(dynamics(*rows, {"body_mass": jnp.asarray(heavy)})[0])
    model.body_mass[:] = heavy
    np.testing.assert_allclose(lighter, simulated(model, obs, action, 2), atol=1e-4)
    assert np.abs(lighter - np.asarray(dynamics(*rows)[0])).max() > 0.01


@pytest.mark.slow
def test_a_mujoco_model_can_be_planned_with():
    dynamics = MjxDynamics(pole(), frame_skip=2)

    def standing(obs, action, next_obs):
        return -(next_obs[:, 1] ** 2)

    model = KnownModel(dynamics, standing, dynamics.obs_size, dynamics.action_low, dynamics.action_high)
    falling = [[0.0, 0.1, 0.0, 0.5], [0.0, -0.1, 0.0, -0.5]]
    result = plan(model, falling, PlannerConfig(horizon=4, num_samples=32), ObjectiveConfig(temperature=0.001))
    assert result.plan[0, 0, 0] > 0.5 and result.plan[1, 0, 0] < -0.5  # the cart goes to where the pole falls
