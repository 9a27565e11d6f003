"""Commands that look at runs and change nothing in them."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from soft_mpcritic.checkpoint import Which
from soft_mpcritic.cli.checks import PICTURES, check_parent, check_seed
from soft_mpcritic.comparison import EvaluatedRun, GroupBy, group_runs, markdown_table, write_tidy
from soft_mpcritic.config import check
from soft_mpcritic.diagnosis import diagnose_run, in_words
from soft_mpcritic.evaluation import EVALUATION_SEED
from soft_mpcritic.inspection import compare_runs, differences_in_words, inspect_run
from soft_mpcritic.inspection import in_words as inspection_in_words
from soft_mpcritic.plotting import BandKind, XAxis, plot_groups
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.seeds import seed_folders
from soft_mpcritic.steering import Changes, parse_changes
from soft_mpcritic.viewer.loop import view_run


@dataclass(frozen=True)
class PlotArgs:
    """Draw learning curves: runs that differ by their seeds alone are one line with a band."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders that hold a run per seed: seed0, seed1, .."""
    out: Path | None = None
    """The picture; by default learning_curve.png in the first folder."""
    group_by: GroupBy = "setting"
    """What makes runs one group: the same settings, or one of the folders named here."""
    band: BandKind = "iqm"
    """Over the runs of a group: interquartile mean with its 95 % interval, or median with 20 to 80 %."""
    x: XAxis = "steps"
    """Against environment steps, or minutes of wall time."""
    threshold: float | None = None
    """A return to mark, and for the table to say when it was reached."""
    stays: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Reached means: from there on, no evaluation falls short of the threshold."""
    csv: Path | None = None
    """Also write every run's evaluations as one table into this file."""
    table: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a markdown table of the groups instead of the picture's name."""

    def run(self) -> None:
        """Writes the picture and says where it is."""
        check(len(self.run_dirs) > 0, "run_dirs", "name at least one run folder", "none", "give a folder")
        out = RunFolder(self.run_dirs[0]).curve if self.out is None else self.out
        check(out.suffix in PICTURES, "out", "end in .png, .pdf or .svg", out, "rename it")
        finite = self.threshold is None or math.isfinite(self.threshold)
        check(finite, "threshold", "be a finite number", self.threshold, "give a return")
        check(not self.stays or self.threshold is not None, "stays", "come with --threshold", "none", "add one")
        runs = [
            EvaluatedRun.read(run, path)
            for path in self.run_dirs
            for run in seed_folders(RunFolder(path)) or [RunFolder(path)]
        ]
        groups = group_runs(runs, self.group_by)
        env_ids = sorted({group.env_id for group in groups})
        fits = self.threshold is None or len(env_ids) == 1
        check(fits, "threshold", "belong to one environment", ", ".join(env_ids), "plot them one by one")
        for name, path in (("out", out), ("csv", self.csv)):
            if path is not None:
                check_parent(name, path)
        plot_groups(groups, out, self.x, self.band, self.threshold)
        if self.csv is not None:
            write_tidy(groups, self.csv)
        print(markdown_table(groups, self.threshold, self.stays) if self.table else out)


@dataclass(frozen=True)
class DiagnoseArgs:
    """Find out where a run's value goes wrong: critic, target solves, kept plans or models."""

    run_dir: tyro.conf.Positional[Path]
    """A folder that `train` made."""
    episodes: int = 10
    """Deterministic episodes to compare with."""
    checkpoint: Which = "newest"
    out: Path | None = None
    """The picture; by default diagnose.png in the folder. The numbers lie beside it, as .json."""
    json: bool = False
    """Print one JSON object and nothing else."""

    def run(self) -> None:
        """Writes picture and numbers, and says what they say."""
        check(self.episodes >= 1, "episodes", "be >= 1", self.episodes, "try 10")
        out = self.run_dir / "diagnose.png" if self.out is None else self.out
        check(out.suffix in PICTURES, "out", "end in .png, .pdf or .svg", out, "rename it")
        folder = RunFolder(self.run_dir)
        folder.read_settings()
        check_parent("out", out)
        record = diagnose_run(folder, self.episodes, out, checkpoint=self.checkpoint)
        print(json.dumps(record) if self.json else f"{in_words(record)}\npicture: {out}")


@dataclass(frozen=True)
class InspectArgs:
    """Say what is in a run folder, how it was made and how good it is; or in what two differ."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """A folder that `train` made; two with --compare."""
    compare: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Say in what two run folders differ: settings, makers and results, to the last digit."""
    json: bool = False
    """Print one JSON object and nothing else."""

    def run(self) -> None:
        """Prints what was found; changes nothing."""
        count, wanted = len(self.run_dirs), 2 if self.compare else 1
        rule = "be two folders with --compare, one without"
        check(count == wanted, "run_dirs", rule, count, "name them")
        folders = [RunFolder(path) for path in self.run_dirs]
        if self.compare:
            found = compare_runs(*folders)
            print(json.dumps({"differences": found}) if self.json else differences_in_words(found))
        else:
            record = inspect_run(*folders)
            print(json.dumps(record) if self.json else inspection_in_words(record))


@dataclass(frozen=True)
class ViewArgs:
    """Watch a run's controller at work in a browser: its plant, plans and value, live. Needs the extra viewer."""

    run_dir: tyro.conf.Positional[Path]
    """A folder that `train` made."""
    port: int = 8080
    """Of the page."""
    host: str = "127.0.0.1"
    """Who may look: this machine alone, or with 0.0.0.0 everybody who reaches it."""
    seed: int = EVALUATION_SEED
    """Of the environment and of the planner's noise."""
    set: Changes = ()
    checkpoint: Which = "newest"

    def run(self) -> None:
        """Serves the page until Ctrl-C."""
        check_seed(self.seed)
        control = parse_changes(self.set)
        view_run(self.run_dir, self.host, self.port, self.seed, control=control, checkpoint=self.checkpoint)
