"""Device environments: Gymnasium's step by step, mechanics on paper, and episodes that end as they should."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.compilation import jit
from soft_mpcritic.config import ConfigError
from soft_mpcritic.envs import DEVICE_TASKS, TASKS, DeviceVector, make_device_env, make_task, make_vector
from soft_mpcritic.envs.device.mjx import MJX_TASKS, MjxEnv
from soft_mpcritic.envs.device.pendulums import TRACK, CartPoleState, CartPoleSwingUp, Pendulum, PendulumState
from soft_mpcritic.envs.device.vector import Outcome

# What one step in float32 may differ by from the simulator's in float64, from the same state. A step is 16 to 20
# evaluations of the dynamics, and every one rounds by 6e-8; stiff limits and contacts, whose forces change a lot over
# little, raise that in the joint speeds. Rewards: and the known reward's own error (test_tasks).
OBS_TOLERANCE = {"InvertedDoublePendulum-v5": 5e-3, "Hopper-v5": 1e-4, "HalfCheetah-v5": 5e-3}
REWARD_TOLERANCE = {"InvertedDoublePendulum-v5": 2e-5, "Hopper-v5": 1e-4}
MJX = list(MJX_TASKS)
MUJOCO = [env_id for env_id in TASKS if env_id != "Pendulum-v1"]
QUICK = "InvertedDoublePendulum-v5"


class Steps(NamedTuple):
    position: np.ndarray
    speed: np.ndarray
    action: np.ndarray
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray


def simulate(env_id: str, count: int) -> Steps:
    """Steps of random behaviour, half of its episodes thrown into them, from states that float32 holds exactly."""
    task, rng = make_task(env_id), np.random.default_rng(0)
    env = task.make_env()
    simulator: Any = env.unwrapped
    env.reset(seed=0)
    rows = []
    while len(rows) < count:
        position, speed = (np.float32(x) for x in (simulator.data.qpos, simulator.data.qvel))
        simulator.set_state(position.astype(float), speed.astype(float))
        action = rng.uniform(task.action_low, task.action_high).astype(np.float32)
        obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((position, speed, action, obs, reward, terminated))
        if terminated or truncated:
            env.reset()
            thrown = rng.integers(2) * rng.normal(size=simulator.model.nv)
            along = rng.uniform(-1, 1) * np.eye(simulator.model.nq)[0]  # the double pendulum's cart meets its limits
            simulator.set_state(simulator.data.qpos + along, simulator.data.qvel + thrown)
    env.close()
    return Steps(*(np.array(column) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize(
    "env_id", [env_id if env_id == QUICK else pytest.param(env_id, marks=pytest.mark.slow) for env_id in MJX]
)
def test_a_mujoco_step_is_gymnasiums(env_id, optimized):
    env = make_device_env(env_id, "mjx")
    assert isinstance(env, MjxEnv)
    steps = simulate(env_id, 2000 if env_id == QUICK else 1000)
    step = jax.jit(jax.vmap(lambda position, speed, action: env.step(env.state_at(position, speed), action)))
    outcome = step(steps.position, steps.speed, steps.action)
    np.testing.assert_allclose(outcome.obs, steps.obs, rtol=0, atol=OBS_TOLERANCE.get(env_id, 1e-3))
    if env_id == QUICK:
        free = steps.obs[:, 8] == 0  # of the stiff forces at the ends of its track
        assert np.sum(~free) > 50
        np.testing.assert_allclose(outcome.obs[free], steps.obs[free], rtol=0, atol=5e-5)
    np.testing.assert_array_equal(outcome.terminated, steps.terminated)
    np.testing.assert_allclose(outcome.reward, steps.reward, rtol=0, atol=REWARD_TOLERANCE.get(env_id, 1e-3))


@pytest.mark.parametrize("env_id", MUJOCO)
def test_an_episode_by_the_simulator_is_gymnasiums_to_the_bit(env_id):
    """Two episodes, stepped together in one compiled call and so in turns by one simulator."""
    env, keys = make_device_env(env_id), jax.random.split(jax.random.key(0))
    theirs: Any = [make_task(env_id).make_env() for _ in keys]
    states, obs = jax.jit(jax.vmap(env.reset))(keys)
    step, rng, running = jax.jit(jax.vmap(env.step)), np.random.default_rng(0), [True, True]
    for index, (gymnasium_env, key) in enumerate(zip(theirs, keys, strict=True)):
        first, _ = gymnasium_env.reset(seed=int(jax.random.bits(key)))
        np.testing.assert_array_equal(obs[index], first.astype(np.float32))
    for _ in range(min(env.max_steps, 200)):
        actions = [e.action_space.sample() for e in theirs] if rng.integers(2) else [theirs[0].action_space.high] * 2
        outcome = step(states, np.stack(actions).astype(np.float32))
        states = outcome.state
        for index in np.flatnonzero(running):
            next_obs, reward, terminated, truncated, _ = theirs[index].step(np.float32(actions[index]))
            np.testing.assert_array_equal(outcome.obs[index], next_obs.astype(np.float32))
            assert outcome.reward[index] == np.float32(reward) and bool(outcome.terminated[index]) == terminated
            running[index] = not (terminated or truncated)
    assert env.max_steps == theirs[0].spec.max_episode_steps
    assert env.step_bytes > 100


def test_the_next_first_state_is_drawn_once():
    """It is asked for at every step: the same one until an episode ends, and then another."""
    vector = DeviceVector(make_device_env("InvertedDoublePendulum-v5"), 1)
    step = jax.jit(vector.step)
    state, _ = vector.reset(jax.random.key(0))
    started, keys = [], [state.key]
    for _ in range(60):
        state, experience = step(state, jnp.ones((1, 1)))
        keys.append(state.key)
        if experience.done[0]:
            started.append(np.asarray(experience.start_obs[0]))
        assert (keys[-1] == keys[-2]).all() == (not experience.done[0])
    assert len(started) > 3 and len(np.unique(started, axis=0)) == len(started)


def test_first_states_are_drawn_while_others_are_stepped():
    """From two threads, as a compiled step may do it; each answers as it does alone."""
    env, key = make_device_env("Walker2d-v5"), jax.random.key(0)
    step, reset = jax.jit(env.step), jax.jit(env.reset)
    state, _ = reset(key)
    alone = [np.asarray(leaf) for leaf in step(state, jnp.ones(6))]
    keys = jax.random.split(key, 100)
    with ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(lambda: [np.asarray(reset(one)[1]) for one in keys])
        for _ in range(100):
            for one, other in zip(step(state, jnp.ones(6)), alone, strict=True):
                np.testing.assert_array_equal(one, other)
    fresh = jax.jit(make_device_env("Walker2d-v5").reset)
    for one, obs in zip(keys, drawn.result(), strict=True):
        np.testing.assert_array_equal(fresh(one)[1], obs)


def test_a_task_that_the_port_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="simulator must be mujoco for Ant-v5, got 'mjx'"):
        make_device_env("Ant-v5", "mjx")


@pytest.mark.parametrize("env_id", MJX)
def test_first_states_are_drawn_as_by_gymnasium(env_id):
    """Mean, spread and range of first observations; 4 standard errors of 2,000 draws each."""
    env, gymnasium_env = make_device_env(env_id, "mjx"), make_task(env_id).make_env()
    _, ours = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 2000))
    theirs = np.array([gymnasium_env.reset(seed=seed)[0] for seed in range(2000)])
    gymnasium_env.close()
    spread = theirs.std(0)
    np.testing.assert_array_less(np.abs(np.mean(ours, axis=0) - theirs.mean(0)), 4 * spread / np.sqrt(1000) + 1e-6)
    np.testing.assert_allclose(np.std(ours, axis=0), spread, rtol=0.1, atol=1e-6)
    np.testing.assert_allclose(
        np.max(ours, axis=0) - np.min(ours, axis=0), np.ptp(theirs, axis=0), rtol=0.25, atol=1e-5
    )


def test_pendulum_is_gymnasiums_over_whole_episodes():
    env, ours = make_task("Pendulum-v1").make_env(), Pendulum(TASKS["Pendulum-v1"])
    simulator: Any = env.unwrapped
    rng, step = np.random.default_rng(0), jax.jit(ours.step)
    for seed in range(5):
        env.reset(seed=seed)
        truncated = False
        state = PendulumState(*jnp.asarray(simulator.state, jnp.float32))
        for _ in range(200):
            action = rng.uniform(-2.5, 2.5, 1).astype(np.float32)
            state = state._replace(angle=jnp.float32(simulator.state[0]), speed=jnp.float32(simulator.state[1]))
            obs, reward, terminated, truncated, _ = env.step(action)
            outcome = step(state, action)
            np.testing.assert_allclose(outcome.obs, obs, atol=2e-5)  # speeds of up to 8, angles of up to 80
            np.testing.assert_allclose(outcome.reward, float(reward), atol=1e-4)
            assert not terminated and not bool(outcome.terminated)
        assert truncated and ours.max_steps == 200
    env.close()


def energy(env: CartPoleSwingUp, state: CartPoleState) -> jax.Array:
    """Kinetic and potential, of a cart and a uniform rod about its end."""
    mass, length = env.pole, env.half_length
    kinetic = 0.5 * (env.cart + mass) * state.speed**2 + 0.5 * (4 / 3) * mass * length**2 * state.spin**2
    return (
        kinetic
        + mass * length * (state.speed * state.spin) * jnp.cos(state.angle)
        + (mass * env.gravity * length * jnp.cos(state.angle))
    )


def momentum(env: CartPoleSwingUp, state: CartPoleState) -> jax.Array:
    """Of cart and pole, along the track."""
    return (env.cart + env.pole) * state.speed + env.pole * env.half_length * state.spin * jnp.cos(state.angle)


@pytest.mark.parametrize("seed", range(5))
def test_cart_poles_energy_and_momentum_change_as_the_force_says(seed):
    """dE/dt = F v and dp/dt = F, along the equations of motion."""
    env, numbers = CartPoleSwingUp(), jax.random.normal(jax.random.key(seed), (5,))
    state, force = CartPoleState(*numbers[:4]), 10 * numbers[4]
    slope = env.slope(state, force)
    for quantity, rate in ((energy, force * state.speed), (momentum, force)):
        _, change = jax.jvp(lambda s, quantity=quantity: quantity(env, s), (state,), (slope,))
        np.testing.assert_allclose(change, rate, rtol=1e-4, atol=1e-4)


def test_a_free_cart_pole_keeps_its_energy_for_an_episode():
    env = CartPoleSwingUp()
    start = CartPoleState(*jnp.array([0.0, 2.0, 0.0, 0.0]))
    end, _ = jax.lax.scan(lambda s, _: (env.step(s, jnp.zeros(1)).state, None), start, length=250)
    assert abs(float(energy(env, end) - energy(env, start))) < 1e-3  # of a range of 1 J


def test_the_swing_up_ends_at_the_end_of_the_track_only():
    env = CartPoleSwingUp()
    near = CartPoleState(*jnp.array([TRACK - 0.01, 3.0, 1.0, 0.0]))
    assert bool(env.step(near, jnp.ones(1)).terminated)
    assert not bool(env.step(near._replace(speed=jnp.float32(-1)), jnp.ones(1)).terminated)
    assert env.step(near._replace(angle=jnp.float32(0)), jnp.zeros(1)).reward > 0.99


class Counter:
    """Counts its steps from a random start in [0, 0.5); ends by itself at 5."""

    max_steps, step_bytes = 3, 4

    def reset(self, key):
        state = 0.5 * jax.random.uniform(key, ())
        return state, state[None]

    def step(self, state, action):
        state = state + action[0]
        return Outcome(state, state[None], action[0], state >= 5)


def test_episodes_end_and_start_within_a_step():
    vector = DeviceVector(Counter(), 2)
    state, first = vector.reset(jax.random.key(0))
    actions = jnp.array([[1.0], [5.0]])  # the first runs into its time limit, the second ends by itself
    done, obs = [], first
    for _ in range(4):
        state, experience = jit(vector.step)(state, actions)
        np.testing.assert_allclose(experience.next_obs, obs + actions, rtol=1e-6)
        np.testing.assert_array_equal(experience.terminated, [False, True])
        kept = ~np.asarray(experience.done)
        np.testing.assert_array_equal(experience.start_obs[kept], experience.next_obs[kept])
        assert np.all(np.asarray(experience.start_obs)[~kept] < 0.5)
        done.append(np.asarray(experience.done).tolist())
        obs = experience.start_obs
    assert done == [[False, True], [False, True], [True, True], [False, True]]
    assert len(np.unique(first)) == 2  # every environment and every episode draws its own start


@pytest.mark.parametrize(("limit", "length"), [(0, 3), (2, 2), (9, 3)])
def test_episodes_can_be_cut_before_the_task_ends_them(limit, length):
    vector = DeviceVector(Counter(), 1)
    state, _ = vector.reset(jax.random.key(0))
    done = []
    for _ in range(6):
        state, experience, _ = jit(vector.guarded_step)(state, jnp.ones((1, 1)), jnp.array(limit))
        assert not experience.terminated[0]
        done.append(bool(experience.done[0]))
    assert done == [(time + 1) % length == 0 for time in range(6)]


def test_snapshots_bring_a_vector_back_to_the_bit():
    vector = DeviceVector(make_device_env("CartPoleSwingUp"), 3)
    step, actions = jit(vector.step), jnp.full((3, 1), 0.3)
    state, _ = vector.reset(jax.random.key(1))
    for _ in range(5):
        state, _ = step(state, actions)
    again = vector.restore(vector.snapshot(state))
    for _ in range(3):
        (state, one), (again, other) = step(state, actions), step(again, actions)
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_hosted_episode_depends_on_its_own_seed_only():
    task = make_task("CartPoleSwingUp", "device")
    alone, several = make_vector(task, 1), make_vector(task, 3)
    np.testing.assert_array_equal(alone.reset(7)[0], several.reset(5)[2])
    one, many = alone.step(np.ones((1, 1), np.float32)), several.step(np.ones((3, 1), np.float32))
    np.testing.assert_allclose(one.next_obs[0], many.next_obs[2], rtol=1e-6)


def test_every_device_task_is_a_task():
    for env_id in DEVICE_TASKS:
        task = make_task(env_id, "device")
        _, obs = jax.eval_shape(make_device_env(env_id).reset, jax.random.key(0))
        assert obs.shape == (task.obs_size,) and obs.dtype == jnp.float32
        assert task.has_gymnasium == (env_id in gym.registry)
