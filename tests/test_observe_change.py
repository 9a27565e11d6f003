"""Observations that also hold how they have changed: in the world, in the models, in controllers."""

from functools import partial
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box

from soft_mpcritic import Controller, ExportedController, train
from soft_mpcritic.agent import Agent
from soft_mpcritic.config import TrainingConfig
from soft_mpcritic.envs import EnvVector, Task, make_task, task_for
from soft_mpcritic.evaluation import EVALUATION_SEED
from soft_mpcritic.export import export_run
from soft_mpcritic.files import read_table
from soft_mpcritic.parts import Parts
from tests.systems import small_config

CHANGING = TrainingConfig(observe_change=True)


def agent_for(env_id: str, parts: Parts | None = None, **changes: object) -> Agent:
    config = small_config(training__observe_change=True, **changes)
    return Agent(task_for(env_id, config.training, parts or Parts()), config)


def random_actions(task: Task, rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.uniform(task.action_low, task.action_high, (rows, len(task.action_low))).astype(np.float32)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5"])
def test_the_second_half_is_what_the_first_has_gained_and_0_at_first(env_id):
    task = task_for(env_id, CHANGING)
    envs, plain, rng = EnvVector(task, 2), EnvVector(make_task(env_id), 2), np.random.default_rng(0)
    size, ended = task.state_size, 0
    before = plain.reset(0)
    np.testing.assert_array_equal(envs.reset(0), np.concatenate([before, np.zeros_like(before)], axis=1))
    for _ in range(250):
        action = random_actions(task, rng, 2)
        seen, bare = envs.step(action), plain.step(action)
        np.testing.assert_array_equal(seen.next_obs[:, :size], bare.next_obs)
        np.testing.assert_allclose(seen.next_obs[:, size:], np.asarray(bare.next_obs) - before, atol=1e-5)
        np.testing.assert_array_equal(seen.start_obs[seen.done, size:], 0)
        np.testing.assert_array_equal(seen.reward, bare.reward)
        ended += int(seen.done.sum())
        before = np.asarray(bare.start_obs)
    assert ended
    assert task.obs_size == 2 * size


class Bytes(gym.Env):
    """Counts down from 255, in one array which every observation is."""

    observation_space, action_space = Box(0, 255, (1,), np.uint8), Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.count = np.zeros(1, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count[:] = 255
        return self.count, {}

    def step(self, action):
        self.count -= 1
        return self.count, 0.0, False, False, {}


def test_bytes_that_fall_change_by_less_than_nothing():
    env = make_task("bytes", parts=Parts(env=Bytes)).changing().make_env()
    assert env.reset(seed=0)[0].tolist() == [255, 0]
    assert [env.step(np.zeros(1, np.float32))[0].tolist() for _ in range(2)] == [[254, -1], [253, -1]]


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPoleSwingUp"])
def test_the_device_sees_the_same(env_id):
    task = make_task(env_id, "device").changing()
    env, bare = task.make_device_env(), make_task(env_id, "device").make_device_env()
    step, bare_step, rng = jax.jit(env.step), jax.jit(bare.step), np.random.default_rng(0)
    (state, obs), (bare_state, before) = env.reset(jax.random.key(0)), bare.reset(jax.random.key(0))
    np.testing.assert_array_equal(obs, jnp.concatenate([before, jnp.zeros_like(before)]))
    for action in random_actions(task, rng, 20):
        outcome, plain = step(state, action), bare_step(bare_state, action)
        np.testing.assert_allclose(outcome.obs, jnp.concatenate([plain.obs, plain.obs - before]), rtol=1e-5, atol=1e-6)
        state, bare_state, before = outcome.state, plain.state, plain.obs
    assert env.max_steps == bare.max_steps and env.step_bytes == bare.step_bytes


def test_what_models_predict_agrees_with_itself():
    """Along an imagined path, changes are differences of the states; rewards are the task's own of these."""
    agent = agent_for("Hopper-v5")
    planner, models = agent.planner, agent.planner.init_models(jax.random.key(0))
    size = agent.task.state_size
    member = jax.tree.map(lambda leaf: leaf[0], models.dynamics.members)
    obs = jax.random.normal(jax.random.key(1), (5, 2 * size))
    step = jax.jit(planner.model_step)
    for time in range(3):
        action = jax.random.uniform(jax.random.key(time), (5, 3), minval=-1.0)
        outcome = step(models, member, obs, action)
        told, before = outcome.next_obs, obs[:, :size]
        np.testing.assert_allclose(told[:, size:], told[:, :size] - before, rtol=1e-6)
        known = agent.task.spec.reward(before, planner.to_env(action), told[:, :size])
        np.testing.assert_allclose(outcome.reward, known, rtol=1e-5)
        obs = told


def test_changes_reach_the_networks_but_positions_do_not():
    agent = agent_for("Hopper-v5")
    models, size = agent.planner.init_models(jax.random.key(0)), agent.task.state_size
    features = jax.jit(partial(agent.planner.features, models))
    obs = jax.random.normal(jax.random.key(1), (1, 2 * size))
    assert features(obs).shape == (1, 2 * (size - 1))
    for component in range(2 * size):
        moved = features(obs.at[0, component].add(1.0))
        assert bool(jnp.any(moved != features(obs))) == (component not in (0, size))


@pytest.mark.parametrize("seen", [True, False])
def test_the_critic_sees_changes_unless_told_not_to(seen):
    agent = agent_for("Swimmer-v5", critic__observe_change=seen, training__wrap_angles=True)
    models, size = agent.planner.init_models(jax.random.key(0)), agent.task.state_size
    critic = jax.jit(lambda obs: models.critic.least(agent.planner.valued(models, obs), jnp.zeros((1, 2))))
    features = jax.jit(partial(agent.planner.features, models))
    obs = jax.random.normal(jax.random.key(1), (1, 2 * size))
    for component in range(2 * size):
        moved = obs.at[0, component].add(1.0)
        hidden = component % size in agent.task.spec.positions
        assert bool(jnp.any(features(moved) != features(obs))) == (not hidden)
        assert bool(critic(moved)[0] != critic(obs)[0]) == (not hidden and (seen or component < size))


def half(obs, action):
    return 0.5 * obs


def test_physics_of_ones_own_are_told_of_states_without_changes():
    agent = agent_for("Pendulum-v1", Parts(nominal=half))
    obs = jnp.arange(6.0)[None]
    np.testing.assert_allclose(agent.planner.expected(obs, jnp.zeros((1, 1))), 0.5 * obs[:, :3])
    assert agent.planner.init_models(jax.random.key(0)).change_scale.mean.shape == (3,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pendulum-v1 for a few steps, on the host and on the device."""
    path = tmp_path_factory.mktemp("changes")
    for backend in ("host", "device"):
        settings = small_config(
            training__observe_change=True,
            training__backend=backend,
            training__seed_steps=20,
            training__evaluate_every=40,
            training__evaluation_episodes=1,
        )
        train("Pendulum-v1", settings, total_steps=40, run_dir=path / backend)
    return path


@pytest.mark.parametrize("backend", ["host", "device"])
def test_runs_learn_and_say_how_far_models_are_off(trained, backend):
    last = read_table(trained / backend / "metrics.csv")[-1]
    assert 0 < float(last["model_error_first"]) < 100
    assert len(read_table(trained / backend / "evaluations.csv")) == 1


def test_controllers_take_observations_as_the_plant_gives_them(trained, tmp_path):
    """And do what evaluation does, where the environment tells the changes; of a new start they know of none."""
    out = tmp_path / "pendulum.zip"
    export_run(trained / "host", out)
    controllers = [Controller.load(trained / "host"), ExportedController(out)]
    env, asked = make_task("Pendulum-v1").make_env(), []
    solve = controllers[0]._solve
    controllers[0]._solve = lambda number, obs, start: asked.append(obs) or solve(number, obs, start)
    for _ in range(2):
        obs, _ = env.reset(seed=EVALUATION_SEED)
        seen = [obs]
        for controller in controllers:
            controller.reset()
        for _ in range(4):
            one, other = (controller(obs) for controller in controllers)
            np.testing.assert_array_equal(one, other)
            obs, *_ = env.step(one)
            seen.append(obs)
        states = np.array(seen[:-1])
        np.testing.assert_allclose(np.concatenate(asked)[:, :3], states, atol=1e-6)
        np.testing.assert_allclose(np.concatenate(asked)[1:, 3:], np.diff(states, axis=0), atol=1e-6)
        np.testing.assert_array_equal(asked[0][0, 3:], 0)
        asked.clear()
    with pytest.raises(ValueError, match=r"shape \(1, 3\) or \(3,\)"):
        controllers[0](np.zeros(6))
