"""Environments of every kind of Box: found by name or handed over, flattened, bounded, judged by one's own goal."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import Box

from soft_mpcritic.config import ConfigError
from soft_mpcritic.envs import TASKS, EnvVector, make_task
from soft_mpcritic.envs.adapt import EPISODE_STEPS
from soft_mpcritic.parts import Parts, name_of
from soft_mpcritic.planning import GaussianPrior
from soft_mpcritic.video import SideView


class PointMass(gym.Env):
    """Pushed about in the plane, with actions that may not leave their box by a bit."""

    observation_space = Box(-np.inf, np.inf, (4,), np.float64)
    action_space = Box(-2, 5, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.concatenate([self.np_random.uniform(-1, 1, 2), np.zeros(2)])
        return self.state.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.state[2:] += 0.1 * action
        self.state[:2] += 0.1 * self.state[2:]
        return self.state.copy(), -float(self.state[:2] @ self.state[:2]), False, False, {}


class Shaped(gym.Env):
    """Observes and acts in spaces of any shape; what it is told to do comes back in `info`."""

    def __init__(self, observation: spaces.Space, action: spaces.Space) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.told = action
        return self.observation_space.sample(), 1.0, False, False, {}


def flattened(space: spaces.Space, value: Any) -> np.ndarray:
    return np.asarray(spaces.flatten(space, value))


def told(env: gym.Env) -> Any:
    """The last action that a shaped environment was given, in its own shape."""
    return getattr(env.unwrapped, "told")  # noqa: B009


UNIT = Box(-1, 1, (2,), np.float32)
MANY = spaces.Dict(
    {
        "whole": Box(0, 9, (2, 2), np.int64),
        "real": spaces.Tuple([Box(-np.inf, np.inf, (), np.float64), spaces.Discrete(3)]),
    }
)


def test_an_environment_handed_over_is_a_task():
    task = make_task("mine", parts=Parts(env=PointMass))
    assert (task.env_id, task.obs_size, task.action_low, task.action_high) == ("mine", 4, (-2.0, -2.0), (5.0, 5.0))
    assert task.unknowns == ("reward", "termination")


def test_one_that_is_named_by_module_and_class_is_the_same():
    assert make_task(name_of(PointMass)).obs_size == 4
    with pytest.raises(ConfigError, match="has no class or function 'Nothing' either"):
        make_task(f"{__name__}:Nothing")
    with pytest.raises(ConfigError, match=r"must make a gymnasium.Env, got int: return an environment"):
        make_task("number", parts=Parts(env=lambda **_: 3))


@pytest.mark.parametrize(
    ("observation", "size"),
    [
        (MANY, 8),
        (Box(-1, 1, (2, 3, 4), np.float64), 24),
        (Box(0, 255, (5,), np.uint8), 5),
        (Box(-1, 1, (), np.float32), 1),
        (spaces.Discrete(5), 5),
        (spaces.Tuple([UNIT, UNIT]), 4),
    ],
    ids=str,
)
def test_observations_of_any_shape_become_vectors(observation, size):
    task = make_task("shaped", parts=Parts(env=lambda: Shaped(observation, UNIT)))
    assert task.obs_size == size
    envs, same = EnvVector(task, 2), Shaped(observation, UNIT)
    first = envs.reset(3)
    assert first.shape == (2, size) and first.dtype == np.float32
    np.testing.assert_allclose(first[0], flattened(observation, same.reset(seed=3)[0]), rtol=1e-6)
    assert envs.step(np.zeros((2, 2))).next_obs.shape == (2, size)
    envs.close()


@pytest.mark.parametrize(
    "action",
    [
        Box(-2, 5, (2, 3), np.float32),
        Box(0.1, 0.7, (), np.float64),
        Box(np.array([-0.3, -0.1], np.float32), np.array([0.9, 0.2], np.float32), dtype=np.float32),
        spaces.Dict({"left": Box(-1, 1, (2,), np.float32), "right": Box(0, 3, (1,), np.float32)}),
    ],
    ids=str,
)
def test_actions_of_any_shape_arrive_in_their_box(action):
    task = make_task("shaped", parts=Parts(env=lambda: Shaped(UNIT, action)))
    assert task.action_size == spaces.flatdim(action)
    env = task.make_env()
    env.reset(seed=0)
    low, high = (np.asarray(bound, np.float32) for bound in (task.action_low, task.action_high))
    for share in (0.0, 0.3, 1.0):
        env.step(low + np.float32(share) * (high - low))
        np.testing.assert_allclose(flattened(action, told(env)), low + share * (high - low), rtol=1e-6)


def test_only_those_without_a_time_limit_get_one():
    own = make_task("mine", parts=Parts(env=PointMass)).make_env()
    own.reset(seed=0)
    ends = [own.step(np.zeros(2, np.float32))[3] for _ in range(EPISODE_STEPS)]
    assert ends[-1] and not any(ends[:-1])
    limited = make_task("mine", parts=Parts(env=lambda: gym.make("Pendulum-v1"))).make_env()
    assert limited.spec is not None and limited.spec.max_episode_steps == 200


def test_the_remedy_for_infinite_bounds_is_one():
    endless = Box(-np.inf, np.inf, (2,), np.float32)
    bounded = gym.wrappers.TransformAction(Shaped(UNIT, endless), lambda a: a, Box(-1, 1, (2,)))
    assert make_task("bounded", parts=Parts(env=lambda: bounded)).action_high == (1.0, 1.0)


# ------------------------------------------------------------------ a goal of one's own


def far(obs, action, next_obs):
    return next_obs[:, 0] - 0.1 * action[:, 0] + 10 * obs[:, 1]


def lost(obs, action, next_obs):
    return (next_obs[:, 0] > 1).astype(jnp.float32)


@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_reward_and_an_end_of_ones_own_are_what_the_environments_answer(vectorization):
    task = make_task("mine", parts=Parts(env=PointMass, reward=far, termination=lost))
    assert task.unknowns == ()
    envs, plain = EnvVector(task, 2, vectorization), EnvVector(make_task("mine", parts=Parts(env=PointMass)), 2)
    obs = envs.reset(0)
    np.testing.assert_array_equal(obs, plain.reset(0))
    ended = 0
    for _ in range(12):
        action = np.array([[5.0, -2.0], [0.0, 0.0]])
        got, bare = envs.step(action), plain.step(action)
        if not ended:
            np.testing.assert_allclose(got.next_obs, bare.next_obs)
        np.testing.assert_allclose(got.reward, got.next_obs[:, 0] - 0.1 * action[:, 0] + 10 * obs[:, 1], rtol=1e-5)
        np.testing.assert_array_equal(got.terminated, got.next_obs[:, 0] > 1)
        ended += int(got.terminated.sum())
        obs = got.start_obs
    assert ended
    envs.close()
    plain.close()


class SameArray(gym.Env):
    """Counts its steps in one array, which every observation is; raises at the third."""

    observation_space, action_space = Box(0, 9, (1,), np.float32), Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.count = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count[:] = 0
        return self.count, {}

    def step(self, action):
        if self.count[0] == 2:
            raise ValueError("motor on fire")
        self.count += 1
        return self.count, 0.0, False, False, {}


def counted(obs, action, next_obs):
    return 10 * obs[:, 0] + next_obs[:, 0]


def test_a_reward_sees_both_observations_of_an_environment_that_has_one_array_for_all():
    env = make_task("same", parts=Parts(env=SameArray, reward=counted)).make_env()
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[1] for _ in range(2)] == [1.0, 12.0]
    env.reset(seed=0)
    assert env.step(np.zeros(1, np.float32))[1] == 1.0


def test_a_time_limit_of_ones_own_may_be_longer_than_ours():
    env = make_task("long", parts=Parts(env=lambda: gym.wrappers.TimeLimit(PointMass(), EPISODE_STEPS + 2))).make_env()
    env.reset(seed=0)
    cut = [env.step(np.zeros(2, np.float32))[3] for _ in range(EPISODE_STEPS + 2)]
    assert cut == [False] * (EPISODE_STEPS + 1) + [True]
    env.close()


def test_a_known_end_stays_beside_ones_own():
    env_id = "InvertedPendulum-v5"
    task = make_task(env_id, parts=Parts(termination=lost))
    rows = jnp.array([[0.0, 0.0, 0, 0], [0.0, 0.3, 0, 0], [2.0, 0.0, 0, 0]])
    np.testing.assert_array_equal(task.spec.termination(rows, rows[:, :1], rows), [0, 1, 1])
    assert task.spec.reward is TASKS[env_id].reward
    assert make_task(env_id, parts=Parts(reward=far)).spec.termination is TASKS[env_id].termination


def with_numpy(obs, action, next_obs):
    return np.linalg.norm(np.asarray(obs), axis=-1)


def with_if(obs, action, next_obs):
    return obs[:, 0] if obs[0, 0] > 0 else obs[:, 1]


def a_column(obs, action, next_obs):
    return obs[:, :1]


def one_number(obs, action, next_obs):
    return jnp.sum(obs)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (with_numpy, ("with_numpy cannot be traced by JAX", "TracerArrayConversionError", "jax.numpy")),
        (with_if, ("with_if cannot be traced by JAX", "jnp.where instead of if")),
        (a_column, ("a_column must return shape (11,)", "(11, 4), (11, 2), (11, 4)", "got (11, 1)")),
        (one_number, ("one_number must return shape (11,)", "got ()")),
        (lambda obs, action: obs, ("<lambda> cannot be traced", "TypeError")),
        (lambda *rows: None, ("<lambda> must return shape (11,)", "got NoneType")),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("role", ["reward", "termination"])
def test_a_goal_that_does_not_fit_is_refused_by_name(role, function, words):
    with pytest.raises(ConfigError) as caught:
        make_task("mine", parts=Parts(env=PointMass, **{role: function}))
    text = str(caught.value)
    assert text.startswith(role) and "\n" not in text
    assert all(word in text for word in words), text


@dataclass  # not frozen: such objects cannot be hashed
class Weighted:
    weight: float

    def __call__(self, obs, action, next_obs):
        return self.weight * obs[:, 0]


def test_a_goal_that_cannot_be_hashed_is_refused_with_a_way_out():
    goal = Weighted(2.0)
    with pytest.raises(ConfigError, match=r"Weighted\(weight=2.0\) must be hashable, .*: give a lambda that calls it"):
        make_task("mine", parts=Parts(env=PointMass, reward=goal))
    assert make_task("mine", parts=Parts(env=PointMass, reward=lambda *rows: goal(*rows))).judged


def test_names_of_parts_tell_their_parameters():
    """So a run is not gone on with by a prior of another width."""
    names = [Parts(prior=GaussianPrior(variance)).names.prior for variance in (0.1, 0.2)]
    assert names == [f"{GaussianPrior.__module__}:GaussianPrior(variance={v})" for v in (0.1, 0.2)]
    assert Parts(risk=RunningMean()).names.risk == f"{__name__}:RunningMean(..)"


class RunningMean:
    def __call__(self, returns):
        return jnp.mean(returns, axis=0)


def test_parts_of_ones_own_are_for_the_host():
    with pytest.raises(ConfigError, match=r"parts of one's own \(reward\) need environments on the host"):
        make_task("Pendulum-v1", "device", Parts(reward=far))


def test_parts_are_found_by_their_names_again():
    names = Parts(reward=far, nominal=lambda obs, action: obs).names
    assert names.reward == f"{__name__}:far" and names.termination == ""
    assert Parts().filled(type(names)(reward=names.reward)).reward is far
    assert Parts(reward=lost).filled(type(names)(reward=names.reward)).reward is lost
    with pytest.raises(ConfigError, match=r"nominal .*<lambda>' cannot be found by its name.*Run.load"):
        Parts().filled(names)
    for name, told in (("no_module:f", "cannot be imported"), (f"{__name__}:f", "has no f"), ("f", "module:name")):
        with pytest.raises(ConfigError, match=told):
            Parts().filled(type(names)(reward=name))


# ------------------------------------------------------------------ dm_control


def test_a_task_of_dm_control_is_relived_from_its_snapshot():
    task = make_task("dm_control/cartpole-swingup")
    assert (task.obs_size, task.action_low, task.action_high) == (5, (-1.0,), (1.0,))
    envs, again = EnvVector(task, 2), EnvVector(task, 2)
    np.testing.assert_array_equal(envs.reset(1), again.reset(1))
    assert not np.array_equal(envs.reset(2), again.reset(3))
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 2, 1))
    here = [envs.step(action) for action in actions][-1].start_obs
    np.testing.assert_array_equal(again.restore(envs.snapshot()), here)
    one, other = envs.step(actions[0]), again.step(actions[0])
    np.testing.assert_array_equal(one.next_obs, other.next_obs)
    assert np.all((one.reward >= 0) & (one.reward <= 1))
    envs.close()
    again.close()


def test_a_task_of_dm_control_can_be_drawn_without_opengl():
    """The drawing ends higher up with the pole upright than with the pole hanging."""
    env = make_task("dm_control/cartpole-swingup").make_env()
    env.reset(seed=0)
    inner: Any = env.unwrapped
    view, highest = SideView(inner), {}
    for angle in (0.0, np.pi):
        inner.data.qpos[:] = (0, angle)
        mujoco.mj_forward(inner.model, inner.data)  # pyright: ignore[reportAttributeAccessIssue]
        highest[angle] = np.nonzero(np.any(view() != view()[0, 0], axis=-1))[0].min()
    env.close()
    assert highest[0.0] < highest[np.pi] - 20


def test_a_task_that_dm_control_has_not_is_refused_with_those_that_it_has():
    with pytest.raises(ConfigError, match=r"'cartpole-jump' is not in the suite.*cartpole-swingup"):
        make_task("dm_control/cartpole-jump")
    with pytest.raises(ConfigError, match="finite bounds"):
        make_task("dm_control/lqr-lqr_2_1")
