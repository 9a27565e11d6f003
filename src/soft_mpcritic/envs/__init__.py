"""The edge to Gymnasium: tasks with their known rewards, vectors of environments, and their versions on the device."""

from soft_mpcritic.envs.device import DEVICE_TASKS, DeviceEnv, DeviceVector, MjxDynamics, VectorState, make_device_env
from soft_mpcritic.envs.guard import EnvironmentFaultError
from soft_mpcritic.envs.registry import TASKS, Task, make_task, task_for
from soft_mpcritic.envs.vector import EnvVector, Vector, make_vector

__all__ = [
    "DEVICE_TASKS",
    "TASKS",
    "DeviceEnv",
    "DeviceVector",
    "EnvVector",
    "EnvironmentFaultError",
    "MjxDynamics",
    "Task",
    "Vector",
    "VectorState",
    "make_device_env",
    "make_task",
    "make_vector",
    "task_for",
]
