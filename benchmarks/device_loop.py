"""Milliseconds that a compiled step of environments and agents takes, for several seeds side by side.

    python benchmarks/device_loop.py Hopper-v5 --seeds 1 8 16 --simulator mujoco --out FILE.csv

A step of all seeds acting at random, acting by plans, and doing so with one and with three updates after it. Rows are
added to the file. Every number of seeds is compiled anew, which takes a minute or two.
"""

import csv
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.device_loop import DeviceLoop, Orders
from soft_mpcritic.envs import DeviceVector, make_device_env, make_task
from soft_mpcritic.presets import preset

LENGTH = 100  # steps of one compiled call
COLUMNS = ("device", "env_id", "preset", "simulator", "precision", "seeds", "first_call_s")
TIMED = {"random_ms": (True, 0), "planned_ms": (False, 0), "one_update_ms": (False, 1), "three_updates_ms": (False, 3)}


@dataclass(frozen=True)
class DeviceLoopBench:
    """Times the loop that `train --backend device` compiles."""

    env_id: tyro.conf.Positional[str]
    out: Path
    seeds: tuple[int, ...] = (1, 8, 16)
    preset: str = "locomotion"
    simulator: Literal["mujoco", "mjx"] = "mujoco"
    precision: Literal["highest", "high", "default"] = "highest"

    def run(self) -> None:
        """Adds one row per number of seeds."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with jax.default_matmul_precision(self.precision), self.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, (*COLUMNS, *TIMED))
            if file.tell() == 0:
                writer.writeheader()
            for seeds in self.seeds:
                row = self._row(seeds)
                writer.writerow(row)
                print(row, flush=True)

    def _row(self, seeds: int) -> dict[str, object]:
        config = preset(self.preset)
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, capacity=40_000))
        envs = DeviceVector(make_device_env(self.env_id, self.simulator))
        loop = DeviceLoop(Agent(make_task(self.env_id, "device"), config), envs, LENGTH)
        play = jit(jax.vmap(loop.play, in_axes=(0, None, None)), donate_argnums=0)
        states = jit(jax.vmap(loop.init))(jnp.stack([jax.random.key(seed) for seed in range(seeds)]))

        def call(states, at_random: bool, updates: int):
            never_cut = np.zeros(LENGTH, np.int32)
            orders = Orders(np.full(LENGTH, at_random), np.full(LENGTH, updates, np.int32), never_cut)
            started = time.perf_counter()
            answer = play(states, np.int32(LENGTH), orders)
            jax.block_until_ready(answer)
            return answer[0], time.perf_counter() - started

        states, first = call(states, True, 0)
        figures = {}
        for name, (at_random, updates) in TIMED.items():
            states, _ = call(states, at_random, updates)
            states, seconds = call(states, at_random, updates)
            figures[name] = round(1e3 * seconds / LENGTH, 2)
        device = jax.devices()[0].device_kind
        named = (device, self.env_id, self.preset, self.simulator, self.precision, seeds, round(first, 1))
        return dict(zip(COLUMNS, named, strict=True)) | figures


if __name__ == "__main__":
    tyro.cli(DeviceLoopBench).run()
