"""Tasks of the DeepMind Control Suite as Gymnasium environments, by names such as dm_control/cartpole-swingup."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict

from soft_mpcritic.config import ConfigError

PREFIX = "dm_control/"


class DmControl(gym.Env):
    """One task of the suite. All randomness is drawn from Gymnasium's `np_random`, so that episodes can be relived."""

    def __init__(self, name: str, render_mode: str | None = None) -> None:
        """`name` is DOMAIN-TASK; raises `ConfigError` for one that the suite does not have."""
        suite = _import_suite()
        known = [f"{domain}-{task}" for domain, task in suite.ALL_TASKS]
        if name not in known:
            raise ConfigError(f"task {name!r} is not in the suite of dm_control: use one of {', '.join(known)}.")
        domain, _, task = name.partition("-")
        self._env = suite.load(domain, task)
        rate = round(1 / self._env.control_timestep())
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": rate}
        self.render_mode = render_mode
        self.dt = self._env.control_timestep()
        self.observation_space = Dict({name: _unbounded(spec) for name, spec in self._env.observation_spec().items()})
        action = self._env.action_spec()
        low, high = (bound.astype(np.float32) for bound in (action.minimum, action.maximum))
        self.action_space = Box(low, high, action.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._env.task.random.seed(int(self.np_random.integers(2**32)))
        return self._observed(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The suite ends an episode with discount 0 where the task is over, and with 1 at a time limit."""
        step = self._env.step(action)
        over = step.last() and step.discount == 0
        return self._observed(step), float(step.reward or 0.0), over, step.last() and not over, {}

    @property
    def model(self) -> Any:
        """MuJoCo's own model, as Gymnasium's environments have it: for what draws and pushes."""
        return self._env.physics.model.ptr

    @property
    def data(self) -> Any:
        """MuJoCo's own data."""
        return self._env.physics.data.ptr

    def render(self) -> np.ndarray:
        """One frame [480, 480, 3]."""
        return self._env.physics.render(480, 480, camera_id=0)

    def _observed(self, step: Any) -> dict[str, np.ndarray]:
        return {name: np.asarray(part, np.float32) for name, part in step.observation.items()}


def _unbounded(spec: Any) -> Box:
    return Box(-np.inf, np.inf, spec.shape, np.float32)


def _import_suite() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing display, which nobody needs
            import mujoco
            from dm_control.mujoco.wrapper.mjbindings import sizes

            _forget_gone_fields(sizes.array_sizes, mujoco)
            from dm_control import suite
    except ImportError as error:
        raise ConfigError(
            f"dm_control tasks need the suite, and {error.name} is missing: pip install 'soft-mpcritic[dm-control]'."
        ) from error
    return suite


def _forget_gone_fields(array_sizes: dict[str, dict[str, Any]], mujoco: Any) -> None:
    """The suite lists the arrays of the MuJoCo that it was made for, and fails where a newer one dropped some."""
    for struct, kind in (("mjmodel", mujoco.MjModel), ("mjdata", mujoco.MjData)):
        for field in [field for field in array_sizes[struct] if not hasattr(kind, field)]:
            del array_sizes[struct][field]
