"""Runs side by side: which belong together, what tells them apart, and tables of them."""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from soft_mpcritic.config import ConfigError, to_dict
from soft_mpcritic.files import delivered, read_table
from soft_mpcritic.presets import PRESETS
from soft_mpcritic.run_folder import CHANGEABLE, OURS, RunDescription, RunFolder
from soft_mpcritic.statistics import Curve, common_steps, first_reaching, iqm_band, median_with_never

GroupBy = Literal["setting", "folder"]
TIDY_COLUMNS = ("env_id", "label", "seed", "env_step", "wall_seconds", "return")
UNFELT = {f"training.{name}" for name in (*CHANGEABLE, "log_every")}  # learning is the same whatever they are


@dataclass(frozen=True)
class EvaluatedRun:
    """A run folder with what it found."""

    folder: RunFolder
    named: Path  # the folder that was asked for: this one, or the one that holds it
    description: RunDescription
    curve: Curve

    @classmethod
    def read(cls, folder: RunFolder, named: Path | None = None) -> "EvaluatedRun":
        """Raises `ConfigError` for a folder without evaluations, and as `read_description` does."""
        description = folder.read_description()
        table = folder.path / "evaluations.csv"
        rows = read_table(table) if table.is_file() else []
        if not rows:
            raise ConfigError(f"{folder.path} has no evaluations to plot: train it longer first.")
        return cls(folder, named or folder.path, description, Curve.from_rows(rows))

    @cached_property
    def settings(self) -> dict[str, str]:
        """All that shapes the learning, by dotted names, as JSON; of a fork, also since when, and what was before."""
        forks = [f"at {fork.get('env_step')}: {json.dumps(fork.get('changed'))}" for fork in self.folder.forks()]
        return {**_flat(self.description.settings), **({"forked": json.dumps("; ".join(forks))} if forks else {})}


@dataclass(frozen=True)
class Group:
    """R runs of one environment that differ by their seeds alone, seen at the L steps that all were evaluated at."""

    label: str
    runs: tuple[EvaluatedRun, ...]

    @property
    def env_id(self) -> str:
        return self.runs[0].description.env_id

    @cached_property
    def env_step(self) -> Int[np.ndarray, " L"]:
        """Raises `ConfigError` where the runs have no step in common."""
        steps = common_steps(run.curve for run in self.runs)
        if not len(steps):
            paths = ", ".join(str(run.folder.path) for run in self.runs)
            raise ConfigError(f"{paths} were never evaluated at the same step: plot them with --group-by folder.")
        return steps

    @cached_property
    def returns(self) -> Float[np.ndarray, "R L"]:
        """Means over each evaluation's episodes."""
        return np.stack([run.curve.at(self.env_step).mean for run in self.runs])

    @cached_property
    def minutes(self) -> Float[np.ndarray, " L"]:
        """Median over runs of the wall time that a step was reached at."""
        return np.median([run.curve.at(self.env_step).wall_seconds for run in self.runs], axis=0) / 60


def group_runs(runs: Sequence[EvaluatedRun], by: GroupBy = "setting") -> list[Group]:
    """Groups in the order of their first runs, each with a label that says what tells it apart.

    By setting, runs belong together that have the same environment, algorithm and settings; by folder, those of one
    environment in one folder that was asked for. Raises `ConfigError` where runs of a group have the same seed: they
    would count as independent.
    """
    members: dict[Any, list[EvaluatedRun]] = defaultdict(list)
    for run in runs:
        members[_key(run, by)].append(run)
    groups = [_distinct(group) for group in members.values()]
    for group in groups:
        _check_seeds(group)
    labels = _setting_labels([group[0] for group in groups]) if by == "setting" else [str(g[0].named) for g in groups]
    return [Group(label, tuple(group)) for label, group in zip(labels, groups, strict=True)]


def _key(run: EvaluatedRun, by: GroupBy) -> Any:
    told = run.description
    return (told.env_id, run.named) if by == "folder" else (told.env_id, told.algorithm, *sorted(run.settings.items()))


def _distinct(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """A run that was named twice is one run."""
    return list({run.folder.path.resolve(): run for run in reversed(runs)}.values())[::-1]


def _check_seeds(runs: Sequence[EvaluatedRun]) -> None:
    by_seed: dict[int, EvaluatedRun] = {}
    for run in runs:
        twin = by_seed.setdefault(run.description.seed, run)
        if twin is not run:
            raise ConfigError(
                f"{twin.folder.path} and {run.folder.path} have the same settings and seed {run.description.seed}: "
                "leave one out, or plot with --group-by folder."
            )


def _setting_labels(firsts: Sequence[EvaluatedRun]) -> list[str]:
    """What differs between groups, given a run of each.

    The algorithm where there are several; of one algorithm's groups the preset where there are several; and the
    settings in which they differ, unless the preset's name says it.
    """
    algorithms = {run.description.algorithm for run in firsts}
    labels = []
    for run in firsts:
        told = run.description
        peers = [peer for peer in firsts if peer.description.algorithm == told.algorithm]
        presets = {peer.description.preset for peer in peers}
        known = _flat(to_dict(PRESETS[told.preset]())) if len(presets) > 1 and told.preset in PRESETS else {}
        parts = [told.algorithm] * (len(algorithms) > 1) + [told.preset] * (len(presets) > 1)
        for name, value in run.settings.items():
            if value != known.get(name) and any(peer.settings.get(name) != value for peer in peers):
                parts.append(f"{name} {json.loads(value)}")
        labels.append(", ".join(parts) or (told.preset if told.algorithm == OURS else told.algorithm))
    return labels


def _flat(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    dotted = {f"{section}.{name}": value for section, values in settings.items() for name, value in values.items()}
    return {name: json.dumps(value) for name, value in dotted.items() if name not in UNFELT}


# ------------------------------------------------------------------- tables


def write_tidy(groups: Sequence[Group], out: Path) -> None:
    """A row for every evaluation of every run; `return` is the mean over its episodes."""
    with delivered(out) as whole, whole.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TIDY_COLUMNS)
        for group in groups:
            for run in group.runs:
                told, curve = run.description, run.curve
                for step, seconds, mean in zip(curve.env_step, curve.wall_seconds, curve.mean, strict=True):
                    writer.writerow([told.env_id, group.label, told.seed, step, seconds, mean])


def markdown_table(
    groups: Sequence[Group],
    threshold: float | None = None,
    stays: bool = False,
    further: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """A row for every group: its return at the last step that all its runs have, and when they reach the threshold.

    `further` are columns to append, with a text for every group.
    """
    columns = ["environment", "group", "runs", "last step", "return there: IQM [95 %]"]
    if threshold is not None:
        columns += [f"steps to {threshold:,.10g}", f"minutes to {threshold:,.10g}"]
    rows = [[*_result(group), *([] if threshold is None else _reaching(group, threshold, stays))] for group in groups]
    for column, texts in (further or {}).items():
        columns.append(column)
        rows = [[*row, text] for row, text in zip(rows, texts, strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def _result(group: Group) -> list[str]:
    band = iqm_band(group.returns[:, -1:])
    low, middle, high = (float(part[0]) for part in band)
    interval = f" [{low:,.1f}, {high:,.1f}]" if np.isfinite(low) else ""
    return [group.env_id, group.label, str(len(group.runs)), f"{group.env_step[-1]:,}", f"{middle:,.1f}{interval}"]


def _reaching(group: Group, threshold: float, stays: bool) -> list[str]:
    """Medians over runs, and how many of them got there."""
    curves = [run.curve for run in group.runs]
    found = [(curve, first_reaching(curve, threshold, stays)) for curve in curves]
    steps = median_with_never(None if index is None else float(curve.env_step[index]) for curve, index in found)
    seconds = median_with_never(None if index is None else float(curve.wall_seconds[index]) for curve, index in found)
    count = sum(index is not None for _, index in found)
    if not np.isfinite(steps):
        return [f"not reached ({count} of {len(found)})", "not reached"]
    return [f"{steps:,.0f} ({count} of {len(found)})", f"{seconds / 60:,.1f}"]
