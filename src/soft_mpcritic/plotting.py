"""Pictures of runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from soft_mpcritic.comparison import EvaluatedRun, Group, group_runs
from soft_mpcritic.files import delivered
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.statistics import Band, iqm_band, quantile_band

BandKind = Literal["iqm", "quantiles"]
XAxis = Literal["steps", "minutes"]
BANDS = {
    "iqm": (iqm_band, "interquartile mean over runs, 95 % bootstrap interval"),
    "quantiles": (quantile_band, "median over runs, 20 to 80 %"),
}
X_LABELS = {"steps": "environment steps", "minutes": "wall time, minutes"}
MOST_MARKERS = 30
LONG_LABEL, FULL_LINE = 40, 100  # letters; long labels stand above the panels, as they would hide the curves
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")  # told apart by all eyes
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.5",
    "axes.labelcolor": "0.2",
    "axes.titlesize": "medium",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "xtick.color": "0.3",
    "ytick.color": "0.3",
}


def plot_runs(folders: Sequence[RunFolder], out: Path) -> None:
    """The learning curves of these runs, grouped by setting. Raises `ConfigError` where there is nothing to draw."""
    plot_groups(group_runs([EvaluatedRun.read(folder) for folder in folders]), out)


def plot_groups(
    groups: Sequence[Group],
    out: Path,
    x: XAxis = "steps",
    band: BandKind = "iqm",
    threshold: float | None = None,
) -> None:
    """Deterministic evaluation return, a panel for every environment; the format follows from the file's ending.

    Several runs are a line and a band over runs; a single run is its mean, with the range over episodes. Against
    minutes, a step of several runs stands at the median of their times.
    """
    labels = list(dict.fromkeys(group.label for group in groups))
    colours = {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(labels)}
    env_ids = list(dict.fromkeys(group.env_id for group in groups))
    columns = min(len(env_ids), 3)
    rows = math.ceil(len(env_ids) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2 + 5 * columns, 0.6 + 3.6 * rows), layout="constrained")
        for index, env_id in enumerate(env_ids):
            axes = figure.add_subplot(rows, columns, index + 1)
            for group in groups:
                if group.env_id == env_id:
                    _draw(axes, group, x, band, colours[group.label])
            _finish(axes, env_id, X_LABELS[x], threshold)
        _explain(figure)
        figure.supxlabel(_caption(groups, band), fontsize="small", color="0.4")
        with delivered(out) as file:
            figure.savefig(file, dpi=150)


def _draw(axes: Axes, group: Group, x: XAxis, band: BandKind, colour: str) -> None:
    low, middle, high = _band(group, band)
    across = group.env_step if x == "steps" else group.minutes
    marker = "o" if len(across) <= MOST_MARKERS else None
    count = len(group.runs)
    runs = f"{count} runs" if count > 1 else f"seed {group.runs[0].description.seed}"
    axes.plot(across, middle, marker=marker, markersize=3, linewidth=1.6, color=colour, label=f"{group.label} ({runs})")
    axes.fill_between(across, low, high, alpha=0.18, color=colour, linewidth=0)


def _band(group: Group, kind: BandKind) -> Band:
    if len(group.runs) == 1:
        curve = group.runs[0].curve
        return Band(curve.low, curve.mean, curve.high)
    return BANDS[kind][0](group.returns)


def _finish(axes: Axes, env_id: str, x_label: str, threshold: float | None) -> None:
    if threshold is not None:
        axes.axhline(threshold, color="0.4", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(left=0)
    axes.set(xlabel=x_label, ylabel="evaluation return")
    axes.set_title(env_id, loc="left")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.grid()


def _explain(figure: Figure) -> None:
    """Which line is what: within the panels, or above all of them where labels are long."""
    named = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if max(map(len, named)) <= LONG_LABEL:
        for axes in figure.axes:
            axes.legend(loc="best")
        return
    labels = [fill(label, FULL_LINE) for label in named]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.2 * lines)
    figure.legend(named.values(), labels, loc="outside upper left")


def _caption(groups: Sequence[Group], band: BandKind) -> str:
    """What line and band are; single and several runs may stand in one picture."""
    several = any(len(group.runs) > 1 for group in groups)
    single = any(len(group.runs) == 1 for group in groups)
    return "; ".join([BANDS[band][1]] * several + ["single runs: mean and range over episodes"] * single)
