from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.envs import TASKS, Task, make_task

RANDOM_STEPS, SKILLED_STEPS = 3000, 2000
EPS = float(np.finfo(np.float32).eps)  # 2^-23, two roundings
TRACKS = [env_id for env_id, spec in TASKS.items() if spec.positions]
ENDLESS = {"Pendulum-v1", "Reacher-v5", "HalfCheetah-v5", "Swimmer-v5"}
# the double pendulum's simulator takes the tip's position from the last stage of its integrator instead of the state
# that it ends in
OWN_ERROR = {"InvertedDoublePendulum-v5": 2.5e-4}
LAST_STAGE = 0.01  # m, by which the torso of the Ant may be elsewhere for the same reason


def balance_one(obs: np.ndarray, _step: int) -> np.ndarray:
    return np.array([[0.3, 5.0, 0.6, 1.0]]) @ obs


def balance_two(obs: np.ndarray, _step: int) -> np.ndarray:
    """A linear-quadratic regulator of the double pendulum."""
    cart, sin1, sin2, cos1, cos2, *speeds = obs[:8]
    state = np.array([cart, np.arctan2(sin1, cos1), np.arctan2(sin2, cos2), *speeds])
    return -np.array([[0.1, 0.8, 4.1, 0.1, 0.5, 0.6]]) @ state


def swing_up(obs: np.ndarray, _step: int) -> np.ndarray:
    """Gives the pendulum the energy of standing upright, then holds it there."""
    cos, sin, speed = obs
    missing = 15 * (1 - cos) - 0.5 * speed**2
    return np.array([-20 * sin - 4 * speed if cos > 0.95 else np.copysign(2, speed * missing)])


def reach(obs: np.ndarray, _step: int) -> np.ndarray:
    """Pulls the fingertip to the target, against damping."""
    cos, sin, speeds, away = obs[:2], obs[2:4], obs[6:8], obs[8:10]
    both = np.array([cos[0] * cos[1] - sin[0] * sin[1], sin[0] * cos[1] + cos[0] * sin[1]])
    elbow = 0.11 * np.array([-both[1], both[0]])
    shoulder = elbow + 0.1 * np.array([-sin[0], cos[0]])
    return -3 * np.array([shoulder @ away, elbow @ away]) - 0.02 * speeds


class Rhythm(NamedTuple):
    """Every joint swings at one frequency."""

    frequency: float  # rad per step
    centre: list[float]
    swing: list[float]
    phase: list[float]

    def __call__(self, _obs: np.ndarray, step: int) -> np.ndarray:
        return np.array(self.centre) + np.array(self.swing) * np.sin(self.frequency * step + np.array(self.phase))


HOP = Rhythm(0.214, [0.41, 0.25, 0.0], [0.48, 0.55, 0.29], [2.88, 0.29, 5.1])
WALK = Rhythm(  # keeps Walker2d up for some three hundred steps
    0.597,
    [-0.03, 0.35, 0.13, 0.46, 0.47, 0.37],
    [0.18, 0.63, 0.43, 0.74, 0.21, 0.56],
    [1.8, 4.78, 1.22, 2.66, 3.0, 0.84],
)
GALLOP = Rhythm(
    0.597,
    [-0.41, -0.39, 0.41, -0.06, 0.07, 0.32],
    [0.38, 0.71, 0.18, 0.39, 0.14, 0.19],
    [3.85, 3.78, 2.39, 0.06, 2.82, 1.69],
)
SWIM = Rhythm(0.16, [0.0] * 2, [1.0] * 2, [0.0, -2.0])
CRAWL = Rhythm(0.3, [0.0] * 8, [0.6] * 8, [0.0, 1.6, 3.1, 4.7, 0.0, 1.6, 3.1, 4.7])

SKILL = {
    "InvertedPendulum-v5": balance_one,
    "InvertedDoublePendulum-v5": balance_two,
    "Pendulum-v1": swing_up,
    "Reacher-v5": reach,
    "Hopper-v5": HOP,
    "Walker2d-v5": WALK,
    "HalfCheetah-v5": GALLOP,
    "Swimmer-v5": SWIM,
    "Ant-v5": CRAWL,
}


class Steps(NamedTuple):
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray
    speed: np.ndarray  # that the simulator pays for; 0 where it does not


def play(task: Task, random_steps: int = RANDOM_STEPS, skilled_steps: int = SKILLED_STEPS) -> Steps:
    """Steps of random actions, of a skilled controller, and of that controller disturbed."""
    env, rng = task.make_env(), np.random.default_rng(0)
    skill, steps = SKILL[task.env_id], []
    for noise, count in ((None, random_steps), (0.0, skilled_steps), (0.3, skilled_steps)):
        obs, _ = env.reset(seed=1)
        time = 0
        for _ in range(count):
            drawn = rng.uniform(task.action_low, task.action_high)
            chosen = drawn if noise is None else skill(obs, time) + noise * drawn
            action = np.clip(chosen, task.action_low, task.action_high).astype(np.float32)
            next_obs, reward, terminated, truncated, info = env.step(action)
            steps.append((obs, action, reward, next_obs, terminated, info.get("x_velocity", 0.0)))
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


def seconds(task: Task) -> float:
    simulator: Any = task.make_env().unwrapped
    return float(simulator.dt)


def observed_speed(task: Task, steps: Steps) -> np.ndarray:
    """What the observed positions say of the speed, in double precision."""
    if not task.spec.positions:
        return np.zeros_like(steps.speed)
    return (steps.next_obs[:, 0] - steps.obs[:, 0]) / seconds(task)


def rounding(task: Task, steps: Steps) -> np.ndarray:
    """What float32 may cost: both positions rounded, then divided by the time step; some roundings of the rest."""
    allowed = EPS * (8 + 4 * np.abs(steps.reward))
    if task.spec.positions:
        allowed += EPS * np.maximum(np.abs(steps.obs[:, 0]), np.abs(steps.next_obs[:, 0])) / seconds(task)
    return allowed + OWN_ERROR.get(task.env_id, 0)


def test_steps_cover_ends_and_long_episodes(played):
    task, steps = played
    assert len(steps.reward) == RANDOM_STEPS + 2 * SKILLED_STEPS
    ends = np.flatnonzero(steps.terminated)
    assert (len(ends) == 0) == (task.env_id in ENDLESS)
    assert np.diff(ends, prepend=0, append=len(steps.reward)).max() > 150
    skilled = slice(RANDOM_STEPS, RANDOM_STEPS + SKILLED_STEPS)
    assert steps.reward[skilled].mean() > steps.reward[:RANDOM_STEPS].mean()


def test_known_termination_is_the_simulators(played):
    task, steps = played
    _, termination = known(task, steps)
    np.testing.assert_array_equal(termination, steps.terminated.astype(np.float32))


def test_known_reward_is_the_simulators(played):
    """For the observed speed, which is the simulator's own but for the Ant: see below."""
    task, steps = played
    reward, _ = known(task, steps)
    exact = steps.reward - steps.speed + observed_speed(task, steps)
    error = np.abs(reward - exact) / rounding(task, steps)
    assert error.max() < 1


def test_the_speed_that_is_paid_for_is_observed(played):
    task, steps = played
    error = observed_speed(task, steps) - steps.speed
    if task.env_id != "Ant-v5":
        np.testing.assert_allclose(error, 0, atol=1e-12)
        return
    starts = np.flatnonzero(np.any(steps.obs[1:] != steps.next_obs[:-1], axis=1)) + 1
    gained = [np.cumsum(episode) * seconds(task) for episode in np.split(error, starts)]
    assert len(gained) > 10
    assert max(np.abs(metres).max() for metres in gained) < LAST_STAGE
    assert np.abs(error).max() < 2 * LAST_STAGE / seconds(task)


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
        rows.append((obs, action, reward, next_obs, terminated, 0.0))
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


@pytest.mark.parametrize("env_id", TASKS)
def test_without_positions_an_observation_is_the_standard_one(env_id):
    task = make_task(env_id)
    ours, standard = task.make_env(), gym.make(env_id)
    (obs, _), (standard_obs, _) = ours.reset(seed=3), standard.reset(seed=3)
    for _ in range(20):
        np.testing.assert_array_equal(np.delete(obs, task.spec.positions), standard_obs)
        action = np.array(task.action_high, np.float32)
        obs, standard_obs = ours.step(action)[0], standard.step(action)[0]
    ours.close()
    standard.close()


@pytest.mark.parametrize("env_id", TRACKS)
def test_positions_come_first(env_id):
    task = make_task(env_id)
    env = task.make_env()
    env.reset(seed=0)
    obs, *_, info = env.step(np.array(task.action_high, np.float32))
    env.close()
    places = [info[name] for name in ("x_position", "y_position") if name in info]
    assert task.spec.positions == tuple(range(len(places)))
    assert obs[: len(places)].tolist() == places


@pytest.mark.parametrize("env_id", TRACKS)
def test_reward_does_not_depend_on_where_a_body_is(env_id):
    task = make_task(env_id)
    steps = play(task, 100, 100)
    along = np.zeros(task.obs_size)
    along[list(task.spec.positions)] = [1, 2][: len(task.spec.positions)]
    shifted = steps._replace(obs=steps.obs + along, next_obs=steps.next_obs + along)
    for here, there in zip(known(task, steps), known(task, shifted), strict=True):
        np.testing.assert_allclose(here, there, atol=1e-4)


def test_ants_contact_forces_are_felt_and_paid_for():
    task = make_task("Ant-v5")
    steps = play(task, 1000, 0)
    contact = steps.next_obs[:, 29:]
    assert contact.shape[1] == 78 and np.abs(contact).max() == 1
    reward, _ = known(task, steps)
    beyond = steps._replace(next_obs=np.where(np.abs(steps.next_obs) == 1, 3 * steps.next_obs, steps.next_obs))
    without = steps._replace(next_obs=np.concatenate([steps.next_obs[:, :29], 0 * contact], axis=1))
    np.testing.assert_allclose(known(task, beyond)[0], reward, atol=1e-6)
    np.testing.assert_allclose(known(task, without)[0] - reward, 5e-4 * np.sum(contact**2, axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("env_id", "obs_size", "action_size", "highest"),
    [
        ("InvertedPendulum-v5", 4, 1, 3.0),
        ("InvertedDoublePendulum-v5", 9, 1, 1.0),
        ("Pendulum-v1", 3, 1, 2.0),
        ("Reacher-v5", 10, 2, 1.0),
        ("Hopper-v5", 12, 3, 1.0),
        ("Walker2d-v5", 18, 6, 1.0),
        ("HalfCheetah-v5", 18, 6, 1.0),
        ("Swimmer-v5", 10, 2, 1.0),
        ("Ant-v5", 107, 8, 1.0),
    ],
)
def test_tasks_know_their_sizes_and_boxes(env_id, obs_size, action_size, highest):
    task = make_task(env_id)
    assert (task.obs_size, task.action_size) == (obs_size, action_size)
    assert task.action_low == (-highest,) * action_size and task.action_high == (highest,) * action_size


@pytest.mark.parametrize("env_id", [env_id for env_id, spec in TASKS.items() if spec.angles])
def test_a_turn_more_of_an_angle_without_bounds_changes_nothing(env_id):
    """Steps from both lead equally far, and earn the same, up to what MuJoCo's solver makes of the rounding."""
    task, rng = make_task(env_id), np.random.default_rng(0)
    envs: list[Any] = [task.make_env(), task.make_env()]
    turn = np.zeros(task.obs_size)
    turn[list(task.spec.angles)] = 2 * np.pi
    for _ in range(20):
        for env in envs:
            env.reset(seed=3)
        plant = envs[0].unwrapped
        positions = plant.data.qpos + rng.normal(size=plant.model.nq)
        speeds = rng.normal(size=plant.model.nv)
        action = rng.uniform(task.action_low, task.action_high).astype(np.float32)
        outcomes = []
        for env, turned in zip(envs, (0.0, turn[: plant.model.nq]), strict=True):
            env.unwrapped.set_state(positions + turned, speeds)
            outcomes.append(env.step(action)[:2])
        (obs, reward), (turned_obs, turned_reward) = outcomes
        np.testing.assert_allclose(turned_obs - turn, obs, atol=1e-6)
        np.testing.assert_allclose(turned_reward, reward, atol=1e-6)
