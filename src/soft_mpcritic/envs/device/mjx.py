"""Gymnasium's MuJoCo tasks on the device, by MuJoCo's own JAX port (MJX) and Gymnasium's own model files.

A task is a model file, a frame skip, a way to draw first states and an observation; its reward and termination are
those of its `TaskSpec`, evaluated on the observation *before* clipping.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium.envs.mujoco
import jax
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Float, PRNGKeyArray

from soft_mpcritic.config import ConfigError, check
from soft_mpcritic.envs.device.vector import Outcome
from soft_mpcritic.envs.tasks import TaskSpec


class BodyState(NamedTuple):
    """What a step needs of the one before."""

    position: Float[Array, " Q"]
    speed: Float[Array, " V"]
    acceleration: Float[Array, " V"]  # where the contact solver starts
    constraint: Float[Array, " V"]  # generalised forces of limits and contacts, in the last evaluation
    evaluated: Float[Array, " Q"]  # position of the last evaluation: an integrator's last stage ends before the step


@dataclass(frozen=True)
class MjxTask:
    """What distinguishes one MuJoCo task from another."""

    model: str  # file among Gymnasium's assets
    frame_skip: int
    noise: float  # of first positions, uniform; and of first speeds
    speed_noise: Literal["uniform", "normal"] = "uniform"
    observe: Callable[[BodyState], Array] = lambda state: jnp.concatenate([state.position, state.speed])
    clipped_from: int | None = None  # components from here on are shown clipped at +-10
    rewards_evaluated: bool = False  # does Gymnasium's reward look at bodies, where the last evaluation had them?
    max_steps: int = 1000


def _observe_double_pendulum(state: BodyState) -> Float[Array, " S"]:
    cart, angles = state.position[:1], state.position[1:]
    return jnp.concatenate([cart, jnp.sin(angles), jnp.cos(angles), state.speed, state.constraint[:1]])


MJX_TASKS = {
    "InvertedPendulum-v5": MjxTask("inverted_pendulum.xml", 2, 0.01),
    "InvertedDoublePendulum-v5": MjxTask(
        "inverted_double_pendulum.xml",
        5,
        0.1,
        "normal",
        _observe_double_pendulum,
        clipped_from=5,
        rewards_evaluated=True,
    ),
    "Hopper-v5": MjxTask("hopper.xml", 4, 5e-3, clipped_from=6),
    "Walker2d-v5": MjxTask("walker2d_v5.xml", 4, 5e-3, clipped_from=9),
    "HalfCheetah-v5": MjxTask("half_cheetah.xml", 5, 0.1, "normal"),
}


class MjxEnv:
    """One MuJoCo task as pure functions, in float32."""

    def __init__(self, task: MjxTask, spec: TaskSpec) -> None:
        self._mjx = _import_mjx()
        self._task, self._spec = task, spec
        bindings: Any = mujoco  # without types
        path = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / task.model
        model = bindings.MjModel.from_xml_path(str(path))
        with _free_promotion():
            self._model = self._mjx.put_model(model)
            self._rest = self._mjx.make_data(model)
        self._first_position = jnp.asarray(model.qpos0, jnp.float32)
        self._speeds, self._timestep = model.nv, float(model.opt.timestep)
        # Every joint has one coordinate of its own: positions then move by speed x time, without quaternions.
        simple = model.nq == model.nv and model.na == 0
        runge_kutta = model.opt.integrator == bindings.mjtIntegrator.mjINT_RK4
        self._advance = self._runge_kutta if simple and runge_kutta else self._plain_step

    @property
    def max_steps(self) -> int:
        return self._task.max_steps

    @property
    def step_bytes(self) -> int:
        return 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(self._rest))

    def reset(self, key: PRNGKeyArray) -> tuple[BodyState, Float[Array, " S"]]:
        """The model's rest with noise."""
        noise, position_key, speed_key = self._task.noise, *jax.random.split(key)
        shift = jax.random.uniform(position_key, self._first_position.shape, minval=-noise, maxval=noise)
        if self._task.speed_noise == "normal":
            speed = noise * jax.random.normal(speed_key, (self._speeds,))
        else:
            speed = jax.random.uniform(speed_key, (self._speeds,), minval=-noise, maxval=noise)
        state = self.state_at(self._first_position + shift, speed)
        return state, self.observe(state)

    def state_at(self, position: Float[Array, " Q"], speed: Float[Array, " V"]) -> BodyState:
        """The state with these positions and speeds, away from limits."""
        return BodyState(position, speed, jnp.zeros_like(speed), jnp.zeros_like(speed), position)

    def observe(self, state: BodyState) -> Float[Array, " S"]:
        """What Gymnasium shows."""
        true, start = self._task.observe(state), self._task.clipped_from
        return true if start is None else true.at[start:].set(jnp.clip(true[start:], -10, 10))

    def step(self, state: BodyState, action: Float[Array, " A"]) -> Outcome:
        next_state = jax.lax.fori_loop(0, self._task.frame_skip, lambda _, s: self._advance(s, action), state)
        paid = next_state._replace(position=next_state.evaluated) if self._task.rewards_evaluated else next_state
        rows = (self._task.observe(state)[None], action[None], self._task.observe(paid)[None])
        reward, termination = self._spec.reward(*rows)[0], self._spec.termination(*rows)[0]
        return Outcome(next_state, self.observe(next_state), reward, termination > 0)

    def _runge_kutta(self, state: BodyState, action: Float[Array, " A"]) -> BodyState:
        """MuJoCo's own method, with its dynamics compiled once instead of four times.

        Like MuJoCo, and unlike MJX, it leaves constraint forces and positions as the last stage saw them.
        """

        def stage(carry: tuple[Any, ...], row: tuple[Array, Array]) -> tuple[tuple[Any, ...], None]:
            speed, last, mean_speed, mean_acceleration = carry
            (ahead, weight), dt = row, self._timestep
            position = state.position + dt * ahead * speed
            speed = state.speed + dt * ahead * last.acceleration
            last = self._forward(last._replace(position=position, speed=speed, evaluated=position), action)
            return (speed, last, mean_speed + weight * speed, mean_acceleration + weight * last.acceleration), None

        tableau = (jnp.array([0, 0.5, 0.5, 1]), jnp.array([1, 2, 2, 1]) / 6)
        nothing = jnp.zeros_like(state.speed)
        (_, last, speed, acceleration), _ = jax.lax.scan(stage, (nothing, state, nothing, nothing), tableau)
        dt = self._timestep
        return last._replace(position=state.position + dt * speed, speed=state.speed + dt * acceleration)

    def _forward(self, state: BodyState, action: Float[Array, " A"]) -> BodyState:
        """Accelerations and constraint forces at a state."""
        with _free_promotion():
            data = self._mjx.forward(self._model, self._data(state, action))
        return state._replace(acceleration=data.qacc, constraint=data.qfrc_constraint)

    def _plain_step(self, state: BodyState, action: Float[Array, " A"]) -> BodyState:
        """One step of MJX itself."""
        with _free_promotion():
            data = self._mjx.step(self._model, self._data(state, action))
        return BodyState(data.qpos, data.qvel, data.qacc_warmstart, data.qfrc_constraint, state.position)

    def _data(self, state: BodyState, action: Float[Array, " A"]) -> Any:
        rest: Any = self._rest
        return rest.replace(qpos=state.position, qvel=state.speed, qacc_warmstart=state.acceleration, ctrl=action)


class MjxDynamics:
    """Any MuJoCo model as the dynamics of a known one: observations are positions and speeds, [R, Q + V].

    A step holds an action for `frame_skip` steps of the simulator. `parameters`, as a third argument, replace fields of
    the model, {"body_mass": [bodies]}, say: with a leading axis N each, they make an ensemble. Raises `ConfigError`
    without the extra `device`, and for a model whose actuators have no limits.
    """

    def __init__(self, model: Any, frame_skip: int = 1) -> None:
        """`model` is a `mujoco.MjModel`."""
        self._mjx = _import_mjx()
        check(frame_skip >= 1, "frame_skip", "be >= 1", frame_skip, "1 is the simulator's own step")
        limited = bool(model.nu) and bool(model.actuator_ctrllimited.all())
        check(
            limited, "actuators", "have limits, all of them", model.actuator_ctrllimited, "set ctrlrange in the model"
        )
        with _free_promotion():
            self._model, self._rest = self._mjx.put_model(model), self._mjx.make_data(model)
        self._positions, self._frame_skip = model.nq, frame_skip
        self.obs_size = int(model.nq + model.nv)
        self.action_low, self.action_high = (tuple(map(float, bound)) for bound in model.actuator_ctrlrange.T)

    def __call__(self, obs: Float[Array, "R S"], action: Float[Array, "R A"], parameters: Any = None) -> Array:
        """Positions and speeds after the step, [R, S]."""
        model: Any = self._model if parameters is None else self._model.replace(**parameters)

        def one(obs: Float[Array, " S"], action: Float[Array, " A"]) -> Float[Array, " S"]:
            position, speed = obs[: self._positions], obs[self._positions :]
            data = self._rest.replace(qpos=position, qvel=speed, ctrl=action)
            data = jax.lax.fori_loop(0, self._frame_skip, lambda _, d: self._mjx.step(model, d), data)
            return jnp.concatenate([data.qpos, data.qvel])

        with _free_promotion():
            return jax.vmap(one)(obs, action)


def _import_mjx() -> Any:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it lacks for another simulator, Warp
            from mujoco import mjx  # optional, and slow to import
    except ImportError as error:
        raise ConfigError(
            f"simulator mjx needs MJX, and {error.name} is missing: pip install 'soft-mpcritic[device]', or use mujoco."
        ) from error
    return mjx


@contextlib.contextmanager
def _free_promotion():
    """MJX mixes ranks and dtypes freely, whatever is asked of us."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
