"""Training steps per second, and where their time goes."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import tyro

from soft_mpcritic.agent import Agent
from soft_mpcritic.bench.measure import (
    Timing,
    machine,
    machine_in_words,
    matrix_product_rate,
    peak_memory,
    time_in_turns,
)
from soft_mpcritic.compilation import jit, jit_on_leaves
from soft_mpcritic.config import Config, check, override
from soft_mpcritic.envs import EnvVector, Task, make_task
from soft_mpcritic.presets import preset

WARM_UP = 50
TURN = 10  # steps in a row, where several loops take turns
SMALL_REPLAY = 10_000


@dataclass(frozen=True)
class TrainingArgs:
    """Training steps per second of tasks under presets, and where their time goes."""

    env_ids: tyro.conf.Positional[tuple[str, ...]] = ("InvertedDoublePendulum-v5", "Hopper-v5")
    presets: tuple[str, ...] = ("default", "paper")
    steps: int = 300
    """Timed steps of every case."""
    json: bool = False
    """Print one JSON object and nothing else."""

    def run(self) -> None:
        """Prints what was measured."""
        check(self.steps >= 1, "steps", "be >= 1", self.steps, "try 300")
        tasks, configs = [make_task(env_id) for env_id in self.env_ids], {name: preset(name) for name in self.presets}
        record = bench_training(tasks, configs, self.steps)
        print(json.dumps(record) if self.json else _in_words(record))


def bench_training(tasks: Sequence[Task], configs: Mapping[str, Config], steps: int) -> dict[str, Any]:
    """`steps` training steps of every task under every configuration."""
    return {
        "machine": machine(),
        "matrix_product_gflops": matrix_product_rate() / 1e9,
        "cases": [
            {"env_id": task.env_id, "preset": name, **_Loop(task, config).measure(steps)}
            for task in tasks
            for name, config in configs.items()
        ],
        "peak_memory_mb": peak_memory() / 1e6,
    }


def speeds_in_turns(task: Task, configs: Mapping[str, Config], steps: int) -> dict[str, Any]:
    """Training steps per second of one task under every configuration, all in memory at once and taking turns.

    A slow spell of the machine hits every one of them, so that their ratios hold. Replays are small, to fit together.
    `steps` are timed of each, and rounded down to whole turns.
    """
    loops = {
        name: _Loop(task, override(config, {"training.capacity": SMALL_REPLAY})) for name, config in configs.items()
    }
    turns = {name: partial(loop.take, TURN) for name, loop in loops.items()}
    timings = time_in_turns(turns, max(steps // TURN, 1), block=1)
    for loop in loops.values():
        loop.close()
    return {
        "machine": machine(),
        "matrix_product_gflops": matrix_product_rate() / 1e9,
        "steps_per_second": {name: TURN / timing.median for name, timing in timings.items()},
    }


class _Loop:
    """The training loop without its logs, evaluations and checkpoints."""

    def __init__(self, task: Task, config: Config) -> None:
        agent = Agent(task, config)
        self._envs = EnvVector(agent.task, config.training.num_envs)
        self._updates = np.int32(config.training.updates_per_step * config.training.num_envs)
        state, self._action = jit(agent.begin)(jit(agent.init)(jax.random.key(0)), self._envs.reset(0))
        self._leaves, structure = jax.tree.flatten(state)
        self._replay_bytes = state.replay.records.nbytes + state.replay.plans.nbytes
        experience = self._envs.step(np.asarray(self._action))
        planned_step = jit_on_leaves(partial(agent.planned_step, explore=config.training.explore), structure)
        learn = jit_on_leaves(agent.learn, structure)
        started = time.perf_counter()
        self._planned_step = planned_step.lower(self._leaves, experience).compile()
        self._learn = learn.lower(self._leaves, self._updates).compile()
        self._compile_seconds = time.perf_counter() - started

    def measure(self, steps: int) -> dict[str, Any]:
        """Steps as in training, then steps that wait for every part, which tells what the parts cost."""
        self.take(WARM_UP)
        overlapped = Timing.of([_seconds(self._step) for _ in range(steps)])
        started = time.perf_counter()
        self.take(steps)
        rate = steps / (time.perf_counter() - started)
        parts = {name: Timing.of(times) for name, times in self._parts(steps).items()}
        self.close()
        return {
            "steps_per_second": rate,
            "step_ms": overlapped.median * 1e3,
            "step_p99_ms": overlapped.p99 * 1e3,
            **{f"{name}_ms": timing.median * 1e3 for name, timing in parts.items()},
            "compile_seconds": self._compile_seconds,
            "replay_mb": self._replay_bytes / 1e6,
        }

    def take(self, steps: int) -> None:
        """Steps as in training, and waits for the last one."""
        for _ in range(steps):
            self._step()
        jax.block_until_ready(self._leaves)

    def close(self) -> None:
        self._envs.close()

    def _step(self) -> None:
        experience = self._envs.step(np.asarray(self._action))
        self._leaves, self._action, _ = self._planned_step(self._leaves, experience)
        self._leaves, _ = self._learn(self._leaves, self._updates)

    def _parts(self, steps: int) -> dict[str, list[float]]:
        """Seconds of environment, acting, learning, and of handing the two calls to the device."""
        times: dict[str, list[float]] = {"environment": [], "acting": [], "learning": [], "dispatch": []}
        for _ in range(steps):
            clock = [time.perf_counter()]
            experience = self._envs.step(np.asarray(self._action))
            clock.append(time.perf_counter())
            self._leaves, self._action, _ = self._planned_step(self._leaves, experience)
            clock.append(time.perf_counter())
            jax.block_until_ready(self._leaves)
            clock.append(time.perf_counter())
            self._leaves, _ = self._learn(self._leaves, self._updates)
            clock.append(time.perf_counter())
            jax.block_until_ready(self._leaves)
            clock.append(time.perf_counter())
            environment, act_dispatch, act_rest, learn_dispatch, learn_rest = np.diff(clock).tolist()
            times["environment"].append(environment)
            times["acting"].append(act_dispatch + act_rest)
            times["learning"].append(learn_dispatch + learn_rest)
            times["dispatch"].append(act_dispatch + learn_dispatch)
        return times


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _in_words(record: dict[str, Any]) -> str:
    lines = [f"{machine_in_words(record)}; peak memory {record['peak_memory_mb']:.0f} MB"]
    for case in record["cases"]:
        lines.append(
            f"{case['env_id']}, {case['preset']}: {case['steps_per_second']:.0f} steps/s; one after the other: "
            f"environment {case['environment_ms']:.2f} ms, acting {case['acting_ms']:.2f}, learning "
            f"{case['learning_ms']:.2f}, of which dispatch {case['dispatch_ms']:.2f}; compiled in "
            f"{case['compile_seconds']:.0f} s; replay {case['replay_mb']:.0f} MB"
        )
    return "\n".join(lines)
