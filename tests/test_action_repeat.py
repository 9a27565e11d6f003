"""Actions that are held: several steps of an environment are one of the task, in the world and in what is known."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box

from soft_mpcritic import train
from soft_mpcritic.config import Config, ConfigError, override
from soft_mpcritic.controller import step_seconds
from soft_mpcritic.envs import TASKS, make_device_env, make_task
from soft_mpcritic.envs.device.vector import Outcome
from soft_mpcritic.files import read_table
from soft_mpcritic.parts import Parts
from tests.systems import small_config

LAST = 5


class Countdown(gym.Env):
    """Earns the action, five times."""

    observation_space, action_space = Box(0, LAST, (1,), np.float32), Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = LAST
        return np.array([LAST], np.float32), {}

    def step(self, action):
        assert self.left > 0, "an episode that is over goes on"
        self.left -= 1
        return np.array([self.left], np.float32), float(action[0]), self.left == 0, False, {}


def way_less_action(obs, action, next_obs):
    return obs[:, 0] - next_obs[:, 0] - action[:, 0]


def doubled(obs, action):
    return 2 * obs + action


def lived(task: Any, steps: int) -> tuple[np.ndarray, ...]:
    """Columns obs, action, next_obs, reward, terminated of random steps."""
    env, rng, rows = task.make_env(), np.random.default_rng(0), []
    obs, _ = env.reset(seed=0)
    for _ in range(steps):
        action = rng.uniform(task.action_low, task.action_high).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, next_obs, reward, terminated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    env.close()
    return tuple(np.array(column, np.float32) for column in zip(*rows, strict=True))


def test_an_action_is_held_and_its_rewards_add_up_until_the_episode_ends():
    env = make_task("countdown", parts=Parts(env=Countdown), action_repeat=2).make_env()
    env.reset(seed=0)
    met = [env.step(np.array([action], np.float32))[:3] for action in (0.5, 0.25, 1.0)]
    assert [(float(obs[0]), reward, ended) for obs, reward, ended in met] == [
        (3, 1, False),
        (1, 0.5, False),
        (0, 1, True),
    ]


def test_a_time_limit_ends_a_step_early():
    env = make_task("Pendulum-v1", action_repeat=3).make_env()
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[3] for _ in range(67)]  # of 200 steps
    assert ends == [False] * 66 + [True]


@pytest.mark.parametrize(
    "env_id, steps", [("HalfCheetah-v5", 2), ("Swimmer-v5", 4), ("Hopper-v5", 3), ("Walker2d-v5", 2)]
)
def test_rewards_that_add_up_are_known_of_several_steps(env_id, steps):
    task = make_task(env_id, action_repeat=steps)
    *columns, reward, terminated = lived(task, 1000)
    np.testing.assert_array_equal(jax.jit(task.spec.termination)(*columns), terminated)
    error = np.abs(jax.jit(task.spec.reward)(*columns) - reward)
    assert error[terminated == 0].max() < 1e-3  # positions of some metres in float32, differenced over 0.008 s
    assert error.max() < steps  # healthy steps before the one that ends the episode
    assert task.unknowns == ()


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "InvertedDoublePendulum-v5"])
def test_rewards_that_do_not_add_up_are_learned(env_id):
    assert make_task(env_id).unknowns == ()
    assert make_task(env_id, action_repeat=2).unknowns == ("reward",)
    assert "reward of" in make_task(env_id, action_repeat=2).note


def test_one_step_under_an_action_changes_nothing():
    for env_id, spec in TASKS.items():
        assert spec.repeated(1) is spec
        assert make_task(env_id, action_repeat=1).spec is spec


def test_a_reward_of_ones_own_judges_the_steps_as_one():
    task = make_task("countdown", parts=Parts(env=Countdown, reward=way_less_action), action_repeat=2)
    env = task.make_env()
    env.reset(seed=0)
    assert env.step(np.array([0.5], np.float32))[1] == 2 - 0.5
    assert task.spec.reward is way_less_action


def test_physics_of_ones_own_are_told_of_one_step_and_taken_several_times():
    task = make_task("countdown", parts=Parts(env=Countdown, nominal=doubled), action_repeat=3)
    assert task.spec.nominal is not None
    led = jax.jit(task.spec.nominal)(jnp.array([[1.0], [0.0]]), jnp.array([[0.5], [1.0]]))
    np.testing.assert_allclose(led, [[8 + 3.5], [7.0]])


def one_by_one(step: Any, state: Any, action: Any, steps: int) -> list[Outcome]:
    """Outcomes of `steps` single steps, or of fewer where one ends the episode."""
    taken = [step(state, action)]
    while len(taken) < steps and not taken[-1].terminated:
        taken.append(step(taken[-1].state, action))
    return taken


@pytest.mark.parametrize("env_id, steps", [("Walker2d-v5", 3), ("CartPoleSwingUp", 2)])
def test_a_device_step_is_several_of_the_device(env_id, steps):
    """Walker2d falls within some of them, which must be its last."""
    held, single = make_device_env(env_id, action_repeat=steps), make_device_env(env_id)
    hold, step, rng = jax.jit(held.step), jax.jit(single.step), np.random.default_rng(0)
    size, ended_early = make_task(env_id, "device").action_size, 0
    for episode in range(8):
        state, _ = held.reset(jax.random.key(episode))
        for _ in range(30):
            action = jnp.asarray(rng.uniform(-1, 1, size), jnp.float32)
            outcome, taken = hold(state, action), one_by_one(step, state, action, steps)
            last, earned = taken[-1], sum(float(one.reward) for one in taken)
            agree = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
            jax.tree.map(agree, outcome, last._replace(reward=jnp.float32(earned)))
            ended_early += len(taken) < steps
            state = outcome.state
            if outcome.terminated:
                break
    assert held.max_steps == -(-single.max_steps // steps)
    assert held.step_bytes == single.step_bytes
    assert env_id != "Walker2d-v5" or ended_early > 2


def test_a_step_takes_as_long_as_its_actions_are_held():
    once, thrice = (step_seconds(make_task("Swimmer-v5", action_repeat=steps)) for steps in (1, 3))
    assert once and thrice == pytest.approx(3 * once)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_no_steps_and_too_many_are_refused(steps):
    with pytest.raises(ConfigError, match="action_repeat must"):
        override(Config(), {"training.action_repeat": steps})


@pytest.mark.parametrize("backend", ["host", "device"])
def test_runs_count_and_evaluate_steps_of_held_actions(tmp_path: Path, backend: str):
    """Pendulum-v1 has 200 steps, hence 40 of five."""
    settings = small_config(
        training__action_repeat=5,
        training__backend=backend,
        training__seed_steps=20,
        training__evaluate_every=60,
        training__evaluation_episodes=2,
    )
    train("Pendulum-v1", settings, total_steps=60, run_dir=tmp_path / "run")
    rows = read_table(tmp_path / "run" / "evaluations.csv")
    assert [float(row["length"]) for row in rows] == [40, 40]
    assert all(-2000 < float(row["return"]) < 0 for row in rows)
