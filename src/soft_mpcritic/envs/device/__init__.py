"""Environments as functions on the device: compiled with the agent into one loop."""

from dataclasses import dataclass

from soft_mpcritic.envs.device.mjx import MJX_TASKS, MjxDynamics, MjxEnv
from soft_mpcritic.envs.device.pendulums import SWING_UP, CartPoleSwingUp, Pendulum
from soft_mpcritic.envs.device.vector import UNSOUND, DeviceEnv, DeviceVector, HostedVector, VectorState, sound_rows
from soft_mpcritic.envs.tasks import TASKS, TaskSpec

__all__ = [
    "DEVICE_TASKS",
    "OWN_TASKS",
    "UNSOUND",
    "DeviceEnv",
    "DeviceVector",
    "HostedVector",
    "MjxDynamics",
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
DEVICE_TASKS = (*(env_id for env_id in TASKS if env_id in MJX_TASKS or env_id == "Pendulum-v1"), *OWN_TASKS)


def make_device_env(env_id: str) -> DeviceEnv:
    """The device version of one of DEVICE_TASKS; raises `ConfigError` where it needs what is not installed."""
    if env_id == "CartPoleSwingUp":
        return CartPoleSwingUp()
    if env_id == "Pendulum-v1":
        return Pendulum(TASKS[env_id])
    return MjxEnv(MJX_TASKS[env_id], TASKS[env_id])
