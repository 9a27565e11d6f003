"""The picture of a diagnosis: six panels, each with its own question."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from soft_mpcritic.diagnostics import Diagnosis, ModelErrors, SolveSample, ValueSample, reliability
from soft_mpcritic.files import delivered
from soft_mpcritic.types import AnyArray

SPREAD = r"spread of the members $\times\,\sqrt{1 + 1/N}$"
POINTS = 2000  # of a scatter plot
GREY, BLUE, ORANGE, GREEN = "0.45", "tab:blue", "tab:orange", "tab:green"
History = Mapping[str, np.ndarray]  # columns of metrics.csv


def plot_diagnosis(diagnosis: Diagnosis, history: History, title: str, out: Path) -> None:
    """Writes the picture; `history` is what training wrote on the way."""
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(2, 3).flat
    _draw_values(next(axes), diagnosis.values)
    _draw_biases(next(axes), history)
    _draw_gaps(next(axes), diagnosis.solves)
    _draw_model_errors(next(axes), diagnosis.models)
    _draw_calibration(next(axes), diagnosis.models)
    _draw_solves(next(axes), history)
    with delivered(out) as file:
        figure.savefig(file, dpi=140)


def _draw_values(axes: Axes, values: ValueSample) -> None:
    _dress(axes, "Is the value what comes of it?", "discounted return of the episode from there on", "value")
    if not len(values.ret):
        _say(axes, "no return is whole:\nthe time limit cuts too much off")
        return
    some = slice(None, None, -(-len(values.ret) // POINTS))
    axes.scatter(values.ret[some], values.soft_value[some], s=5, alpha=0.3, color=ORANGE, label="V(s), online", lw=0)
    axes.scatter(values.ret[some], values.q[some], s=5, alpha=0.3, color=BLUE, label="Q(s, a)", lw=0)
    _diagonal(axes, values.ret)
    _explain_points(axes)


def _draw_biases(axes: Axes, history: History) -> None:
    _dress(axes, "Bias over training", "environment steps", "mean difference, units of reward")
    curves = (
        ("q_bias", BLUE, "Q - return"),
        ("soft_value_bias", ORANGE, "V - return"),
        ("target_bias", GREEN, "target solve - reference"),
    )
    steps = history.get("env_step", np.zeros(0))
    for name, colour, label in curves:
        known = np.isfinite(history.get(name, np.zeros(0)))
        if not known.any():
            continue
        mean, spread = history[name][known], history[f"{name}_std"][known]
        axes.plot(steps[known], mean, color=colour, marker="o", markersize=3.5, label=label)
        axes.fill_between(steps[known], mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
    if not axes.lines:
        _say(axes, "metrics.csv has no diagnosis")
        return
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.legend(frameon=False, fontsize=8, title="band: standard deviation", title_fontsize=8)


def _draw_gaps(axes: Axes, solves: SolveSample) -> None:
    _dress(axes, "Target solve, from the kept plan, minus ..", "difference of soft values, units of reward", "solves")
    gaps = (
        (".. cold start, same samples", solves.stored - solves.cold, GREY),
        (".. planning anew", solves.stored - solves.fresh, ORANGE),
        (".. reference", solves.stored - solves.reference, BLUE),
    )
    together = np.concatenate([gap for _, gap, _ in gaps])
    if not len(together):
        _say(axes, "no valid target solve")
        return
    low, high = np.percentile(together, (2, 98))
    margin = 0.05 * max(high - low, 1e-6)
    bins = np.linspace(low - margin, high + margin, 41)
    for label, gap, colour in gaps:
        clipped = np.clip(gap, bins[0], bins[-1])  # the outermost bins hold what lies beyond
        axes.hist(clipped, bins, histtype="step", color=colour, linewidth=1.4, label=f"{label}: {np.mean(gap):+.3g}")
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.legend(frameon=False, fontsize=8, title="mean", title_fontsize=8)


def _draw_model_errors(axes: Axes, models: ModelErrors) -> None:
    _dress(axes, "Models rolled along played actions", "step", "error, deviations of a change")
    steps = np.arange(1, len(models.by_step) + 1)
    for index, member in enumerate(models.by_member):
        axes.plot(steps, member, color=BLUE, alpha=0.35, linewidth=1, label=None if index else "each member")
    axes.plot(steps, models.by_step, color=BLUE, marker="o", markersize=4, label="root mean square")
    axes.plot(steps, models.still_by_step, color=GREY, linestyle="--", label='"nothing changes"')
    axes.set_xticks(steps)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def _draw_calibration(axes: Axes, models: ModelErrors) -> None:
    _dress(axes, "Does the ensemble know where it errs? (step 1)", SPREAD, "error of their mean")
    members = len(models.squares)
    if members == 1 or not np.all(models.spread > 0):
        _say(axes, "a single member has no spread")
        return
    some = slice(None, None, -(-len(models.spread) // POINTS))
    expected = np.sqrt(1 + 1 / members) * models.spread
    axes.scatter(expected[some], models.miss[some], s=5, alpha=0.2, color=GREY, linewidth=0, label="played steps")
    axes.plot(*reliability(models.spread, models.miss, members), color=BLUE, marker="o", markersize=4, label="tenths")
    _scale_by_decades(axes.set_xscale, axes.xaxis)
    _scale_by_decades(axes.set_yscale, axes.yaxis)
    _diagonal(axes, expected)
    _explain_points(axes)


def _draw_solves(axes: Axes, history: History) -> None:
    _dress(axes, "Effective samples and age of plans", "environment steps", "effective samples")
    steps = history.get("env_step", np.zeros(0))
    curves = (("effective_samples", ORANGE, "online"), ("target_effective_samples", BLUE, "targets"))
    for name, colour, label in curves:
        axes.plot(steps, history.get(name, np.full(len(steps), np.nan)), color=colour, label=label)
    _scale_by_decades(axes.set_yscale, axes.yaxis)
    axes.plot([], [], color=GREY, linestyle="--", label="age of plans (right)")
    ages = axes.twinx()
    ages.plot(steps, history.get("plan_age", np.full(len(steps), np.nan)), color=GREY, linestyle="--")
    ages.set_ylim(bottom=0)
    ages.set_ylabel("updates", color=GREY, fontsize=9)
    ages.tick_params(colors=GREY, labelsize=8)
    ages.spines["top"].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper center")


def _dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _scale_by_decades(set_scale: Callable[[str], None], axis: Axis) -> None:
    """A logarithmic scale with plain numbers at 1, 2 and 5 of every decade."""
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _explain_points(axes: Axes) -> None:
    """A legend whose points can be seen, however faint they are in the panel."""
    for handle in axes.legend(frameon=False, fontsize=8, markerscale=2).legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _diagonal(axes: Axes, range_of: AnyArray) -> None:
    """Where both axes agree."""
    ends = [np.min(range_of), np.max(range_of)]
    axes.plot(ends, ends, color="black", linewidth=0.8, label="agree")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)
