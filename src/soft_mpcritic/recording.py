"""What a run writes down, whichever loop runs it: when things fall due, rows, checkpoints and the summary."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.checkpoint import Checkpoints
from soft_mpcritic.config import ConfigError, TrainingConfig
from soft_mpcritic.diagnostics import DIAGNOSTIC_NAMES
from soft_mpcritic.files import LOG, StorageError, remedy, unwritable, why
from soft_mpcritic.metrics import HOST_COLUMNS, METRIC_COLUMNS, TROUBLES, EpisodeTracker, MetricLog, MetricMeans
from soft_mpcritic.plotting import plot_runs
from soft_mpcritic.run_folder import RunDescription, RunFolder, RunSettings
from soft_mpcritic.trackers import Shielded, make_tracker
from soft_mpcritic.types import AnyArray, Episode

EPISODES_LIVED = 20  # a cut episode may be as long as such a part of all that was lived before


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


@dataclass(frozen=True)
class Schedule:
    """What falls due at an environment step; E are made at a time."""

    training: TrainingConfig
    total_steps: int

    def ends(self, step: int) -> bool:
        return step >= self.total_steps

    def logs(self, step: int) -> bool:
        """An evaluation has a row of its own: it holds what the evaluation says of value and models."""
        return self._due(step, self.training.log_every) or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        return self._due(step, self.training.evaluate_every)

    def checkpoints(self, step: int) -> bool:
        return self._due(step, self.training.checkpoint_every)

    def anything(self, step: int) -> bool:
        return self.logs(step) or self.checkpoints(step)

    def updates(self, step: int) -> int | None:
        """None in the seed phase; all of the pretraining on its last step; then the usual number."""
        training = self.training
        if step < training.seed_steps:
            return None
        first = step - training.num_envs < training.seed_steps
        return training.pretrain_updates if first else training.updates_per_step * training.num_envs

    def longest_episode(self, step: int) -> int:
        """Steps after which an episode of training is cut; 0: never. Who has lived long may live longer at a time."""
        first = self.training.episode_steps
        return max(first, step // EPISODES_LIVED) if first else 0

    def _due(self, step: int, every: int) -> bool:
        return self.ends(step) or step // every > (step - self.training.num_envs) // every


class Journal:
    """Counters and tables of one run, in its folder, whatever its algorithm."""

    def __init__(
        self, folder: RunFolder, run: RunDescription, num_envs: int = 1, columns: Sequence[str] = HOST_COLUMNS
    ) -> None:
        self._started = time.perf_counter()
        self._folder, self._run, self._num_envs, self._columns = folder, run, num_envs, columns
        self._episodes = EpisodeTracker(num_envs)
        self.clock = Clock()
        self._last_evaluation: list[Episode] = []
        self._log: MetricLog | None = None
        self._trackers: list[Shielded] | None = None

    def open(self, resumed_at: int | None = None) -> None:
        """Readies the tables for what comes after `resumed_at`; raises `ConfigError` where they cannot be written."""
        if self._trackers is None:
            asked = self._run.settings.get("training", {}).get("tracker", "none")
            self._trackers = [] if asked == "none" else [make_tracker(asked, self._folder.path, self._run.settings)]
        begun = -1 if resumed_at is None else resumed_at
        try:
            self._log = MetricLog(self._folder, begun, self._columns, self._trackers)
        except OSError as error:
            raise ConfigError(unwritable(f"run folder {self._folder.path}", error) + ".") from error

    # ------------------------------------------------------------------- while it runs

    def add_step(self, reward: AnyArray, done: AnyArray) -> int:
        """One step of all environments; returns the environment steps so far."""
        self._episodes.add(reward, done)
        self.clock.env_step += self._num_envs
        return self.clock.env_step

    def add_time(self, seconds: float, steps: int) -> None:
        """What `steps` environment steps, with all learned from them, took."""
        self.clock.loop_seconds += seconds
        self.clock.loop_steps += steps

    def write_metrics(self, updates: int, figures: Mapping[str, int | float]) -> dict[str, Any]:
        """A row of metrics.csv: what every run has, and the algorithm's own `figures`."""
        clock = self.clock
        mean_return, mean_length = self._episodes.recent_means
        row = {
            "env_step": clock.env_step,
            "wall_seconds": round(self._wall_seconds(), 3),
            "steps_per_second": round(clock.loop_steps / max(clock.loop_seconds, 1e-9), 2),
            "updates": updates,
            "episodes": self._episodes.episodes,
            "train_return": mean_return,
            "train_length": mean_length,
            **figures,
        }
        clock.loop_seconds, clock.loop_steps = 0.0, 0
        self._open_log.write_metrics(row)
        return row

    def write_evaluation(self, played: Sequence[Episode]) -> None:
        """Evaluation episodes, as rows of evaluations.csv."""
        self._last_evaluation = list(played)
        self._open_log.write_evaluation(self.clock.env_step, self._wall_seconds(), played)

    # ------------------------------------------------------------------- at the end

    def finish(self, updates: int) -> dict[str, Any]:
        """Learning curve and summary; raises `StorageError` where they, or rows of tables, cannot be written."""
        summary = self._summary(updates)
        try:
            self._open_log.sync()
            self._folder.write_summary(summary)
            if summary["evaluation_episodes"]:
                plot_runs([self._folder], self._folder.curve)
        except OSError as error:
            raise StorageError(unwritable(f"run folder {self._folder.path}", error) + ".") from error
        return summary

    def close(self) -> None:
        """Takes leave of trackers."""
        for tracker in self._trackers or ():
            tracker.close()

    def _summary(self, updates: int) -> dict[str, Any]:
        returns = [episode.ret for episode in self._last_evaluation]
        finished = self.clock.env_step >= self._run.total_steps
        return {
            "status": "finished" if finished else "interrupted",
            "env_id": self._run.env_id,
            "algorithm": self._run.algorithm,
            "preset": self._run.preset,
            "seed": self._run.seed,
            "env_step": self.clock.env_step,
            "updates": updates,
            "wall_seconds": round(self._wall_seconds(), 3),
            "evaluation_episodes": len(returns),
            "evaluation_return_mean": float(np.mean(returns)) if returns else None,
            "evaluation_return_min": min(returns, default=None),
            "evaluation_return_max": max(returns, default=None),
        }

    @property
    def _open_log(self) -> MetricLog:
        assert self._log is not None, "open() comes first"
        return self._log

    def _wall_seconds(self) -> float:
        return self.clock.wall_seconds + time.perf_counter() - self._started


class RunRecord(Journal):
    """The journal of a run of ours, with its checkpoints; `checkpoints_kept` is the least number to keep."""

    def __init__(self, folder: RunFolder, settings: RunSettings, checkpoints_kept: int = 1) -> None:
        training = settings.config.training
        super().__init__(folder, settings.description, training.num_envs, METRIC_COLUMNS)
        self.means = MetricMeans()
        self.checkpoints = Checkpoints(folder, max(training.checkpoints_kept, checkpoints_kept))
        self.faults = 0  # steps of environments that went wrong and were survived
        self.rollbacks = 0
        self.returned_to: list[int] = []  # checkpoints, by this process
        self._skipped = 0  # updates, as of the last row
        self._unsaved: OSError | None = None  # why the last checkpoint could not be written

    def open(self, resumed_at: int | None = None) -> None:
        """Readies tables and checkpoints for what comes after `resumed_at`."""
        try:
            self.checkpoints.go_on_from(resumed_at)
        except OSError as error:
            raise ConfigError(unwritable(f"run folder {self._folder.path}", error) + ".") from error
        super().open(resumed_at)

    def load(self, template: AgentState, step: int) -> tuple[AgentState, dict[str, Any]]:
        """The state and all counters as the checkpoint of `step` has them, and what else was kept with it.

        Raises `ConfigError` for a checkpoint that is damaged, of other settings, or no checkpoint of a run.
        """
        state, progress = self.checkpoints.load(template, step)
        try:
            self._restore(progress)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(
                f"checkpoint {step} of {self._folder.path} has counters that cannot be ({error!r}): remove it."
            ) from error
        return state, progress

    def roll_back(self, template: AgentState, step: int) -> tuple[AgentState, dict[str, Any]]:
        """`load` within a running process; what came after `step` is void, but the time was spent."""
        spent, faults, rollbacks = self._wall_seconds(), self.faults, self.rollbacks
        state, progress = self.load(template, step)
        self.clock.wall_seconds, self._started = spent, time.perf_counter()
        self.faults, self.rollbacks = faults, rollbacks + 1
        self.open(step)
        return state, progress

    def _restore(self, progress: Mapping[str, Any]) -> None:
        counted = [progress[name] for name in ("env_step", "wall_seconds", "loop_seconds", "loop_steps")]
        if not all(isinstance(number, int | float) for number in counted):
            raise TypeError(f"not numbers: {counted}")
        self.clock = Clock(*counted)
        self._episodes.load(progress["episodes"])
        self.means.load(progress["means"])
        self._last_evaluation = [Episode(*values) for values in progress["last_evaluation"]]
        self.faults, self.rollbacks = int(progress["faults"]), int(progress["rollbacks"])
        self._skipped = int(progress["skipped_updates"])

    @property
    def at_best(self) -> bool:
        """Whether the evaluation of this step returned no less than that of any checkpoint that is kept."""
        return self.checkpoints.is_best(self.clock.env_step)

    def restart_episodes(self, which: AnyArray | None = None) -> None:
        """The running episodes, or those of a mask [E], could not be brought back."""
        self._episodes.restart(which)

    def checkpoint(self, state: AgentState, environments: Any, action: AnyArray) -> None:
        """Everything that the run needs to go on from here. Where the disk does not take it, the one before stands."""
        progress = {
            "env_step": self.clock.env_step,
            "wall_seconds": self._wall_seconds(),
            "loop_seconds": self.clock.loop_seconds,
            "loop_steps": self.clock.loop_steps,
            "episodes": self._episodes.to_json(),
            "means": self.means.to_json(),
            "environments": environments,
            "action": np.asarray(action).tolist(),  # to the bit: computed anew it may round differently
            "last_evaluation": [list(episode) for episode in self._last_evaluation],
            "faults": self.faults,
            "rollbacks": self.rollbacks,
            "skipped_updates": self._skipped,
        }
        try:
            self._open_log.sync()  # rows first: a checkpoint speaks for all of them
            self.checkpoints.save(self.clock.env_step, state, progress)
            self._unsaved = None
        except OSError as error:
            self._unsaved = error
            LOG.warning("no checkpoint at environment step %d: %s; %s", self.clock.env_step, why(error), self._stands)

    def write_metrics(self, updates: int, figures: Mapping[str, float], skipped: int = 0) -> dict[str, Any]:
        """The means since the last log point, and what an evaluation found, if there was one: `figures`."""
        self._skipped = skipped
        unknown = dict.fromkeys(DIAGNOSTIC_NAMES, float("nan"))
        return super().write_metrics(updates, {**self._troubles, **self.means.take(), **unknown, **figures})

    def finish(self, updates: int) -> dict[str, Any]:
        """Learning curve and summary; raises `StorageError` also where the last checkpoint could not be written."""
        if self._unsaved is not None:
            told = f"run folder {self._folder.path} cannot be written: {why(self._unsaved)}"
            raise StorageError(f"{told}; {self._stands}: {remedy(self._unsaved)}, then go on with --resume.")
        return super().finish(updates)

    @property
    def _stands(self) -> str:
        latest = self.checkpoints.latest
        return "there is none yet" if latest is None else f"that of step {latest} stands"

    @property
    def _troubles(self) -> dict[str, int]:
        return dict(zip(TROUBLES, (self.faults, self._skipped, self.rollbacks), strict=True))

    def _summary(self, updates: int) -> dict[str, Any]:
        return {**super()._summary(updates), **self._troubles, "best_checkpoint": self.checkpoints.best}
