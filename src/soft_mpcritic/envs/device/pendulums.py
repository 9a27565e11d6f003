"""Pendulum-v1 and the cart-pole swing-up in plain JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from soft_mpcritic.envs.device.vector import Outcome
from soft_mpcritic.envs.tasks import TaskSpec


class PendulumState(NamedTuple):
    """Angle from upright, rad, and its speed, rad/s."""

    angle: Float[Array, ""]
    speed: Float[Array, ""]


class Pendulum:
    """Gymnasium's Pendulum-v1: 1 kg, 1 m, g = 10 m/s^2, torque within 2 N m, speed within 8 rad/s, 0.05 s a step."""

    max_steps = 200
    step_bytes = 64

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec

    def reset(self, key: PRNGKeyArray) -> tuple[PendulumState, Float[Array, " S"]]:
        """Any angle, and speeds within 1 rad/s."""
        drawn = jax.random.uniform(key, (2,), minval=-1, maxval=1)
        state = PendulumState(jnp.pi * drawn[0], drawn[1])
        return state, self.observe(state)

    def step(self, state: PendulumState, action: Float[Array, " A"]) -> Outcome:
        torque = jnp.clip(action, -2, 2)
        speed = jnp.clip(state.speed + 0.05 * (15 * jnp.sin(state.angle) + 3 * torque[0]), -8, 8)
        angle = state.angle + 0.05 * speed
        next_state = PendulumState(jnp.arctan2(jnp.sin(angle), jnp.cos(angle)), speed)
        obs, next_obs = self.observe(state), self.observe(next_state)
        reward = self._spec.reward(obs[None], torque[None], next_obs[None])[0]
        return Outcome(next_state, next_obs, reward, jnp.array(False))

    def observe(self, state: PendulumState) -> Float[Array, " S"]:
        return jnp.stack([jnp.cos(state.angle), jnp.sin(state.angle), state.speed])


TRACK = 2.4  # m from the middle to either end


def swing_up_termination(
    obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"]
) -> Float[Array, " R"]:
    """The cart is at an end of its track."""
    return (jnp.abs(next_obs[:, 0]) >= TRACK).astype(obs.dtype)


def swing_up_reward(
    obs: Float[Array, "R S"], action: Float[Array, "R A"], next_obs: Float[Array, "R S"]
) -> Float[Array, " R"]:
    """(1 + cos angle) / 2 - 0.001 a^2: 1 when upright, and never so bad that leaving the track pays."""
    return 0.5 * (1 + next_obs[:, 1]) - 1e-3 * action[:, 0] ** 2


SWING_UP = TaskSpec(swing_up_reward, swing_up_termination, total_steps=10_000)


class CartPoleState(NamedTuple):
    """Cart position, m; pole angle from upright, rad; their speeds."""

    position: Float[Array, ""]
    angle: Float[Array, ""]
    speed: Float[Array, ""]
    spin: Float[Array, ""]


class CartPoleSwingUp:
    """A pole that hangs from a cart is to be swung up and held, by forces on the cart within 10 N.

    Cart 1 kg; pole 0.1 kg, uniform, 1 m; no friction; 0.04 s a step, in two steps of a Runge-Kutta method.
    Observation: position, cos and sin of the angle, speed, spin. Episodes take 10 s.
    """

    max_steps = 250
    step_bytes = 256
    cart, pole, half_length, gravity, force = 1.0, 0.1, 0.5, 9.81, 10.0
    substeps, dt = 2, 0.02

    def __init__(self, spec: TaskSpec = SWING_UP) -> None:
        self._spec = spec

    def reset(self, key: PRNGKeyArray) -> tuple[CartPoleState, Float[Array, " S"]]:
        """At rest in the middle with the pole down, but for 0.05 either way."""
        noise = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        state = CartPoleState(noise[0], jnp.pi + noise[1], noise[2], noise[3])
        return state, self.observe(state)

    def step(self, state: CartPoleState, action: Float[Array, " A"]) -> Outcome:
        action = jnp.clip(action, -1, 1)
        next_state = state
        for _ in range(self.substeps):
            next_state = self._runge_kutta(next_state, self.force * action[0])
        obs, next_obs = self.observe(state), self.observe(next_state)
        rows = (obs[None], action[None], next_obs[None])
        return Outcome(next_state, next_obs, self._spec.reward(*rows)[0], self._spec.termination(*rows)[0] > 0)

    def observe(self, state: CartPoleState) -> Float[Array, " S"]:
        return jnp.stack([state.position, jnp.cos(state.angle), jnp.sin(state.angle), state.speed, state.spin])

    def slope(self, state: CartPoleState, force: Float[Array, ""]) -> CartPoleState:
        """Time derivative of the state, by Lagrange's equations.

        (M + m) x'' + m l (q'' cos q - q'^2 sin q) = F  and  (4/3) l q'' + x'' cos q = g sin q.
        """
        sin, cos = jnp.sin(state.angle), jnp.cos(state.angle)
        total = self.cart + self.pole
        pull = (force + self.pole * self.half_length * state.spin**2 * sin) / total
        inertia = self.half_length * (4 / 3 - self.pole * cos**2 / total)
        spin_rate = (self.gravity * sin - cos * pull) / inertia
        speed_rate = pull - self.pole * self.half_length * spin_rate * cos / total
        return CartPoleState(state.speed, state.spin, speed_rate, spin_rate)

    def _runge_kutta(self, state: CartPoleState, force: Float[Array, ""]) -> CartPoleState:
        def ahead(slope: CartPoleState, dt: float) -> CartPoleState:
            return jax.tree.map(lambda x, rate: x + dt * rate, state, slope)

        first = self.slope(state, force)
        second = self.slope(ahead(first, self.dt / 2), force)
        third = self.slope(ahead(second, self.dt / 2), force)
        fourth = self.slope(ahead(third, self.dt), force)
        mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, fourth)
        return ahead(mean, self.dt)
