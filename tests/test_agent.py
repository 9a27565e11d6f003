"""Mechanics of the agent: what is stored, what is learned from it, and that it does so reproducibly."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.compilation import jit
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.planner import CONTROL_CRITICS
from soft_mpcritic.planning import shift
from soft_mpcritic.types import Experience, Transition
from tests.systems import System, learn, never, small_config

SYSTEM = System(lambda s, a: 0.9 * s + 0.1 * a, TaskSpec(lambda s, a, n: -jnp.sum(s**2, -1), never), obs_size=1)


def make(**changes: object) -> tuple[Agent, AgentState]:
    agent = Agent(SYSTEM.task, small_config(**changes))
    return agent, jit(agent.init)(jax.random.key(0))


def experience(number: float, envs: int, done: tuple[bool, ...], terminated: bool = False) -> Experience:
    """Rewards, next and first observations that carry an id."""
    ids = number + 0.1 * np.arange(envs, dtype=np.float32)
    return Experience(
        reward=ids,
        next_obs=ids[:, None] + np.float32(0.01),
        terminated=np.array(done) & terminated,
        done=np.array(done),
        start_obs=ids[:, None] + np.float32(0.02),
    )


def filled(agent: Agent, state: AgentState, steps: int = 40) -> AgentState:
    """A state whose replay holds a few random transitions."""
    obs = SYSTEM.start(jax.random.key(5), agent.config.training.num_envs)
    state, _ = jit(agent.begin)(state, obs)
    step = jit(agent.random_step)
    for time in range(steps):
        answer = SYSTEM.experience(
            jax.random.key(time), jnp.array(time), state.pending.obs, agent.planner.to_env(state.pending.action)
        )
        state, _ = step(state, answer)
    return state


def test_transitions_and_shifted_plans_are_stored_row_by_row():
    agent, state = make(training__num_envs=2)
    slots = agent.config.planner.horizon + 1
    for number in (1.0, 2.0, 3.0):
        plan = number + jnp.arange(2 * slots, dtype=jnp.float32).reshape(2, slots, 1) / 100
        pending = dataclasses.replace(state.pending, obs=jnp.full((2, 1), number - 1), plan=plan, action=plan[:, 0])
        state = jit(agent.observe)(dataclasses.replace(state, pending=pending), experience(number, 2, (False, False)))
    rows = jnp.arange(6)
    stored, (plans, _) = state.replay.take(rows), state.replay.take_plans(rows)
    ids = np.array([1.0, 1.1, 2.0, 2.1, 3.0, 3.1], np.float32)
    np.testing.assert_allclose(stored.reward, ids)
    np.testing.assert_allclose(stored.next_obs[:, 0], ids + 0.01)
    np.testing.assert_allclose(stored.obs[:, 0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(stored.action[:, 0], [1, 1.05, 2, 2.05, 3, 3.05], rtol=1e-6)
    np.testing.assert_allclose(plans[2, :, 0], [2.01, 2.02, 2.03, 2.04, 0.0])
    np.testing.assert_allclose(plans[5, :, 0], [3.06, 3.07, 3.08, 3.09, 0.0], rtol=1e-6)


def test_plans_go_on_within_an_episode_and_start_anew_with_the_next():
    agent, state = make(training__num_envs=2)
    plan = jnp.ones_like(state.pending.plan)
    state = dataclasses.replace(state, pending=dataclasses.replace(state.pending, plan=plan))
    state = jit(agent.observe)(state, experience(1.0, 2, (True, False)))
    np.testing.assert_array_equal(state.pending.plan[0], 0)
    np.testing.assert_array_equal(state.pending.plan[1], shift(plan)[1])
    np.testing.assert_allclose(state.pending.obs[:, 0], [1.02, 1.12])
    np.testing.assert_allclose(state.replay.take(jnp.arange(2)).next_obs[:, 0], [1.01, 1.11])


@pytest.mark.parametrize(("terminated", "expected"), [(True, 1.0), (False, 0.0)])
def test_only_termination_is_stored_as_one(terminated, expected):
    agent, state = make()
    state = jit(agent.observe)(state, experience(1.0, 1, (True,), terminated))
    assert state.replay.take(jnp.arange(1)).terminated[0] == expected


@pytest.mark.parametrize("end_value", [0.0, -50.0])
def test_target_holds_the_worth_of_an_end_after_termination_and_bootstraps_otherwise(end_value):
    agent, state = make(objective__end_value=end_value)
    size = 6
    batch = Transition(
        jnp.zeros((size, 1)),
        jnp.zeros((size, 1)),
        jnp.arange(size, dtype=jnp.float32),
        jnp.ones((size, 1)),
        jnp.array([1.0, 0, 1, 0, 1, 0]),
    )
    start = jnp.zeros((size, agent.config.target_planner.horizon + 1, 1))
    target, result = jit(agent.learner.targets)(state.models, jax.random.key(0), batch, start)
    np.testing.assert_allclose(target[::2], np.array([0, 2, 4]) + 0.99 * end_value, rtol=1e-6)
    np.testing.assert_allclose(target[1::2], batch.reward[1::2] + 0.99 * result.value[1::2], rtol=1e-6)


def test_an_update_writes_refined_plans_back_where_it_drew_them():
    agent, state = make()
    state = filled(agent, state)
    after, _ = jit(agent.learner.update)(state)
    before_plans, after_plans = state.replay.plans, after.replay.plans
    changed = np.flatnonzero(np.any(np.asarray(before_plans != after_plans)[:, :-1], axis=1))
    size = int(state.replay.size)
    assert 0 < len(changed) <= agent.config.critic.batch_size
    assert changed.max() < size
    np.testing.assert_array_equal(after.replay.records, state.replay.records)
    again, _ = jit(agent.learner.update)(after)
    stamps = np.asarray(again.replay.plans[:, -1])
    assert set(np.unique(stamps)) <= {0.0, 1.0}


def test_a_second_visit_starts_from_the_plan_of_the_first():
    """With one transition in memory, the stored plan after an update is the plan that the target solve returned."""
    agent, state = make(critic__batch_size=1)
    state = filled(agent, state, steps=1)
    key = jax.random.split(jax.random.split(state.key, 3)[1])[1]  # as update and its critic part split it
    rows = jnp.zeros(1, jnp.int32)
    batch, (start, _) = state.replay.take(rows), state.replay.take_plans(rows)
    expected = jit(agent.planner.value)(state.models, key, batch.next_obs, start).plan
    after, _ = jit(agent.learner.update)(state)
    np.testing.assert_allclose(after.replay.take_plans(rows)[0], expected, atol=1e-6)


@pytest.mark.parametrize("relative", [pytest.param(False, marks=pytest.mark.slow), True])
def test_relative_errors_are_weighed_by_what_the_slow_critic_says_of_the_stored_step(relative):
    agent, state = make(critic__batch_size=1, critic__relative=relative, critic__scale=0.01)
    state = filled(agent, state, steps=1)
    key = jax.random.split(jax.random.split(state.key, 3)[1])[1]  # as update and its critic part split it
    rows = jnp.zeros(1, jnp.int32)
    batch, (start, _) = state.replay.take(rows), state.replay.take_plans(rows)
    slow = jax.tree.map(lambda leaf: 5 * leaf, state.models.target_critic)
    models = dataclasses.replace(state.models, target_critic=slow)
    target, _ = jit(agent.learner.targets)(models, key, batch, start)
    features = agent.planner.features(models, batch.obs)
    weight = slow.tolerance(features, batch.action) if relative else jnp.ones(1)
    expected, _ = models.critic.loss(features, batch.action, target, weight)
    _, figures = jit(agent.learner.update)(dataclasses.replace(state, models=models))
    np.testing.assert_allclose(figures.critic_loss, expected, rtol=1e-4)
    assert (float(weight[0]) < 0.9) == relative


@pytest.mark.parametrize("terminated", [0.0, 1.0])
def test_imagined_steps_stand_beside_drawn_ones_and_follow_none_that_ended_an_episode(terminated):
    agent, state = make(critic__imagined=0.5)
    size, slots = agent.config.critic.batch_size // 2, agent.config.target_planner.horizon + 1
    batch = Transition(
        jnp.zeros((size, 1)), jnp.zeros((size, 1)), jnp.zeros(size), jnp.ones((size, 1)), jnp.full(size, terminated)
    )
    plans = 0.3 * jnp.ones((size, slots, 1))
    joined, starts, weight = jit(agent.learner._beside_imagined)(state.models, jax.random.key(0), batch, plans)
    assert joined.obs.shape == (2 * size, 1) and starts.shape == (2 * size, slots, 1)
    np.testing.assert_array_equal(joined.obs[:size], batch.obs)
    np.testing.assert_array_equal(starts[:size], plans)
    np.testing.assert_array_equal(weight, [1.0] * size + [1 - terminated] * size)
    assert np.all(np.asarray(joined.obs[size:]) != batch.next_obs)  # a model's step away from it


def test_only_plans_of_drawn_steps_are_written_back():
    batch_size = 16
    agent, state = make(critic__imagined=0.5, critic__batch_size=batch_size)
    state = filled(agent, state)
    after, figures = jit(agent.learner.update)(state)
    changed = np.any(np.asarray(state.replay.plans != after.replay.plans)[:, :-1], axis=1)
    assert 0 < changed.sum() <= batch_size // 2
    assert np.isfinite(float(figures.critic_loss))


def test_invalid_targets_do_not_reach_the_critic():
    """A reward of NaN in the model makes every sample invalid: critic and plans stand still, and it is counted."""
    spec = TaskSpec(lambda s, a, n: jnp.full(s.shape[0], jnp.nan), never)
    agent = Agent(dataclasses.replace(SYSTEM.task, spec=spec), small_config())
    state = filled(agent, jit(agent.init)(jax.random.key(0)))
    after, figures = jit(agent.learner.update)(state)
    for old, new in zip(jax.tree.leaves(state.models.critic), jax.tree.leaves(after.models.critic), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(state.replay.plans[:, :-1], after.replay.plans[:, :-1])
    assert figures.target_invalid == 1
    assert np.isfinite(np.asarray(figures.critic_loss))


def test_members_stay_different_while_they_learn():
    state = learn(SYSTEM, small_config(), jax.random.key(0), 60)
    for leaf in jax.tree.leaves(state.models.dynamics.members):
        flat = np.asarray(leaf).reshape(leaf.shape[0], -1)
        assert np.abs(flat[:, None] - flat[None]).max(-1)[~np.eye(len(flat), dtype=bool)].min() > 1e-3


def test_decay_shrinks_matrices_beside_what_adam_does_and_nothing_else():
    decay, rate = 20.0, 1e-2
    runs = [make(dynamics__weight_decay=wd, dynamics__learning_rate=rate) for wd in (0.0, decay)]
    before = filled(*runs[0])
    plain, decayed = (
        jit(agent.learner.update)(dataclasses.replace(before, dynamics_optimizer=fresh.dynamics_optimizer))[0]
        for agent, fresh in runs
    )
    old, adam, both = (state.models.dynamics.members for state in (before, plain, decayed))
    for index, layer in enumerate(old.layers):
        expected = adam.layers[index].weight - rate * decay * layer.weight
        np.testing.assert_allclose(both.layers[index].weight, expected, atol=1e-6)
        np.testing.assert_array_equal(both.layers[index].bias, adam.layers[index].bias)
    for index, norm in enumerate(adam.norms):
        np.testing.assert_array_equal(both.norms[index].scale, norm.scale)


def networks_of(state: AgentState, newest: bool) -> list[jax.Array]:
    """Parameters of models and learned goal: those that learn, or those that planning asks."""
    models, goal = state.models, state.models.goal
    assert goal is not None
    asked = (models.dynamics.members, goal.networks)
    return jax.tree.leaves((state.dynamics_newest, state.goal_newest) if newest else asked)


def test_planning_asks_the_mean_of_all_models_that_learning_made_and_later_of_the_last():
    agent, state = make(dynamics__average_step=0.3, objective__goal="learned")
    state = filled(agent, state)
    update, newest = jit(agent.learner.update), []
    for _ in range(5):
        state, _ = update(state)
        newest.append([np.asarray(leaf, np.float64) for leaf in networks_of(state, newest=True)])
    weights = 0.7**2 * np.array([1 / 3, 1 / 3, 1 / 3, 0, 0]) + [0, 0, 0, 0.3 * 0.7, 0.3]  # 1, 1/2, 1/3, then 0.3
    for place, leaf in enumerate(networks_of(state, newest=False)):
        mean = sum(w * made[place] for w, made in zip(weights, newest, strict=True))
        assert np.abs(newest[4][place] - mean).max() > 1e-4
        np.testing.assert_allclose(leaf, mean, atol=1e-6)


def test_what_learns_does_not_depend_on_the_mean():
    averaged, plain = make(dynamics__average_step=0.3), make(dynamics__average_step=1.0)
    states = [filled(agent, state) for agent, state in (averaged, plain)]
    for _ in range(3):
        states = [
            jit(agent.learner.update)(state)[0] for (agent, _), state in zip((averaged, plain), states, strict=True)
        ]
    assert states[1].dynamics_newest is None
    newest, only = states[0].dynamics_newest, states[1].models.dynamics.members
    for one, other in zip(jax.tree.leaves(newest), jax.tree.leaves(only), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_the_target_network_moves_only_when_due():
    agent, state = make(critic__target_every=2)
    state = filled(agent, state)
    first, _ = jit(agent.learner.update)(state)
    second, _ = jit(agent.learner.update)(first)
    old, one, two = (jax.tree.leaves(s.models.target_critic)[0] for s in (state, first, second))
    np.testing.assert_array_equal(old, one)
    assert np.any(np.asarray(one != two))


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    runs = [learn(SYSTEM, small_config(), jax.random.key(seed), 60) for seed in (3, 3, 4)]
    one, same, other = ([np.asarray(x) for x in jax.tree.leaves(run.models)] for run in runs)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_seeds_can_be_mapped():
    """`vmap` over seeds gives what single runs give, to rounding (at a temperature that does not amplify it)."""
    config = small_config(objective__temperature=10.0)
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.vmap(lambda key: learn(SYSTEM, config, key, 40))(keys)
    for index, key in enumerate(keys):
        alone = learn(SYSTEM, config, key, 40)
        np.testing.assert_allclose(together.replay.records[index], alone.replay.records, atol=1e-4)
        np.testing.assert_allclose(together.pending.plan[index], alone.pending.plan, atol=1e-3)


def test_a_step_compiles_once_whatever_the_number_of_updates():
    agent, state = make()
    traces = []

    def traced(state, experience, updates):
        traces.append(0)
        return agent.step(state, experience, updates, "sample")

    step = jax.jit(traced, donate_argnums=0)
    state, _ = jit(agent.begin)(state, jnp.zeros((1, 1)))
    for number in range(5):
        state, _, _ = step(state, experience(number, 1, (number == 2,)), np.int32(number))
    assert len(traces) == 1
    assert state.updates == 10


@pytest.mark.usefixtures("optimized")
def test_a_compiled_step_copies_no_replay():
    """A copy of a million transitions would cost more than all of the learning in a step."""
    capacity = 100_003
    agent = Agent(SYSTEM.task, small_config(training__capacity=capacity))
    state = jax.eval_shape(agent.init, jax.random.key(0))
    answer = experience(0.0, 1, (False,))
    step = jit(agent.step, static_argnums=3, donate_argnums=0)
    program = step.lower(state, answer, np.int32(1), "sample").compile().as_text()
    assert program is not None
    assert f"f32[{capacity}," in program
    assert re.findall(rf"f32\[{capacity},\d+\]\S* copy", program) == []


@pytest.mark.parametrize("explore", ["sample", "mean"])
def test_the_mean_of_the_plan_or_one_of_its_samples_is_played(explore):
    """The mean of the plan is what is kept; a sampled action is one of the K sequences, not the mean."""
    agent, state = make(objective__temperature=10.0)  # so that no single sequence has all the weight
    state, _ = jit(agent.begin)(state, jnp.zeros((1, 1)))
    state, _ = jit(partial(agent.act, explore=explore))(state)
    first = np.asarray(state.pending.plan[:, 0])
    action = np.asarray(state.pending.action)
    assert np.array_equal(first, action) == (explore == "mean")


@pytest.mark.parametrize("hold", [1.0, 4.0])
def test_random_actions_are_held_for_as_long_as_asked_on_average_and_stay_uniform(hold):
    """Holds are geometric: an action is renewed with probability 1 / hold. The box is covered as evenly as without."""
    envs = 4000
    agent, state = make(training__num_envs=envs, training__capacity=envs, training__seed_hold=hold)
    state, first = jit(agent.begin)(state, jnp.zeros((envs, 1)))
    _, second = jit(agent.random_step)(state, experience(0.0, envs, (False,) * envs))
    renewed = np.mean(np.asarray(first != second))
    assert abs(renewed - 1 / hold) <= 4 * np.sqrt(1 / hold * (1 - 1 / hold) / envs)
    for action in (np.asarray(first), np.asarray(second)):
        assert abs(np.mean(action)) < 4 * np.sqrt(1 / 3 / envs)
        assert abs(np.mean(action**2) - 1 / 3) < 4 * np.sqrt(4 / 45 / envs)


def test_exploring_actions_are_off_by_a_push_that_lasts():
    """Off by at most `push`, by the same in a share 1 - 1 / `push_hold` of the next steps; never in control."""
    envs, hold = 400, 4.0
    settings = {"training__num_envs": envs, "training__push": 0.3, "training__push_hold": hold}
    agent, state = make(**settings, training__capacity=10 * envs)
    state, _ = jit(agent.begin)(state, jnp.linspace(-1, 1, envs)[:, None])
    act = jit(agent.act, static_argnums=1)
    for _ in range(40):  # until all but (1 - 1 / hold)^40 of them are pushed
        state, _ = act(state, "mean")
    before = np.asarray(state.pending.push)
    state, result = act(state, "mean")
    push, action = np.asarray(state.pending.push), np.asarray(state.pending.action)
    np.testing.assert_allclose(action, np.clip(result.plan[:, 0] + 0.3 * push, -1, 1), atol=1e-6)
    assert abs(np.mean(push**2) - 1 / 3) < 4 * np.sqrt(4 / 45 / envs)
    assert abs(np.mean(push != before) - 1 / hold) <= 4 * np.sqrt(1 / hold * (1 - 1 / hold) / envs)

    controls, state = make(**settings, training__capacity=10 * envs, training__control_stretch=3)
    state, _ = jit(controls.begin)(state, jnp.linspace(-1, 1, envs)[:, None])
    state, result = jit(controls.act, static_argnums=1)(state, "sample")
    np.testing.assert_array_equal(state.pending.action, result.plan[:, 0])


@pytest.mark.parametrize("share", [0.25, pytest.param(1.0, marks=pytest.mark.slow)])
def test_the_target_planner_acts_on_its_share_of_steps(share):
    envs = 400
    agent, state = make(training__num_envs=envs, training__target_steps=share, target_planner__keep_nominal=False)
    state, _ = jit(agent.begin)(state, jnp.linspace(-1, 1, envs)[:, None])
    state, _ = jit(agent.act, static_argnums=1)(state, "mean")
    by_targets = np.mean(np.asarray(state.pending.action != state.pending.plan[:, 0]))
    both_at_the_edge = 0.02  # of the box, where two solves may come to the same
    assert abs(by_targets - share) <= 4 * np.sqrt(share * (1 - share) / envs) + both_at_the_edge


@pytest.mark.parametrize(("stretch", "capacity"), [(3, 512), (300, 12)])
def test_every_other_stretch_acts_as_deterministic_control_does(stretch, capacity):
    """Of two environments; as control acts, by its critic and trace, first. A stretch is half of the replay at most."""
    agent, state = make(
        training__num_envs=2,
        training__target_steps=1.0,
        training__control_stretch=stretch,
        training__capacity=capacity,
        training__explore_trace=1.0,
        planner__trace=0.3,
        critic__control="slow",
    )
    models = dataclasses.replace(state.models, critic=jax.tree.map(lambda leaf: -3 * leaf, state.models.critic))
    state, _ = jit(agent.begin)(dataclasses.replace(state, models=models), jnp.array([[0.3], [-0.6]]))
    act, observe, control = jit(agent.act, static_argnums=1), jit(agent.observe), jit(agent.planner.control)

    as_control = []
    for _ in range(13):
        before = state
        state, _ = act(before, "sample")
        plan_key = jax.random.split(before.key)[1]
        decided = control(before.models, plan_key, before.pending.obs, before.pending.plan)
        as_control.append(bool(jnp.allclose(state.pending.action, decided.action, atol=1e-6)))
        state = observe(state, experience(0.0, 2, (False, False)))
    assert as_control == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3 + [True]


def test_planning_as_targets_is_the_target_solve_with_the_newest_critic():
    agent, state = make(target_planner__horizon=2)
    obs, start = jnp.array([[0.4]]), jnp.full((1, agent.config.planner.horizon + 1, 1), 0.3)
    now = dataclasses.replace(state.models, critic=jax.tree.map(lambda leaf: 2 * leaf, state.models.critic))
    slow = dataclasses.replace(now, target_critic=now.critic)
    as_targets, value = jit(agent.planner.plan_as_targets), jit(agent.planner.value)
    expected = value(slow, jax.random.key(1), obs, start[:, :3])
    found = as_targets(now, jax.random.key(1), obs, start)
    assert found.plan.shape == (1, 3, 1)
    np.testing.assert_array_equal(found.plan, expected.plan)
    assert np.any(found.plan != value(now, jax.random.key(1), obs, start[:, :3]).plan)


def test_who_acts_as_targets_suppose_strays_as_far_from_a_plan_as_the_online_planner():
    narrow, state = make(planner__width=0.5)
    both, _ = make(planner__width=0.5, target_planner__width=0.5)
    obs, start, key = jnp.array([[0.4]]), jnp.full((1, narrow.config.planner.horizon + 1, 1), 0.3), jax.random.key(1)
    models = dataclasses.replace(state.models, target_critic=state.models.critic)
    acted = jit(narrow.planner.plan_as_targets)(models, key, obs, start)
    np.testing.assert_array_equal(acted.plan, jit(both.planner.value)(models, key, obs, start).plan)
    assert np.any(acted.plan != jit(narrow.planner.value)(models, key, obs, start).plan)


@pytest.mark.parametrize(("explored", "effective"), [(0.2, 0.3), (1.0, 1.0)])
@pytest.mark.parametrize("as_control", [True, False])
def test_exploring_plans_have_a_trace_of_their_own(explored, effective, as_control):
    agent, state = make(planner__trace=0.3, training__explore_trace=explored)
    alike, _ = make(planner__trace=0.3 if as_control else effective, training__explore_trace=0.0)
    obs, start, key = jnp.array([[0.4]]), jnp.full((1, agent.config.planner.horizon + 1, 1), 0.3), jax.random.key(1)
    found = jit(agent.planner.plan)(state.models, key, obs, start, as_control)
    np.testing.assert_allclose(found.plan, jit(alike.planner.plan)(state.models, key, obs, start).plan, atol=1e-5)
    controlled = jit(agent.planner.control)(state.models, key, obs, start).action
    assert np.allclose(found.plan[:, 0], controlled, atol=1e-5) == (as_control or effective == 0.3)


@pytest.mark.parametrize("asked", ["newest", "slow", "mean"])
def test_control_asks_the_critic_that_it_is_told_to_and_training_the_newest(asked):
    agent, state = make(critic__control=asked)
    obs, start = jnp.array([[0.4]]), jnp.full((1, agent.config.planner.horizon + 1, 1), 0.3)
    plan, control = jit(agent.planner.plan), jit(agent.planner.control)

    def values(*tripled: str) -> tuple[float, float]:
        scaled = {name: jax.tree.map(lambda leaf: 3 * leaf, getattr(state.models, name)) for name in tripled}
        models, key = dataclasses.replace(state.models, **scaled), jax.random.key(1)
        return float(plan(models, key, obs, start).value[0]), float(control(models, key, obs, start).value[0])

    trained, controlled = values()
    for control_name, name in CONTROL_CRITICS.items():
        by_plan, by_control = values(name)
        assert (by_plan != trained) == (name == "critic")
        if getattr(state.models, name) is not None:
            assert (by_control != controlled) == (control_name == asked)


@pytest.mark.parametrize("updates", [1, 7, 400])
def test_the_mean_critic_is_over_the_last_tenth_of_all_updates(updates):
    """Of n updates, those from the m-th on weigh 1 - prod_{i=m}^{n-1} i / (i + 10), about 1 - (m / n)^10."""
    agent, state = make(critic__control="mean")
    mean, after, middle = state.models.mean_critic, jit(agent.learner._mean_critic), updates // 2
    zeros, ones = (jax.tree.map(lambda leaf, x=x: jnp.full_like(leaf, x), state.models.critic.networks) for x in (0, 1))
    for n in range(updates):
        mean = after(mean, ones if n >= middle else zeros, jnp.array(n))
    forgotten = np.prod([i / (i + 10) for i in range(middle, updates)])
    for leaf in jax.tree.leaves(mean):
        np.testing.assert_allclose(leaf, 1 - forgotten, atol=1e-5)


def test_the_mean_critic_is_over_a_thousand_updates_at_most():
    agent, state = make(critic__control="mean")
    zeros, ones = (jax.tree.map(lambda leaf, x=x: jnp.full_like(leaf, x), state.models.critic) for x in (0, 1))
    moved = agent.learner._mean_critic(zeros, ones.networks, jnp.array(10**6))
    np.testing.assert_allclose(jax.tree.leaves(moved)[0], 1e-3, rtol=1e-5)


@pytest.mark.parametrize("asked", CONTROL_CRITICS)
def test_an_update_moves_the_mean_critic_where_there_is_one(asked):
    agent, state = make(critic__control=asked)
    state = dataclasses.replace(filled(agent, state), updates=jnp.array(50))
    models = jit(agent.learner.update)(state)[0].models
    assert (models.mean_critic is not None) == (asked == "mean")
    expected = agent.learner._mean_critic(state.models.mean_critic, models.critic.networks, jnp.array(50))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), models.mean_critic, expected)


def test_hidden_positions_reach_the_reward_but_no_network():
    """Moving along the track changes neither plan nor value when positions are hidden, and does when they are seen."""
    spec = TaskSpec(lambda s, a, n: n[:, 0] - s[:, 0], never, positions=(0,))
    system = System(lambda s, a: s, spec, obs_size=2)
    for seen in (False, True):
        agent = Agent(system.task, small_config(training__observe_position=seen))
        models = jit(agent.init)(jax.random.key(0)).models
        start = jnp.zeros((2, agent.config.planner.horizon + 1, 1))
        obs = jnp.array([[0.0, 0.3], [0.0, 0.3]])
        plan = jit(agent.planner.plan)
        here = plan(models, jax.random.key(1), obs, start)
        there = plan(models, jax.random.key(1), obs + jnp.array([[4.0, 0.0]]), start)
        assert np.allclose(here.value, there.value, atol=1e-4) == (not seen)


def test_a_turn_more_changes_neither_plan_nor_value_where_angles_are_wrapped():
    spec = TaskSpec(lambda s, a, n: n[:, 1] - s[:, 1], never, positions=(0,), angles=(1,))
    system = System(lambda s, a: s, spec, obs_size=3)
    obs = jnp.array([[0.0, 0.3, 0.5], [0.0, -2.0, 0.1]])
    for wrapped in (False, True):
        agent = Agent(system.task, small_config(training__wrap_angles=wrapped))
        models = jit(agent.init)(jax.random.key(0)).models
        start = jnp.zeros((2, agent.config.planner.horizon + 1, 1))
        plan = jit(agent.planner.plan)
        here = plan(models, jax.random.key(1), obs, start)
        there = plan(models, jax.random.key(1), obs + jnp.array([[0.0, 2 * jnp.pi, 0.0]]), start)
        elsewhere = plan(models, jax.random.key(1), obs + jnp.array([[0.0, 1.0, 0.0]]), start)
        assert np.allclose(here.value, there.value, atol=1e-4) == wrapped
        assert not np.allclose(here.value, elsewhere.value, atol=1e-4)
