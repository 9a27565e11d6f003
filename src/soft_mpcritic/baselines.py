"""Published model-free algorithms on the same tasks, evaluated the same way, into the same run folder.

The algorithms are those of sbx (Stable-Baselines3 in JAX), from the extra `baselines`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Float

from soft_mpcritic.config import ConfigError, TrainingConfig, check, check_fields
from soft_mpcritic.envs import DEVICE_TASKS, TASKS, Task, Vector, make_task
from soft_mpcritic.evaluation import EVALUATION_SEED, Episodes
from soft_mpcritic.recording import Journal, Observer, Schedule
from soft_mpcritic.run_folder import PACKAGES, RunDescription, RunFolder
from soft_mpcritic.training import stop_requests
from soft_mpcritic.types import AnyArray

Algorithm = Literal["sac", "td3", "ddpg"]
BASELINE_PACKAGES = (*PACKAGES, "sbx-rl", "stable_baselines3", "flax", "torch")
SHARED = {  # sbx's defaults, written out so that config.json holds them
    "learning_rate": 3e-4,
    "batch_size": 256,
    "gamma": 0.99,
    "tau": 0.005,
    "buffer_size": 1_000_000,
    "train_freq": 1,
    "gradient_steps": 1,
}
ACTION_NOISE = {"sac": 0.0, "td3": 0.1, "ddpg": 0.1}  # deviation in [-1, 1]; SAC's policy is random by itself
RECORDED = ("log_every", "evaluate_every", "evaluation_episodes")


@dataclass(frozen=True)
class Baseline:
    """What a baseline's run is asked to do."""

    algorithm: Algorithm
    env_id: str
    seed: int
    total_steps: int
    learning_starts: int = 100
    training: TrainingConfig = field(default_factory=TrainingConfig)  # when to log and evaluate

    def __post_init__(self) -> None:
        check_fields(self)
        check(self.learning_starts >= 1, "learning_starts", "be >= 1", self.learning_starts, "100 is sbx's")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {**SHARED, "learning_starts": self.learning_starts}

    @property
    def description(self) -> RunDescription:
        """For config.json: every setting that is not left to sbx."""
        settings = {
            "baseline": {**self.hyperparameters, "action_noise": ACTION_NOISE[self.algorithm]},
            "training": {name: getattr(self.training, name) for name in RECORDED},
        }
        return RunDescription(self.env_id, self.algorithm, "default", self.seed, self.total_steps, settings)


def baseline_task(env_id: str) -> Task:
    """The task of this name, on Gymnasium; raises `ConfigError` in one line for whatever does not fit."""
    own = env_id in DEVICE_TASKS and env_id not in TASKS
    check(not own, "env_id", "be a task of Gymnasium", repr(env_id), f"use one of {', '.join(TASKS)}")
    return make_task(env_id)


# ----------------------------------------------------------------- what a baseline sees and does


def standard(obs: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """Observations [.., S] without the positions that the environment shows for the sake of our known reward."""
    return np.delete(obs, positions, axis=-1).astype(np.float32)


class StandardObservation(gym.ObservationWrapper):
    """An environment as its task's networks see it by default."""

    def __init__(self, env: gym.Env, positions: Sequence[int]) -> None:
        super().__init__(env)
        self._positions = list(positions)
        space = env.observation_space
        assert isinstance(space, Box), "make_task admits no other"
        self.observation_space = Box(standard(space.low, self._positions), standard(space.high, self._positions))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return standard(observation, self._positions)


@runtime_checkable
class Learner(Protocol):
    """A model-free algorithm with its environment."""

    @property
    def updates(self) -> int: ...

    def learn(self, total_steps: int, on_step: Callable[[AnyArray, AnyArray], bool]) -> None:
        """Acts and learns; `on_step` gets reward [1] and done [1] of every step and says whether to go on."""
        ...

    def act(self, obs: Float[np.ndarray, "E S"]) -> Float[np.ndarray, "E A"]:
        """Deterministic actions in the task's units at standard observations."""
        ...

    def close(self) -> None: ...


class SbxLearner:
    """An algorithm of sbx. Raises `ConfigError` where the extra is not installed."""

    def __init__(self, baseline: Baseline, task: Task) -> None:
        try:
            import sbx  # pyright: ignore[reportMissingImports]
            from stable_baselines3.common.noise import NormalActionNoise  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(
                f"baselines need sbx-rl, and {error.name} is missing: pip install 'soft-mpcritic[baselines]'."
            ) from error
        algorithm = {"sac": sbx.SAC, "td3": sbx.TD3, "ddpg": sbx.DDPG}[baseline.algorithm]
        deviation = np.full(task.action_size, ACTION_NOISE[baseline.algorithm])
        noise = NormalActionNoise(np.zeros_like(deviation), deviation) if deviation.any() else None
        self._env = StandardObservation(task.make_env(), task.spec.positions)
        self._model = algorithm(
            "MlpPolicy", self._env, seed=baseline.seed, action_noise=noise, **baseline.hyperparameters
        )

    @property
    def updates(self) -> int:
        return int(self._model._n_updates)

    def learn(self, total_steps: int, on_step: Callable[[AnyArray, AnyArray], bool]) -> None:
        self._model.learn(total_steps, callback=lambda local, _: on_step(local["rewards"], local["dones"]))

    def act(self, obs: Float[np.ndarray, "E S"]) -> Float[np.ndarray, "E A"]:
        actions, _ = self._model.predict(obs, deterministic=True)
        return actions

    def close(self) -> None:
        self._env.close()


# ----------------------------------------------------------------- runs


def train_baseline(
    folder: RunFolder, baseline: Baseline, task: Task, learner: Learner, observer: Observer
) -> dict[str, Any]:
    """Trains until `total_steps` or a request to stop (SIGINT, SIGTERM); returns the summary.

    `folder` holds the run's config.json already. There are no checkpoints: a baseline is there to be compared with.
    """
    with folder.held(), stop_requests() as stop_requested:
        run = BaselineRun(folder, baseline, task, learner, observer)
        try:
            learner.learn(baseline.total_steps, lambda reward, done: run.step(reward, done) and not stop_requested())
            return run.finish()
        finally:
            run.close()


class BaselineRun:
    """One training process, and the record of it."""

    def __init__(self, folder: RunFolder, baseline: Baseline, task: Task, learner: Learner, observer: Observer) -> None:
        self._training, self._learner, self._observer = baseline.training, learner, observer
        self._schedule = Schedule(baseline.training, baseline.total_steps)
        self._journal = Journal(folder, baseline.description)
        self._journal.open()
        self._episodes = Episodes(task)
        self._act = lambda obs: learner.act(standard(obs, task.spec.positions))
        self._resumed = time.perf_counter()

    def step(self, reward: AnyArray, done: AnyArray) -> bool:
        """Records one environment step, with whatever falls due after it; whether there are more to come."""
        self._journal.add_time(time.perf_counter() - self._resumed, 1)
        step = self._journal.add_step(reward, done)
        if self._schedule.logs(step):
            self._observer.on_metrics(self._journal.write_metrics(self._learner.updates, {}))
        if self._schedule.evaluates(step):
            steps = partial(policy_steps, self._act)
            (played,) = self._episodes.play(steps, self._training.evaluation_episodes, EVALUATION_SEED)
            self._journal.write_evaluation(played)
            self._observer.on_evaluation(step, played)
        self._resumed = time.perf_counter()
        return not self._schedule.ends(step)

    def finish(self) -> dict[str, Any]:
        """Learning curve and summary."""
        return self._journal.finish(self._learner.updates)

    def close(self) -> None:
        self._journal.close()
        self._episodes.close()
        self._learner.close()


def policy_steps(
    act: Callable[[np.ndarray], np.ndarray], envs: Vector, seeds: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (rewards [E], done [E]) of one step after another, without end."""
    obs = envs.reset(seeds)
    while True:
        experience = envs.step(act(obs))
        yield np.asarray(experience.reward), np.asarray(experience.done)
        obs = np.asarray(experience.start_obs)
