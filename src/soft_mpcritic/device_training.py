"""Training on the device: the compiled loop of M seeds, and the host for what falls due in between."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState, Health, LearningMetrics
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import ConfigError
from soft_mpcritic.device_loop import DeviceLoop, LoopState, Orders, Rows
from soft_mpcritic.diagnostics import Diagnostics, summarize
from soft_mpcritic.divergence import DivergenceError, smaller_steps, way_back
from soft_mpcritic.envs import DeviceVector, EnvironmentFaultError, task_for
from soft_mpcritic.envs.device import UNSOUND, sound_rows
from soft_mpcritic.evaluation import Evaluator
from soft_mpcritic.files import LOG
from soft_mpcritic.planner import Models
from soft_mpcritic.plotting import plot_runs
from soft_mpcritic.recording import Observer, RunRecord, Schedule
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.seeds import SeedRun, fitted
from soft_mpcritic.training import stop_requests
from soft_mpcritic.types import Episode, Trajectory

LONGEST_CHUNK = 1000  # steps between two looks at the host, at most
LEARNING_FIGURES = len(LearningMetrics._fields)


def train_on_device(folder: RunFolder, runs: Sequence[SeedRun], observer: Observer) -> list[dict[str, Any]]:
    """Trains all seeds to `total_steps` or a request to stop; returns their summaries.

    Folders with checkpoints go on from the newest sound one that all have. Raises, after a checkpoint,
    `EnvironmentFaultError` when environments answer with numbers that nobody can learn from more often than is
    tolerated, and `DivergenceError` when learning diverges for good; `StorageError` when a folder can no longer be
    written.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision(runs[0].settings.config.training.matmul_precision))
        for seed_run in runs:
            stack.enter_context(seed_run.folder.held())
        stop_requested = stack.enter_context(stop_requests())
        run = stack.enter_context(contextlib.closing(DeviceRun(runs, observer)))
        run.go(stop_requested)
        summaries = run.finish()
    if len(runs) > 1 and all(summary["evaluation_episodes"] for summary in summaries):
        plot_runs([run.folder for run in runs], folder.curve)
    return summaries


class DeviceRun:
    """One training process: the states of all seeds on the device, and a record of each."""

    def __init__(self, runs: Sequence[SeedRun], observer: Observer) -> None:
        self._runs, self._observer = runs, observer
        settings = runs[0].settings
        self._training = settings.config.training
        self._schedule = Schedule(self._training, settings.total_steps)
        self._records = [RunRecord(run.folder, run.settings, min(len(runs), 2)) for run in runs]
        resumed_at = self._common_step()

        config = fitted(settings.config, max(settings.total_steps, resumed_at or 0))
        parts = settings.parts.filled(config.parts)
        agent = Agent(task_for(settings.env_id, self._training, parts), config, parts)
        env = agent.task.make_device_env(self._training.simulator)
        envs = DeviceVector(env, self._training.num_envs)
        length = min(-(-self._training.log_every // envs.num_envs), LONGEST_CHUNK)
        self._loop = DeviceLoop(agent, envs, length)
        self._evaluator, self._diagnostics = Evaluator(agent), Diagnostics(agent)
        self.play = jit(jax.vmap(self._loop.play, in_axes=(0, None, None)), donate_argnums=0)
        self._take = jit(lambda states, seed: jax.tree.map(lambda leaf: leaf[seed], states))
        keys = jnp.stack([jax.random.key(run.settings.seed) for run in runs])
        self._states: LoopState = jit(jax.vmap(self._loop.init))(keys)
        if resumed_at is not None:
            self._resume(resumed_at)
        for record in self._records:
            record.open(resumed_at)
        self._check_start()

    # ------------------------------------------------------------------- loop

    def go(self, stop_requested: Callable[[], bool]) -> None:
        """Plays chunk after chunk until done or asked to stop."""
        while not self._schedule.ends(self._env_step) and not stop_requested():
            self._advance()
            if any(self._diverged):
                self._turn_back()
            else:
                self._report()

    def _advance(self) -> None:
        """One compiled chunk: all steps to the next that something falls due at."""
        started = time.perf_counter()
        due = self._updates_due()
        self._states, rows = self.play(self._states, np.int32(len(due)), self._orders(due))
        rows = Rows(*(np.asarray(column)[:, : len(due)] for column in rows))
        for seed, record in enumerate(self._records):
            for step, updates_done in enumerate(due):
                sound = np.asarray(rows.sound[seed, step])
                record.add_step(rows.reward[seed, step], rows.done[seed, step] & sound)
                if not sound.all():
                    record.restart_episodes(~sound)
                if updates_done is not None:
                    record.means.add(*np.split(rows.figures[seed, step], [LEARNING_FIGURES]))
            record.add_time(time.perf_counter() - started, len(due) * self._training.num_envs)
        first = self._env_step - (len(due) - 1) * self._training.num_envs
        for step, seed, env in np.argwhere(~np.asarray(rows.sound).swapaxes(0, 1)).tolist():
            told = f"observation or reward of environment {env} of seed {self._seed(seed)} {UNSOUND}"
            self._survive(seed, EnvironmentFaultError(told), first + step * self._training.num_envs)

    def _survive(self, seed: int, fault: EnvironmentFaultError, step: int) -> None:
        """Counts what went wrong; raises `EnvironmentFaultError`, after a checkpoint, once it was too much."""
        record, tolerated = self._records[seed], self._training.faults_tolerated
        record.faults += 1
        if record.faults > tolerated:
            self._checkpoint()
            told = f"; {tolerated} faults were tolerated" if tolerated else ""
            raise fault.worded(after=f"{told}, at environment step {step}")
        LOG.warning("%s, at environment step %d: the episode is cut", fault, step)

    @property
    def _diverged(self) -> list[bool]:
        """By seed."""
        tolerated = self._training.skips_tolerated
        return [record.means.skipped_in_a_row >= tolerated for record in self._records]

    def _turn_back(self) -> None:
        """Learning has diverged: all seeds go on from the last good checkpoint, those concerned with smaller steps."""
        diverged, before = jnp.array(self._diverged), jax.tree.map(jnp.copy, self._states.agent.health)
        try:
            good = way_back(self._records, self._training.divergence)
        except DivergenceError:
            self._checkpoint()
            raise
        self._resume(good, RunRecord.roll_back)  # the states of before are no more
        agent = jax.vmap(_smaller_where)(diverged, self._states.agent, before)
        self._states = self._states._replace(agent=agent)

    def _updates_due(self) -> list[int | None]:
        """Updates after each step of the next chunk; None where it acts at random."""
        due: list[int | None] = []
        step = self._env_step
        while len(due) < self._loop.length:
            step += self._training.num_envs
            due.append(self._schedule.updates(step))
            if self._schedule.anything(step):
                break
        return due

    def _orders(self, due: list[int | None]) -> Orders:
        """A whole chunk's, of which those after the updates that are due are not read."""
        padded = due + [0] * (self._loop.length - len(due))
        steps = [self._env_step + self._training.num_envs * (1 + i) for i in range(len(padded))]
        longest = [self._schedule.longest_episode(step) for step in steps]
        return Orders(
            np.array([updates is None for updates in padded]),
            np.array([updates or 0 for updates in padded], np.int32),
            np.minimum(longest, np.iinfo(np.int32).max).astype(np.int32),
        )

    def _report(self) -> None:
        """Whatever falls due at this step: log, evaluation, checkpoint."""
        step = self._env_step
        evaluated = self._schedule.evaluates(step)
        diagnosed = self._evaluate() if evaluated else [{}] * len(self._records)
        if self._schedule.logs(step):
            self._log(diagnosed)
        if self._schedule.checkpoints(step) or (evaluated and any(record.at_best for record in self._records)):
            self._checkpoint()

    def _log(self, diagnosed: Sequence[dict[str, float]]) -> None:
        """A row for each seed; who watches sees the means over seeds."""
        agent = self._states.agent
        counts = zip(np.asarray(agent.updates).tolist(), np.asarray(agent.health.skipped).tolist(), strict=True)
        rows = [
            record.write_metrics(updates, figures, skipped)
            for record, figures, (updates, skipped) in zip(self._records, diagnosed, counts, strict=True)
        ]
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        self._observer.on_metrics({**means, "env_step": self._env_step})

    def _evaluate(self) -> list[dict[str, float]]:
        """Plays and records the evaluation episodes of every seed; what they say of its value and models."""
        everything: list[Episode] = []
        diagnosed = []
        for seed, (record, played) in enumerate(zip(self._records, self._play(), strict=True)):
            if isinstance(played, EnvironmentFaultError):
                before = f"in an evaluation of seed {self._seed(seed)}, "
                self._survive(seed, played.worded(before=before), self._env_step)
                diagnosed.append({})
                continue
            episodes = [trajectory.episode for trajectory in played]
            record.write_evaluation(episodes)
            everything += episodes
            state = self._take(self._states.agent, seed)
            diagnosed.append(summarize(self._diagnostics(state, played))._asdict())
        if everything:
            self._observer.on_evaluation(self._env_step, everything)
        return diagnosed

    def _play(self) -> list[list[Trajectory] | EnvironmentFaultError]:
        """The evaluation episodes of every seed, side by side; after a fault one by one, to know whose it is."""
        models, episodes = self._states.agent.models, self._training.evaluation_episodes
        try:
            return [*self._evaluator.play_each(models, episodes)]
        except EnvironmentFaultError:
            return [self._play_one(self._take(models, seed), episodes) for seed in range(len(self._records))]

    def _play_one(self, models: Models, episodes: int) -> list[Trajectory] | EnvironmentFaultError:
        try:
            return self._evaluator.play(models, episodes)
        except EnvironmentFaultError as error:
            return error

    def _checkpoint(self) -> None:
        for seed, record in enumerate(self._records):
            state = self._take(self._states, seed)
            record.checkpoint(state.agent, self._loop.envs.snapshot(state.envs), state.action)

    # ------------------------------------------------------------ start and end

    def _common_step(self) -> int | None:
        """The newest sound checkpoint that all seeds have: a run may be killed while it writes them."""
        kept = [set(record.checkpoints.sound_steps()) for record in self._records]
        common = set.intersection(*kept)
        if not common and any(kept) and not self._killed_at_the_first:
            told = "; ".join(
                f"seed {run.settings.seed}: {', '.join(map(str, sorted(steps))) or 'none'}"
                for run, steps in zip(self._runs, kept, strict=True)
            )
            raise ConfigError(f"the seeds have no checkpoint in common ({told}): resume each folder alone.")
        if not common:
            for record in self._records:
                record.checkpoints.newest_sound()  # says so where all are damaged
        return max(common, default=None)

    @property
    def _killed_at_the_first(self) -> bool:
        """Did a process end while it wrote the first checkpoints, so that there is nothing yet to lose?"""
        steps = [record.checkpoints.steps for record in self._records]
        first = self._training.checkpoint_every + self._training.num_envs
        return not all(steps) and all(step < first for step in set.union(*steps))

    def _check_start(self) -> None:
        """Raises `EnvironmentFaultError` for environments whose first observations nobody can learn from."""
        sound = np.asarray(jax.vmap(sound_rows)(self._states.agent.pending.obs))
        for seed, env in np.argwhere(~sound).tolist():
            raise EnvironmentFaultError(f"first observation of environment {env} of seed {self._seed(seed)} {UNSOUND}")

    def _seed(self, index: int) -> int:
        return self._runs[index].settings.seed

    def _resume(self, step: int, load: Callable[..., tuple[AgentState, dict[str, Any]]] = RunRecord.load) -> None:
        """States, counters and environments as they were; one seed after another, to spare memory."""
        put = jit(lambda states, seed, one: jax.tree.map(lambda a, b: a.at[seed].set(b), states, one), donate_argnums=0)
        for seed, record in enumerate(self._records):
            agent, progress = load(record, self._take(self._states.agent, seed), step)
            try:
                envs = self._loop.envs.restore(progress["environments"])
                action = jnp.asarray(progress["action"], jnp.float32)
            except (KeyError, TypeError, ValueError) as error:
                path = self._runs[seed].folder.path
                raise ConfigError(f"checkpoint {step} of {path} has environments that cannot be: remove it.") from error
            self._states = put(self._states, seed, LoopState(envs, agent, action))

    def finish(self) -> list[dict[str, Any]]:
        """Last checkpoints, learning curves and summaries."""
        self._checkpoint()
        updates = np.asarray(self._states.agent.updates)
        return [record.finish(int(updates[seed])) for seed, record in enumerate(self._records)]

    def close(self) -> None:
        for record in self._records:
            record.close()
        self._evaluator.close()

    @property
    def _env_step(self) -> int:
        return self._records[0].clock.env_step


def _smaller_where(diverged: Bool[Array, ""], state: AgentState, before: Health) -> AgentState:
    """`smaller_steps` for a seed that has diverged; others do what they did before once more."""
    smaller = smaller_steps(state, before).health
    health = jax.tree.map(lambda new, old: jnp.where(diverged, new, old), smaller, state.health)
    return dataclasses.replace(state, health=health)
