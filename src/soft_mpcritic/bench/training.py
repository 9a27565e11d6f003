"""Training steps per second, and where their time goes."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from soft_mpcritic.agent import Agent
from soft_mpcritic.bench.measure import Timing, machine, matrix_product_rate, peak_memory
from soft_mpcritic.compilation import jit, jit_on_leaves
from soft_mpcritic.config import preset
from soft_mpcritic.envs import EnvVector, make_task

WARM_UP = 50


def bench_training(env_ids: tuple[str, ...], presets: tuple[str, ...], steps: int) -> dict[str, Any]:
    """`steps` training steps of every task under every preset."""
    cases = [_Loop(env_id, name).measure(steps) for env_id in env_ids for name in presets]
    return {
        "machine": machine(),
        "matrix_product_gflops": matrix_product_rate() / 1e9,
        "cases": cases,
        "peak_memory_mb": peak_memory() / 1e6,
    }


class _Loop:
    """The training loop without its logs, evaluations and checkpoints."""

    def __init__(self, env_id: str, preset_name: str) -> None:
        self._names = {"env_id": env_id, "preset": preset_name}
        config = preset(preset_name)
        agent = Agent(make_task(env_id), config)
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
        for _ in range(WARM_UP):
            self._step()
        jax.block_until_ready(self._leaves)
        overlapped = Timing.of([_seconds(self._step) for _ in range(steps)])
        started = time.perf_counter()
        for _ in range(steps):
            self._step()
        jax.block_until_ready(self._leaves)
        rate = steps / (time.perf_counter() - started)
        parts = {name: Timing.of(times) for name, times in self._parts(steps).items()}
        self._envs.close()
        return {
            **self._names,
            "steps_per_second": rate,
            "step_ms": overlapped.median * 1e3,
            "step_p99_ms": overlapped.p99 * 1e3,
            **{f"{name}_ms": timing.median * 1e3 for name, timing in parts.items()},
            "compile_seconds": self._compile_seconds,
            "replay_mb": self._replay_bytes / 1e6,
        }

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
