"""Environments as functions on the device: compiled with the agent into one loop."""

from dataclasses import dataclass

from soft_mpcritic.config import check
from soft_mpcritic.envs.device.mjx import MJX_TASKS, MjxDynamics, MjxEnv
from soft_mpcritic.envs.device.pendulums import SWING_UP, CartPoleSwingUp, Pendulum
from soft_mpcritic.envs.device.simulator import SimulatorEnv
from soft_mpcritic.envs.device.vector import (
    UNSOUND,
    ChangingEnv,
    DeviceEnv,
    DeviceVector,
    HeldEnv,
    HostedVector,
    VectorState,
    sound_rows,
)
from soft_mpcritic.envs.tasks import TASKS, TaskSpec

__all__ = [
    "DEVICE_TASKS",
    "OWN_TASKS",
    "UNSOUND",
    "ChangingEnv",
    "DeviceEnv",
    "DeviceVector",
    "HeldEnv",
    "HostedVector",
    "MjxDynamics",
    "SimulatorEnv",
    "VectorState",
    "make_device_env",
    "sound_rows",
]


@dataclass(frozen=True)
class OwnTask:
    """A task that Gymnasium does not have; its actions lie in [-1, 1]."""

    obs_size: int
    action_size: int
    spec: TaskSpec


OWN_TASKS = {"CartPoleSwingUp": OwnTask(5, 1, SWING_UP)}
DEVICE_TASKS = (*TASKS, *OWN_TASKS)


def make_device_env(
    env_id: str, simulator: str = "mujoco", action_repeat: int = 1, observe_change: bool = False
) -> DeviceEnv:
    """The device version of one of DEVICE_TASKS; raises `ConfigError` where `simulator`, mujoco or mjx, cannot be.

    The other tasks are equations of motion, whatever the simulator. Every step is `action_repeat` steps of the task,
    and with `observe_change` observations also hold how they changed.
    """
    env = _make_single(env_id, simulator)
    env = env if action_repeat == 1 else HeldEnv(env, action_repeat)
    return ChangingEnv(env) if observe_change else env


def _make_single(env_id: str, simulator: str) -> DeviceEnv:
    if env_id == "CartPoleSwingUp":
        return CartPoleSwingUp()
    if env_id == "Pendulum-v1":
        return Pendulum(TASKS[env_id])
    if simulator == "mujoco":
        return SimulatorEnv(env_id, TASKS[env_id])
    known = ", ".join(MJX_TASKS)
    check(env_id in MJX_TASKS, "simulator", f"be mujoco for {env_id}", repr(simulator), f"mjx knows {known}")
    return MjxEnv(MJX_TASKS[env_id], TASKS[env_id])
