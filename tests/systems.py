"""Systems whose soft values are known on paper, as functions on the device, and tiny configurations to learn them."""

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.checkpoint import Checkpoints
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import Config, override
from soft_mpcritic.envs import Task, make_task
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.types import Experience

SMALL = {
    "dynamics.width": 32,
    "dynamics.batch_size": 16,
    "critic.width": 32,
    "critic.batch_size": 16,
    "planner.num_samples": 8,
    "target_planner.num_samples": 4,
    "training.capacity": 512,
    "training.seed_steps": 20,
    "training.pretrain_updates": 5,
    "training.log_every": 20,
    "training.evaluate_every": 50,
    "training.evaluation_episodes": 2,
    "training.checkpoint_every": 40,
}


def small_config(**changes: object) -> Config:
    """Networks and sample counts for tests of mechanics; names with __ for the dot."""
    return override(Config(), {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}})


def imported(path: Path) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def never(obs: jax.Array, action: jax.Array, next_obs: jax.Array) -> jax.Array:
    return jnp.zeros(obs.shape[0])


def always(obs: jax.Array, action: jax.Array, next_obs: jax.Array) -> jax.Array:
    return jnp.ones(obs.shape[0])


@dataclass(frozen=True)
class System:
    """A deterministic system in E copies, restarted at random every `length` steps."""

    step: Callable[[jax.Array, jax.Array], jax.Array]  # obs [E, S], action [E, A] -> next_obs
    spec: TaskSpec
    obs_size: int
    action_size: int = 1
    spread: float = 1.0  # of uniform first observations
    length: int = 20

    @property
    def task(self) -> Task:
        return Task("test", self.obs_size, (-1.0,) * self.action_size, (1.0,) * self.action_size, self.spec)

    def start(self, key: jax.Array, envs: int) -> jax.Array:
        return jax.random.uniform(key, (envs, self.obs_size), minval=-self.spread, maxval=self.spread)

    def experience(self, key: jax.Array, time: jax.Array, obs: jax.Array, action: jax.Array) -> Experience:
        next_obs = self.step(obs, action)
        terminated = self.spec.termination(obs, action, next_obs) > 0
        done = terminated | ((time + 1) % self.length == 0)
        start_obs = jnp.where(done[:, None], self.start(key, obs.shape[0]), next_obs)
        return Experience(self.spec.reward(obs, action, next_obs), next_obs, terminated, done, start_obs)


def learning(system: System, config: Config, key: jax.Array, steps: int, updates: int = 1) -> AgentState:
    """The whole agent on a system, in one scan: `steps` environment steps with `updates` updates each."""
    agent, envs = Agent(system.task, config), config.training.num_envs
    init_key, start_key, loop_key = jax.random.split(key, 3)
    state, action = agent.begin(agent.init(init_key), system.start(start_key, envs))

    def advance(carry, inputs):
        state, action = carry
        key, time = inputs
        experience = system.experience(key, time, state.pending.obs, action)
        count = jnp.where(time * envs >= config.training.seed_steps, updates, 0)
        state, action, _ = agent.step(state, experience, count, "sample")
        return (state, action), None

    inputs = (jax.random.split(loop_key, steps), jnp.arange(steps))
    return jax.lax.scan(advance, (state, action), inputs)[0][0]


learn = jax.jit(learning, static_argnums=(0, 1, 3, 4))


def soft_riccati(a, b, c, r, sigma, temperature, discount, iterations=10_000):
    """P of the soft value V = -x'Px - c, by its fixed point (NumPy, float64)."""
    p = np.zeros_like(c)
    for _ in range(iterations):
        gain = r + 0.5 * temperature * np.linalg.inv(sigma) + discount * b.T @ p @ b
        p = c + discount * a.T @ p @ a - discount**2 * a.T @ p @ b @ np.linalg.solve(gain, b.T @ p @ a)
    return p


def untrained_run(path: Path, env_id: str, slow_critic: float = 1.0) -> Path:
    """A run folder of no steps, with a checkpoint; the slow critic is the newest one's weights times a factor."""
    folder = RunFolder(path)
    settings = RunSettings(env_id, "default", 0, 1, small_config())
    folder.create(settings)
    state = jit(Agent(make_task(env_id), settings.config).init)(jax.random.key(0))
    slow = jax.tree.map(lambda leaf: slow_critic * leaf, state.models.target_critic)
    models = dataclasses.replace(state.models, target_critic=slow)
    one_row = dataclasses.replace(state.replay, size=jnp.ones_like(state.replay.size))
    Checkpoints(folder, 1).save(1, dataclasses.replace(state, models=models, replay=one_row), {})
    return folder.path
