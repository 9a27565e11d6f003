"""Baselines with a stub for the algorithm: what it sees, how it is evaluated, what its folder holds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.agent import Agent
from soft_mpcritic.baselines import Baseline, Learner, StandardObservation, standard, train_baseline
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import ConfigError, TrainingConfig
from soft_mpcritic.envs import TASKS, make_task
from soft_mpcritic.evaluation import EVALUATION_SEED, Evaluator
from soft_mpcritic.files import read_table
from soft_mpcritic.metrics import HOST_COLUMNS
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.types import Episode
from tests.systems import small_config

HOPPER = "Hopper-v5"
TRAINING = TrainingConfig(log_every=20, evaluate_every=50, evaluation_episodes=3)


class StubLearner:
    """Acts by a fixed function of the standard observation, and counts a step as an update."""

    def __init__(self, env_id: str, after_step: Any = None) -> None:
        task = make_task(env_id)
        self._env = StandardObservation(task.make_env(), task.spec.positions)
        self._after_step = after_step or (lambda step: None)
        self.updates, self.size = 0, task.action_size
        self.seen: list[np.ndarray] = []

    def learn(self, total_steps: int, on_step: Any) -> None:
        obs, _ = self._env.reset(seed=0)
        going_on = True
        while going_on and self.updates < total_steps:
            obs, reward, terminated, truncated, _ = self._env.step(self.act(obs[None])[0])
            done = terminated or truncated
            self.updates += 1
            self._after_step(self.updates)
            going_on = on_step(np.array([reward]), np.array([done]))
            if done:
                obs, _ = self._env.reset()

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.seen.append(obs)
        return np.repeat(np.tanh(obs.sum(axis=-1, keepdims=True)), self.size, axis=-1).astype(np.float32)

    def close(self) -> None:
        self._env.close()


class Silent:
    def __init__(self) -> None:
        self.evaluations: list[int] = []

    def on_metrics(self, row: dict[str, Any]) -> None: ...

    def on_evaluation(self, env_step: int, episodes: list[Episode]) -> None:
        self.evaluations.append(env_step)


def run(path: Path, learner: StubLearner, env_id: str = HOPPER, total: int = 110) -> dict[str, Any]:
    baseline = Baseline("sac", env_id, 5, total, training=TRAINING)
    folder = RunFolder(path)
    folder.create(baseline.description)
    return train_baseline(folder, baseline, make_task(env_id), learner, Silent())


@pytest.mark.parametrize("env_id", [name for name, spec in TASKS.items() if spec.positions] + ["Pendulum-v1"])
def test_a_baseline_sees_the_standard_observation(env_id):
    """That of the environment as Gymnasium makes it, without the options that show positions to our reward."""
    task = make_task(env_id)
    ours, plain = StandardObservation(task.make_env(), task.spec.positions), gym.make(env_id)
    assert ours.observation_space.shape == plain.observation_space.shape
    obs, _ = ours.reset(seed=3)
    expected, _ = plain.reset(seed=3)
    plain.action_space.seed(0)
    for _ in range(5):
        assert obs.dtype == np.float32 and ours.observation_space.contains(obs)
        np.testing.assert_array_equal(obs, expected.astype(np.float32))
        action = plain.action_space.sample()
        obs, expected = ours.step(action)[0], plain.step(action)[0]


def test_a_baseline_sees_what_our_networks_see():
    task = make_task(HOPPER)
    obs = np.arange(2.0 * task.obs_size, dtype=np.float32).reshape(2, -1)
    agent = Agent(task, small_config(dynamics__normalize=False))
    models = jit(agent.init)(jax.random.key(0)).models
    np.testing.assert_array_equal(standard(obs, task.spec.positions), agent.planner.features(models, jnp.asarray(obs)))
    np.testing.assert_array_equal(standard(obs, task.spec.positions), obs[:, 1:])


def test_a_folder_is_that_of_a_run(tmp_path):
    learner = StubLearner(HOPPER)
    assert isinstance(learner, Learner)
    summary = run(tmp_path / "run", learner)
    folder = RunFolder(tmp_path / "run")
    told = folder.read_description()
    assert (told.algorithm, told.env_id, told.seed, told.total_steps) == ("sac", HOPPER, 5, 110)
    assert told.settings["training"] == {"log_every": 20, "evaluate_every": 50, "evaluation_episodes": 3}
    assert told.settings["baseline"]["learning_starts"] == 100
    metrics = read_table(folder.path / "metrics.csv")
    assert tuple(metrics[0]) == HOST_COLUMNS
    assert [int(row["env_step"]) for row in metrics] == [20, 40, 50, 60, 80, 100, 110]
    assert [int(row["updates"]) for row in metrics] == [20, 40, 50, 60, 80, 100, 110]
    assert float(metrics[-1]["train_return"]) > 0 and float(metrics[-1]["steps_per_second"]) > 0
    evaluations = read_table(folder.path / "evaluations.csv")
    assert [int(row["env_step"]) for row in evaluations] == [50] * 3 + [100] * 3 + [110] * 3
    assert json.loads((folder.path / "summary.json").read_text()) == summary
    assert (summary["algorithm"], summary["status"], summary["updates"]) == ("sac", "finished", 110)
    assert folder.curve.stat().st_size > 1000
    assert not folder.has_checkpoints


def test_a_baseline_is_evaluated_by_our_protocol(tmp_path):
    """Each episode, played anew by hand on the environment as Gymnasium makes it."""
    learner = StubLearner(HOPPER)
    run(tmp_path / "run", learner)
    env = gym.make(HOPPER)
    for row in read_table(tmp_path / "run" / "evaluations.csv"):
        assert int(row["seed"]) == EVALUATION_SEED + int(row["episode"])
        obs, _ = env.reset(seed=int(row["seed"]))
        total, length, done = 0.0, 0, False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(learner.act(obs[None].astype(np.float32))[0])
            total, length, done = total + float(reward), length + 1, terminated or truncated
        assert (float(row["return"]), int(row["length"])) == (pytest.approx(total, abs=1e-3), length)


def test_our_evaluation_takes_the_same_seeds():
    """Ours on the same first observations: the seeds of its episodes are those of a baseline's."""
    agent = Agent(make_task("Pendulum-v1"), small_config())
    evaluator = Evaluator(agent)
    played = evaluator(jit(agent.init)(jax.random.key(0)).models, 2)
    evaluator.close()
    assert [(episode.seed, episode.length) for episode in played] == [
        (EVALUATION_SEED, 200),
        (EVALUATION_SEED + 1, 200),
    ]


def test_everything_that_acts_sees_standard_observations(tmp_path):
    learner = StubLearner(HOPPER)
    run(tmp_path / "run", learner)
    assert {obs.shape for obs in learner.seen} == {(1, 11), (3, 11)}  # training, evaluation


def test_a_request_to_stop_leaves_a_usable_folder(tmp_path):
    def interrupt(step: int) -> None:
        if step == 60:
            os.kill(os.getpid(), signal.SIGINT)

    summary = run(tmp_path / "run", StubLearner(HOPPER, interrupt))
    assert (summary["status"], summary["env_step"]) == ("interrupted", 60)
    steps = {row["env_step"] for row in read_table(tmp_path / "run" / "evaluations.csv")}
    assert steps == {"50"}


def test_no_more_steps_are_recorded_than_asked_for(tmp_path):
    class Eager(StubLearner):
        def learn(self, total_steps: int, on_step: Any) -> None:
            super().learn(total_steps + 7, on_step)

    assert run(tmp_path / "run", Eager(HOPPER))["env_step"] == 110


@pytest.mark.parametrize("change", [{"algorithm": "ppo"}, {"learning_starts": 0}], ids=str)
def test_settings_that_cannot_work_are_refused(change, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    arguments: dict[str, Any] = {"algorithm": "sac", "env_id": HOPPER, "seed": 0, "total_steps": 1, **change}
    with pytest.raises(ConfigError, match=next(iter(change))):
        Baseline(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sac", "td3", "ddpg"])
def test_the_real_algorithms_learn_into_a_folder(tmp_path, algorithm):
    """In a process of its own: its libraries do not meet our strict numerics."""
    pytest.importorskip("sbx", exc_type=ImportError)
    arguments = ["--total-steps", "300", "--evaluate-every", "200", "--evaluation-episodes", "2"]
    command = [sys.executable, "-m", "soft_mpcritic", "baseline", algorithm, HOPPER, "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    evaluations = read_table(tmp_path / "run" / "evaluations.csv")
    assert [int(row["env_step"]) for row in evaluations] == [200, 200, 300, 300]
    assert all(np.isfinite(float(row["return"])) for row in evaluations)
    assert int(read_table(tmp_path / "run" / "metrics.csv")[-1]["updates"]) == 199
