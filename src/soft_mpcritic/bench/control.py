"""How punctual a trained controller is on this machine: its task, stepped in real time."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from soft_mpcritic.checkpoint import Which
from soft_mpcritic.config import check
from soft_mpcritic.controller import Controller, step_seconds
from soft_mpcritic.envs import Vector, make_vector
from soft_mpcritic.evaluation import EVALUATION_SEED
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.steering import Changes, parse_changes
from soft_mpcritic.training import load_state


@dataclass(frozen=True)
class ControlArgs:
    """Run the controller of a run folder in real time: latencies, missed deadlines and the return."""

    run_dir: tyro.conf.Positional[Path]
    """A folder that `train` made."""
    rate: float | None = None
    """Ticks a second; a solve is late when its tick is over. By default the task's own rate."""
    seconds: float = 10.0
    """How long to go on."""
    plants: int = 1
    """How many copies of the task one controller drives."""
    seed: int = EVALUATION_SEED
    """Plant i starts from environment seed `seed + i`; also of the planner's noise."""
    json: bool = False
    """Print one JSON object and nothing else."""
    set: Changes = ()
    checkpoint: Which = "newest"

    def run(self) -> None:
        """Prints what was measured."""
        _check_positive("rate", 1.0 if self.rate is None else self.rate, "try 100")
        _check_positive("seconds", self.seconds, "try 10")
        check(0 <= self.seed < 2**32, "seed", "lie in [0, 2^32)", self.seed, "use a smaller whole number")
        control = parse_changes(self.set)
        record = bench_control(self.run_dir, self.rate, self.seconds, self.plants, self.seed, control, self.checkpoint)
        print(json.dumps(record) if self.json else _in_words(record))


def bench_control(
    run_dir: Path,
    rate: float | None,
    seconds: float,
    plants: int = 1,
    seed: int = EVALUATION_SEED,
    control: Mapping[str, Any] | None = None,
    checkpoint: Which = "newest",
) -> dict[str, Any]:
    """Plays the task at `rate` Hz, or its own, for about `seconds`; figures fit for JSON."""
    folder = RunFolder(run_dir)
    agent, state = load_state(folder, folder.read_settings(), control, checkpoint)
    period = step_seconds(agent.task) if rate is None else 1 / rate
    check(period is not None, "rate", f"be given for {agent.task.env_id}", None, "its simulator tells none, try 100")
    assert period is not None
    controller = Controller.of(agent, state.models, plants, deadline=period, seed=seed)
    envs = make_vector(agent.task, plants)
    try:
        played = _play(controller, envs, period, max(round(seconds / period), 1), seed)
    finally:
        envs.close()
    latencies = controller.latencies
    return {
        "run_dir": str(run_dir),
        "env_id": agent.task.env_id,
        "plants": plants,
        "seed": seed,
        "control": dict(control or {}),
        "rate": 1 / period,
        "steps": latencies.count,
        "misses": controller.misses,
        "latency_ms": {
            **{f"p{q}": 1e3 * latencies.percentile(q) for q in (50, 99, 99.9)},
            "mean": 1e3 * latencies.mean,
            "max": 1e3 * latencies.max,
        },
        **played,
    }


def _play(controller: Controller, envs: Vector, period: float, steps: int, seed: int) -> dict[str, Any]:
    """One tick after another, each begun when it is due; a tick that is begun late does not delay the later ones."""
    obs = envs.reset(seed)
    returns, terminations = np.zeros(envs.num_envs), 0
    began = time.perf_counter()
    for tick in range(steps):
        time.sleep(max(began + tick * period - time.perf_counter(), 0))
        experience = envs.step(controller(obs[:, : controller.plants.obs_size]))
        returns += experience.reward
        terminations += int(np.sum(experience.terminated))
        obs = experience.start_obs
        if np.any(experience.done):
            controller.reset(experience.done)
    elapsed = time.perf_counter() - began
    return {
        "rate_held": steps / max(elapsed, steps * period),
        "return_mean": float(np.mean(returns)),
        "reward_per_step": float(np.mean(returns)) / steps,
        "terminations": terminations,
    }


def _check_positive(name: str, value: float, remedy: str) -> None:
    check(0 < value < math.inf, name, "be > 0 and finite", value, remedy)


def _in_words(record: dict[str, Any]) -> str:
    latency = record["latency_ms"]
    return (
        f"{record['env_id']}, plants: {record['plants']}, {record['rate']:g} Hz asked, {record['rate_held']:.4g} held\n"
        f"latency p50 {latency['p50']:.3g} ms, p99 {latency['p99']:.3g} ms, p99.9 {latency['p99.9']:.3g} ms, "
        f"longest {latency['max']:.3g} ms; misses {record['misses']} of {record['steps']}\n"
        f"return {record['return_mean']:.1f} in {record['steps']} steps, {record['reward_per_step']:.3f} a step; "
        f"terminations {record['terminations']}"
    )
