"""The trained controller at work: compiled ahead of time, warm-started, punctual."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, UInt

from soft_mpcritic.agent import Agent
from soft_mpcritic.checkpoint import Which
from soft_mpcritic.compilation import compiler_options
from soft_mpcritic.config import check
from soft_mpcritic.envs import Task
from soft_mpcritic.exported import ControlLoop, Plants, compiled_solve
from soft_mpcritic.planner import CONTROL_CRITICS, Models
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.training import load_state


class Controller(ControlLoop):
    """What a run folder learned, as a function from observations to actions.

    ```
    controller = Controller.load("runs/mine", deadline=0.01)
    action = controller(obs)
    ```
    The same seed and the same observations give the same actions, as long as no solve is late.
    """

    @classmethod
    def load(
        cls,
        run_dir: str | PathLike[str],
        plants: int = 1,
        deadline: float | None = None,
        seed: int = 0,
        control: Mapping[str, Any] | None = None,
        checkpoint: Which = "newest",
    ) -> "Controller":
        """The controller of a checkpoint, by default the newest, for `plants` plants at once; `deadline` in seconds.

        `control` are settings to control with in the place of the run's, {"planner.num_samples": 32}; `checkpoint` is
        the newest, "best", or the environment step of one that is kept. Raises `ConfigError` for a folder without it
        and settings that cannot be changed, `ValueError` for numbers that cannot be.
        """
        folder = RunFolder(Path(run_dir))
        agent, state = load_state(folder, folder.read_settings(), control, checkpoint)
        return cls.of(agent, state.models, plants, deadline, seed)

    @classmethod
    def of(
        cls, agent: Agent, models: Models, plants: int = 1, deadline: float | None = None, seed: int = 0
    ) -> "Controller":
        """The controller of an agent with what it learned."""
        parts = control_program(agent, models, plants)
        solve = compiled_solve(parts.program, list(parts.arrays.values()), parts.plants, seed, compiler_options())
        return cls(solve, parts.plants, deadline)


class ControlProgram(NamedTuple):
    """The online solve as a function of plain arrays, in the order of `arrays`."""

    program: Callable[..., tuple[Float[Array, "E T A"], Float[Array, " E"]]]
    arrays: dict[str, Array]  # by their paths in `Models`
    plants: Plants


def control_program(agent: Agent, models: Models, plants: int) -> ControlProgram:
    """What `compiled_solve` compiles and `export` writes; critics that are not asked have no part in it."""
    check(plants >= 1, "plants", "be >= 1", plants, "use 1 for a single plant")
    task, planner = agent.task, agent.planner
    idle = [name for control, name in CONTROL_CRITICS.items() if control != agent.config.critic.control]
    acting = eqx.tree_at(
        lambda m: [getattr(m, name) for name in idle], models, [None] * len(idle), is_leaf=lambda leaf: leaf is None
    )
    leaves, structure = jax.tree.flatten(acting)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(acting)]

    def program(
        arrays: list[Array],
        seed: UInt[Array, ""],
        number: UInt[Array, ""],
        obs: Float[Array, "E S"],
        start: Float[Array, "E T A"],
    ) -> tuple[Float[Array, "E T A"], Float[Array, " E"]]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        result = planner.plan_to_control(jax.tree.unflatten(structure, arrays), key, obs, start)
        return result.plan, result.value

    slots = agent.config.planner.horizon + 1
    sizes = Plants(plants, task.state_size, task.action_low, task.action_high, slots, task.observe_change)
    return ControlProgram(program, dict(zip(names, leaves, strict=True)), sizes)


def step_seconds(task: Task) -> float | None:
    """How much of the plant's time one action lasts; None where the task's simulator does not say."""
    if not task.has_gymnasium:
        return None
    env = task.make_env()
    try:
        seconds = getattr(env.unwrapped, "dt", None)
        return None if seconds is None else task.action_repeat * float(seconds)
    finally:
        env.close()
