"""The command: a case study from its grid to its table."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from soft_mpcritic.baselines import Baseline
from soft_mpcritic.config import TrainingConfig, check
from soft_mpcritic.envs import make_task
from soft_mpcritic.reproduce.outputs import (
    finished_groups,
    measure_speeds,
    write_figures,
    write_returns,
    write_table,
)
from soft_mpcritic.reproduce.runner import BaselineRun, GridRun, OurRun, run_all, say, sole_use
from soft_mpcritic.reproduce.studies import QUICK_STEPS, BasePreset, Case, CaseName, Cell, make_case
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.steering import parse_changes

SEEDS = 5
QUICK_SEEDS = 1
SPEED_STEPS = 300  # timed for every cell
QUICK_SPEED_STEPS = 20


class FailedRunsError(RuntimeError):
    """Runs of a grid that did not come to their end, and where their logs are; the message is one line."""


@dataclass(frozen=True)
class ReproduceArgs:
    """Run one of the paper's case studies as a grid of runs, with figures and a table; a second call goes on."""

    case: tyro.conf.Positional[CaseName]
    """The double pendulum: how target solves start, with how many iterations and samples. Or the hopper: Q, ensemble,
    where planning is used, priors and model-free algorithms."""
    preset: BasePreset = "paper"
    """The settings that every cell departs from."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Lay another setting over the preset's in all cells: planner.trace=1, say."""
    seeds: int | None = None
    """Runs of every cell, seeds 0, 1, ..; 5 by default, 1 if quick."""
    total_steps: int | None = None
    """Environment steps of every run; by default the task's budget."""
    workers: int = 1
    """Runs that are trained at a time."""
    out: Path | None = None
    """Where everything is kept; by default a folder under runs/ that the same options find again."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Tiny networks and budgets, and a cell or two of every figure: to see in minutes that everything works."""
    only: tuple[str, ...] = ()
    """Cells to run, instead of all."""

    def run(self) -> None:
        """Brings the grid to its end and says where the results are. Raises `FailedRunsError` after that."""
        case = make_case(self.case, self.preset).laid_over(parse_changes(self.set))
        out = self.out or Path("runs") / self._default_name
        grid = self._grid(case, out)
        wanted = self._wanted(case)
        for run in grid:
            run.check()
        with sole_use(out) as lock:
            left = [run for run in grid if run.cell in wanted and not run.finished]
            say(f"{self.case}: {len(wanted)} cells, {len(left)} runs to go, into {out}")
            failures = run_all(left, self.workers, lock)
            stopped = sum(not run.finished for run in left) - len(failures)
            self._write(case, grid, out, with_speeds=not stopped)
        if stopped:
            say(f"stopped with {stopped} runs to go: the same command goes on")
        if failures:
            raise FailedRunsError(f"{len(failures)} of {len(left)} runs failed: {', '.join(map(str, failures))}.")

    @property
    def _default_name(self) -> str:
        return f"reproduce-{self.case}-{self.preset}" + "-quick" * self.quick

    def _wanted(self, case: Case) -> list[str]:
        """The cells to run here: those asked for, without baselines where these are not installed."""
        names = [cell.name for cell in case.cells]
        unknown = ", ".join(sorted(set(self.only) - set(names)))
        check(not unknown, "only", f"be among {', '.join(names)}", unknown, "name some of these")
        asked = self.only or (case.quick_cells if self.quick else names)
        wanted = [cell for cell in case.cells if cell.name in asked]
        missing = [cell.name for cell in wanted if cell.baseline is not None and find_spec("sbx") is None]
        if missing:
            say(f"left out, as sbx-rl is missing (pip install 'soft-mpcritic[baselines]'): {', '.join(missing)}")
        return [cell.name for cell in wanted if cell.name not in missing]

    def _grid(self, case: Case, out: Path) -> list[GridRun]:
        """All runs, every cell's first seed first."""
        seeds = (QUICK_SEEDS if self.quick else SEEDS) if self.seeds is None else self.seeds
        check(seeds >= 1, "seeds", "be >= 1", seeds, "5 shows a band")
        check(self.workers >= 1, "workers", "be >= 1", self.workers, "1 is one run after the other")
        budget = QUICK_STEPS if self.quick else make_task(case.env_id).spec.total_steps
        total = budget if self.total_steps is None else self.total_steps
        check(total >= 1, "total_steps", "be >= 1", total, "use some thousands")
        return [self._run_of(case, cell, seed, total, out) for seed in range(seeds) for cell in case.cells]

    def _run_of(self, case: Case, cell: Cell, seed: int, total: int, out: Path) -> GridRun:
        folder = RunFolder(out / "runs" / cell.name / f"seed{seed}")
        place = (cell.name, seed, total, folder, out / "logs" / f"{cell.name}-seed{seed}.txt")
        config = case.config(cell, self.preset, self.quick)
        if cell.baseline is not None:
            every, episodes = config.training.evaluate_every, config.training.evaluation_episodes
            training = TrainingConfig(evaluate_every=every, evaluation_episodes=episodes)
            return BaselineRun(*place, Baseline(cell.baseline, case.env_id, seed, total, training=training))
        return OurRun(*place, RunSettings(case.env_id, self.preset, seed, total, config))

    def _write(self, case: Case, grid: Sequence[GridRun], out: Path, with_speeds: bool) -> None:
        """Everything that the finished runs tell. The table needs speeds, which take minutes to measure."""
        groups = finished_groups(case, grid)
        written = [*write_figures(case, groups, out), *([write_returns(groups, out)] if groups else [])]
        if groups and with_speeds:
            present = {case.cells[0].name, *(group.label for group in groups)}
            ours = [cell for cell in case.cells if cell.name in present and cell.baseline is None]
            configs = {cell.name: case.config(cell, self.preset, self.quick) for cell in ours}
            say(f"measuring the speed of {len(configs)} cells")
            speeds = measure_speeds(case, configs, QUICK_SPEED_STEPS if self.quick else SPEED_STEPS, out / "speed.json")
            written.append(write_table(case, groups, speeds, out))
        print("\n".join(map(str, written)))
