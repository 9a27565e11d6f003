"""Known rewards and terminations of Gymnasium tasks, as JAX functions of (obs, action, next_obs) in the task's units.

One small spec a task. Each is tested against the simulator on thousands of steps; where the simulator uses what no
observation shows, the docstring says so.
"""

from soft_mpcritic.envs.tasks.locomotion import LOCOMOTION
from soft_mpcritic.envs.tasks.pendulums import PENDULUMS
from soft_mpcritic.envs.tasks.reaching import REACHING
from soft_mpcritic.envs.tasks.spec import Either, Repeated, TaskSpec, never, unknown

__all__ = ["TASKS", "Either", "Repeated", "TaskSpec", "never", "unknown"]

TASKS: dict[str, TaskSpec] = {**PENDULUMS, **REACHING, **LOCOMOTION}
