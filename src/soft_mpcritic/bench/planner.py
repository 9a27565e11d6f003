"""Latency of solves over sample counts, horizons, ensembles, batches and widths, against the machine's limit."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soft_mpcritic.bench.measure import Timing, machine, matrix_product_rate, time_in_turns
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import Config, override, preset
from soft_mpcritic.envs import Task, make_task
from soft_mpcritic.planner import Planner

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
                "objective.scenarios": self.scenarios,
            },
        )

    def flops(self, task: Task, config: Config) -> float:
        """Floating point operations of the networks' matrix products."""
        inputs, hidden = task.obs_size + task.action_size, self.width
        model = 2 * (inputs * hidden + hidden**2 + hidden * task.obs_size)
        value = 2 * (inputs * hidden + hidden**2 + hidden) * config.critic.heads
        rolled = self.members if self.scenarios == "all_members" else 1
        return config.planner.iterations * self.problems * self.samples * rolled * (self.horizon * model + value)


BASE = Case()


def bench_planner(rounds: int, preset_name: str = "paper", env_id: str = "Hopper-v5") -> dict[str, Any]:
    """Every case of the grid, one axis at a time around the base case; slopes; and the peer, where it is installed.

    Networks are freshly initialised: a solve costs the same whatever they have learned.
    """
    task, base = make_task(env_id), preset(preset_name)
    limit = matrix_product_rate()
    rows = []
    for axis, cases in grid():
        solves = {str(getattr(case, axis)): solver(case, task, base) for case in cases}
        timings = time_in_turns(solves, rounds)
        for case, timing in zip(cases, timings.values(), strict=True):
            rows.append({"axis": axis, **vars(case), **_figures(timing, case.flops(task, case.config(base)), limit)})
    slopes = {axis: _slope(axis, [row for row in rows if row["axis"] == axis]) for axis in GRID if axis != "width"}
    record = {
        "machine": machine(),
        "preset": preset_name,
        "env_id": env_id,
        "matrix_product_gflops": limit / 1e9,
        "cases": rows,
        "slopes": slopes,
    }
    return {**record, "peers": _peers(task, base, rounds)}


def grid() -> Iterator[tuple[str, list[Case]]]:
    """The cases along every axis."""
    for axis, values in GRID.items():
        scenarios = "all_members" if axis == "members" else "per_step"
        yield axis, [dataclasses.replace(BASE, scenarios=scenarios, **{axis: value}) for value in values]


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


def _figures(timing: Timing, flops: float, limit: float) -> dict[str, float]:
    rate = flops / timing.median
    return {
        "median_ms": timing.median * 1e3,
        "p10_ms": timing.p10 * 1e3,
        "p99_ms": timing.p99 * 1e3,
        "gflop": flops / 1e9,
        "gflops": rate / 1e9,
        "roofline_fraction": rate / limit,
    }


def _slope(axis: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Least-squares line of the median over the axis: milliseconds per unit, at zero, and how straight it is (R^2)."""
    x = np.array([row[axis] for row in rows], float)
    y = np.array([row["median_ms"] for row in rows])
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (slope * x + intercept)
    return {
        "ms_per_unit": float(slope),
        "ms_at_zero": float(intercept),
        "r_squared": float(1 - residual.var() / y.var()),
    }


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
