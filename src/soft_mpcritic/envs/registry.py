"""From an environment's name to everything that the agent must know of it, with clear refusals."""

import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Box

from soft_mpcritic.config import ConfigError, TrainingConfig
from soft_mpcritic.envs.adapt import Changing, Held, Judged, adapt, check_action, check_observation
from soft_mpcritic.envs.device import DEVICE_TASKS, OWN_TASKS, DeviceEnv, make_device_env
from soft_mpcritic.envs.dm_control import PREFIX, DmControl
from soft_mpcritic.envs.tasks import TASKS, Either, Repeated, TaskSpec, unknown
from soft_mpcritic.parts import NOTHING_OWN, Parts, check_traceable, import_named
from soft_mpcritic.types import Reward, Termination


@dataclass(frozen=True)
class Task:
    """A task as the agent sees it: sizes, the box of its actions and what is known of it beside.

    A step of it is `action_repeat` steps of its environment under one action. `reward` and `termination` are a user's
    own, which the environments are to follow as well. With `observe_change`, the second half of an observation is how
    the first has changed since the step before; `spec` is about the first.
    """

    env_id: str
    obs_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    spec: TaskSpec
    source: Callable[..., gym.Env] | None = None  # None: `gymnasium.make` of the id
    reward: Reward | None = None
    termination: Termination | None = None
    action_repeat: int = 1
    observe_change: bool = False

    @property
    def state_size(self) -> int:
        """How many components of an observation a model must predict: all but how they change."""
        return self.obs_size // 2 if self.observe_change else self.obs_size

    @property
    def action_size(self) -> int:
        return len(self.action_low)

    @property
    def has_gymnasium(self) -> bool:
        return self.env_id not in OWN_TASKS

    @property
    def judged(self) -> bool:
        """Do environments follow a goal of the user's own?"""
        return self.reward is not None or self.termination is not None

    @property
    def unknowns(self) -> tuple[str, ...]:
        """What must be learned of the goal."""
        goal = {"reward": self.spec.reward, "termination": self.spec.termination}
        return tuple(name for name, told in goal.items() if told is unknown)

    @property
    def note(self) -> str:
        """One line for users on what is unknown; empty where all is known."""
        if not self.unknowns:
            return ""
        return f"{' and '.join(self.unknowns)} of {self.env_id} are not known here: learned from experience"

    def make_env(self, **options: Any) -> gym.Env:
        """A new environment of this task, with vectors for observations and actions; `options` as of `gymnasium.make`.

        With a source of its own, these are the arguments of that.
        """
        env = adapt(_make(self.source or _registered(self.env_id), {**self.spec.env_options, **options}))
        env = env if self.action_repeat == 1 else Held(env, self.action_repeat)
        env = Judged(env, self.reward, self.termination) if self.judged else env
        return Changing(env) if self.observe_change else env

    def make_device_env(self, simulator: str = "mujoco") -> DeviceEnv:
        """Its version on the device, by one of the simulators that `envs.device` knows."""
        return make_device_env(self.env_id, simulator, self.action_repeat, self.observe_change)

    def changing(self) -> "Task":
        """The task in which observations also hold how they have changed since the step before."""
        return replace(self, obs_size=2 * self.obs_size, observe_change=True)


def make_task(env_id: str, backend: str = "host", parts: Parts = NOTHING_OWN, action_repeat: int = 1) -> Task:
    """Looks the task up and checks its spaces; raises `ConfigError` in one line for whatever does not fit.

    `env_id` is an id of Gymnasium; `module:id`, where the module registers it; `module:name` of a class or function
    that makes an environment; or `dm_control/DOMAIN-TASK`. With `parts.env`, it is a name and no more. A goal of one's
    own judges a step of the task, all `action_repeat` steps of the environment as one; physics are told of one of them.
    """
    own = [name for name in ("env", "reward", "termination", "nominal") if getattr(parts, name) is not None]
    if own and (backend == "device" or env_id in OWN_TASKS):
        raise ConfigError(f"parts of one's own ({', '.join(own)}) need environments on the host: use --backend host.")
    if env_id in OWN_TASKS:
        return _own_task(env_id, backend, action_repeat)
    source = parts.env or _source(env_id)
    if backend == "device" and env_id not in DEVICE_TASKS:
        raise ConfigError(
            f"environment {env_id!r} has no device version: use one of {', '.join(DEVICE_TASKS)}, or --backend host."
        )
    spec = TASKS.get(env_id, TaskSpec(unknown, unknown)).repeated(action_repeat)
    obs_size, action_space = _checked_spaces(env_id, source or _registered(env_id), spec)
    low, high = (tuple(bound.astype(float).tolist()) for bound in (action_space.low, action_space.high))
    task = Task(env_id, obs_size, low, high, spec, source, action_repeat=action_repeat)
    return _with_parts(task, parts)


def task_for(env_id: str, training: TrainingConfig, parts: Parts = NOTHING_OWN) -> Task:
    """The task as the settings of a training run want it stepped and seen; raises `ConfigError` as `make_task` does."""
    task = make_task(env_id, training.backend, parts, training.action_repeat)
    return task.changing() if training.observe_change else task


def _own_task(env_id: str, backend: str, action_repeat: int) -> Task:
    if backend != "device":
        raise ConfigError(f"environment {env_id!r} exists on the device only: add --backend device.")
    own = OWN_TASKS[env_id]
    box = (-1.0,) * own.action_size, (1.0,) * own.action_size
    return Task(env_id, own.obs_size, *box, own.spec.repeated(action_repeat), action_repeat=action_repeat)


def _with_parts(task: Task, parts: Parts) -> Task:
    """The task with a user's reward and physics in the place of its own, and one more way to end."""
    steps = (task.obs_size, task.action_size, task.obs_size)
    spec = task.spec
    if parts.reward is not None:
        check_traceable("reward", parts.reward, steps)
        spec = replace(spec, reward=parts.reward)
    if parts.termination is not None:
        check_traceable("termination", parts.termination, steps)
        known = spec.termination is not unknown
        spec = replace(spec, termination=Either(spec.termination, parts.termination) if known else parts.termination)
    if parts.nominal is not None:
        check_traceable("nominal model", parts.nominal, steps[:2], task.obs_size)
        once, times = parts.nominal, task.action_repeat
        spec = replace(spec, nominal=once if times == 1 else Repeated(once, times))
    return replace(task, spec=spec, reward=parts.reward, termination=parts.termination)


# ------------------------------------------------------------- where environments come from


def _source(env_id: str) -> Callable[..., gym.Env] | None:
    """What makes the environment, None for an id that Gymnasium knows; raises `ConfigError` for a name of nothing."""
    if env_id.startswith(PREFIX):
        return partial(DmControl, env_id.removeprefix(PREFIX))
    module, _, name = env_id.rpartition(":")
    loaded = import_named(module, repr(env_id)) if module else None
    if name in gym.registry:
        return None
    if loaded is not None and callable(getattr(loaded, name, None)):
        return getattr(loaded, name)
    if loaded is not None:
        raise ConfigError(
            f"environment {env_id!r} is not registered with Gymnasium, and module {module!r} has no class or function "
            f"{name!r} either: check the name."
        )
    near = difflib.get_close_matches(name, list(gym.registry), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "gymnasium.registry lists what is installed."
    raise ConfigError(f"environment {env_id!r} is not registered with Gymnasium: {hint}")


def _registered(env_id: str) -> Callable[..., gym.Env]:
    return partial(gym.make, env_id, disable_env_checker=True)


def _make(source: Callable[..., Any], options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium deprecates old versions at length
        return source(**options)


def _checked_spaces(env_id: str, source: Callable[..., gym.Env], spec: TaskSpec) -> tuple[int, Box]:
    """Size of observations and the space of actions, as vectors."""
    try:
        env = _make(source, spec.env_options)
    except ConfigError:
        raise
    except Exception as error:  # whatever the constructor of a foreign environment raises
        raise ConfigError(f"environment {env_id!r} cannot be made: {' '.join(str(error).split())}") from error
    if not isinstance(env, gym.Env):
        raise ConfigError(f"{env_id!r} must make a gymnasium.Env, got {type(env).__name__}: return an environment.")
    try:
        check_action(env_id, env.action_space)
        check_observation(env_id, env.observation_space)
        adapted: Any = adapt(env)
        return adapted.observation_space.shape[0], adapted.action_space
    finally:
        env.close()
