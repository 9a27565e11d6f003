"""Deterministic evaluation on environments of its own, with seeds of its own."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.envs import Task, Vector, make_vector
from soft_mpcritic.planner import Decision, Models
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


Play = Callable[[Vector, Sequence[int]], Iterator[tuple[np.ndarray, np.ndarray]]]


class Episodes:
    """Plays whole episodes of a task; environments are kept between calls.

    One that takes longer than `timeout` seconds for a step, or does something else wrong, ends the call with an
    `EnvironmentFaultError`; 0 waits for ever.
    """

    def __init__(self, task: Task, timeout: float = 0.0) -> None:
        self._task, self._timeout = task, timeout
        self._vectors: dict[int, Vector] = {}

    def play(self, steps: Play, episodes: int, seed: int, players: int = 1) -> list[list[Episode]]:
        """`episodes` full episodes of each player; episode i starts from environment seed `seed + i`.

        `steps(envs, seeds)` resets the environments, those of one player after another's, and yields (rewards [E], done
        [E]) of one step after another.
        """
        played: list[list[Episode]] = [[] for _ in range(players)]
        for first in range(0, episodes, PARALLEL_EPISODES):
            count = min(PARALLEL_EPISODES, episodes - first)
            seeds = [*range(seed + first, seed + first + count)] * players
            joint = _first_episodes(steps(self._vector(len(seeds)), seeds), seeds)
            for player, own in enumerate(played):
                own += joint[player * count : (player + 1) * count]
        return played

    def _vector(self, count: int) -> Vector:
        if count not in self._vectors:
            self._vectors[count] = make_vector(self._task, count, self._timeout)
        return self._vectors[count]

    def close(self) -> None:
        for vector in self._vectors.values():
            vector.close()


def _first_episodes(steps: Iterator[tuple[np.ndarray, np.ndarray]], seeds: Sequence[int]) -> list[Episode]:
    """The first episode of each environment."""
    count = len(seeds)
    returns, lengths, running = np.zeros(count), np.zeros(count, int), np.ones(count, bool)
    for reward, done in steps:
        returns += reward * running
        lengths += running
        running &= ~done
        if not running.any():
            break
    return [Episode(seed, float(returns[i]), int(lengths[i])) for i, seed in enumerate(seeds)]


class Evaluator:
    """Plays whole episodes with the plan's mean; environments and compiled control are kept between calls."""

    def __init__(self, agent: Agent, timeout: float = 0.0) -> None:
        self._agent = agent
        self._control, self._control_each = jit(agent.planner.control), jit(partial(control_each, agent))
        self._episodes = Episodes(agent.task, timeout)

    def __call__(self, models: Models, episodes: int, seed: int = EVALUATION_SEED) -> list[Episode]:
        """Returns and lengths of `episodes` full episodes, as `play` plays them."""
        return [trajectory.episode for trajectory in self.play(models, episodes, seed)]

    def play(self, models: Models, episodes: int, seed: int = EVALUATION_SEED) -> list[Trajectory]:
        """`episodes` full episodes; episode i starts from environment seed `seed + i`, whatever their number."""
        return self._play(self._control, models, 1, episodes, seed)[0]

    def play_each(self, models: Models, episodes: int, seed: int = EVALUATION_SEED) -> list[list[Trajectory]]:
        """`play` of each of M models [M, ..], side by side: one compiled call a step for all of them."""
        return self._play(self._control_each, models, _players(models), episodes, seed)

    def _play(
        self, control: Callable[..., Decision], models: Models, players: int, episodes: int, seed: int
    ) -> list[list[Trajectory]]:
        joint: list[list[Step]] = []

        def steps(envs: Vector, seeds: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            joint.append([])
            for step in controlled_steps(self._agent, control, models, envs, seeds):
                joint[-1].append(step)
                yield step.reward, step.done

        played = self._episodes.play(steps, episodes, seed, players)
        columns = [Step(*(np.stack(column) for column in zip(*steps, strict=True))) for steps in joint]
        return [
            [
                _trajectory(columns[i // PARALLEL_EPISODES], player, players, i % PARALLEL_EPISODES, episode)
                for i, episode in enumerate(own)
            ]
            for player, own in enumerate(played)
        ]

    def close(self) -> None:
        self._episodes.close()


def control_each(agent: Agent, models: Models, key: jax.Array, obs: Array, start: Array) -> Decision:
    """Control by M models [M, ..], of as many environments [M * E, ..] each; all meet the same noise."""

    def split(rows: Array) -> Array:
        return rows.reshape(players, -1, *rows.shape[1:])

    players = _players(models)
    decision = jax.vmap(agent.planner.control, in_axes=(0, None, 0, 0))(models, key, split(obs), split(start))
    return jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), decision)


def _players(models: Models) -> int:
    """M of models [M, ..]."""
    return jax.tree.leaves(models)[0].shape[0]


def _trajectory(steps: Step, player: int, players: int, index: int, episode: Episode) -> Trajectory:
    """The first episode of one player's environment, cut out of L joint steps."""
    env = player * (steps.reward.shape[1] // players) + index
    obs, action, reward, next_obs, soft_value, terminated, _ = (column[: episode.length, env] for column in steps)
    return Trajectory(episode, obs, action, reward, next_obs, soft_value, bool(terminated[-1]))


def controlled_steps(
    agent: Agent, control: Callable[..., Decision], models: Models, envs: Vector, seeds: Sequence[int]
) -> Iterator[Step]:
    """Yields one controlled step after another, without end; plans start anew with episodes.

    The planner's noise follows from the first seed, so the same models give the same episodes.
    """
    keys = _key_sequence(seeds[0])
    obs = envs.reset(seeds)
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
