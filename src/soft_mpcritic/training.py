"""The host loop: Gymnasium environments on one side, the compiled agent on the other."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.checkpoint import Checkpoints, Which
from soft_mpcritic.compilation import jit, jit_on_leaves
from soft_mpcritic.config import ConfigError
from soft_mpcritic.diagnostics import Diagnostics, summarize
from soft_mpcritic.divergence import DivergenceError, smaller_steps, way_back
from soft_mpcritic.envs import EnvironmentFaultError, EnvVector, task_for
from soft_mpcritic.evaluation import Evaluator
from soft_mpcritic.files import LOG
from soft_mpcritic.memory import Footprint, available_memory
from soft_mpcritic.recording import Observer, RunRecord, Schedule
from soft_mpcritic.run_folder import RunFolder, RunSettings, check_resumable
from soft_mpcritic.steering import steered
from soft_mpcritic.types import AnyArray, Experience

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def make_agent(settings: RunSettings) -> Agent:
    """The agent that a run asks for; raises `ConfigError` for a task that does not go with the settings."""
    config = settings.config
    parts = settings.parts.filled(config.parts)
    return Agent(task_for(settings.env_id, config.training, parts), config, parts)


def check_memory(agent: Agent) -> None:
    """Raises `ConfigError` where an agent would not fit into the machine, before anything is allocated."""
    Footprint(agent.task, agent.config).check(1, *available_memory())


def prepare_run(folder: RunFolder, asked: RunSettings, resume: bool) -> RunSettings:
    """The settings to run with; makes the folder or checks that the stored run can go on. Raises `ConfigError`."""
    check_memory(make_agent(asked))
    _check_place(folder, asked, resume)
    with folder.held():
        _check_place(folder, asked, resume)
        folder.create(asked)
    return asked


def _check_place(folder: RunFolder, asked: RunSettings, resume: bool) -> None:
    if not folder.exists:
        return
    if not resume:
        raise ConfigError(f"run folder {folder.path} already holds a run: add --resume, or choose another --run-dir.")
    check_resumable(folder.read_settings(), asked, folder)


def train(folder: RunFolder, settings: RunSettings, observer: Observer) -> dict[str, Any]:
    """Trains until `settings.total_steps` or a request to stop (SIGINT, SIGTERM, SIGHUP); returns the summary.

    A folder with a checkpoint goes on from it, as if never stopped. Raises, after a checkpoint,
    `EnvironmentFaultError` when environments fail more often than is tolerated, and `DivergenceError` when learning
    diverges for good; `StorageError` when the folder can no longer be written; `ConfigError` when somebody else
    trains in it.
    """
    with jax.default_matmul_precision(settings.config.training.matmul_precision), folder.held():
        with stop_requests() as stop_requested:
            run = Run(folder, settings, observer)
            try:
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
        self._envs = EnvVector(
            self._agent.task,
            training.num_envs,
            training.vectorization,
            forgiving=True,
            timeout=training.step_timeout,
        )
        self._evaluator = Evaluator(self._agent, training.step_timeout)
        self._diagnostics = Diagnostics(self._agent)

        agent = self._agent
        self._begin = jit(agent.begin, donate_argnums=0)
        resumed_at = self._record.checkpoints.newest_sound()
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
            if self._record.means.skipped_in_a_row >= self._settings.config.training.skips_tolerated:
                self._turn_back()
            else:
                self._report()

    def _advance(self) -> None:
        """One step of all environments, and all that is learned from it.

        Calls return before the device is done: the environments step to actions that are ready while the updates,
        which no action waits for, are still under way.
        """
        started = time.perf_counter()
        experience = self._step_environments(np.asarray(self._action))
        updates = self._schedule.updates(self._count_step(experience))
        if self._envs.faults:
            self._begin_anew(experience.start_obs, updates)
        elif updates is None:
            self._leaves, self._action = self._random_step(self._leaves, experience)
        else:
            self._leaves, self._action, planned = self._planned_step(self._leaves, experience)
            self._leaves, learned = self._learn(self._leaves, np.int32(updates))
            self._record.means.add(learned, planned)
        self._record.add_time(time.perf_counter() - started, self._envs.num_envs)

    def _step_environments(self, action: np.ndarray) -> Experience:
        """A checkpoint is kept whatever goes wrong in an environment."""
        longest = self._schedule.longest_episode(self._env_step + self._envs.num_envs)
        try:
            self._envs.cut_after(longest)
            experience = self._envs.step(action)
        except EnvironmentFaultError as error:
            self._stop_for(error, self._env_step + 1)
        self._survive(list(self._envs.faults.values()), self._env_step + 1)
        return experience

    def _survive(self, faults: Sequence[EnvironmentFaultError], step: int) -> None:
        """Counts what went wrong; raises `EnvironmentFaultError`, after a checkpoint, once it was too much."""
        tolerated = self._settings.config.training.faults_tolerated
        for fault in faults:
            self._record.faults += 1
            if self._record.faults > tolerated:
                told = f"; {tolerated} faults were tolerated" if tolerated else ""
                self._stop_for(fault.worded(after=told), step)
            LOG.warning("%s, at environment step %d: the episode is cut", fault, step)

    def _stop_for(self, error: EnvironmentFaultError, step: int) -> NoReturn:
        self._checkpoint()
        raise error.worded(after=f", at environment step {step}") from error

    def _count_step(self, experience: Experience) -> int:
        """Of an episode that was cut, return and length mean nothing."""
        cut = np.isin(np.arange(self._envs.num_envs), list(self._envs.faults))
        step = self._record.add_step(experience.reward, np.asarray(experience.done) & ~cut)
        if cut.any():
            self._record.restart_episodes(cut)
        return step

    def _begin_anew(self, obs: AnyArray, updates: int | None) -> None:
        """After a fault, the step is not kept: all plans start anew where the environments are now."""
        state, self._action = self._begin(self._state, obs)
        self._leaves = jax.tree.leaves(state)
        if updates is not None and int(state.replay.size) > 0:
            self._leaves, _ = self._learn(self._leaves, np.int32(updates))

    def _turn_back(self) -> None:
        """Learning has diverged: goes on from the last good checkpoint with smaller steps, or stops."""
        diverged = self._state
        try:
            good = way_back([self._record], self._settings.config.training.divergence)
        except DivergenceError:
            self._checkpoint()
            raise
        state, progress = self._record.roll_back(diverged, good)
        state, self._action = self._relive(smaller_steps(state, diverged.health), progress)
        self._leaves = jax.tree.leaves(state)

    def _report(self) -> None:
        """Whatever falls due at this step: log, evaluation, checkpoint."""
        step = self._env_step
        evaluated = self._schedule.evaluates(step)
        diagnosed = self._evaluate() if evaluated else {}
        if self._schedule.logs(step):
            state = self._state
            row = self._record.write_metrics(int(state.updates), diagnosed, int(state.health.skipped))
            self._observer.on_metrics(row)
        if self._schedule.checkpoints(step) or (evaluated and self._record.at_best):
            self._checkpoint()

    def _evaluate(self) -> dict[str, float]:
        """Plays and records evaluation episodes; what they say of value and models. Nothing where that went wrong."""
        state = self._state
        try:
            played = self._evaluator.play(state.models, self._settings.config.training.evaluation_episodes)
        except EnvironmentFaultError as error:
            self._survive([error.worded(before="in an evaluation, ")], self._env_step)
            return {}
        episodes = [trajectory.episode for trajectory in played]
        self._record.write_evaluation(episodes)
        self._observer.on_evaluation(self._env_step, episodes)
        return summarize(self._diagnostics(state, played))._asdict()

    def _checkpoint(self) -> None:
        self._record.checkpoint(self._state, self._snapshot(), self._action)

    def _snapshot(self) -> list[dict[str, Any]] | None:
        """None where environments cannot say how they came here: a resumed run then begins new episodes."""
        try:
            return self._envs.snapshot()
        except Exception as error:
            LOG.warning("environments are not kept with the checkpoint (%s): a resumed run begins new episodes", error)
            return None

    # ------------------------------------------------------------ start and end

    def _start(self, state: AgentState) -> tuple[AgentState, jax.Array]:
        return self._begin(state, self._envs.reset(self._settings.seed))

    def _resume(self, template: AgentState, step: int) -> tuple[AgentState, jax.Array]:
        """State, counters and environments as they were."""
        return self._relive(*self._record.load(template, step))

    def _relive(self, state: AgentState, progress: Mapping[str, Any]) -> tuple[AgentState, jax.Array]:
        """Environments as they were; where they cannot be brought back, they start new episodes."""
        kept = progress["environments"]
        action = jnp.asarray(progress["action"], jnp.float32)
        if isinstance(kept, list) and len(kept) == self._envs.num_envs:
            obs = self._envs.restore(kept)
            if np.array_equal(obs, state.pending.obs) and action.shape == state.pending.action.shape:
                return state, action
        self._record.restart_episodes()
        return self._begin(state, self._envs.reset(self._settings.seed + self._env_step))

    def finish(self) -> dict[str, Any]:
        """Last checkpoint, learning curve and summary."""
        self._checkpoint()
        return self._record.finish(int(self._state.updates))

    def close(self) -> None:
        self._record.close()
        self._envs.close()
        self._evaluator.close()

    @property
    def _env_step(self) -> int:
        return self._record.clock.env_step

    @property
    def _state(self) -> AgentState:
        return jax.tree.unflatten(self._structure, self._leaves)


def load_state(
    folder: RunFolder,
    settings: RunSettings,
    control: Mapping[str, Any] | None = None,
    checkpoint: Which = "newest",
) -> tuple[Agent, AgentState]:
    """The agent of a run folder as a checkpoint has it, with other settings of control where told.

    Raises `ConfigError` where there is no such checkpoint, and for settings that cannot be changed any more.
    """
    agent = make_agent(settings)
    acting = replace(agent, config=steered(agent.config, control or {}))
    checkpoints = Checkpoints(folder)
    step = checkpoints.chosen(checkpoint)
    check_memory(agent)
    check_memory(acting)
    state, _ = checkpoints.load(jit(agent.init)(jax.random.key(settings.seed)), step)
    return acting, state


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a question that the loop can ask; a second one interrupts at once.

    Signals that the process was told to ignore, by nohup say, stay ignored. Off the main thread, none are caught.
    """
    requested: list[int] = []

    def request(number: int, _frame: Any) -> None:
        if requested:
            raise KeyboardInterrupt
        requested.append(number)

    caught = STOPPING if threading.current_thread() is threading.main_thread() else ()
    old = {number: signal.getsignal(number) for number in caught}
    for number, handler in old.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, request)
    try:
        yield lambda: bool(requested)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
