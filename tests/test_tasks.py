from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.envs import TASKS, Task, make_task

RANDOM_STEPS, SKILLED_STEPS = 3000, 2000
# what the known reward may be off by, in units of reward; the double pendulum's simulator takes the tip's position
# from the last stage of its integrator instead of the state that it ends in
TOLERANCE = {"InvertedDoublePendulum-v5": 2.5e-4, "Hopper-v5": 2e-5}


def balance(obs: np.ndarray, _step: int) -> np.ndarray:
    """A linear-quadratic regulator of the double pendulum."""
    cart, sin1, sin2, cos1, cos2, *speeds = obs[:8]
    state = np.array([cart, np.arctan2(sin1, cos1), np.arctan2(sin2, cos2), *speeds])
    return -np.array([[0.1, 0.8, 4.1, 0.1, 0.5, 0.6]]) @ state


def hop(_obs: np.ndarray, step: int) -> np.ndarray:
    """A rhythm that keeps Hopper up for some two hundred steps."""
    return np.array([0.41, 0.25, 0.0]) + np.array([0.48, 0.55, 0.29]) * np.sin(
        0.214 * step + np.array([2.88, 0.29, 5.1])
    )


SKILL = {"InvertedDoublePendulum-v5": balance, "Hopper-v5": hop}


class Steps(NamedTuple):
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray


def play(task: Task, random_steps: int = RANDOM_STEPS, skilled_steps: int = SKILLED_STEPS) -> Steps:
    """Steps of random actions, of a skilled controller, and of that controller disturbed."""
    env, rng = task.make_env(), np.random.default_rng(0)
    skill, steps = SKILL[task.env_id], []
    for noise, count in ((None, random_steps), (0.0, skilled_steps), (0.3, skilled_steps)):
        obs, _ = env.reset(seed=1)
        time = 0
        for _ in range(count):
            drawn = rng.uniform(-1, 1, task.action_size)
            chosen = drawn if noise is None else skill(obs, time) + noise * drawn
            action = np.clip(chosen, task.action_low, task.action_high).astype(np.float32)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            steps.append((obs, action, reward, next_obs, terminated))
            obs, time = next_obs, time + 1
            if terminated or truncated:
                (obs, _), time = env.reset(), 0
    env.close()
    return Steps(*(np.array(column) for column in zip(*steps, strict=True)))


@pytest.fixture(scope="module", params=TASKS)
def played(request) -> tuple[Task, Steps]:
    task = make_task(request.param)
    return task, play(task)


def known(task: Task, steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    rows = [jnp.asarray(rows, jnp.float32) for rows in (steps.obs, steps.action, steps.next_obs)]
    return np.asarray(jax.jit(task.spec.reward)(*rows)), np.asarray(jax.jit(task.spec.termination)(*rows))


def test_steps_cover_ends_and_long_episodes(played):
    _, steps = played
    assert len(steps.reward) == RANDOM_STEPS + 2 * SKILLED_STEPS
    assert steps.terminated[:RANDOM_STEPS].sum() > 50
    ends = np.flatnonzero(steps.terminated)
    assert np.diff(ends, prepend=0, append=len(steps.reward)).max() > 150


def test_known_termination_is_the_simulators(played):
    task, steps = played
    _, termination = known(task, steps)
    np.testing.assert_array_equal(termination, steps.terminated.astype(np.float32))


def test_known_reward_is_the_simulators(played):
    task, steps = played
    reward, _ = known(task, steps)
    assert np.abs(reward - steps.reward).max() < TOLERANCE[task.env_id]


def test_known_reward_errs_upward_where_the_double_pendulum_is_faster_than_it_shows():
    task = make_task("InvertedDoublePendulum-v5")
    env, rng = task.make_env(), np.random.default_rng(0)
    simulator: Any = env.unwrapped
    obs, _ = env.reset(seed=0)
    rows, heights = [], []
    for _ in range(300):
        simulator.set_state(rng.uniform(-0.1, 0.1, 3), rng.uniform(-14, 14, 3))
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        next_obs, reward, terminated, _, _ = env.step(action)
        rows.append((obs, action, reward, next_obs, terminated))
        heights.append(simulator.data.site_xpos[0][2])
    env.close()
    steps = Steps(*(np.array(column) for column in zip(*rows, strict=True)))
    reward, termination = known(task, steps)
    clear = (
        np.abs(np.array(heights) - 1) > 0.05
    )  # by which the last stage of the integrator and the final state may differ
    clipped = np.any(np.abs(steps.next_obs[:, 5:8]) >= 10, axis=1)
    error = reward - steps.reward
    np.testing.assert_array_equal(termination[clear], steps.terminated[clear].astype(np.float32))
    assert np.abs(error[clear & ~clipped]).max() < 2e-3
    assert error[clear & clipped].min() > -2e-3
    assert error[clear & clipped].max() > 0.1


def test_hopper_shows_its_position_first():
    task = make_task("Hopper-v5")
    env = task.make_env()
    env.reset(seed=0)
    obs, *_, info = env.step(np.ones(3, np.float32))
    env.close()
    assert task.obs_size == len(obs) == 12
    assert task.spec.positions == (0,)
    assert obs[0] == info["x_position"]


@pytest.mark.parametrize(
    ("env_id", "obs_size", "action_size"), [("InvertedDoublePendulum-v5", 9, 1), ("Hopper-v5", 12, 3)]
)
def test_tasks_know_their_sizes_and_boxes(env_id, obs_size, action_size):
    task = make_task(env_id)
    assert (task.obs_size, task.action_size) == (obs_size, action_size)
    assert task.action_low == (-1.0,) * action_size and task.action_high == (1.0,) * action_size


def test_hoppers_reward_does_not_depend_on_where_it_is():
    task = make_task("Hopper-v5")
    steps = play(task, 100, 100)
    along = np.eye(task.obs_size)[0]
    shifted = steps._replace(obs=steps.obs + along, next_obs=steps.next_obs + along)
    for here, there in zip(known(task, steps), known(task, shifted), strict=True):
        np.testing.assert_allclose(here, there, atol=1e-4)
