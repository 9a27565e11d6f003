"""Evaluation episodes as they were played."""

import jax
import jax.numpy as jnp
import numpy as np

from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.envs import EnvVector, make_task
from soft_mpcritic.evaluation import EVALUATION_SEED, PARALLEL_EPISODES, Evaluator
from tests.systems import small_config


def test_a_trajectory_is_what_its_environment_answers_to_its_actions():
    """Played again from its seed, the environment answers with the same observations and rewards, and ends then."""
    agent = Agent(make_task("InvertedDoublePendulum-v5"), small_config())
    models = jit(agent.init)(jax.random.key(0)).models
    evaluator = Evaluator(agent)
    trajectories = evaluator.play(models, 3)
    assert [t.episode for t in trajectories] == evaluator(models, 3)
    evaluator.close()
    assert len({t.episode.length for t in trajectories}) > 1  # cut apart although played side by side
    envs = EnvVector(agent.task, 1)
    for index, played in enumerate(trajectories):
        obs = envs.reset(EVALUATION_SEED + index)
        for time, action in enumerate(played.action):
            np.testing.assert_array_equal(played.obs[time], obs[0])
            experience = envs.step(np.asarray(agent.planner.to_env(jnp.asarray(action[None]))))
            np.testing.assert_allclose(played.next_obs[time], experience.next_obs[0], atol=1e-5)
            np.testing.assert_allclose(played.reward[time], experience.reward[0], atol=1e-5)
            assert bool(experience.done[0]) == (time == played.episode.length - 1)
            obs = played.next_obs[time][None]
        assert played.terminated
        assert played.episode.ret == np.cumsum(played.reward, dtype=float)[-1]
        assert np.all(np.isfinite(played.soft_value))
    envs.close()


def test_the_value_of_a_trajectory_is_that_of_the_solve_that_acted():
    """The first solve of an episode starts from zeros at the first observations, with the first key."""
    agent = Agent(make_task("InvertedDoublePendulum-v5"), small_config())
    models = jit(agent.init)(jax.random.key(0)).models
    trajectories = Evaluator(agent).play(models, 2)
    key = jax.random.split(jax.random.split(jax.random.key(EVALUATION_SEED))[1], 1000)[0]
    obs = np.stack([t.obs[0] for t in trajectories])
    start = np.zeros((2, agent.config.planner.horizon + 1, 1), np.float32)
    result = jit(agent.planner.plan_to_control)(models, key, obs, start)
    np.testing.assert_allclose([t.soft_value[0] for t in trajectories], result.value, rtol=1e-5)
    np.testing.assert_allclose([t.action[0] for t in trajectories], result.plan[:, 0], atol=1e-6)


def test_several_agents_play_side_by_side_as_each_would_alone():
    """Up to the rounding of larger batches, which an unstable plant amplifies: hence short episodes."""
    agent = Agent(make_task("InvertedDoublePendulum-v5"), small_config())
    several = jit(jax.vmap(agent.init))(jnp.stack([jax.random.key(0), jax.random.key(1)])).models
    evaluator = Evaluator(agent)
    together = evaluator.play_each(several, PARALLEL_EPISODES + 1)
    for player, played in enumerate(together):
        alone = evaluator.play(jax.tree.map(lambda leaf, at=player: leaf[at], several), PARALLEL_EPISODES + 1)
        assert [t.episode[::2] for t in played] == [t.episode[::2] for t in alone]  # seeds and lengths
        for one, other in zip(played, alone, strict=True):
            np.testing.assert_array_equal(one.obs[0], other.obs[0])
            np.testing.assert_allclose(one.action, other.action, atol=1e-3)
            np.testing.assert_allclose(one.soft_value, other.soft_value, rtol=1e-3, atol=1e-3)
    evaluator.close()
    assert [t.episode.ret for t in together[0]] != [t.episode.ret for t in together[1]]
