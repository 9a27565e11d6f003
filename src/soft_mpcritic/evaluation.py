"""Deterministic evaluation on environments of its own, with seeds of its own."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.envs import Task, Vector, make_vector
from soft_mpcritic.planner import Models
from soft_mpcritic.types import Episode

EVALUATION_SEED = 10_000  # far from the training environments' seeds, which count up from the run's seed
PARALLEL_EPISODES = 10


class Episodes:
    """Plays whole episodes of a task; environments are kept between calls."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._vectors: dict[int, Vector] = {}

    def play(
        self, steps: Callable[[Vector, int], Iterator[tuple[np.ndarray, np.ndarray]]], episodes: int, seed: int
    ) -> list[Episode]:
        """`episodes` full episodes; episode i starts from environment seed `seed + i`, whatever their number.

        `steps(envs, seed)` resets the environments and yields (rewards [E], done [E]) of one step after another.
        """
        played: list[Episode] = []
        while len(played) < episodes:
            count = min(PARALLEL_EPISODES, episodes - len(played))
            first = seed + len(played)
            played += _first_episodes(steps(self._vector(count), first), first, count)
        return played

    def _vector(self, count: int) -> Vector:
        if count not in self._vectors:
            self._vectors[count] = make_vector(self._task, count)
        return self._vectors[count]

    def close(self) -> None:
        for vector in self._vectors.values():
            vector.close()


def _first_episodes(steps: Iterator[tuple[np.ndarray, np.ndarray]], seed: int, count: int) -> list[Episode]:
    """The first episode of each of `count` environments."""
    returns, lengths, running = np.zeros(count), np.zeros(count, int), np.ones(count, bool)
    for reward, done in steps:
        returns += reward * running
        lengths += running
        running &= ~done
        if not running.any():
            break
    return [Episode(seed + i, float(returns[i]), int(lengths[i])) for i in range(count)]


class Evaluator:
    """Plays whole episodes with the plan's mean; environments and compiled control are kept between calls."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._control = jit(agent.planner.control)
        self._episodes = Episodes(agent.task)

    def __call__(self, models: Models, episodes: int, seed: int = EVALUATION_SEED) -> list[Episode]:
        """`episodes` full episodes; episode i starts from environment seed `seed + i`, whatever their number."""
        return self._episodes.play(partial(controlled_steps, self._agent, self._control, models), episodes, seed)

    def close(self) -> None:
        self._episodes.close()


def controlled_steps(
    agent: Agent, control, models: Models, envs: Vector, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (rewards [E], done [E]) of one controlled step after another, without end; plans start anew with episodes.

    The planner's noise follows from `seed`, so the same models give the same episodes.
    """
    keys = _key_sequence(seed)
    obs = envs.reset(seed)
    start = np.zeros((envs.num_envs, agent.config.planner.horizon + 1, agent.task.action_size), np.float32)
    while True:
        action, start = control(models, next(keys), obs, start)
        experience = envs.step(np.asarray(action))
        done = np.asarray(experience.done)
        yield np.asarray(experience.reward), done
        obs = experience.start_obs
        if done.any():
            start = np.where(done[:, None, None], np.float32(0), start)


def _key_sequence(seed: int, block: int = 1000) -> Iterator[jax.Array]:
    key = jax.random.key(seed)
    while True:
        key, use = jax.random.split(key)
        yield from jax.random.split(use, block)
