"""Means of the learner's figures between log points, and where they are written."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soft_mpcritic.agent_state import LEARNING_NAMES, METRIC_NAMES
from soft_mpcritic.board import Board
from soft_mpcritic.diagnostics import DIAGNOSTIC_NAMES
from soft_mpcritic.files import LOG, Table, why
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.trackers import Tracker
from soft_mpcritic.types import AnyArray, Episode

HOST_COLUMNS = ("env_step", "wall_seconds", "steps_per_second", "updates", "episodes", "train_return", "train_length")
TROUBLES = ("faults", "skipped_updates", "rollbacks")  # so far: steps of environments, updates, returns to a checkpoint
METRIC_COLUMNS = (*HOST_COLUMNS, *TROUBLES, *METRIC_NAMES, *DIAGNOSTIC_NAMES)
SKIPPED = LEARNING_NAMES.index("skipped")
EVALUATION_COLUMNS = ("env_step", "wall_seconds", "episode", "seed", "return", "length")
RECENT_EPISODES = 20


class EpisodeTracker:
    """Returns and lengths of training episodes in E environments."""

    def __init__(self, num_envs: int) -> None:
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, int)
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT_EPISODES)
        self.episodes = 0

    def add(self, reward: AnyArray, done: AnyArray) -> None:
        """One step of all environments."""
        self._returns += np.asarray(reward)
        self._lengths += 1
        for index in np.flatnonzero(done):
            self._recent.append((float(self._returns[index]), int(self._lengths[index])))
            self.episodes += 1
            self._returns[index], self._lengths[index] = 0.0, 0

    def restart(self, which: AnyArray | None = None) -> None:
        """Forgets the running episodes, or those of a mask [E]: their environments could not be brought back."""
        lost = np.full(self._returns.shape, True) if which is None else np.asarray(which)
        self._returns[lost], self._lengths[lost] = 0.0, 0

    @property
    def recent_means(self) -> tuple[float, float]:
        """Mean return and length of the last finished episodes; NaN before the first."""
        if not self._recent:
            return float("nan"), float("nan")
        returns, lengths = zip(*self._recent, strict=True)
        return float(np.mean(returns)), float(np.mean(lengths))

    def to_json(self) -> dict[str, Any]:
        return {
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "recent": [list(pair) for pair in self._recent],
            "episodes": self.episodes,
        }

    def load(self, record: dict[str, Any]) -> None:
        self._returns = np.array(record["returns"])
        self._lengths = np.array(record["lengths"])
        self._recent = deque(((r, n) for r, n in record["recent"]), maxlen=RECENT_EPISODES)
        self.episodes = record["episodes"]


class MetricMeans:
    """Running means of the step metrics since the last log point.

    A step's figures are read when those of the next step come, so that the host never waits for them.
    """

    def __init__(self) -> None:
        self._sum, self._count = np.zeros(len(METRIC_NAMES)), 0
        self._unread: tuple[AnyArray, AnyArray] | None = None
        self.skipped_in_a_row = 0  # updates, as of the last step that was read

    def add(self, learned: AnyArray, planned: AnyArray) -> None:
        """One step's `LearningMetrics` and `PlanningMetrics`, each stacked; they may still be under way."""
        self._read()
        self._unread = learned, planned

    def take(self) -> dict[str, float]:
        """The means by name, and a fresh start; NaN where nothing was learned in between."""
        self._read()
        means = self._sum / self._count if self._count else np.full(len(METRIC_NAMES), np.nan)
        self._sum, self._count = np.zeros(len(METRIC_NAMES)), 0
        return dict(zip(METRIC_NAMES, means.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        self._read()
        return {"sum": self._sum.tolist(), "count": self._count, "skipped_in_a_row": self.skipped_in_a_row}

    def load(self, record: dict[str, Any]) -> None:
        self._sum, self._count = np.array(record["sum"]), record["count"]
        self.skipped_in_a_row = record["skipped_in_a_row"]
        self._unread = None

    def _read(self) -> None:
        if self._unread is not None:
            figures = np.concatenate(self._unread)
            self.skipped_in_a_row = int(figures[SKIPPED])
            self._sum += figures
            self._count += 1
            self._unread = None


class MetricLog:
    """metrics.csv, evaluations.csv, TensorBoard and trackers; a resumed run goes on after `resumed_at`.

    On a disk that is full, rows wait in memory: `sync` says whether all are safe.
    """

    def __init__(
        self,
        folder: RunFolder,
        resumed_at: int = -1,
        columns: Sequence[str] = METRIC_COLUMNS,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        path: Path = folder.path
        self._metrics = Table(path / "metrics.csv", columns, resumed_at)
        self._evaluations = Table(path / "evaluations.csv", EVALUATION_COLUMNS, resumed_at)
        self._boards = [Board(path / "tensorboard", resumed_at), *trackers]
        self._waits = False

    def write_metrics(self, row: dict[str, Any]) -> None:
        """One row, a value per column."""
        self._append(self._metrics, row)
        shown = {f"train/{name}": value for name, value in row.items() if name != "env_step" and np.isfinite(value)}
        self._show(row["env_step"], shown)

    def write_evaluation(self, env_step: int, wall_seconds: float, episodes: Sequence[Episode]) -> None:
        """One row per episode."""
        for index, episode in enumerate(episodes):
            values = (env_step, round(wall_seconds, 3), index, episode.seed, episode.ret, episode.length)
            self._append(self._evaluations, dict(zip(EVALUATION_COLUMNS, values, strict=True)))
        means = {"return": np.mean([e.ret for e in episodes]), "length": np.mean([e.length for e in episodes])}
        self._show(env_step, {f"evaluation/{name}": float(mean) for name, mean in means.items()})

    def sync(self) -> None:
        """All rows are on the disk when this returns; raises `OSError` where they cannot be."""
        self._metrics.sync()
        self._evaluations.sync()
        self._waits = False

    def _show(self, env_step: int, values: Mapping[str, float]) -> None:
        for board in self._boards:
            board.add(env_step, time.time(), values)

    def _append(self, table: Table, row: Mapping[str, Any]) -> None:
        try:
            table.append(row)
        except OSError as error:
            if not self._waits:
                LOG.warning("rows of %s wait in memory: %s", table.name, why(error))
            self._waits = True
