"""The command line: parse, build, run; nothing else."""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from soft_mpcritic.baselines import (
    BASELINE_PACKAGES,
    Algorithm,
    Baseline,
    SbxLearner,
    baseline_task,
    train_baseline,
)
from soft_mpcritic.bench.control import ControlArgs
from soft_mpcritic.bench.planner import PlannerArgs
from soft_mpcritic.bench.training import TrainingArgs
from soft_mpcritic.comparison import EvaluatedRun, GroupBy, group_runs, markdown_table, write_tidy
from soft_mpcritic.config import PRESETS, Config, ConfigError, TrainingConfig, check, override, preset
from soft_mpcritic.console import Console
from soft_mpcritic.device_training import seed_folders
from soft_mpcritic.diagnosis import diagnose_run, in_words
from soft_mpcritic.envs import DEVICE_TASKS, TASKS, BadObservationError, make_task
from soft_mpcritic.evaluation import EVALUATION_SEED, Evaluator
from soft_mpcritic.export import export_run
from soft_mpcritic.parts import NOTHING_OWN
from soft_mpcritic.plotting import BandKind, XAxis, plot_groups
from soft_mpcritic.reproduce.command import FailedRunsError, ReproduceArgs
from soft_mpcritic.run import execute, new_run_dir
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.training import load_state
from soft_mpcritic.video import record_episode

RUNS_FAILED = 1
USER_CAN_MEND = 2
PICTURES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class TrainArgs:
    """Train a controller on a task, into a run folder."""

    env_id: tyro.conf.Positional[str] = "InvertedDoublePendulum-v5"
    """Gymnasium's id, of any task with Box spaces; module:id or module:name of a class; dm_control/DOMAIN-TASK; or
    CartPoleSwingUp on the device. Reward and termination that are not known here are learned."""
    preset: str = "default"
    """Settings to start from: default, locomotion, paper or paper-uniform. Each one below can be changed on top."""
    seed: int = 0
    """Of networks, planner and environments."""
    total_steps: int | None = None
    """Environment steps to train for; by default a budget that suffices for the task."""
    run_dir: Path | None = None
    """Where everything is kept; by default a new folder under runs/."""
    resume: bool = False
    """Go on with the run in run_dir from its newest checkpoint, or start it if there is none."""
    backend: str | None = None
    """Short for training.backend: host, or device for environment and agent in one compiled loop."""
    num_envs: int | None = None
    """Short for training.num-envs: environments that are stepped together."""
    num_seeds: int = 1
    """Runs that are trained side by side on the device, from `seed` on: run_dir then holds seed0, seed1, .."""
    matmul_precision: str | None = None
    """Short for training.matmul-precision: highest is float32, high and default may be less on accelerators."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> None:
        """Trains, with live progress, and says where the results are."""
        config = self._laid_over()
        task = make_task(self.env_id, config.training.backend, NOTHING_OWN.filled(config.parts))
        total = task.spec.total_steps if self.total_steps is None else self.total_steps
        check(total >= 1, "total_steps", "be >= 1", total, "use some thousands")
        check(self.num_seeds >= 1, "num_seeds", "be >= 1", self.num_seeds, "1 is a single run")
        _check_seed(self.seed + self.num_seeds - 1 if self.seed >= 0 else self.seed)
        check(not self.resume or self.run_dir is not None, "resume", "come with --run-dir", "none", "name the folder")
        folder = RunFolder(self.run_dir or new_run_dir(self.env_id, self.preset, self.seed))
        asked = RunSettings(self.env_id, self.preset, self.seed, total, config)
        execute(folder, asked, self.resume, self.num_seeds, task.note)

    def _laid_over(self) -> Config:
        """The settings with the short options laid over them."""
        short = {"backend": self.backend, "num_envs": self.num_envs, "matmul_precision": self.matmul_precision}
        return override(self.config, {f"training.{name}": value for name, value in short.items() if value is not None})


@dataclass(frozen=True)
class BaselineArgs:
    """Train a published model-free algorithm on a task, evaluated as ours are, into a run folder for `plot`."""

    algorithm: tyro.conf.Positional[Algorithm]
    env_id: tyro.conf.Positional[str]
    """Id of a task of Gymnasium; its standard observation is what the algorithm sees."""
    seed: int = 0
    """Of networks, exploration and environment."""
    total_steps: int | None = None
    """Environment steps to train for; by default the task's budget."""
    run_dir: Path | None = None
    """Where everything is kept; by default a new folder under runs/."""
    learning_starts: int = 100
    """Random steps before the first update: 100 is sbx's, SAC's authors took up to 10,000."""
    evaluate_every: int = 2_500
    evaluation_episodes: int = 10

    def run(self) -> None:
        """Trains, with live progress, and says where the results are."""
        _check_seed(self.seed)
        training = TrainingConfig(evaluate_every=self.evaluate_every, evaluation_episodes=self.evaluation_episodes)
        task = baseline_task(self.env_id)
        total = task.spec.total_steps if self.total_steps is None else self.total_steps
        check(total >= 1, "total_steps", "be >= 1", total, "use some thousands")
        baseline = Baseline(self.algorithm, self.env_id, self.seed, total, self.learning_starts, training)
        folder = RunFolder(self.run_dir or new_run_dir(self.env_id, self.algorithm, self.seed))
        check(not seed_folders(folder), "run_dir", "be a new folder", folder.path, "baselines cannot be resumed")
        learner = SbxLearner(baseline, task)
        folder.create(baseline.description, BASELINE_PACKAGES)
        with Console(baseline.description, folder) as console:
            summary = train_baseline(folder, baseline, task, learner, console)
        console.report(summary)


@dataclass(frozen=True)
class EvaluateArgs:
    """Play deterministic episodes with the controller of a run folder."""

    run_dir: tyro.conf.Positional[Path]
    """A folder that `train` made."""
    episodes: int = 10
    seed: int = EVALUATION_SEED
    """Episode i starts from environment seed `seed + i`."""
    video: Path | None = None
    """Also film the first episode into this file (.mp4 or .gif)."""
    json: bool = False
    """Print one JSON object and nothing else."""

    def run(self) -> None:
        """Prints the returns; with `video`, also films the first episode."""
        check(self.episodes >= 1, "episodes", "be >= 1", self.episodes, "try 10")
        _check_seed(self.seed)
        if self.video is not None:
            fits = self.video.suffix in (".mp4", ".gif")
            check(fits, "video", "end in .mp4 or .gif", self.video, "rename it")
            _check_parent("video", self.video)
        folder = RunFolder(self.run_dir)
        settings = folder.read_settings()
        agent, state = load_state(folder, settings)
        filmed = self.video is None or agent.task.has_gymnasium
        check(filmed, "video", "be of a Gymnasium task", settings.env_id, "leave it out")
        with jax.default_matmul_precision(settings.config.training.matmul_precision):
            evaluator = Evaluator(agent)
            played = evaluator(state.models, self.episodes, self.seed)
            evaluator.close()
            if self.video is not None:
                record_episode(agent, state.models, self.seed, self.video)
        returns = [episode.ret for episode in played]
        record = {
            "run_dir": str(self.run_dir),
            "env_id": settings.env_id,
            "seed": self.seed,
            "episodes": self.episodes,
            "return_mean": float(np.mean(returns)),
            "return_std": float(np.std(returns)),
            "return_min": min(returns),
            "return_max": max(returns),
            "length_mean": float(np.mean([episode.length for episode in played])),
            "returns": returns,
            "video": None if self.video is None else str(self.video),
        }
        print(json.dumps(record) if self.json else _in_words(record))


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
                _check_parent(name, path)
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
        _check_parent("out", out)
        record = diagnose_run(folder, self.episodes, out)
        print(json.dumps(record) if self.json else f"{in_words(record)}\npicture: {out}")


@dataclass(frozen=True)
class ExportArgs:
    """Write the controller of a run folder as one file that acts with JAX and NumPy alone."""

    run_dir: tyro.conf.Positional[Path]
    """A folder that `train` made."""
    file: tyro.conf.Positional[Path]
    """What to write; a controller exported earlier is replaced."""
    plants: int = 1
    """How many plants the exported controller drives at once."""

    def run(self) -> None:
        """Writes the file and says where it is."""
        _check_parent("file", self.file)
        manifest = export_run(self.run_dir, self.file, self.plants)
        print(f"{self.file}: {manifest['env_id']} for {', '.join(manifest['platforms'])}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when done, 2 for what the user can mend (one line on standard error).

    1 where runs of a grid failed: the line names them and their logs.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        _parse(arguments).run()
    except (ConfigError, BadObservationError) as error:
        print(f"soft-mpcritic: {error}", file=sys.stderr)
        return USER_CAN_MEND
    except FailedRunsError as error:
        print(f"soft-mpcritic: {error}", file=sys.stderr)
        return RUNS_FAILED
    return 0


def _parse(arguments: list[str]) -> Any:
    """The command with its arguments. Defaults of `train` come from the preset, or from the run to be resumed."""
    command: Any = (
        Annotated[TrainArgs, tyro.conf.subcommand("train", default=_train_defaults(arguments))]
        | Annotated[BaselineArgs, tyro.conf.subcommand("baseline")]
        | Annotated[EvaluateArgs, tyro.conf.subcommand("evaluate")]
        | Annotated[PlotArgs, tyro.conf.subcommand("plot")]
        | Annotated[DiagnoseArgs, tyro.conf.subcommand("diagnose")]
        | Annotated[ExportArgs, tyro.conf.subcommand("export")]
        | Annotated[ReproduceArgs, tyro.conf.subcommand("reproduce")]
        | _bench_command()
    )
    return _one_line_errors(lambda: tyro.cli(command, args=arguments, prog="soft-mpcritic", description=_description()))


def _bench_command() -> Any:
    """What can be measured."""
    subjects: Any = (
        Annotated[PlannerArgs, tyro.conf.subcommand("planner")]
        | Annotated[TrainingArgs, tyro.conf.subcommand("training")]
        | Annotated[ControlArgs, tyro.conf.subcommand("control")]
    )
    bench = tyro.conf.subcommand("bench", description="Measure on this machine.")
    return Annotated[subjects, bench]


def _description() -> str:
    device = f"With --backend device: {', '.join(DEVICE_TASKS)}."
    return f"Learning model predictive controllers. Tasks: {', '.join(TASKS)}. {device}"


def _train_defaults(arguments: list[str]) -> TrainArgs:
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--preset")
    peek.add_argument("--run-dir", "--run_dir", dest="run_dir", type=Path)
    peek.add_argument("--resume", action="store_true")
    try:
        given, _ = peek.parse_known_args(arguments)
    except argparse.ArgumentError:
        return TrainArgs()  # a flag without its value: the real parser says so
    present = seed_folders(RunFolder(given.run_dir)) if given.resume and given.run_dir is not None else []
    if present:
        stored = present[0].read_settings()
        config = stored.config if given.preset in (None, stored.preset) else preset(given.preset)
        return TrainArgs(
            stored.env_id, stored.preset, stored.seed, stored.total_steps, config=config, num_seeds=len(present)
        )
    name = given.preset or "default"
    check(name in PRESETS, "preset", f"be one of {', '.join(PRESETS)}", repr(name), "choose one of these")
    return dataclasses.replace(TrainArgs(), preset=name, config=preset(name))


def _one_line_errors(parse: Callable[[], Any]) -> Any:
    """Runs a parser whose complaints are boxes of many lines, and turns them into one."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return parse()
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_condense(complaint.getvalue())) from stop


def _condense(box: str) -> str:
    """A framed complaint as one line, without frame, title, and hints at the help text."""
    sections: list[str] = [""]
    for row in box.splitlines()[1:]:  # the first row is the title
        line = row.strip("│| ")
        if line.strip("─-+╰╯ "):
            sections[-1] += f"{line} "
        else:
            sections.append("")
    told = [text.strip() for text in sections if not text.startswith(("For full helptext", "Argument helptext", "Got"))]
    return "; ".join(filter(None, told)).replace("__tyro-dummy-inner__.config.", "--")


def _check_seed(seed: int) -> None:
    check(0 <= seed < 2**32, "seed", "lie in [0, 2^32)", seed, "use a smaller whole number")


def _check_parent(name: str, path: Path) -> None:
    check(path.parent.is_dir(), name, "lie in a folder that exists", path, f"make {path.parent} first")


def _in_words(record: dict[str, Any]) -> str:
    text = (
        f"{record['env_id']}: return {record['return_mean']:.1f} +- {record['return_std']:.1f} "
        f"({record['return_min']:.1f} to {record['return_max']:.1f}) over {record['episodes']} episodes, "
        f"mean length {record['length_mean']:.0f}"
    )
    return text if record["video"] is None else f"{text}\nvideo: {record['video']}"


def entry_point() -> None:
    """What the installed command calls."""
    sys.exit(main())
