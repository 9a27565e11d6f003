"""What the benchmarks compute from times, and that their counts of operations are the compiler's."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.bench.measure import Timing, matrix_product_rate, time_in_turns
from soft_mpcritic.bench.planner import GRID, Case, cases_along, slope
from soft_mpcritic.bench.training import bench_training, speeds_in_turns
from soft_mpcritic.compilation import jit
from soft_mpcritic.envs import make_task
from soft_mpcritic.planner import Planner
from soft_mpcritic.presets import preset
from tests.systems import imported, small_config


def test_timing_takes_its_percentiles_from_all_calls():
    timing = Timing.of([float(n) for n in range(1, 102)])
    assert (timing.median, timing.p10, timing.p90, timing.p99) == (51, 11, 91, 100)


def test_calls_take_turns_in_blocks_after_a_warm_up():
    order = []
    time_in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4, block=2)
    assert "".join(order) == "aaaaabbbbb" + "aabb" * 2


def test_slope_finds_a_line_and_how_straight_it_is():
    line = slope([1, 2, 4], [3.0, 5.0, 9.0])
    assert line["ms_per_unit"] == pytest.approx(2)
    assert line["ms_at_zero"] == pytest.approx(1)
    assert line["r_squared"] == pytest.approx(1)
    assert slope([1, 2, 3], [1.0, 0.0, 1.0])["r_squared"] == pytest.approx(0, abs=1e-9)


def test_matrix_products_have_a_rate():
    assert matrix_product_rate(rows=32, width=32, products=2, rounds=2) > 0


@pytest.mark.parametrize("axis", GRID)
def test_every_axis_varies_itself_alone(axis):
    cases = cases_along(axis)
    assert [getattr(case, axis) for case in cases] == list(GRID[axis])
    others = {tuple(v for k, v in vars(case).items() if k != axis) for case in cases}
    assert len(others) == 1


@pytest.mark.parametrize("case", [Case(samples=64), Case(samples=16, problems=4, horizon=2, scenarios="all_members")])
def test_operations_counted_are_those_of_the_compiler(case):
    """Within 5 %, as the compiler also counts what is not a matrix product."""
    task = make_task("Hopper-v5")
    config = case.config(preset("paper"))
    planner = Planner(task, config)
    models = planner.init_models(jax.random.key(0))
    obs = jnp.zeros((case.problems, task.obs_size))
    start = jnp.zeros((case.problems, case.horizon + 1, task.action_size))
    cost = jit(planner.control).lower(models, jax.random.key(0), obs, start).compile().cost_analysis()
    assert cost is not None
    assert case.flops(task, config) == pytest.approx(cost["flops"], rel=0.05)


def test_training_benchmark_measures_every_part():
    task = make_task("InvertedDoublePendulum-v5")
    record = bench_training([task], {"small": small_config()}, steps=5)
    (case,) = record["cases"]
    assert (case["env_id"], case["preset"]) == (task.env_id, "small")
    figures = [case[f"{part}_ms"] for part in ("environment", "acting", "learning", "dispatch", "step")]
    assert np.isfinite(figures).all()
    assert min(figures) > 0
    assert case["replay_mb"] == pytest.approx(512 * 4 * (2 * 9 + 1 + 2 + 5 + 1) / 1e6)


@pytest.mark.slow
def test_speeds_in_turns_are_of_all_configurations():
    configs = {"one": small_config(), "other": small_config(target_planner__iterations=2)}
    record = speeds_in_turns(make_task("InvertedDoublePendulum-v5"), configs, steps=20)
    assert set(record["steps_per_second"]) == set(configs)
    assert min(record["steps_per_second"].values()) > 0


def test_the_device_loop_is_timed(tmp_path, monkeypatch):
    """The script that calls the loop's own functions, and broke unnoticed when these changed."""
    script = imported(Path(__file__).parent.parent / "benchmarks" / "device_loop.py")
    monkeypatch.setattr(script, "preset", lambda _: small_config())
    monkeypatch.setattr(script, "LENGTH", 2)
    script.DeviceLoopBench("CartPoleSwingUp", tmp_path / "times.csv", seeds=(2,)).run()
    with (tmp_path / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seeds"] for row in rows] == ["2"]
    assert all(float(row[name]) > 0 for row in rows for name in script.TIMED)
