"""Means of the learner's figures between log points, and where they are written."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from soft_mpcritic.agent import METRIC_NAMES
from soft_mpcritic.run_folder import RunFolder, Table
from soft_mpcritic.types import AnyArray, Episode

HOST_COLUMNS = ("env_step", "wall_seconds", "steps_per_second", "updates", "episodes", "train_return", "train_length")
METRIC_COLUMNS = (*HOST_COLUMNS, *METRIC_NAMES)
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

    def restart(self) -> None:
        """Forgets the running episodes: their environments could not be brought back."""
        self._returns[:], self._lengths[:] = 0.0, 0

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
        return {"sum": self._sum.tolist(), "count": self._count}

    def load(self, record: dict[str, Any]) -> None:
        self._sum, self._count = np.array(record["sum"]), record["count"]

    def _read(self) -> None:
        if self._unread is not None:
            self._sum += np.concatenate(self._unread)
            self._count += 1
            self._unread = None


class MetricLog:
    """metrics.csv, evaluations.csv and TensorBoard; a resumed run goes on after `resumed_at`."""

    def __init__(self, folder: RunFolder, resumed_at: int = -1, columns: Sequence[str] = METRIC_COLUMNS) -> None:
        path: Path = folder.path
        self._metrics = Table(path / "metrics.csv", columns, resumed_at)
        self._evaluations = Table(path / "evaluations.csv", EVALUATION_COLUMNS, resumed_at)
        purge = resumed_at + 1 if resumed_at >= 0 else None
        self._board = SummaryWriter(str(path / "tensorboard"), purge_step=purge, write_to_disk=True)

    def write_metrics(self, row: dict[str, Any]) -> None:
        """One row, a value per column."""
        self._metrics.append(row)
        for name, value in row.items():
            if name != "env_step" and np.isfinite(value):
                self._board.add_scalar(f"train/{name}", value, row["env_step"])

    def write_evaluation(self, env_step: int, wall_seconds: float, episodes: Sequence[Episode]) -> None:
        """One row per episode."""
        for index, episode in enumerate(episodes):
            values = (env_step, round(wall_seconds, 3), index, episode.seed, episode.ret, episode.length)
            self._evaluations.append(dict(zip(EVALUATION_COLUMNS, values, strict=True)))
        self._board.add_scalar("evaluation/return", np.mean([e.ret for e in episodes]), env_step)
        self._board.add_scalar("evaluation/length", np.mean([e.length for e in episodes]), env_step)

    def close(self) -> None:
        self._board.close()
