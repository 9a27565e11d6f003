"""Half-known systems: physics told, the rest learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.envs.tasks import TaskSpec, never
from soft_mpcritic.types import Dynamics
from tests.systems import System, learn, small_config


def ideal(obs, action):
    """A pendulum as the textbook has it: angle and speed, without friction."""
    angle, speed = obs[:, 0], obs[:, 1]
    speed = speed + 0.1 * (4 * jnp.sin(3 * angle) + 3 * action[:, 0])
    return jnp.stack([angle + 0.1 * speed, speed], axis=-1)


def real(obs, action):
    """The same one with friction that nobody told."""
    rub = 0.1 * (0.3 * obs[:, 1] + 0.2 * jnp.tanh(5 * obs[:, 1]))
    return ideal(obs, action) - jnp.stack([jnp.zeros_like(rub), rub], axis=-1)


def still(obs, action, next_obs):
    return -(next_obs[:, 1] ** 2)


def system(nominal: Dynamics | None) -> System:
    return System(real, TaskSpec(still, never, nominal=nominal), obs_size=2)


def rows() -> tuple[jax.Array, jax.Array]:
    """States and actions that nobody saw."""
    rng = np.random.default_rng(1)
    obs, action = (jnp.asarray(rng.uniform(-1, 1, (200, size)), jnp.float32) for size in (2, 1))
    return obs, action


def model_error(system: System, agent: Agent, state: AgentState) -> float:
    """Root mean square over members, of one step."""
    obs, action = rows()
    step = jax.vmap(lambda member: agent.planner.model_step(state.models, member, obs, action).next_obs)
    return float(jnp.sqrt(jnp.mean((step(state.models.dynamics.members) - real(obs, action)[None]) ** 2)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_told_physics_are_learned_better_than_none_after_as_many_steps(seed):
    config, errors = small_config(training__seed_steps=50), []
    for nominal in (ideal, None):
        plant = system(nominal)
        state = learn(plant, config, jax.random.key(seed), 150)
        errors.append(model_error(plant, Agent(plant.task, config), state))
    told, bare = errors
    untaught = float(jnp.sqrt(jnp.mean((ideal(*rows()) - real(*rows())) ** 2)))
    assert told < 0.5 * bare
    assert told < 0.5 * untaught


@pytest.mark.parametrize("normalize", [True, False])
def test_an_ensemble_that_learned_nothing_says_what_physics_say(normalize):
    plant = system(ideal)
    agent = Agent(plant.task, small_config(dynamics__normalize=normalize))
    models = agent.planner.init_models(jax.random.key(0))
    silent = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), models.dynamics.members)
    obs, action = rows()
    said = agent.planner.model_step(models, silent, obs, action).next_obs
    np.testing.assert_allclose(said, ideal(obs, action), atol=1e-6)
