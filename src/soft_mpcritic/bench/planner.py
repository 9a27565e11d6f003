"""Latency of solves over sample counts, horizons, ensembles, batches and widths, against the machine's limit."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from soft_mpcritic.bench.measure import Timing, machine, machine_in_words, matrix_product_rate, time_in_turns
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import Config, check, override
from soft_mpcritic.envs import Task, make_task
from soft_mpcritic.planner import Planner
from soft_mpcritic.presets import preset

GRID: Mapping[str, tuple[int, ...]] = {
    "samples": (50, 100, 200, 400, 800),
    "horizon": (1, 2, 4, 8, 16),
    "members": (1, 2, 4, 8),
    "problems": (1, 2, 8, 32),
    "width": (64, 128, 256, 512),
}


@dataclass(frozen=True)
class Case:
    """One solve: what it is and what it costs."""

    samples: int = 200
    horizon: int = 4
    members: int = 4
    problems: int = 1
    width: int = 256
    scenarios: str = "per_step"  # all_members where N is the axis: per_step costs the same whatever N

    def config(self, base: Config) -> Config:
        return override(
            base,
            {
                "planner.num_samples": self.samples,
                "planner.horizon": self.horizon,
                "dynamics.members": self.members,
                "dynamics.width": self.width,
                "critic.width": self.width,
                "planner.scenarios": self.scenarios,
            },
        )

    def flops(self, task: Task, config: Config) -> int:
        """Floating point operations of the networks' matrix products."""
        inputs, hidden = task.obs_size + task.action_size, self.width
        model = 2 * (inputs * hidden + hidden**2 + hidden * task.obs_size)
        value = 2 * (inputs * hidden + hidden**2 + hidden) * config.critic.heads
        rolled = self.members if self.scenarios == "all_members" else 1
        return config.planner.iterations * self.problems * self.samples * rolled * (self.horizon * model + value)


BASE = Case()


@dataclass(frozen=True)
class PlannerArgs:
    """Latency of solves over samples, horizons, ensembles, batches and widths, and beside pytorch_mppi."""

    env_id: tyro.conf.Positional[str] = "Hopper-v5"
    """The task whose sizes and reward are planned with."""
    preset: str = "paper"
    """Whose planner; default, paper or paper-uniform."""
    axes: tuple[str, ...] = tuple(GRID)
    """Which axes of the grid, among samples, horizon, members, problems and width."""
    rounds: int = 200
    """Timed solves of every case."""
    json: bool = False
    """Print one JSON object and nothing else."""

    def run(self) -> None:
        """Prints what was measured."""
        unknown = set(self.axes) - set(GRID)
        check(not unknown, "axes", f"be among {', '.join(GRID)}", ", ".join(sorted(unknown)), "remove them")
        check(self.rounds >= 1, "rounds", "be >= 1", self.rounds, "try 200")
        record = bench_planner(make_task(self.env_id), preset(self.preset), self.axes, self.rounds)
        record = {"preset": self.preset, **record}
        print(json.dumps(record) if self.json else _in_words(record))


def bench_planner(task: Task, base: Config, axes: Sequence[str], rounds: int) -> dict[str, Any]:
    """The cases of every axis, one axis at a time around the base case; slopes; the peer, where it is installed.

    Networks are freshly initialised: a solve costs the same whatever they have learned.
    """
    limit = matrix_product_rate()
    rows, slopes = [], {}
    for axis in axes:
        cases = cases_along(axis)
        solves = {str(getattr(case, axis)): solver(case, task, base) for case in cases}
        timings = time_in_turns(solves, rounds).values()
        measured = [
            {"axis": axis, **dataclasses.asdict(case), **_figures(timing, case.flops(task, case.config(base)), limit)}
            for case, timing in zip(cases, timings, strict=True)
        ]
        rows += measured
        if axis != "width":  # whose cost is not meant to be linear
            slopes[axis] = slope([row[axis] for row in measured], [row["median_ms"] for row in measured])
    return {
        "env_id": task.env_id,
        "machine": machine(),
        "matrix_product_gflops": limit / 1e9,
        "cases": rows,
        "slopes": slopes,
        "peers": _peers(task, base, rounds),
    }


def cases_along(axis: str) -> list[Case]:
    """The base case with every value of one axis."""
    scenarios = "all_members" if axis == "members" else "per_step"
    return [dataclasses.replace(BASE, scenarios=scenarios, **{axis: value}) for value in GRID[axis]]


def solver(case: Case, task: Task, base: Config) -> Callable[[], Any]:
    """A call that solves the case's problems once, from where the last solve left off."""
    planner = Planner(task, case.config(base))
    models = jit(planner.init_models)(jax.random.key(0))
    obs = jnp.zeros((case.problems, task.obs_size)).at[:, 1].set(1.25)
    start = jnp.zeros((case.problems, case.horizon + 1, task.action_size))
    key = jax.random.key(1)
    compiled = jit(planner.control).lower(models, key, obs, start).compile()

    def solve() -> None:
        jax.block_until_ready(compiled(models, key, obs, start))

    return solve


def _figures(timing: Timing, flops: int, limit: float) -> dict[str, float]:
    rate = flops / timing.median
    return {
        "median_ms": timing.median * 1e3,
        "p10_ms": timing.p10 * 1e3,
        "p99_ms": timing.p99 * 1e3,
        "gflop": flops / 1e9,
        "gflops": rate / 1e9,
        "roofline_fraction": rate / limit,
    }


def slope(values: Sequence[int | float], medians: Sequence[float]) -> dict[str, float]:
    """Least-squares line: milliseconds per unit, milliseconds at zero, and how straight it is (R^2)."""
    x, y = np.asarray(values, float), np.asarray(medians, float)
    per_unit, at_zero = np.polyfit(x, y, 1).tolist()
    residual = y - (per_unit * x + at_zero)
    return {"ms_per_unit": per_unit, "ms_at_zero": at_zero, "r_squared": float(1 - residual.var() / y.var())}


def _peers(task: Task, base: Config, rounds: int) -> dict[str, Any]:
    """Ours and pytorch_mppi in turns, on networks of the same sizes."""
    try:
        from soft_mpcritic.bench import peers
    except ImportError as error:
        return {"skipped": f"{error}; pip install 'soft-mpcritic[bench]'"}
    calls = {"ours": solver(BASE, task, base), "pytorch_mppi": peers.pytorch_mppi_solver(BASE, task)}
    timings = time_in_turns(calls, rounds)
    ours, theirs = timings["ours"], timings["pytorch_mppi"]
    return {
        "versions": peers.versions(),
        **{f"{name}_median_ms": timing.median * 1e3 for name, timing in timings.items()},
        **{f"{name}_p99_ms": timing.p99 * 1e3 for name, timing in timings.items()},
        "ratio": theirs.median / ours.median,
    }


def _in_words(record: dict[str, Any]) -> str:
    lines = [f"{record['env_id']}, preset {record['preset']}, {machine_in_words(record)}"]
    for row in record["cases"]:
        lines.append(
            f"{row['axis']:>9} {row[row['axis']]:>4}: median {row['median_ms']:8.3f} ms, p99 {row['p99_ms']:8.3f} ms, "
            f"{row['gflops']:6.1f} GFLOP/s, {100 * row['roofline_fraction']:3.0f} % of the machine's"
        )
    for axis, line in record["slopes"].items():
        per_unit, at_zero, straight = line.values()
        lines.append(f"{axis:>9}: {per_unit:.4g} ms each, {at_zero:.3g} at none, R^2 {straight:.4f}")
    peers = record["peers"]
    if "skipped" in peers:
        return "\n".join([*lines, f"peers skipped: {peers['skipped']}"])
    lines.append(
        f"base case: ours {peers['ours_median_ms']:.2f} ms (p99 {peers['ours_p99_ms']:.2f}), pytorch_mppi "
        f"{peers['pytorch_mppi_median_ms']:.2f} ms (p99 {peers['pytorch_mppi_p99_ms']:.2f}), ratio {peers['ratio']:.2f}"
    )
    return "\n".join(lines)
