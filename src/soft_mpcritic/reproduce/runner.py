"""Runs of a grid, each in a process of its own: what is left to do, and doing it."""

import fcntl
import json
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soft_mpcritic.baselines import Baseline
from soft_mpcritic.config import ConfigError
from soft_mpcritic.run_folder import RunFolder, RunSettings, check_resumable
from soft_mpcritic.training import prepare_run, stop_requests

PROGRAM = (sys.executable, "-m", "soft_mpcritic")
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class GridRun(ABC):
    """One run of a cell: where it lives, and how to start it or go on with it."""

    cell: str
    seed: int
    total_steps: int
    folder: RunFolder
    log: Path  # what its processes said, one after the other

    @abstractmethod
    def check(self) -> None:
        """Raises `ConfigError` where the folder holds a run of other settings; changes nothing."""

    @abstractmethod
    def arguments(self) -> list[str]:
        """Readies the folder; the command that then starts the run, or goes on with it."""

    @property
    def name(self) -> str:
        return f"{self.cell} seed{self.seed}"

    @property
    def summary(self) -> dict[str, Any]:
        """As the last process that came to an end left it; empty before."""
        path = self.folder.path / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def finished(self) -> bool:
        summary = self.summary
        return summary.get("status") == "finished" and summary["env_step"] >= self.total_steps


@dataclass(frozen=True)
class OurRun(GridRun):
    """A run of this library's own algorithm: it goes on from its checkpoint."""

    asked: RunSettings

    def check(self) -> None:
        if self.folder.exists:
            with _in_words_of_the_grid(self.folder):
                check_resumable(self.folder.read_settings(), self.asked, self.folder)

    def arguments(self) -> list[str]:
        """The settings travel in the run folder."""
        prepare_run(self.folder, self.asked, resume=True)
        return ["train", "--resume", "--run-dir", str(self.folder.path)]


@dataclass(frozen=True)
class BaselineRun(GridRun):
    """A run of a published algorithm: it has no checkpoints, and starts over where it was not finished."""

    asked: Baseline

    def check(self) -> None:
        if not self.folder.exists:
            return
        with _in_words_of_the_grid(self.folder):
            stored, asked = self.folder.read_description(), self.asked.description
            for name in ("env_id", "algorithm", "seed", "settings"):
                was, now = getattr(stored, name), getattr(asked, name)
                if was != now:
                    raise ConfigError(f"{name} of run folder {self.folder.path} was {was} and cannot become {now}.")

    def arguments(self) -> list[str]:
        shutil.rmtree(self.folder.path, ignore_errors=True)
        asked = self.asked
        options = {
            "seed": asked.seed,
            "total-steps": asked.total_steps,
            "run-dir": self.folder.path,
            "learning-starts": asked.learning_starts,
            "evaluate-every": asked.training.evaluate_every,
            "evaluation-episodes": asked.training.evaluation_episodes,
        }
        pairs = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return ["baseline", asked.algorithm, asked.env_id, *pairs]


@dataclass(frozen=True)
class Failure:
    """A run whose process ended before the run did."""

    run: GridRun
    status: int  # of the process; negative: the signal that ended it

    def __str__(self) -> str:
        how = f"exit status {self.status}" if self.status else "stopped early"
        if self.status < 0:
            how = f"killed by signal {-self.status}"
        return f"{self.run.name} ({how}, {self.run.log})"


@contextmanager
def sole_use(out: Path) -> Iterator[int]:
    """The descriptor of a lock on `out`; raises `ConfigError` while somebody else holds it.

    Processes that inherit the descriptor hold the lock too: runs that outlive a killed call keep the next one out.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}; choose another --out.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{out} is in use by another call or its runs: wait, or choose another --out.") from error
        yield file.fileno()


def run_all(runs: Sequence[GridRun], workers: int, lock: int) -> list[Failure]:
    """Brings all runs to their end, `workers` at a time; a failure stops no other.

    A request to stop (SIGINT, SIGTERM) is passed on: the runs under way checkpoint, and the rest is left.
    """
    waiting, failures = list(runs), []
    running: dict[GridRun, subprocess.Popen[bytes]] = {}
    try:
        with stop_requests() as stop_requested:
            while (waiting or running) and not stop_requested():
                while waiting and len(running) < workers:
                    run = waiting.pop(0)
                    running[run] = _start(run, lock)
                for run, status in [(run, process.poll()) for run, process in running.items()]:
                    if status is not None:
                        del running[run]
                        failures += [] if run.finished else [Failure(run, status)]
                        _tell(run, f"{len(waiting) + len(running)} to go")
                time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failures


def _start(run: GridRun, lock: int) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C reaches this process alone, which passes on a single request to stop."""
    command = [*PROGRAM, *run.arguments()]
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,
        )


def _tell(run: GridRun, rest: str) -> None:
    summary = run.summary
    told = "failed"
    if run.finished:
        told = f"return {summary['evaluation_return_mean']:,.1f} after {summary['env_step']:,} steps"
    say(f"{run.name}: {told}; {rest}")


def say(text: str) -> None:
    """A line on standard error, at once."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _in_words_of_the_grid(folder: RunFolder) -> Iterator[None]:
    """A refusal of a run folder with the folder's name and the remedy."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{folder.path} does not fit this grid, choose another --out: {error}") from error
