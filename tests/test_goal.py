"""A learned goal: its loss, what planning makes of it, that it is learned; and that Box spaces suffice then."""

import dataclasses
import json
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from soft_mpcritic import video
from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.cli import main
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import Config, ConfigError, DynamicsConfig
from soft_mpcritic.controller import Controller
from soft_mpcritic.dynamics import Normalizer
from soft_mpcritic.envs import make_task
from soft_mpcritic.envs.adapt import EPISODE_STEPS
from soft_mpcritic.envs.tasks import TaskSpec, unknown
from soft_mpcritic.exported import ExportedController
from soft_mpcritic.files import read_table
from soft_mpcritic.goal import FIRST_TERMINATION, REWARD_FLOOR, GoalNetworks, LearnedGoal
from soft_mpcritic.networks import MLP, Linear
from soft_mpcritic.types import Experience
from tests.systems import SMALL, System, learn, never, small_config
from tests.test_training import final_arrays

FEATURES, ACTION = 3, 2
SYSTEM = System(lambda s, a: 0.8 * s + 0.5 * a, TaskSpec(unknown, unknown), obs_size=1)


def learned_config(**changes: object) -> Config:
    return small_config(objective__goal="learned", **changes)


def fresh(width: int = 32) -> LearnedGoal:
    config = DynamicsConfig(width=width)
    return jax.jit(lambda key: LearnedGoal.init(key, FEATURES, ACTION, config))(jax.random.key(0))


def drawn(rows: int, scale: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features, actions and next features."""
    rng = np.random.default_rng(0)
    sizes = (FEATURES, ACTION, FEATURES)
    features, action, next_features = (jnp.asarray(rng.normal(size=(rows, n)) * scale, jnp.float32) for n in sizes)
    return features, jnp.clip(action, -1, 1), next_features


# --------------------------------------------------------------------- loss


def forward(network: MLP, rows: np.ndarray) -> np.ndarray:
    """The network in NumPy and double precision."""
    for layer in network.layers[:-1]:
        rows = rows @ np.asarray(layer.weight, float) + np.asarray(layer.bias, float)
        rows = rows / (1 + np.exp(-rows))
    return rows @ np.asarray(network.layers[-1].weight, float) + np.asarray(network.layers[-1].bias, float)


def test_the_loss_is_the_squared_error_in_deviations_plus_the_cross_entropy():
    rng = np.random.default_rng(1)
    reward, terminated = 5 + 3 * rng.normal(size=40), (rng.uniform(size=40) < 0.3).astype(float)
    goal = fresh().observe(jnp.asarray(reward, jnp.float32))
    features, action, next_features = drawn(40)
    told = forward(goal.networks.reward, np.concatenate([features, action, next_features], axis=1).astype(float))
    predicted = reward.mean() + reward.std() * told[:, 0]
    probability = 1 / (1 + np.exp(-forward(goal.networks.termination, np.asarray(next_features, float))[:, 0]))
    entropy = -np.mean(np.log(np.where(terminated == 1, probability, 1 - probability)))
    error = np.sqrt(np.mean((predicted - reward) ** 2))

    targets = (jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, jnp.float32))
    loss, errors = jax.jit(LearnedGoal.loss)(goal, features, action, next_features, *targets)
    np.testing.assert_allclose(errors.reward_error, error, rtol=1e-4)
    np.testing.assert_allclose(errors.termination_loss, entropy, rtol=1e-4)
    np.testing.assert_allclose(loss, (error / reward.std()) ** 2 + entropy, rtol=1e-4)
    told = jax.jit(LearnedGoal.__call__)(goal, features, action, next_features)
    np.testing.assert_allclose(told[0], predicted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(told[1], probability, rtol=1e-4)


def test_a_reward_that_never_changes_is_told_to_the_floor():
    """Whatever the network says: its unit is the deviation, which is the floor."""
    goal = fresh().observe(jnp.full(100, 7.0))
    reward, _ = jax.jit(LearnedGoal.__call__)(goal, *drawn(200))
    assert np.abs(np.asarray(reward) - 7).max() < 2 * REWARD_FLOOR


def test_an_end_is_judged_by_where_a_step_led_and_a_reward_by_how_as_well():
    features, action, next_features = drawn(50)
    judge = jax.jit(LearnedGoal.__call__)
    told = judge(fresh(), features, action, next_features)
    for other in (judge(fresh(), -features, action, next_features), judge(fresh(), features, -action, next_features)):
        np.testing.assert_array_equal(other[1], told[1])
        assert not np.any(np.isclose(other[0], told[0]))
    assert not np.any(np.isclose(judge(fresh(), features, action, -next_features)[1], told[1], rtol=1e-4))


@pytest.mark.parametrize("width", [1, 16, 512])
def test_a_fresh_network_hardly_ends_anything_even_far_out(width):
    _, probability = jax.jit(LearnedGoal.__call__)(fresh(width), *drawn(500, scale=3.0))
    assert np.all(np.asarray(probability) < 10 * FIRST_TERMINATION)


# ----------------------------------------------------------------- planning


def constant_goal(reward: float, termination: jax.Array, features: int) -> LearnedGoal:
    def always(told: jax.Array, inputs: int) -> MLP:
        return MLP((Linear(jnp.zeros((inputs, 1)), told[None]),), ())

    logit = jnp.log(termination / (1 - termination))
    networks = GoalNetworks(always(jnp.full_like(termination, reward), 2 * features + 1), always(logit, features))
    return LearnedGoal(networks, Normalizer.init(1, REWARD_FLOOR))


@pytest.mark.parametrize("terminations", [True, False])
def test_learned_continuation_weighs_later_rewards_and_q(terminations):
    """Reward 2 and termination 0.25 everywhere: J = sum_t (gamma c)^t 2 + (gamma c)^H Q(s_H, a_H), with c = 0.75."""
    config = learned_config(objective__discount=0.9, objective__terminations=terminations, planner__trace=1.0)
    planner = Agent(SYSTEM.task, config).planner
    models = jit(planner.init_models)(jax.random.key(0))
    obs = jnp.array([[0.3], [-0.6]])
    actions = jax.random.uniform(jax.random.key(1), (6, 2, 5, 1), minval=-1, maxval=1)

    @jax.jit
    def returns(termination, critic):
        ending = dataclasses.replace(models, goal=constant_goal(2.0, termination, 1))
        return planner.returns_fn(planner.config.planner, ending, critic, jax.random.key(2), obs)(actions)

    nothing_later = jax.tree.map(jnp.zeros_like, models.critic)
    weight = 0.9 * (0.75 if terminations else 1.0)
    rewards = returns(0.25, nothing_later)
    np.testing.assert_allclose(rewards, np.full((6, 2), 2 * np.sum(weight ** np.arange(4))), rtol=1e-5)
    q = np.asarray(returns(1e-9, models.critic) - returns(1e-9, nothing_later)) / 0.9**4
    assert np.std(q) > 1e-3
    np.testing.assert_allclose(returns(0.25, models.critic) - rewards, weight**4 * q, rtol=1e-3, atol=1e-4)


def test_hidden_positions_reach_a_learned_goal_neither_before_nor_after_the_step():
    task = System(SYSTEM.step, TaskSpec(unknown, unknown, positions=(0,)), obs_size=2).task
    for seen in (False, True):
        planner = Agent(task, learned_config(training__observe_position=seen)).planner
        models = jit(planner.init_models)(jax.random.key(0))
        judge, action = jit(planner.judge), jnp.zeros((1, 1))
        here = judge(models, jnp.array([[0.0, 0.3]]), action, jnp.array([[0.0, 0.4]]))
        before = judge(models, jnp.array([[4.0, 0.3]]), action, jnp.array([[0.0, 0.4]]))
        after = judge(models, jnp.array([[0.0, 0.3]]), action, jnp.array([[4.0, 0.4]]))
        assert [np.array_equal(here[0], there[0]) for there in (before, after)] == [not seen] * 2
        assert [np.array_equal(here[1], there[1]) for there in (before, after)] == [True, not seen]
        speed = judge(models, jnp.array([[0.0, 0.3]]), action, jnp.array([[0.0, 0.5]]))
        assert not np.array_equal(here[0], speed[0])


# ----------------------------------------------------------------- learning


def reward_of(obs: jax.Array, action: jax.Array, next_obs: jax.Array) -> jax.Array:
    """Of all three, and far from zero."""
    return 20 + 3 * next_obs[:, 0] - 2 * obs[:, 0] ** 2 + action[:, 0]


def ends_above(obs: jax.Array, action: jax.Array, next_obs: jax.Array) -> jax.Array:
    return (next_obs[:, 0] > 0.5).astype(jnp.float32)


def learn_goal(termination: Any) -> tuple[Agent, AgentState]:
    system = dataclasses.replace(SYSTEM, spec=TaskSpec(reward_of, termination))
    planning = {"objective__temperature": 30.0}  # hardly any: it tries everything
    for planner in ("planner", "target_planner"):
        planning |= {f"{planner}__horizon": 0, f"{planner}__sampler": "iid", f"{planner}__num_samples": 2}
    size = {"dynamics__members": 2, "dynamics__width": 64, "dynamics__batch_size": 64, "training__num_envs": 4}
    config = learned_config(**size, **planning)
    return Agent(system.task, config), learn(system, config, jax.random.key(0), 200, 5)


@pytest.fixture(scope="module")
def learner() -> tuple[Agent, AgentState]:
    return learn_goal(ends_above)


def steps_within(bound: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    obs, action = (jnp.asarray(rng.uniform(-bound, bound, (500, 1)), jnp.float32) for _ in range(2))
    return obs, action, SYSTEM.step(obs, action)


def test_reward_and_termination_are_learned(learner):
    agent, state = learner
    obs, action, next_obs = steps_within(0.7)
    reward, termination = jit(agent.planner.judge)(state.models, obs, action, next_obs)
    expected, height = np.asarray(reward_of(obs, action, next_obs)), np.asarray(next_obs[:, 0])
    error = float(np.sqrt(np.mean((np.asarray(reward) - expected) ** 2)))
    assert error < 0.15 * float(expected.std())
    assert int(np.sum(height > 0.65)) > 20
    least_above, most_below = float(termination[height > 0.65].min()), float(termination[height < 0.35].max())
    assert least_above > 0.8 and most_below < 0.2


def test_what_never_ended_is_not_expected_to_end():
    agent, state = learn_goal(never)
    _, termination = jit(agent.planner.judge)(state.models, *steps_within(0.7))
    assert float(termination.max()) < 0.3 * FIRST_TERMINATION


def test_the_figures_tell_what_is_still_wrong(learner):
    agent, state = learner
    _, figures = jit(agent.learner.update)(state)
    assert 0 < float(figures.reward_error) < 0.3
    assert 0 < float(figures.termination_loss) < 0.03
    fresh_goal = jit(agent.init)(jax.random.key(1)).models.goal
    models = dataclasses.replace(state.models, goal=fresh_goal)
    spoilt = dataclasses.replace(state, models=models, goal_newest=fresh_goal.networks)
    _, worse = jit(agent.learner.update)(spoilt)
    assert float(worse.reward_error) > 10
    assert float(worse.termination_loss) > 3 * float(figures.termination_loss)


def different(one: Any, other: Any) -> list[bool]:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return [not np.array_equal(a, b) for a, b in pairs]


def test_models_do_not_learn_from_rewards_nor_the_goal_from_the_critic(learner):
    """Gradients stay where they belong."""
    agent, state = learner
    update = jit(agent.learner.update)
    after, _ = update(state)
    assert all(different(after.models.goal.networks, state.models.goal.networks))
    assert not any(different(after.models.goal.reward_scale, state.models.goal.reward_scale))

    reward_column = -2
    rich = dataclasses.replace(state.replay, records=state.replay.records.at[:, reward_column].add(5.0))
    richer, _ = update(dataclasses.replace(state, replay=rich))
    assert not any(different(after.models.dynamics, richer.models.dynamics))
    learned, otherwise = after.models.goal.networks, richer.models.goal.networks
    assert all(different(learned.reward, otherwise.reward))
    assert not any(different(learned.termination, otherwise.termination))

    critic = jax.tree.map(lambda leaf: leaf + 0.1, state.models.critic)
    moved, _ = update(dataclasses.replace(state, models=dataclasses.replace(state.models, critic=critic)))
    assert not any(different(after.models.goal, moved.models.goal))
    assert any(different(after.models.critic, moved.models.critic))


@pytest.mark.parametrize("normalize", [True, False])
def test_rewards_are_counted_in_the_scale_whatever_else_is_normalised(normalize):
    agent = Agent(SYSTEM.task, learned_config(dynamics__normalize=normalize, training__num_envs=3))
    state = jit(agent.init)(jax.random.key(0))
    obs, going_on = jnp.zeros((3, 1)), jnp.zeros(3, bool)
    state = jit(agent.observe)(state, Experience(jnp.array([1.0, 2.0, 6.0]), obs, going_on, going_on, obs))
    assert state.models.goal is not None
    scale = state.models.goal.reward_scale
    assert scale.count == 3
    np.testing.assert_allclose(scale.mean, [3.0], rtol=1e-6)
    np.testing.assert_allclose(scale.deviation, [np.std([1.0, 2.0, 6.0])], rtol=1e-6)
    assert state.models.obs_scale.count == (3 if normalize else 0)


def test_a_known_goal_leaves_nothing_to_learn():
    agent = Agent(dataclasses.replace(SYSTEM, spec=TaskSpec(reward_of, never)).task, small_config())
    state = jit(agent.init)(jax.random.key(0))
    assert state.models.goal is None and state.goal_optimizer is None
    _, figures = jit(agent.learner.update)(state)
    assert np.isnan(figures.reward_error) and np.isnan(figures.termination_loss)
    others = [value for name, value in figures._asdict().items() if name not in ("reward_error", "termination_loss")]
    assert np.isfinite(np.asarray(others)).all()


# ------------------------------------------------- environments without a spec


class Hill(gym.Env):
    """A car between two hills in miniature: falls off the right one, is paid for speed, and knows no time limit."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.2, 0.2, 2)
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        place, speed = self.state
        speed = 0.9 * speed + 0.1 * float(action[0]) - 0.05 * place
        self.state = np.array([place + speed, speed])
        return self.state.copy(), float(speed), bool(self.state[0] > 1), False, {}


@pytest.fixture
def hill():
    gym.register("Hill-v0", entry_point=lambda **_: Hill(), max_episode_steps=25)
    yield "Hill-v0"
    gym.registry.pop("Hill-v0")


FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
LEARNED = ["--objective.goal", "learned"]


@pytest.mark.slow
def test_an_environment_that_nobody_described_is_trained_resumed_evaluated_and_exported(hill, tmp_path, capsys):
    whole, stopped, out = tmp_path / "whole", tmp_path / "stopped", tmp_path / "hill.zip"
    for path, steps in ((whole, "70"), (stopped, "50")):
        assert main(["train", hill, *LEARNED, "--run-dir", str(path), "--total-steps", steps, *FLAGS]) == 0
    assert main(["train", "--run-dir", str(stopped), "--resume", "--total-steps", "70"]) == 0
    assert json.loads((stopped / "config.json").read_text())["settings"]["objective"]["goal"] == "learned"
    before, after = final_arrays(whole), final_arrays(stopped)
    assert any("goal" in name for name in before)
    assert before.keys() == after.keys()
    assert [name for name in before if not np.array_equal(before[name], after[name])] == []
    last = read_table(stopped / "metrics.csv")[-1]
    assert np.isfinite([float(last["reward_error"]), float(last["termination_loss"])]).all()

    capsys.readouterr()
    assert main(["evaluate", str(whole), "--episodes", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["returns"]) == 2

    assert main(["export", str(whole), str(out)]) == 0
    here, there = Controller.load(whole), ExportedController(out)
    assert any("goal" in name for name in there.manifest["arrays"])
    for obs in np.random.default_rng(0).uniform(-0.5, 0.5, (3, 2)):
        np.testing.assert_array_equal(here(obs), there(obs))


def test_a_task_is_what_its_spaces_say(hill):
    task = make_task(hill)
    assert (task.obs_size, task.action_low, task.action_high) == (2, (-2.0,), (2.0,))
    assert task.spec.positions == () and task.spec.total_steps == 100_000
    env = task.make_env()
    assert env.spec is not None and env.spec.max_episode_steps == 25
    env.close()


def test_a_module_that_registers_the_environment_can_be_named(tmp_path, monkeypatch):
    """Gymnasium's own notation, "module:id"; what cannot be imported is refused."""
    (tmp_path / "hills.py").write_text(
        "import gymnasium\ngymnasium.register('Steep-v0', 'gymnasium.envs.classic_control:Continuous_MountainCarEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert make_task("hills:Steep-v0").obs_size == 2
    finally:
        gym.registry.pop("Steep-v0", None)
    with pytest.raises(ConfigError, match=r"module 'no_hills' of 'no_hills:Steep-v0' cannot be imported"):
        make_task("no_hills:Steep-v0")
    with pytest.raises(
        ConfigError, match="'hills:Flat-v0' is not registered with Gymnasium, and module 'hills' has no"
    ):
        make_task("hills:Flat-v0")


def test_an_environment_without_time_limit_gets_one():
    gym.register("Endless-v0", entry_point=lambda **_: Hill())
    try:
        env = make_task("Endless-v0").make_env()
        assert env.spec is not None and env.spec.max_episode_steps == EPISODE_STEPS
        env.close()
    finally:
        gym.registry.pop("Endless-v0")


def test_the_video_of_what_cannot_be_drawn_is_refused(hill, tmp_path, monkeypatch):
    agent = Agent(make_task(hill), learned_config())
    with pytest.raises(ConfigError, match="video must be of an environment that renders or has a MuJoCo model"):
        video.record_episode(agent, jit(agent.init)(jax.random.key(0)).models, 0, tmp_path / "film.gif")
