"""From what was typed to a command with its arguments; complaints are one line."""

import argparse
import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from soft_mpcritic.bench.control import ControlArgs
from soft_mpcritic.bench.planner import PlannerArgs
from soft_mpcritic.bench.training import TrainingArgs
from soft_mpcritic.cli.acting import EvaluateArgs, ExportArgs
from soft_mpcritic.cli.looking import DiagnoseArgs, InspectArgs, PlotArgs, ViewArgs
from soft_mpcritic.cli.training import BaselineArgs, TrainArgs
from soft_mpcritic.config import ConfigError, check
from soft_mpcritic.envs import DEVICE_TASKS, TASKS
from soft_mpcritic.presets import PRESETS, preset
from soft_mpcritic.reproduce.command import ReproduceArgs
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.seeds import seed_folders


def parse(arguments: list[str]) -> Any:
    """The command with its arguments. Defaults of `train` come from the preset, or from the run to go on with."""
    command: Any = (
        Annotated[TrainArgs, tyro.conf.subcommand("train", default=_train_defaults(arguments))]
        | Annotated[BaselineArgs, tyro.conf.subcommand("baseline")]
        | Annotated[EvaluateArgs, tyro.conf.subcommand("evaluate")]
        | Annotated[PlotArgs, tyro.conf.subcommand("plot")]
        | Annotated[DiagnoseArgs, tyro.conf.subcommand("diagnose")]
        | Annotated[InspectArgs, tyro.conf.subcommand("inspect")]
        | Annotated[ViewArgs, tyro.conf.subcommand("view")]
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
    peek.add_argument("--fork-from", "--fork_from", dest="fork_from", type=Path)
    peek.add_argument("--resume", action="store_true")
    try:
        given, _ = peek.parse_known_args(arguments)
    except argparse.ArgumentError:
        return TrainArgs()  # a flag without its value: the real parser says so
    before = given.fork_from or (given.run_dir if given.resume else None)
    present = [] if before is None else seed_folders(RunFolder(before))
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
    """A framed complaint as one line, without frame, title and hints at the help; of similar options, names."""
    sections: list[list[str]] = [[]]
    for row in box.splitlines()[1:]:  # the first row is the title
        line = row.strip("│| ")
        if line.strip("─-+╰╯ "):
            sections[-1].append(line)
        else:
            sections.append([])
    told = filter(None, map(_told, filter(None, sections)))
    return "; ".join(told).replace("__tyro-dummy-inner__.config.", "--")


def _told(section: list[str]) -> str:
    """What of one part of a complaint is worth a place in one line."""
    if section[0].startswith(("For full helptext", "Argument helptext", "Got", "Arguments are applied")):
        return ""
    if section[0].startswith(("Arguments similar to", "Perhaps you meant")):
        names = [line.split()[0] for line in section[1:] if line.startswith("--")]
        return f"{section[0]} {', '.join(dict.fromkeys(names))}"
    return " ".join(section)
