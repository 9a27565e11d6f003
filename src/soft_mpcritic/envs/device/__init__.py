"""Environments as functions on the device: compiled with the agent into one loop."""

from soft_mpcritic.config import ConfigError
from soft_mpcritic.envs.device.mjx import MJX_TASKS, MjxEnv
from soft_mpcritic.envs.device.pendulums import SWING_UP, CartPoleSwingUp, Pendulum
from soft_mpcritic.envs.device.vector import DeviceEnv, DeviceVector, HostedVector, VectorState
from soft_mpcritic.envs.tasks import TASKS, TaskSpec

__all__ = ["DEVICE_TASKS", "OWN_TASKS", "DeviceEnv", "DeviceVector", "HostedVector", "VectorState", "make_device_env"]

OWN_TASKS: dict[str, TaskSpec] = {"CartPoleSwingUp": SWING_UP}  # that Gymnasium does not have
DEVICE_TASKS = (*(env_id for env_id in (*MJX_TASKS, "Pendulum-v1") if env_id in TASKS), *OWN_TASKS)


def make_device_env(env_id: str) -> DeviceEnv:
    """The device version of a task; raises `ConfigError` where there is none."""
    if env_id not in DEVICE_TASKS:
        raise ConfigError(
            f"environment {env_id!r} has no device version: use one of {', '.join(DEVICE_TASKS)}, or --backend host."
        )
    if env_id == "CartPoleSwingUp":
        return CartPoleSwingUp()
    if env_id == "Pendulum-v1":
        return Pendulum(TASKS[env_id])
    return MjxEnv(MJX_TASKS[env_id], TASKS[env_id])
