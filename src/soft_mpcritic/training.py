"""The host loop: Gymnasium environments on one side, the compiled agent on the other."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from soft_mpcritic.agent import Agent, AgentState
from soft_mpcritic.checkpoint import Checkpoints
from soft_mpcritic.compilation import jit, jit_on_leaves
from soft_mpcritic.config import ConfigError
from soft_mpcritic.envs import BadObservationError, EnvVector, make_task
from soft_mpcritic.evaluation import Evaluator
from soft_mpcritic.metrics import EpisodeTracker, MetricLog, MetricMeans
from soft_mpcritic.plotting import plot_runs
from soft_mpcritic.run_folder import RunFolder, RunSettings, check_resumable
from soft_mpcritic.types import Episode, Experience


@runtime_checkable
class Observer(Protocol):
    """Who watches a run: a console, say."""

    def on_metrics(self, row: dict[str, Any]) -> None: ...

    def on_evaluation(self, env_step: int, episodes: list[Episode]) -> None: ...


@dataclass
class Clock:
    """Where a run is and what it has spent."""

    env_step: int = 0
    wall_seconds: float = 0.0  # everything, over all its processes
    loop_seconds: float = 0.0  # stepping and learning since the last log point
    loop_steps: int = 0


def prepare_run(folder: RunFolder, asked: RunSettings, resume: bool) -> RunSettings:
    """The settings to run with; makes the folder or checks that the stored run can go on. Raises `ConfigError`."""
    make_task(asked.env_id)
    if not folder.exists:
        folder.create(asked)
        return asked
    if not resume:
        raise ConfigError(f"run folder {folder.path} already holds a run: add --resume, or choose another --run-dir.")
    check_resumable(folder.read_settings(), asked, folder)
    folder.write_settings(asked)
    return asked


def train(folder: RunFolder, settings: RunSettings, observer: Observer) -> dict[str, Any]:
    """Trains until `settings.total_steps` or a request to stop (SIGINT, SIGTERM); returns the summary.

    A folder with a checkpoint goes on from it, as if never stopped. Raises `BadObservationError` when the environment
    answers with numbers that are not finite, after a checkpoint.
    """
    run = Run(folder, settings, observer)
    try:
        with stop_requests() as stop_requested:
            run.go(stop_requested)
        return run.finish()
    finally:
        run.close()


class Run:
    """One training process: device state, environments, logs and clock."""

    def __init__(self, folder: RunFolder, settings: RunSettings, observer: Observer) -> None:
        self._started = time.perf_counter()
        self._folder, self._settings, self._observer = folder, settings, observer
        training = settings.config.training
        self._training = training
        self._agent = Agent(make_task(settings.env_id), settings.config)
        self._envs = EnvVector(self._agent.task, training.num_envs, training.vectorization)
        self._evaluator = Evaluator(self._agent)
        self._episodes, self._means = EpisodeTracker(training.num_envs), MetricMeans()
        self._clock = Clock()
        self._last_evaluation: list[Episode] = []

        agent = self._agent
        self._begin = jit(agent.begin, donate_argnums=0)
        self._checkpoints = Checkpoints(folder, training.checkpoints_kept)
        resumed_at = self._checkpoints.latest
        state = jit(agent.init)(jax.random.key(settings.seed))
        state, self._action = self._resume(state) if resumed_at is not None else self._start(state)
        self._leaves, self._structure = jax.tree.flatten(state)
        self._random_step = jit_on_leaves(agent.random_step, self._structure)
        self._planned_step = jit_on_leaves(partial(agent.planned_step, explore=training.explore), self._structure)
        self._learn = jit_on_leaves(agent.learn, self._structure)
        self._log = MetricLog(folder, -1 if resumed_at is None else resumed_at)

    # ------------------------------------------------------------------- loop

    def go(self, stop_requested: Callable[[], bool]) -> None:
        """Steps until done or asked to stop."""
        while self._clock.env_step < self._settings.total_steps and not stop_requested():
            self._advance()
            self._report()

    def _advance(self) -> None:
        """One step of all environments, and all that is learned from it.

        Calls return before the device is done: the environments step to actions that are ready while the updates,
        which no action waits for, are still under way.
        """
        started = time.perf_counter()
        experience = self._step_environments(np.asarray(self._action))
        self._episodes.add(experience.reward, experience.done)
        self._clock.env_step += self._envs.num_envs
        updates = self._updates_due()
        if updates is None:
            self._leaves, self._action = self._random_step(self._leaves, experience)
        else:
            self._leaves, self._action, planned = self._planned_step(self._leaves, experience)
            self._leaves, learned = self._learn(self._leaves, updates)
            self._means.add(learned, planned)
        self._clock.loop_seconds += time.perf_counter() - started
        self._clock.loop_steps += self._envs.num_envs

    def _step_environments(self, action: np.ndarray) -> Experience:
        """A checkpoint is kept whatever goes wrong in an environment."""
        try:
            return self._envs.step(action)
        except BadObservationError as error:
            self._checkpoint()
            raise BadObservationError(f"{error}, at environment step {self._clock.env_step + 1}") from error
        except Exception:
            self._checkpoint()
            raise

    def _updates_due(self) -> np.int32 | None:
        """None in the seed phase; all of the pretraining on its last step; then the usual number."""
        step, training = self._clock.env_step, self._training
        if step < training.seed_steps:
            return None
        first = step - self._envs.num_envs < training.seed_steps
        return np.int32(training.pretrain_updates if first else training.updates_per_step * training.num_envs)

    def _report(self) -> None:
        """Whatever falls due at this step: log, evaluation, checkpoint."""
        last = self._clock.env_step >= self._settings.total_steps
        if self._due(self._training.log_every) or last:
            self._write_metrics()
        if self._due(self._training.evaluate_every) or last:
            self._evaluate()
        if self._due(self._training.checkpoint_every) or last:
            self._checkpoint()

    def _due(self, every: int) -> bool:
        step = self._clock.env_step
        return step // every > (step - self._envs.num_envs) // every

    # ----------------------------------------------------------- what falls due

    def _write_metrics(self) -> None:
        clock = self._clock
        mean_return, mean_length = self._episodes.recent_means
        row = {
            "env_step": clock.env_step,
            "wall_seconds": round(self._wall_seconds(), 3),
            "steps_per_second": round(clock.loop_steps / max(clock.loop_seconds, 1e-9), 2),
            "updates": int(self._state.updates),
            "episodes": self._episodes.episodes,
            "train_return": mean_return,
            "train_length": mean_length,
            **self._means.take(),
        }
        clock.loop_seconds, clock.loop_steps = 0.0, 0
        self._log.write_metrics(row)
        self._observer.on_metrics(row)

    def _evaluate(self) -> None:
        self._last_evaluation = self._evaluator(self._state.models, self._training.evaluation_episodes)
        self._log.write_evaluation(self._clock.env_step, self._wall_seconds(), self._last_evaluation)
        self._observer.on_evaluation(self._clock.env_step, self._last_evaluation)

    def _checkpoint(self) -> None:
        progress = {
            "env_step": self._clock.env_step,
            "wall_seconds": self._wall_seconds(),
            "loop_seconds": self._clock.loop_seconds,
            "loop_steps": self._clock.loop_steps,
            "episodes": self._episodes.to_json(),
            "means": self._means.to_json(),
            "environments": self._envs.snapshot(),
            "action": np.asarray(self._action).tolist(),  # to the bit: computed anew it may round differently
            "last_evaluation": [list(episode) for episode in self._last_evaluation],
        }
        self._checkpoints.save(self._clock.env_step, self._state, progress)

    # ------------------------------------------------------------ start and end

    def _start(self, state: AgentState) -> tuple[AgentState, jax.Array]:
        return self._begin(state, self._envs.reset(self._settings.seed))

    def _resume(self, template: AgentState) -> tuple[AgentState, jax.Array]:
        """State, counters and environments as they were; environments that cannot be relived start new episodes."""
        state, progress = self._checkpoints.load(template)
        self._clock = Clock(
            progress["env_step"], progress["wall_seconds"], progress["loop_seconds"], progress["loop_steps"]
        )
        self._episodes.load(progress["episodes"])
        self._means.load(progress["means"])
        self._last_evaluation = [Episode(*values) for values in progress["last_evaluation"]]
        obs = self._envs.restore(progress["environments"])
        if np.array_equal(obs, state.pending.obs):
            return state, jnp.asarray(progress["action"], jnp.float32)
        self._episodes.restart()
        fresh = self._envs.reset(self._settings.seed + self._clock.env_step)
        return self._begin(state, fresh)

    def finish(self) -> dict[str, Any]:
        """Last checkpoint, learning curve and summary."""
        self._checkpoint()
        returns = [episode.ret for episode in self._last_evaluation]
        finished = self._clock.env_step >= self._settings.total_steps
        summary = {
            "status": "finished" if finished else "interrupted",
            "env_id": self._settings.env_id,
            "preset": self._settings.preset,
            "seed": self._settings.seed,
            "env_step": self._clock.env_step,
            "updates": int(self._state.updates),
            "wall_seconds": round(self._wall_seconds(), 3),
            "evaluation_episodes": len(returns),
            "evaluation_return_mean": float(np.mean(returns)) if returns else None,
            "evaluation_return_min": min(returns, default=None),
            "evaluation_return_max": max(returns, default=None),
        }
        self._folder.write_summary(summary)
        if returns:
            plot_runs([self._folder], self._folder.curve)
        return summary

    def close(self) -> None:
        self._envs.close()
        self._evaluator.close()
        self._checkpoints.close()
        self._log.close()

    @property
    def _state(self) -> AgentState:
        return jax.tree.unflatten(self._structure, self._leaves)

    def _wall_seconds(self) -> float:
        return self._clock.wall_seconds + time.perf_counter() - self._started


def load_state(folder: RunFolder, settings: RunSettings) -> tuple[Agent, AgentState]:
    """The agent of a run folder as its newest checkpoint has it; raises `ConfigError` where there is none."""
    agent = Agent(make_task(settings.env_id), settings.config)
    if not folder.has_checkpoints:
        raise ConfigError(f"{folder.path} has no checkpoint yet: train it first.")
    checkpoints = Checkpoints(folder, settings.config.training.checkpoints_kept)
    try:
        state, _ = checkpoints.load(jit(agent.init)(jax.random.key(settings.seed)))
    finally:
        checkpoints.close()
    return agent, state


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT or SIGTERM into a question that the loop can ask; a second one interrupts at once."""
    requested: list[int] = []

    def request(number: int, _frame: Any) -> None:
        if requested:
            raise KeyboardInterrupt
        requested.append(number)

    old = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(requested)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
