"""Long runs: is memory flat, is speed flat, do files stay bounded, are misses all reported?

python -m tests.faults.soak training --steps 1000000 --out results/reliability
python -m tests.faults.soak controller --seconds 3600 --light --out results/reliability
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

from soft_mpcritic.agent import Agent
from soft_mpcritic.config import Config, override
from soft_mpcritic.controller import Controller
from soft_mpcritic.envs import EnvVector, make_task
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.training import prepare_run, train
from soft_mpcritic.types import Episode

ENV_ID = "InvertedPendulum-v5"
LIGHT = {
    "planner.num_samples": 16,
    "planner.iterations": 1,
    "planner.horizon": 2,
    "target_planner.num_samples": 4,
    "target_planner.horizon": 1,
    "dynamics.width": 16,
    "dynamics.members": 2,
    "dynamics.batch_size": 16,
    "critic.width": 16,
    "critic.batch_size": 16,
    "training.capacity": 20_000,
    "training.log_every": 5_000,
    "training.evaluate_every": 50_000,
    "training.evaluation_episodes": 2,
    "training.checkpoint_every": 10_000,
}


def resident() -> float:
    """MB of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Sampler:
    """Memory, speed and size of the folder at every log point."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows: list[dict[str, float]] = []

    def on_metrics(self, row: dict[str, Any]) -> None:
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        self.rows.append(
            {
                "env_step": row["env_step"],
                "steps_per_second": row["steps_per_second"],
                "resident_mb": round(resident(), 1),
                "folder_mb": round(sum(path.stat().st_size for path in files) / 1e6, 3),
                "checkpoints": sum(path.name.isdigit() for path in (self._folder / "checkpoints").glob("*")),
            }
        )

    def on_evaluation(self, env_step: int, episodes: list[Episode]) -> None: ...


def soak_training(steps: int, out: Path) -> dict[str, Any]:
    """Trains on a light task; the rows of the second half are to be like those of the first."""
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run")
        settings = prepare_run(folder, RunSettings(ENV_ID, "default", 0, steps, override(Config(), LIGHT)), False)
        sampler = Sampler(folder.path)
        train(folder, settings, sampler)
    rows = sampler.rows
    write(out / "soak_training.csv", rows)
    draw(out / "soak_training.png", rows, "env_step", ("resident_mb", "steps_per_second", "folder_mb"))
    replay_full = [row for row in rows if row["env_step"] > LIGHT["training.capacity"]]
    half = len(replay_full) // 2
    first, second = replay_full[:half], replay_full[half:]
    return {
        "steps": steps,
        **{
            f"{name}_{part}": round(float(np.median([row[name] for row in part_rows])), 2)
            for name in ("resident_mb", "steps_per_second", "folder_mb")
            for part, part_rows in (("first_half", first), ("second_half", second))
            if part_rows
        },
        "most_checkpoints": max(row["checkpoints"] for row in rows),
    }


def soak_controller(seconds: float, rate: float, out: Path, light: bool) -> dict[str, Any]:
    """An untrained controller at `rate` Hz: what is asked is when it acts, not how well.

    A call is late where it takes longer than a period, by a clock outside. Each that is late by the controller's own
    latency has to be among the misses that it reports (`late_not_counted`). Where a call is late outside and no miss
    (`late_outside`), the thread lost its processor after the controller's last look at the clock.
    """
    task = make_task(ENV_ID)
    agent = Agent(task, override(Config(), LIGHT) if light else Config())
    controller = Controller.of(agent, agent.planner.init_models(jax.random.key(0)), deadline=1 / rate)
    envs = EnvVector(task, 1)
    obs = envs.reset(0)
    rows, durations, ticks, counted = [], [], round(seconds * rate), {}
    late = unreported = outside = misses = 0
    spent = controller.latencies.total
    began = time.perf_counter()
    for tick in range(ticks):
        time.sleep(max(began + tick / rate - time.perf_counter(), 0))
        called = time.perf_counter()
        action = controller(obs[0])
        durations.append(time.perf_counter() - called)
        own = controller.latencies.total - spent
        late += durations[-1] > 1 / rate
        outside += durations[-1] > 1 / rate >= own and controller.misses == misses
        unreported += own > 1 / rate and controller.misses == misses
        misses, spent = controller.misses, controller.latencies.total
        experience = envs.step(action[None])
        obs = np.asarray(experience.start_obs)
        if experience.done[0]:
            controller.reset()
        if len(durations) == round(60 * rate) or tick == ticks - 1:
            told = {f"p{q}_ms": round(1e3 * float(np.percentile(durations, q)), 3) for q in (50, 99, 100)}
            counted = {"late": late, "misses": misses, "late_not_counted": unreported, "late_outside": outside}
            rows.append({"minute": len(rows) + 1, **told, **counted, "resident_mb": round(resident(), 1)})
            durations = []
            write(out / "soak_controller.csv", rows)
    envs.close()
    draw(out / "soak_controller.png", rows, "minute", ("p50_ms", "p99_ms", "resident_mb"))
    drift = float(np.polyfit([row["minute"] for row in rows], [row["p50_ms"] for row in rows], 1)[0]) if rows[1:] else 0
    return {
        "seconds": seconds,
        "rate": rate,
        "ticks": ticks,
        **counted,
        "drift_of_p50_us_per_hour": round(6e4 * drift, 1),
    }


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def draw(path: Path, rows: Sequence[dict[str, Any]], x: str, names: Sequence[str]) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(len(names), 1, sharex=True, figsize=(7, 6), layout="constrained")
    for panel, name in zip(panels, names, strict=True):
        panel.plot([row[x] for row in rows], [row[name] for row in rows])
        panel.set_ylabel(name)
        panel.set_ylim(bottom=0)
    panels[-1].set_xlabel(x)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("training", "controller"))
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--light", action="store_true", help="of controller: small networks, few samples")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if asked.what == "training":
        record = soak_training(asked.steps, asked.out)
    else:
        record = soak_controller(asked.seconds, asked.rate, asked.out, asked.light)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
