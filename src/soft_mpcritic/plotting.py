"""Pictures of runs."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from soft_mpcritic.config import ConfigError
from soft_mpcritic.run_folder import RunFolder, read_table


def plot_runs(folders: Sequence[RunFolder], out: Path) -> None:
    """Deterministic evaluation return against environment steps: mean, and the range over episodes, of every run."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    titles = {folder.read_settings().env_id for folder in folders}
    for folder in folders:
        steps, low, mean, high = _evaluation_curve(folder)
        (line,) = axes.plot(steps, mean, marker="o", markersize=3.5, label=_label(folder))
        axes.fill_between(steps, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set(xlabel="environment steps", ylabel="evaluation return", title=", ".join(sorted(titles)))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)


def _evaluation_curve(folder: RunFolder) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    path = folder.path / "evaluations.csv"
    returns: dict[int, list[float]] = defaultdict(list)
    for row in read_table(path) if path.is_file() else []:
        returns[int(row["env_step"])].append(float(row["return"]))
    if not returns:
        raise ConfigError(f"{folder.path} has no evaluations to plot: train it longer first.")
    steps = np.array(sorted(returns))
    episodes = [returns[step] for step in steps]
    return (
        steps,
        np.array([min(e) for e in episodes]),
        np.array([float(np.mean(e)) for e in episodes]),
        np.array([max(e) for e in episodes]),
    )


def _label(folder: RunFolder) -> str:
    settings = folder.read_settings()
    return f"{settings.preset}, seed {settings.seed}"
