"""The edge to Gymnasium: tasks with their known rewards, and vectors of environments."""

from soft_mpcritic.envs.registry import TASKS, Task, make_task
from soft_mpcritic.envs.vector import BadObservationError, EnvVector

__all__ = ["TASKS", "BadObservationError", "EnvVector", "Task", "make_task"]
