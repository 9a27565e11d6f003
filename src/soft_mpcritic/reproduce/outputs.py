"""What a grid found: one table of returns, a figure per comparison, and a table of the cells."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from soft_mpcritic.bench.measure import machine_in_words
from soft_mpcritic.bench.training import speeds_in_turns
from soft_mpcritic.comparison import EvaluatedRun, Group, markdown_table, write_tidy
from soft_mpcritic.config import Config
from soft_mpcritic.envs import make_task
from soft_mpcritic.files import write_json
from soft_mpcritic.plotting import plot_groups
from soft_mpcritic.reproduce.runner import GridRun
from soft_mpcritic.reproduce.studies import Case

UNMEASURED = "not measured"


def finished_groups(case: Case, runs: Sequence[GridRun]) -> list[Group]:
    """The finished runs of every cell that has some, in the order of the cells."""
    found = {
        cell.name: tuple(EvaluatedRun.read(run.folder) for run in runs if run.cell == cell.name and run.finished)
        for cell in case.cells
    }
    return [Group(name, members) for name, members in found.items() if members]


def write_figures(case: Case, groups: Sequence[Group], out: Path) -> list[Path]:
    """A picture of every comparison of which at least one cell is there."""
    by_name = {group.label: group for group in groups}
    pictures = []
    for figure in case.figures:
        shown = [
            replace(by_name[cell.name], label=cell.figures[figure])
            for cell in case.cells
            if figure in cell.figures and cell.name in by_name
        ]
        if shown:
            pictures.append(out / f"{figure}.png")
            plot_groups(shown, pictures[-1], band="quantiles", threshold=case.threshold)
    return pictures


def write_returns(groups: Sequence[Group], out: Path) -> Path:
    """All evaluations of all finished runs, `label` being the cell."""
    path = out / "returns.csv"
    write_tidy(groups, path)
    return path


def measure_speeds(case: Case, configs: Mapping[str, Config], steps: int, path: Path) -> dict[str, Any]:
    """Training steps per second of these cells, in turns in this process; `path` keeps the record.

    A record that has all of them is taken as it is. Otherwise all are measured anew: only figures of one sitting
    can be compared.
    """
    if path.is_file():
        record = json.loads(path.read_text())
        if set(configs) <= set(record["steps_per_second"]):
            return record
    record = speeds_in_turns(make_task(case.env_id), configs, steps)
    write_json(path, record)
    return record


def write_table(case: Case, groups: Sequence[Group], speeds: Mapping[str, Any], out: Path) -> Path:
    """A row for every cell; speeds relative to the base's."""
    rates = speeds["steps_per_second"]
    base = rates[case.cells[0].name]
    further = {
        "median there": [f"{np.median(group.returns[:, -1]):,.1f}" for group in groups],
        "steps per second, of the base's": [
            f"{rates[group.label] / base:.2f}" if group.label in rates else UNMEASURED for group in groups
        ],
    }
    path = out / "table.md"
    table = markdown_table(groups, case.threshold, stays=True, further=further)
    path.write_text(
        f"{table}\n\nReturns are means over the episodes of an evaluation; IQM, interval and median are over runs. "
        f"Steps and minutes to {case.threshold:,.10g}: the median run's, from where on no evaluation falls short of "
        f"it. The base trains at {base:.0f} steps/s, measured in turns with the other cells, on "
        f"{machine_in_words(speeds)}.\n"
    )
    return path
