"""Deterministic evaluation on environments of its own, with seeds of its own."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.envs import Task, Vector, make_vector
from soft_mpcritic.planner import Models
from soft_mpcritic.types import Episode, Trajectory

EVALUATION_SEED = 10_000  # far from the training environments' seeds, which count up from the run's seed
PARALLEL_EPISODES = 10


class Step(NamedTuple):
    """One controlled step of E environments, on the host."""

    obs: Float[np.ndarray, "*L E S"]
    action: Float[np.ndarray, "*L E A"]  # in the library's box
    reward: Float[np.ndarray, "*L E"]
    next_obs: Float[np.ndarray, "*L E S"]
    soft_value: Float[np.ndarray, "*L E"]
    terminated: Bool[np.ndarray, "*L E"]
    done: Bool[np.ndarray, "*L E"]


class Episodes:
    """Plays whole episodes of a task; environments are kept between calls.

    One that takes longer than `timeout` seconds for a step, or does something else wrong, ends the call with an
    `EnvironmentFaultError`; 0 waits for ever.
    """

    def __init__(self, task: Task, timeout: float = 0.0) -> None:
        self._task, self._timeout = task, timeout
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
            self._vectors[count] = make_vector(self._task, count, self._timeout)
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

    def __init__(self, agent: Agent, timeout: float = 0.0) -> None:
        self._agent = agent
        self._control = jit(agent.planner.control)
        self._episodes = Episodes(agent.task, timeout)

    def __call__(self, models: Models, episodes: int, seed: int = EVALUATION_SEED) -> list[Episode]:
        """Returns and lengths of `episodes` full episodes, as `play` plays them."""
        return [trajectory.episode for trajectory in self.play(models, episodes, seed)]

    def play(self, models: Models, episodes: int, seed: int = EVALUATION_SEED) -> list[Trajectory]:
        """`episodes` full episodes; episode i starts from environment seed `seed + i`, whatever their number."""
        joint: list[list[Step]] = []

        def steps(envs: Vector, first_seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            joint.append([])
            for step in controlled_steps(self._agent, self._control, models, envs, first_seed):
                joint[-1].append(step)
                yield step.reward, step.done

        played = self._episodes.play(steps, episodes, seed)
        columns = [Step(*(np.stack(column) for column in zip(*steps, strict=True))) for steps in joint]
        places = [(group, env) for group in columns for env in range(group.reward.shape[1])]
        return [_trajectory(group, env, episode) for (group, env), episode in zip(places, played, strict=True)]

    def close(self) -> None:
        self._episodes.close()


def _trajectory(steps: Step, env: int, episode: Episode) -> Trajectory:
    """The first episode of one environment, cut out of L joint steps."""
    obs, action, reward, next_obs, soft_value, terminated, _ = (column[: episode.length, env] for column in steps)
    return Trajectory(episode, obs, action, reward, next_obs, soft_value, bool(terminated[-1]))


def controlled_steps(agent: Agent, control, models: Models, envs: Vector, seed: int) -> Iterator[Step]:
    """Yields one controlled step after another, without end; plans start anew with episodes.

    The planner's noise follows from `seed`, so the same models give the same episodes.
    """
    keys = _key_sequence(seed)
    obs = envs.reset(seed)
    start = np.zeros((envs.num_envs, agent.config.planner.horizon + 1, agent.task.action_size), np.float32)
    while True:
        decision = control(models, next(keys), obs, start)
        experience = envs.step(np.asarray(decision.env_action))
        done = np.asarray(experience.done)
        answer = experience.reward, experience.next_obs, decision.value, experience.terminated, done
        yield Step(np.asarray(obs), np.asarray(decision.action), *(np.asarray(part) for part in answer))
        obs, start = experience.start_obs, decision.start
        if done.any():
            start = np.where(done[:, None, None], np.float32(0), start)


def _key_sequence(seed: int, block: int = 1000) -> Iterator[jax.Array]:
    key = jax.random.key(seed)
    while True:
        key, use = jax.random.split(key)
        yield from jax.random.split(use, block)
