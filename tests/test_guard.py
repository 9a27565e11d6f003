"""Environments that do what they must not, and what a vector makes of it."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jaxtyping
import numpy as np
import pytest
from gymnasium.spaces import Box

from soft_mpcritic.envs import TASKS, EnvironmentFaultError, EnvVector, make_task
from soft_mpcritic.envs.tasks import TaskSpec

SIZE, LENGTH, AT = 3, 6, 4
GOOD = np.arange(SIZE, dtype=np.float32)


class Moody(gym.Env):
    """Answers step `AT` of its first episode in the way it was told to; else it is sound for `LENGTH` steps."""

    observation_space = Box(-np.inf, np.inf, (SIZE,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    answer: Callable[["Moody"], Any] = staticmethod(lambda env: env.sound())
    first: Callable[["Moody"], Any] = staticmethod(lambda env: (GOOD, {}))
    made = 0

    def __init__(self) -> None:
        Moody.made += 1
        self.episodes = self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes, self.time = self.episodes + 1, 0
        return type(self).first(self)

    def step(self, action):
        self.time += 1
        if self.episodes == 1 and self.time == AT:
            return type(self).answer(self)
        return self.sound()

    def sound(
        self, obs: Any = GOOD, reward: Any = 1.0, terminated: Any = False, truncated: Any = False, info: Any = None
    ):
        return obs, reward, terminated or self.time == LENGTH, truncated, info or {}


@pytest.fixture(autouse=True)
def as_for_users(monkeypatch) -> None:
    """No run-time check of types complains before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def moody(monkeypatch):
    gym.register("Moody-v0", entry_point=lambda **_: Moody(), max_episode_steps=50)
    monkeypatch.setitem(TASKS, "Moody-v0", TaskSpec(lambda *rows: rows[0][:, 0], lambda *rows: rows[0][:, 0]))
    monkeypatch.setattr(Moody, "made", 0)
    yield make_task("Moody-v0")
    gym.registry.pop("Moody-v0")


def raises(error: Exception) -> Callable[[Any], Any]:
    def answer(env):
        raise error

    return answer


def hangs(env: Moody):
    time.sleep(5)
    return env.sound()


FAULTS = {
    "nan observation": (lambda env: env.sound(GOOD * np.nan), "component 0 of the observation of environment 0 is nan"),
    "inf observation": (lambda env: env.sound(GOOD + np.inf), "component 0 of the observation of environment 0 is inf"),
    "huge observation": (lambda env: env.sound(GOOD * 1e16), "component 1 of the observation of environment 0 is 1"),
    "nan reward": (lambda env: env.sound(reward=np.nan), "the reward of environment 0 is nan"),
    "inf reward": (lambda env: env.sound(reward=np.float32(-np.inf)), "the reward of environment 0 is -inf"),
    "huge reward": (lambda env: env.sound(reward=1e300), "the reward of environment 0 is 1e+300"),
    "no reward": (lambda env: env.sound(reward=None), "the reward of environment 0 is None, not a number"),
    "reward of a wrong shape": (lambda env: env.sound(reward=[1, 2]), "the reward of environment 0 is [1, 2]"),
    "wrong shape": (lambda env: env.sound(np.zeros(4)), "of environment 0 has shape (4,) instead of (3,)"),
    "no shape": (lambda env: env.sound(0.0), "of environment 0 has shape () instead of (3,)"),
    "wrong dtype": (lambda env: env.sound(np.array(["a", "b", "c"])), "of environment 0 has dtype <U1"),
    "objects": (lambda env: env.sound(np.array([None] * 3)), "of environment 0 has dtype object"),
    "ragged": (lambda env: env.sound([[1], [2, 3], 4]), "environment 0 raised ValueError"),
    "too few answers": (lambda env: env.sound()[:4], "environment 0 raised ValueError: not enough values"),
    "an end that is none": (lambda env: env.sound(terminated=np.ones(2)), "environment 0 raised ValueError"),
    "raises": (raises(KeyError("motor")), "environment 0 raised KeyError: 'motor' (line "),
    "raises without words": (raises(RuntimeError()), "environment 0 raised RuntimeError (line "),
    "raises many lines": (raises(RuntimeError("a\nb")), "environment 0 raised RuntimeError: a b (line "),
}


@pytest.mark.parametrize(("answer", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_cuts_the_episode_and_is_named(moody, monkeypatch, answer, words):
    monkeypatch.setattr(Moody, "answer", staticmethod(answer))
    envs = EnvVector(moody, 1, forgiving=True)
    envs.reset(0)
    for step in range(1, 12):
        experience = envs.step(np.zeros((1, 1)))
        for part in experience:
            assert np.isfinite(part).all()
        if step == AT:
            assert list(envs.faults) == [0] and words in str(envs.faults[0]) and "\n" not in str(envs.faults[0])
            assert bool(envs.faults[0].trace) == ("raised" in words)
            assert bool(experience.done[0]) and not experience.terminated[0]
        else:
            assert envs.faults == {}
            assert bool(experience.done[0]) == (step == AT + LENGTH)
    envs.close()


@pytest.mark.parametrize(("answer", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_who_does_not_forgive_raises(moody, monkeypatch, answer, words):
    monkeypatch.setattr(Moody, "answer", staticmethod(answer))
    envs = EnvVector(moody, 1)
    envs.reset(0)
    for _ in range(AT - 1):
        envs.step(np.zeros((1, 1)))
    with pytest.raises(EnvironmentFaultError) as caught:
        envs.step(np.zeros((1, 1)))
    assert words in str(caught.value)
    envs.close()


def test_answers_of_odd_kinds_that_mean_something_are_taken(moody, monkeypatch):
    answer = [0, 1, 2], np.array([2]), np.array(False), 0, {"info": object(), "other": np.zeros(2)}
    monkeypatch.setattr(Moody, "answer", staticmethod(lambda env: answer))
    envs = EnvVector(moody, 1)
    envs.reset(0)
    experience = [envs.step(np.zeros((1, 1))) for _ in range(AT)][-1]
    assert experience.reward[0] == 2 and experience.next_obs.dtype == np.float32
    np.testing.assert_array_equal(experience.next_obs[0], GOOD)
    envs.close()


def test_a_fault_of_one_environment_leaves_the_others_alone(moody, monkeypatch):
    monkeypatch.setattr(Moody, "answer", staticmethod(lambda env: env.sound(reward=np.nan if env.made_first else 1.0)))
    monkeypatch.setattr(Moody, "made_first", property(lambda env: env is first[0]), raising=False)
    first: list[Any] = []
    envs = EnvVector(moody, 3, forgiving=True)
    first.append(envs.first_env.unwrapped)
    envs.reset(0)
    steps = [(envs.step(np.zeros((3, 1))), dict(envs.faults)) for _ in range(AT)]
    experience, faults = steps[-1]
    assert list(faults) == [0]
    assert experience.done.tolist() == [True, False, False] and experience.reward.tolist() == [0, 1, 1]
    envs.close()


def test_an_environment_that_hangs_is_replaced(moody, monkeypatch):
    monkeypatch.setattr(Moody, "answer", staticmethod(hangs))
    envs = EnvVector(moody, 1, forgiving=True, timeout=0.3)
    made = Moody.made
    envs.reset(0)
    for step in range(1, AT + 3):
        experience = envs.step(np.zeros((1, 1)))
        assert bool(envs.faults) == (step == AT)
        if envs.faults:
            assert str(envs.faults[0]) == "environment 0 did not answer within 0.3 s"
            assert experience.done[0] and Moody.made == made + 1
    envs.close()


def test_an_environment_that_cannot_be_reset_is_made_anew_and_then_given_up(moody, monkeypatch):
    envs = EnvVector(moody, 1, forgiving=True)
    envs.reset(0)
    made = Moody.made
    monkeypatch.setattr(Moody, "first", staticmethod(lambda env: 1 / 0 if env.episodes > 1 else (GOOD, {})))
    for _ in range(LENGTH):
        envs.step(np.zeros((1, 1)))
    assert "ZeroDivisionError" in str(envs.faults[0]) and Moody.made == made + 1
    monkeypatch.setattr(Moody, "first", staticmethod(lambda env: (GOOD * np.nan, {})))
    with pytest.raises(EnvironmentFaultError, match="component 0 of the first observation of environment 0 is nan"):
        for _ in range(LENGTH):
            envs.step(np.zeros((1, 1)))
    envs.close()


def test_environments_that_end_at_once_or_never_are_lived_with(moody, monkeypatch):
    monkeypatch.setattr(Moody, "sound", lambda env, *_, **__: (GOOD, 1.0, True, False, {}))
    envs = EnvVector(moody, 2)
    envs.reset(0)
    assert all(envs.step(np.zeros((2, 1))).done.all() for _ in range(20))
    monkeypatch.setattr(Moody, "sound", lambda env, *_, **__: (GOOD, 1.0, False, False, {}))
    ends = [bool(envs.step(np.zeros((2, 1))).done.all()) for _ in range(100)]
    assert ends.count(True) == 2  # by the time limit, after 50 steps
    envs.close()


def test_a_very_long_episode_is_not_kept_for_ever(moody, monkeypatch):
    monkeypatch.setattr("soft_mpcritic.envs.vector.LONGEST_RELIVED", 3)
    monkeypatch.setattr(Moody, "sound", lambda env, *_, **__: (GOOD, 1.0, False, False, {}))
    envs = EnvVector(moody, 1)
    envs.reset(0)
    for _ in range(10):
        envs.step(np.zeros((1, 1)))
    assert envs.snapshot() == [{}]
    np.testing.assert_array_equal(envs.restore([{}])[0], GOOD)
    envs.close()


@pytest.mark.parametrize(
    "snapshot",
    [
        None,
        3,
        {"seed": "x", "actions": []},
        {"random_state": {"bit_generator": "MT19937"}},
        {"seed": 0, "actions": [[1] * 9]},
    ],
    ids=str,
)
def test_a_snapshot_that_cannot_be_lived_begins_a_new_episode(moody, monkeypatch, snapshot):
    monkeypatch.setattr(Moody, "sound", lambda env, *_, **__: (GOOD, 1.0, False, False, {}))
    envs = EnvVector(moody, 1, forgiving=True)
    envs.reset(0)
    np.testing.assert_array_equal(envs.restore([snapshot])[0], GOOD)
    envs.close()


def exits(env: Moody):
    os._exit(1)


@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.parametrize(
    ("answer", "told"), [(exits, "has died"), (lambda env: os.kill(os.getpid(), signal.SIGSTOP), "hangs")]
)
def test_a_process_that_is_lost_is_one_line(moody, monkeypatch, answer, told):
    """Stopped as a whole, it cannot watch itself."""
    monkeypatch.setattr(Moody, "answer", staticmethod(answer))
    monkeypatch.setattr("soft_mpcritic.envs.vector.PATIENCE", 2)
    envs = EnvVector(moody, 2, "async", forgiving=True, timeout=0.5)
    envs.reset(0)
    for _ in range(AT - 1):
        envs.step(np.zeros((2, 1)))
    with pytest.raises(EnvironmentFaultError, match=f"the process of an environment {told}"):
        envs.step(np.zeros((2, 1)))
    envs.close()
