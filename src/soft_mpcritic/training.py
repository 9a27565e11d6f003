"""The host loop: Gymnasium environments on one side, the compiled agent on the other."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soft_mpcritic.agent import Agent, AgentState
from soft_mpcritic.checkpoint import Checkpoints
from soft_mpcritic.compilation import jit, jit_on_leaves
from soft_mpcritic.config import ConfigError
from soft_mpcritic.diagnostics import Diagnostics, summarize
from soft_mpcritic.envs import BadObservationError, EnvVector, make_task
from soft_mpcritic.evaluation import Evaluator
from soft_mpcritic.recording import Observer, RunRecord, Schedule
from soft_mpcritic.run_folder import RunFolder, RunSettings, check_resumable
from soft_mpcritic.types import Experience


def make_agent(settings: RunSettings) -> Agent:
    """The agent that a run asks for; raises `ConfigError` for a task that does not go with the settings."""
    config = settings.config
    parts = settings.parts.filled(config.parts)
    return Agent(make_task(settings.env_id, config.training.backend, parts), config, parts)


def prepare_run(folder: RunFolder, asked: RunSettings, resume: bool) -> RunSettings:
    """The settings to run with; makes the folder or checks that the stored run can go on. Raises `ConfigError`."""
    make_agent(asked)
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
    with jax.default_matmul_precision(settings.config.training.matmul_precision):
        run = Run(folder, settings, observer)
        try:
            with stop_requests() as stop_requested:
                run.go(stop_requested)
            return run.finish()
        finally:
            run.close()


class Run:
    """One training process: device state, environments and the record of both."""

    def __init__(self, folder: RunFolder, settings: RunSettings, observer: Observer) -> None:
        self._settings, self._observer = settings, observer
        self._record = RunRecord(folder, settings)
        self._schedule = Schedule(settings.config.training, settings.total_steps)
        training = settings.config.training
        self._agent = make_agent(settings)
        self._envs = EnvVector(self._agent.task, training.num_envs, training.vectorization)
        self._evaluator, self._diagnostics = Evaluator(self._agent), Diagnostics(self._agent)

        agent = self._agent
        self._begin = jit(agent.begin, donate_argnums=0)
        resumed_at = self._record.checkpoints.latest
        state = jit(agent.init)(jax.random.key(settings.seed))
        state, self._action = self._start(state) if resumed_at is None else self._resume(state, resumed_at)
        self._leaves, self._structure = jax.tree.flatten(state)
        self._random_step = jit_on_leaves(agent.random_step, self._structure)
        self._planned_step = jit_on_leaves(partial(agent.planned_step, explore=training.explore), self._structure)
        self._learn = jit_on_leaves(agent.learn, self._structure)
        self._record.open(resumed_at)

    # ------------------------------------------------------------------- loop

    def go(self, stop_requested: Callable[[], bool]) -> None:
        """Steps until done or asked to stop."""
        while not self._schedule.ends(self._env_step) and not stop_requested():
            self._advance()
            self._report()

    def _advance(self) -> None:
        """One step of all environments, and all that is learned from it.

        Calls return before the device is done: the environments step to actions that are ready while the updates,
        which no action waits for, are still under way.
        """
        started = time.perf_counter()
        experience = self._step_environments(np.asarray(self._action))
        updates = self._schedule.updates(self._record.add_step(experience.reward, experience.done))
        if updates is None:
            self._leaves, self._action = self._random_step(self._leaves, experience)
        else:
            self._leaves, self._action, planned = self._planned_step(self._leaves, experience)
            self._leaves, learned = self._learn(self._leaves, np.int32(updates))
            self._record.means.add(learned, planned)
        self._record.add_time(time.perf_counter() - started, self._envs.num_envs)

    def _step_environments(self, action: np.ndarray) -> Experience:
        """A checkpoint is kept whatever goes wrong in an environment."""
        try:
            return self._envs.step(action)
        except BadObservationError as error:
            self._checkpoint()
            raise BadObservationError(f"{error}, at environment step {self._env_step + 1}") from error
        except Exception:  # whatever an environment raises
            self._checkpoint()
            raise

    def _report(self) -> None:
        """Whatever falls due at this step: log, evaluation, checkpoint."""
        step = self._env_step
        diagnosed = self._evaluate() if self._schedule.evaluates(step) else {}
        if self._schedule.logs(step):
            self._observer.on_metrics(self._record.write_metrics(int(self._state.updates), diagnosed))
        if self._schedule.checkpoints(step):
            self._checkpoint()

    def _evaluate(self) -> dict[str, float]:
        """Plays and records evaluation episodes; what they say of value and models."""
        state = self._state
        try:
            played = self._evaluator.play(state.models, self._settings.config.training.evaluation_episodes)
        except Exception:  # whatever an environment raises
            self._checkpoint()
            raise
        episodes = [trajectory.episode for trajectory in played]
        self._record.write_evaluation(episodes)
        self._observer.on_evaluation(self._env_step, episodes)
        return summarize(self._diagnostics(state, played))._asdict()

    def _checkpoint(self) -> None:
        self._record.checkpoint(self._state, self._envs.snapshot(), self._action)

    # ------------------------------------------------------------ start and end

    def _start(self, state: AgentState) -> tuple[AgentState, jax.Array]:
        return self._begin(state, self._envs.reset(self._settings.seed))

    def _resume(self, template: AgentState, step: int) -> tuple[AgentState, jax.Array]:
        """State, counters and environments as they were; environments that cannot be relived start new episodes."""
        state, progress = self._record.load(template, step)
        lived = progress["environments"]  # none of them where their processes had died
        if lived and np.array_equal(self._envs.restore(lived), state.pending.obs):
            return state, jnp.asarray(progress["action"], jnp.float32)
        self._record.restart_episodes()
        fresh = self._envs.reset(self._settings.seed + self._env_step)
        return self._begin(state, fresh)

    def finish(self) -> dict[str, Any]:
        """Last checkpoint, learning curve and summary."""
        self._checkpoint()
        return self._record.finish(int(self._state.updates))

    def close(self) -> None:
        self._envs.close()
        self._evaluator.close()
        self._record.close()

    @property
    def _env_step(self) -> int:
        return self._record.clock.env_step

    @property
    def _state(self) -> AgentState:
        return jax.tree.unflatten(self._structure, self._leaves)


def load_state(folder: RunFolder, settings: RunSettings) -> tuple[Agent, AgentState]:
    """The agent of a run folder as its newest checkpoint has it; raises `ConfigError` where there is none."""
    agent = make_agent(settings)
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
