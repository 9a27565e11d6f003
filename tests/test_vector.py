import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from soft_mpcritic.envs import TASKS, EnvironmentFaultError, EnvVector, make_task
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.types import Experience

PENDULUM = make_task("InvertedDoublePendulum-v5")
ENVS, SEED = 4, 7


def script(steps: int, envs: int = ENVS, size: int = 1) -> np.ndarray:
    """Actions wild enough to end several episodes."""
    return np.random.default_rng(0).uniform(-1, 1, (steps, envs, size)).astype(np.float32)


def run(envs: EnvVector, actions: np.ndarray) -> list[Experience]:
    return [envs.step(action) for action in actions]


def assert_same(one: Experience, other: Experience) -> None:
    for name, a, b in zip(Experience._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.fixture
def pendulums():
    envs = EnvVector(PENDULUM, ENVS)
    yield envs
    envs.close()


def test_a_vector_lives_through_what_single_environments_live_through(pendulums):
    actions = script(60)
    singles = [EnvVector(PENDULUM, 1) for _ in range(ENVS)]
    firsts = [single.reset(SEED + index)[0] for index, single in enumerate(singles)]
    np.testing.assert_array_equal(pendulums.reset(SEED), firsts)
    ends = np.zeros(ENVS, int)
    for action in actions:
        together = pendulums.step(action)
        apart = [single.step(action[i : i + 1]) for i, single in enumerate(singles)]
        assert_same(together, Experience(*(np.concatenate(column) for column in zip(*apart, strict=True))))
        ends += together.done
    for single in singles:
        single.close()
    assert np.all(ends >= 2)


def test_seeds_can_be_given_one_by_one(pendulums):
    np.testing.assert_array_equal(pendulums.reset([SEED + i for i in range(ENVS)]), pendulums.reset(SEED))
    assert not np.array_equal(pendulums.reset(SEED), pendulums.reset(SEED + 1))


def test_experience_is_that_of_the_raw_environment():
    envs, raw = EnvVector(PENDULUM, 1), PENDULUM.make_env()
    np.testing.assert_array_equal(envs.reset(SEED)[0], raw.reset(seed=SEED)[0].astype(np.float32))
    ends = 0
    for action in script(60, envs=1):
        got = envs.step(action)
        obs, reward, terminated, truncated, _ = raw.step(action[0])
        np.testing.assert_array_equal(got.next_obs[0], obs.astype(np.float32))
        assert got.reward[0] == np.float32(reward)
        assert (got.terminated[0], got.done[0]) == (terminated, terminated or truncated)
        if terminated:
            obs, _ = raw.reset()
            assert not np.array_equal(got.start_obs, got.next_obs)
            ends += 1
        np.testing.assert_array_equal(got.start_obs[0], obs.astype(np.float32))
    envs.close()
    raw.close()
    assert ends >= 2


@pytest.mark.parametrize("cut", [False, True])
def test_a_time_limit_ends_an_episode_without_terminating_it(cut):
    envs = EnvVector(PENDULUM, 1) if cut else EnvVector(PENDULUM, 1, max_episode_steps=3)
    envs.cut_after(3 if cut else 0)
    raw = PENDULUM.make_env(max_episode_steps=3)
    envs.reset(SEED)
    raw.reset(seed=SEED)
    still = np.zeros((1, 1), np.float32)
    experience = run(envs, np.stack([still] * 3))
    final = [raw.step(still[0])[0] for _ in range(3)][-1]
    assert [bool(e.done[0]) for e in experience] == [False, False, True]
    assert not any(e.terminated[0] for e in experience)
    np.testing.assert_array_equal(experience[-1].next_obs[0], final.astype(np.float32))
    np.testing.assert_array_equal(experience[-1].start_obs[0], raw.reset()[0].astype(np.float32))
    envs.close()
    raw.close()


def test_a_cut_episode_is_cut_as_soon_when_it_is_gone_on_with():
    for before in range(5):
        envs, restored = (EnvVector(PENDULUM, 1) for _ in range(2))
        for vector in (envs, restored):
            vector.cut_after(5)
        envs.reset(SEED)
        still = np.zeros((5, 1, 1), np.float32)
        run(envs, still[:before])
        restored.restore(envs.snapshot())
        assert [bool(e.done[0]) for e in run(restored, still)] == [time == 4 - before for time in range(5)]
        envs.close()
        restored.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_where_episodes_are_cut_can_be_changed_while_they_run(vectorization):
    envs, still = EnvVector(PENDULUM, 2, vectorization), np.zeros((2, 1), np.float32)
    envs.reset(SEED)
    done = []
    for longest in (2, 2, 2, 4, 4, 4, 0, 0, 0, 0, 3):
        envs.cut_after(longest)
        done.append(envs.step(still).done.tolist())
    assert [one for one, _ in done] == [other for _, other in done]
    assert [at for at, (one, _) in enumerate(done) if one] == [1, 5, 10]
    envs.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")
def test_a_process_that_has_died_is_a_fault_when_it_is_told_where_to_cut():
    envs: Any = EnvVector(PENDULUM, 2, "async")
    envs.reset(SEED)
    envs._envs.processes[1].kill()
    envs._envs.processes[1].join()
    with pytest.raises(EnvironmentFaultError, match="process of an environment has died"):
        envs.cut_after(3)


@pytest.mark.parametrize("steps_before", [0, 3, 45])
def test_a_restored_vector_goes_on_as_if_never_stopped(pendulums, steps_before):
    actions = script(steps_before + 40)
    obs = pendulums.reset(SEED)
    before = run(pendulums, actions[:steps_before])
    snapshot = json.loads(json.dumps(pendulums.snapshot()))
    uninterrupted = run(pendulums, actions[steps_before:])
    restored = EnvVector(PENDULUM, ENVS)
    here = before[-1].start_obs if before else obs
    np.testing.assert_array_equal(restored.restore(snapshot), here)
    assert restored.snapshot() == snapshot
    for there, then in zip(run(restored, actions[steps_before:]), uninterrupted, strict=True):
        assert_same(there, then)
    restored.close()
    assert steps_before < 45 or sum(e.done.sum() for e in before) >= 2 * ENVS  # in the midst of later episodes


def test_a_snapshot_grows_with_the_running_episode_alone(pendulums):
    pendulums.reset(SEED)
    running = np.zeros(ENVS, int)
    for experience in run(pendulums, script(30)):
        running = np.where(experience.done, 0, running + 1)
    assert [len(s["actions"]) for s in pendulums.snapshot()] == running.tolist()


def test_restoring_the_same_snapshot_twice_gives_the_same(pendulums):
    pendulums.reset(SEED)
    run(pendulums, script(25))
    snapshot = pendulums.snapshot()
    once = pendulums.restore(snapshot)
    run(pendulums, script(25))
    np.testing.assert_array_equal(pendulums.restore(snapshot), once)


@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")
def test_environments_in_processes_of_their_own_give_the_same():
    actions, vectors = script(30, envs=2), [EnvVector(PENDULUM, 2, kind) for kind in ("sync", "async")]
    firsts = [envs.reset(SEED) for envs in vectors]
    np.testing.assert_array_equal(firsts[0], firsts[1])
    for one, other in zip(*(run(envs, actions) for envs in vectors), strict=True):
        assert_same(one, other)
    snapshots = [envs.snapshot() for envs in vectors]
    assert snapshots[0] == snapshots[1]
    restored = [envs.restore(snapshots[0]) for envs in vectors]
    np.testing.assert_array_equal(restored[0], restored[1])
    for envs in vectors:
        envs.close()


class Faulty(gym.Env):
    """Answers with what is not finite, in the third step, where it is told to; the episode lasts five steps."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, fault: str = "none", at: int = 3) -> None:
        self.fault, self.at = fault, at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        obs = np.zeros(3, np.float32)
        if self.fault == "first":
            obs[1] = np.nan
        return obs, {}

    def step(self, action):
        self.time += 1
        obs, reward = np.full(3, self.time, np.float32), 1.0
        if self.time == self.at and action[0] > 0:
            if self.fault == "obs":
                obs[2] = np.nan
            elif self.fault == "reward":
                reward = -np.inf
        return obs, reward, self.time == 5, False, {}


@pytest.fixture
def faulty_task(monkeypatch):
    gym.register("Faulty-v0", entry_point=lambda **options: Faulty(**options))
    monkeypatch.setitem(TASKS, "Faulty-v0", TaskSpec(lambda *rows: rows[0][:, 0], lambda *rows: rows[0][:, 0]))
    yield make_task("Faulty-v0")
    gym.registry.pop("Faulty-v0")


@pytest.mark.parametrize("at", [3, 5], ids=["midway", "at the end of an episode"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("obs", "component 2 of the observation of environment 1 is nan"),
        ("reward", "the reward of environment 1 is -inf"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_with_their_place(faulty_task, fault, message, at):
    envs = EnvVector(faulty_task, 2, fault=fault, at=at)
    envs.reset(0)
    action = np.array([[0.0], [1.0]])
    run(envs, np.stack([action] * (at - 1)))
    with pytest.raises(EnvironmentFaultError) as caught:
        envs.step(action)
    assert str(caught.value) == message
    envs.close()


def test_a_first_observation_that_is_not_finite_is_refused(faulty_task):
    envs = EnvVector(faulty_task, 2, fault="first")
    with pytest.raises(EnvironmentFaultError, match=r"^component 1 of the first observation of environment 0 is nan$"):
        envs.reset(0)
    envs.close()


def test_a_sound_environment_raises_nothing(faulty_task):
    envs = EnvVector(faulty_task, 2)
    envs.reset(0)
    experience = run(envs, np.ones((12, 2, 1)))
    assert [int(e.done[0]) for e in experience] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    assert [float(e.start_obs[0, 0]) for e in experience[3:6]] == [4.0, 0.0, 1.0]
    assert [float(e.next_obs[0, 0]) for e in experience[3:6]] == [4.0, 5.0, 1.0]
    envs.close()
