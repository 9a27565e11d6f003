"""Live progress of a run on standard error."""

import contextlib
import sys
from types import TracebackType
from typing import Any, TextIO, cast

import numpy as np
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from soft_mpcritic.run_folder import OURS, RunDescription, RunFolder
from soft_mpcritic.types import Episode


class _PerhapsUnread:
    """A stream whose reader may have gone, a closed terminal or a pipe's end: a run outlives those who watch it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream  # any text stream: what stands for stderr in a notebook or under a test is no TextIO

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Console:
    """A progress bar with steps, return, speed and time left; plain lines where there is no terminal."""

    def __init__(self, run: RunDescription, folder: RunFolder, num_seeds: int = 1, note: str = "") -> None:
        """A `note` is said first."""
        self._note = note
        self._console = RichConsole(file=cast(TextIO, _PerhapsUnread(sys.stderr)), highlight=False, soft_wrap=True)
        self._run, self._folder = run, folder
        last = run.seed + num_seeds - 1
        self._seeds = f"seed {run.seed}" if num_seeds == 1 else f"seeds {run.seed} to {last}"
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("compiling", total=run.total_steps, speed="")

    def __enter__(self) -> "Console":
        run = self._run
        how = f"preset {run.preset}" if run.algorithm == OURS else f"baseline {run.algorithm}"
        self._console.print(f"training {run.env_id}, {how}, {self._seeds}, into {self._folder.path}")
        if self._note:
            self._console.print(self._note)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_metrics(self, row: dict[str, Any]) -> None:
        """Moves the bar, or prints a line."""
        speed = f"{row['steps_per_second']:.0f} steps/s"
        known = np.isfinite(row["train_return"])
        text = f"training return {row['train_return']:.0f}" if known else "first episode"
        self._progress.update(self._task, completed=row["env_step"], description=text, speed=speed)
        if not self._console.is_terminal:
            self._console.print(f"step {row['env_step']}: {text}, {speed}, {row['wall_seconds']:.0f} s")

    def on_evaluation(self, env_step: int, episodes: list[Episode]) -> None:
        """One line per evaluation, above the bar."""
        returns = [episode.ret for episode in episodes]
        self._console.print(
            f"step {env_step}: evaluation return {np.mean(returns):.1f} "
            f"({min(returns):.1f} to {max(returns):.1f} over {len(returns)} episodes)"
        )

    def report(self, summary: dict[str, Any]) -> None:
        """Where everything is."""
        stopped = "stopped; go on with --resume" if self._run.algorithm == OURS else "stopped"
        state = "done" if summary["status"] == "finished" else stopped
        self._console.print(f"{state} after {summary['env_step']} steps and {summary['wall_seconds']:.0f} s")
        best = summary.get("best_checkpoint")
        if best not in (None, summary["env_step"]):
            self._console.print(f"best evaluation: that of step {best}, kept as --checkpoint best")
        if self._folder.curve.is_file():
            self._console.print(f"learning curve: {self._folder.curve}")
        self._console.print(f"run folder: {self._folder.path}")
