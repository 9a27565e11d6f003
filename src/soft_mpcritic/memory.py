"""Will it fit? What M seeds of E environments take on the device, told before anything is allocated."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax

from soft_mpcritic.agent import Agent
from soft_mpcritic.config import Config, ConfigError, PlannerConfig
from soft_mpcritic.envs import DeviceEnv, DeviceVector, Task

USABLE = 0.9  # of the memory; the rest is the compiler's
GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run takes: its states exactly, what it computes with by rule of thumb.

    On the host, where there is no `env` for the device, environments are not counted.
    """

    task: Task
    config: Config
    env: DeviceEnv | None = None

    def bytes(self, seeds: int, envs: int) -> int:
        """States of all seeds, one of them once more (while it is written to disk), and the work of all."""
        return (seeds + 1) * self._state_bytes(envs) + seeds * self._work_bytes(envs)

    def check(self, seeds: int, limit: int, place: str) -> None:
        """Raises `ConfigError` that names what would fit, where the run does not fit into `limit` bytes."""
        envs, usable = self.config.training.num_envs, int(USABLE * limit)
        if self.bytes(seeds, envs) <= usable:
            return
        fewer = (
            ("--num-seeds", largest(lambda m: self.bytes(m, envs) <= usable, seeds)),
            ("--num-envs", largest(lambda e: self.bytes(seeds, e) <= usable, envs)),
        )
        remedies = [f"{name} {count} fits" for name, count in fewer if count > 0]
        raise ConfigError(
            f"num_seeds {seeds} x num_envs {envs} must fit into {usable / GIB:.1f} GiB of {place}, got "
            f"about {self.bytes(seeds, envs) / GIB:.1f} GiB: {' or '.join(remedies) or 'lower training.capacity'}."
        )

    def _state_bytes(self, envs: int) -> int:
        one, more = self._one_and_more
        return one + (envs - 1) * more

    @cached_property
    def _one_and_more(self) -> tuple[int, int]:
        """State of one environment's seed, and what every further environment adds."""
        one, two = (self._shapes_bytes(envs) for envs in (1, 2))
        return one, two - one

    def _shapes_bytes(self, envs: int) -> int:
        training = dataclasses.replace(self.config.training, num_envs=envs, capacity=self._capacity)
        agent = Agent(self.task, dataclasses.replace(self.config, training=training))
        starts = [agent.init] if self.env is None else [agent.init, DeviceVector(self.env, envs).reset]
        shapes = jax.eval_shape(lambda key: [start(key) for start in starts], jax.random.key(0))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    @property
    def _capacity(self) -> int:
        return max(self.config.training.capacity, 2)

    def _work_bytes(self, envs: int) -> int:
        """Three activations of every row that is under way, six arrays of sampled actions, the simulator's own."""
        config = self.config
        online, target = config.planner, config.target_planner
        planning = max(self._solve_bytes(online, envs), self._solve_bytes(target, config.critic.batch_size))
        return planning + (0 if self.env is None else envs * self.env.step_bytes)

    def _solve_bytes(self, planner: PlannerConfig, problems: int) -> int:
        config = self.config
        members = config.dynamics.members if planner.scenarios == "all_members" else 1
        activations = 3 * members * max(config.dynamics.width, config.critic.width)
        actions = 6 * (planner.horizon + 1) * self.task.action_size
        return 4 * planner.num_samples * problems * (activations + actions)


def largest(fits: Callable[[int], bool], below: int) -> int:
    """The largest count in [0, below) that fits, where all smaller ones do."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def available_memory() -> tuple[int, str]:
    """Bytes of the first device that are free, and what to call them; of a CPU all that the machine has."""
    device = jax.local_devices()[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0), f"memory of {device.device_kind}"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "physical memory"
