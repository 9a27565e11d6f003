"""Diagnostics against systems whose values and models are known exactly, and against independent NumPy loops.

The system x' = A x + B a with reward g.x has linear dynamics and a linear value. Networks that compute them to rounding
can be written down, as silu(z) - silu(-z) = z; so errors are what a test puts in, and 0 where it puts none.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.compilation import jit
from soft_mpcritic.critic import SoftQ
from soft_mpcritic.diagnostics import Diagnostics, Effort, reliability, summarize
from soft_mpcritic.diagnostics.figures import rank_correlation, spread_ratio
from soft_mpcritic.diagnostics.models import draw_windows
from soft_mpcritic.diagnostics.solves import PATIENCE, solve_again
from soft_mpcritic.diagnostics.values import TAIL, counted_steps, discounted_returns
from soft_mpcritic.dynamics import EnsembleDynamics
from soft_mpcritic.envs.tasks import TaskSpec
from soft_mpcritic.networks import MLP, Linear
from soft_mpcritic.planner import CONTROL_CRITICS, Models
from soft_mpcritic.types import Episode, Trajectory, Transition
from tests.systems import System, never, small_config

A = np.array([[0.9, 0.2], [-0.1, 0.8]])
GAIN = np.array([1.0, -0.5])  # g
DISCOUNT, MEMBERS, WIDTH = 0.9, 4, 3
VALUE = np.linalg.solve(np.eye(2) - DISCOUNT * A.T, GAIN)  # v.x is the return of playing 0 for ever
B = np.array([[0.0], [1 / (DISCOUNT * VALUE[1])]])  # so that Q(x, a) = v.x + gamma v.B a = v.x + a
EFFORT = Effort(steps=64, windows=64, solves=8, reference_samples=64)


def step(obs, action):
    return obs @ jnp.asarray(A.T, jnp.float32) + action @ jnp.asarray(B.T, jnp.float32)


def reward(obs, action, next_obs):
    return obs @ jnp.asarray(GAIN, jnp.float32)


SYSTEM = System(step, TaskSpec(reward, never), obs_size=2)


def linear_networks(weight: np.ndarray, biases: np.ndarray) -> MLP:
    """One network for each bias [N, O], stacked, that computes weight @ input + bias; weight [O, I]."""
    size = weight.shape[1]
    inner = jnp.asarray(np.concatenate([np.eye(size), -np.eye(size)], axis=1), jnp.float32)
    outer = jnp.asarray(np.concatenate([weight.T, -weight.T]), jnp.float32)

    def network(bias: jax.Array) -> MLP:
        return MLP((Linear(inner, jnp.zeros(2 * size)), Linear(outer, bias)), ())

    return jax.vmap(network)(jnp.asarray(biases, jnp.float32))


def make(bias: float = 0.0, drift: np.ndarray | None = None, **changes: object) -> tuple[Agent, AgentState]:
    """An agent whose Q is that of playing 0 after one action, plus `bias`; members are off by `drift` [N, S] a step."""
    config = small_config(
        objective__discount=DISCOUNT,
        dynamics__normalize=False,
        dynamics__members=MEMBERS,
        critic__unit="reward",
        **{"planner__horizon": WIDTH, **changes},
    )
    agent = Agent(SYSTEM.task, config)
    state = jit(agent.init)(jax.random.key(0))
    drift = np.zeros((MEMBERS, 2)) if drift is None else drift
    dynamics = linear_networks(np.concatenate([A - np.eye(2), B], axis=1), drift)
    networks = linear_networks(np.concatenate([VALUE, [1.0]])[None], np.full((2, 1), bias))
    critic = dataclasses.replace(state.models.critic, networks=networks)
    models = dataclasses.replace(known_by(state.models, critic), dynamics=EnsembleDynamics(dynamics))
    return agent, with_memory(agent, dataclasses.replace(state, models=models))


def known_by(models: Models, critic: SoftQ) -> Models:
    """`critic` in the place of all copies."""
    copies = {name: jax.tree.map(jnp.copy, critic) for name in CONTROL_CRITICS.values()}
    return dataclasses.replace(models, **copies)


def with_memory(agent: Agent, state: AgentState) -> AgentState:
    """100 random transitions of the system, every fourth one terminated, with plans kept 7 updates ago."""
    rng = np.random.default_rng(1)
    obs, action = (jnp.asarray(rng.uniform(-1, 1, (100, size)), jnp.float32) for size in (2, 1))
    terminated = jnp.asarray(np.arange(100) % 4 == 0, jnp.float32)
    batch = Transition(obs, action, reward(obs, action, obs), step(obs, action), terminated)
    slots = agent.config.target_planner.horizon + 1
    replay = state.replay.add(batch, jnp.zeros((100, slots, 1)), jnp.asarray(3))
    return dataclasses.replace(state, replay=replay, updates=jnp.asarray(10, jnp.int32))


def played(lengths: tuple[int, ...] = (60, 40), actions: float = 0.0, terminated: bool = False) -> list[Trajectory]:
    """Episodes of the true system in float64, under random actions of size `actions`."""
    rng = np.random.default_rng(2)
    trajectories = []
    for index, length in enumerate(lengths):
        obs, action = [rng.uniform(-1, 1, 2)], actions * rng.uniform(-1, 1, (length, 1))
        for time in range(length):
            obs.append(A @ obs[-1] + B @ action[time])
        path = np.array(obs)
        paid = path[:-1] @ GAIN
        parts = (path[:-1], action, paid, path[1:], path[:-1] @ VALUE + 1.0)
        trajectories.append(
            Trajectory(Episode(index, float(paid.sum()), length), *(p.astype(np.float32) for p in parts), terminated)  # pyright: ignore[reportCallIssue]
        )
    return trajectories


# ------------------------------------------------------------------- values


def test_returns_are_discounted_sums_to_the_end():
    paid = np.array([1.0, 2.0, -3.0, 0.5])
    expected = [sum(0.9 ** (k - t) * paid[k] for k in range(t, 4)) for t in range(4)]
    np.testing.assert_allclose(discounted_returns(paid, 0.9), expected, rtol=1e-12)


def test_steps_whose_return_was_cut_do_not_count_but_those_before_a_termination_do():
    """With gamma = 0.9 the tail weighs 0.9^29 = 0.047 after 29 steps, and 0.052 after 28."""
    cut, ended = played((60,))[0], played((60,), terminated=True)[0]
    assert 0.9**29 <= TAIL < 0.9**28
    assert counted_steps(cut, 0.9) == 60 - 28
    assert counted_steps(ended, 0.9) == 60
    assert counted_steps(cut, 1.0) == 0


@pytest.mark.parametrize("bias", [0.0, 2.5])
def test_a_critic_that_is_off_by_a_constant_has_that_bias(bias: float):
    """Nothing is paid but g.x and 0 is played, so that Q is the return; V was recorded one too high."""
    agent, state = make(bias)
    values = Diagnostics(agent, EFFORT)(state, played((400, 300))).values
    assert len(values.q) == EFFORT.steps
    assert np.std(values.ret) > 1e-3
    np.testing.assert_allclose(values.q - values.ret, bias, atol=1e-5)
    np.testing.assert_allclose(values.soft_value - values.ret, 1.0, atol=1e-5)


def test_what_an_end_is_worth_to_the_objective_belongs_to_the_return():
    (ended,), (cut,) = played((60,), terminated=True), played((60,))
    returns = []
    for end_value in (0.0, -20.0):
        agent, state = make(objective__end_value=end_value)
        diagnose = Diagnostics(agent, EFFORT)
        assert len(diagnose(state, [ended]).values.ret) == 60
        returns.append([np.sort(diagnose(state, [of]).values.ret) for of in (ended, cut)])
    free, priced = returns
    np.testing.assert_allclose(np.sum(free[0] - priced[0]), 20 * np.sum(0.9 ** np.arange(1, 61)), rtol=1e-4)
    np.testing.assert_array_equal(free[1], priced[1])


def test_what_a_time_limit_cut_off_is_an_error_of_at_most_its_weight():
    """Rewards of 1 for ever, and a critic that knows: the return of step t lacks gamma^(L - t) of its value."""
    agent, state = make()
    networks = linear_networks(np.zeros((1, 3)), np.full((2, 1), 10.0))
    critic = dataclasses.replace(state.models.critic, networks=networks)
    state = dataclasses.replace(state, models=known_by(state.models, critic))
    (episode,) = played((60,))
    values = Diagnostics(agent, EFFORT)(state, [episode._replace(reward=np.ones(60, np.float32))]).values
    lacking = np.sort((values.q - values.ret) / 10)
    np.testing.assert_allclose(lacking, 0.9 ** np.arange(60, 28, -1), rtol=1e-4)


# ------------------------------------------------------------------- solves

TEMPERATURE, VARIANCE = 0.5, 0.05  # a deviation of 0.22: the box is out of reach
OPTIMUM = VARIANCE / TEMPERATURE  # Sigma g / lambda with the slope g = 1 of Q in a
SOFT_GAIN = VARIANCE / (2 * TEMPERATURE)  # g' Sigma g / (2 lambda): V(x) = v.x + 0.05 at H = 0


def solved(plan: float):
    """Diagnosed solves at H = 0, where every kept plan is `plan`; and the exact soft values of the same states."""
    agent, state = make(
        objective__temperature=TEMPERATURE, objective__variance=VARIANCE, target_planner__horizon=0, planner__horizon=0
    )
    rows = jnp.arange(100)
    replay = state.replay.write_plans(rows, jnp.full((100, 1, 1), plan), jnp.asarray(3))
    # each next state is known by its value, so that solves can be told apart: v.x of all kept next states
    known = np.asarray(replay.take(rows).next_obs, float) @ VALUE + SOFT_GAIN
    effort = dataclasses.replace(EFFORT, batches=6, reference_samples=2000)
    return Diagnostics(agent, effort)(dataclasses.replace(state, replay=replay), played()).solves, known


def test_around_the_optimal_plan_every_sample_says_the_exact_value():
    """J / lambda - L is then the same for all samples: 4 of them are exact, all count, and the reference agrees."""
    solves, known = solved(OPTIMUM)
    exact = known[np.argmin(np.abs(solves.stored[:, None] - known), axis=1)]
    np.testing.assert_allclose(solves.stored, exact, atol=2e-3)
    np.testing.assert_allclose(solves.effective_samples, 4, rtol=1e-3)
    assert np.all(solves.plan_age == 7)
    error = TEMPERATURE / np.sqrt(solves.reference_effective_samples)
    assert np.all(solves.reference_effective_samples > 500)
    assert np.all(np.abs(solves.reference - exact) < 4 * error)
    noise = np.std(solves.cold - exact)
    assert 0.02 < noise < 0.3  # around zeros 4 samples are not exact


def test_a_bad_plan_in_memory_shows_as_bias_and_as_a_gap_to_planning_anew():
    """4 samples around -0.8, four deviations from the optimum, see too little; 8 solves from zeros do not."""
    solves, _ = solved(-0.8)
    assert np.mean(solves.stored - solves.reference) < -0.2
    assert np.mean(solves.stored - solves.cold) < -0.2
    assert np.mean(solves.stored - solves.fresh) < -0.2
    np.testing.assert_allclose(np.mean(solves.fresh - solves.reference), 0, atol=0.05)
    assert np.mean(solves.effective_samples) < 3


def test_next_states_after_a_termination_are_left_out():
    """As many rows remain as the draw holds unfinished ones: the ages 7 and 2 tell which is which."""
    agent, state = make()
    ended = np.flatnonzero(np.asarray(state.replay.take(jnp.arange(100)).terminated))
    plans, _ = state.replay.take_plans(jnp.asarray(ended))
    state = dataclasses.replace(state, replay=state.replay.write_plans(jnp.asarray(ended), plans, jnp.asarray(8)))
    solves = Diagnostics(agent, dataclasses.replace(EFFORT, batches=4))(state, played()).solves
    assert 8 < len(solves.plan_age) < 32
    assert np.all(solves.plan_age == 7)


def test_solves_again_are_solves_one_after_another():
    mppi = make()[0].planner.mppi(small_config().target_planner)
    start, keys = jnp.zeros((2, 5, 1)), jax.random.split(jax.random.key(4), 3)

    def returns_fn(actions):
        return -jnp.sum((actions - 0.3) ** 2, axis=(2, 3))

    again = solve_again(mppi, returns_fn, 3, jax.random.key(4), start)
    plan = start
    for number, key in enumerate(keys):
        result = mppi.solve(key, plan, returns_fn)
        plan = result.plan
        np.testing.assert_allclose(again.plan[number], plan, atol=1e-6)
        np.testing.assert_allclose(again.value[number], result.value, atol=1e-6)
    assert np.abs(np.asarray(again.plan[2] - again.plan[0])).max() > 0.01
    assert PATIENCE > 1


# ------------------------------------------------------------------- models


def test_windows_are_what_was_played_and_end_with_the_episode():
    windows = draw_windows(played((5, 3), 1.0), np.random.default_rng(0), 12, 4)
    assert sorted(windows.live.sum(axis=1)) == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for obs, action, next_obs, paid, live in zip(*windows, strict=True):
        state = obs.astype(float)
        for k in np.flatnonzero(live):
            np.testing.assert_allclose(paid[k], GAIN @ state, atol=1e-5)
            state = A @ state + B @ action[k]
            np.testing.assert_allclose(next_obs[k], state, atol=1e-5)
    assert len(np.unique(windows.obs[windows.live[:, 0]], axis=0)) == 8


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_a_model_that_drifts_errs_by_what_a_loop_says(scale: float):
    """e_k = A e_{k-1} + d for every window, whatever was played; the reward of step k is off by g.e_{k-1}."""
    drift = scale * np.random.default_rng(3).normal(size=(MEMBERS, 2))
    agent, state = make(drift=drift)
    episodes = played((40, 40), 1.0)
    models = Diagnostics(agent, EFFORT)(state, episodes).models
    changes = np.asarray(state.replay.take(jnp.arange(100)).next_obs - state.replay.take(jnp.arange(100)).obs)
    deviation = changes.std(axis=0)
    error, paid_error = np.zeros((MEMBERS, WIDTH, 2)), np.zeros((MEMBERS, WIDTH))
    for member in range(MEMBERS):
        off = np.zeros(2)
        for k in range(WIDTH):
            paid_error[member, k] = GAIN @ off
            off = A @ off + drift[member]
            error[member, k] = off
    # rtol: the deviation is that of 2,048 rows drawn from these 100
    np.testing.assert_allclose(models.squares, (error / deviation) ** 2, rtol=0.1, atol=1e-9)
    np.testing.assert_allclose(models.reward_squares, paid_error**2, rtol=1e-3, atol=1e-9)
    spread = np.sqrt(np.mean((drift.std(axis=0, ddof=1) / deviation) ** 2))
    missed = np.sqrt(np.mean((drift.mean(axis=0) / deviation) ** 2))
    np.testing.assert_allclose(models.spread, spread, rtol=0.05, atol=1e-6)
    np.testing.assert_allclose(models.miss, missed, rtol=0.05, atol=1e-5)


def test_the_prediction_that_nothing_changes_is_rolled_too():
    """With one window per step of one episode, its error is a plain loop's over all of them."""
    (episode,) = played((30,), 1.0)
    agent, state = make()
    models = Diagnostics(agent, EFFORT)(state, [episode]).models
    path = np.concatenate([episode.obs, episode.next_obs[-1:]])
    expected = [np.mean([(path[t] - path[t + k]) ** 2 for t in range(31 - k)], axis=0) for k in range(1, WIDTH + 1)]
    ratio = models.still / np.array(expected)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=1e-4)  # 1 / deviation^2
    assert len(models.spread) == 30


def test_without_a_horizon_models_are_looked_at_one_step_ahead():
    agent, state = make(planner__horizon=0)
    figures = summarize(Diagnostics(agent, EFFORT)(state, played((40,), 1.0)))
    assert figures.model_error_first == figures.model_error_last
    assert np.isfinite(figures.model_error_first)


def test_where_nothing_can_be_compared_there_is_no_number():
    """An episode shorter than the horizon and than any whole return; a memory of terminations only."""
    agent, state = make(drift=0.1 * np.arange(8.0).reshape(MEMBERS, 2))
    rows = state.replay.records.at[:, -1].set(1.0)
    state = dataclasses.replace(state, replay=dataclasses.replace(state.replay, records=rows))
    figures = summarize(Diagnostics(agent, EFFORT)(state, played((2,))))._asdict()
    known = {name for name, value in figures.items() if np.isfinite(value)}
    assert known >= {"model_error_first", "model_skill_first", "reward_error_first", "spread_ratio"}
    assert not known & {"q_bias", "q_bias_std", "soft_value_bias", "target_bias", "value_gap_cold", "value_gap_fresh"}
    assert not known & {"model_error_last", "model_skill_last", "reward_error_last"}


# -------------------------------------------------------------- calibration


def gaussian(truth_scale: float, samples: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Spread and miss of members drawn with deviations that differ from row to row; the truth's times `truth_scale`."""
    rng = np.random.default_rng(5)
    scale = np.exp(rng.normal(size=(samples, 1)))
    members = scale * rng.normal(size=(MEMBERS, samples, 30))
    miss = members.mean(axis=0) - truth_scale * scale * rng.normal(size=(samples, 30))
    spread = members.std(axis=0, ddof=1)
    return np.sqrt(np.mean(spread**2, axis=1)), np.sqrt(np.mean(miss**2, axis=1))


@pytest.mark.parametrize("truth_scale", [0.0, 1.0, 2.0])
def test_members_drawn_like_the_truth_are_calibrated(truth_scale: float):
    """E miss^2 = v (truth_scale^2 + 1/N) against v (1 + 1/N): a ratio of 1 where the truth is like a member."""
    spread, miss = gaussian(truth_scale)
    expected = np.sqrt((1 + 1 / MEMBERS) / (truth_scale**2 + 1 / MEMBERS))
    assert spread_ratio(spread, miss, MEMBERS) == pytest.approx(expected, rel=0.05)
    foretold, missed = reliability(spread, miss, MEMBERS)
    assert len(foretold) == 10 and np.all(np.diff(foretold) > 0)
    np.testing.assert_allclose(foretold / missed, expected, rtol=0.05)
    assert rank_correlation(spread, miss) > 0.6


def test_rank_correlation_sees_order_alone():
    one = np.array([3.0, 1.0, 2.0, 10.0])
    assert rank_correlation(one, np.exp(one)) == pytest.approx(1)
    assert rank_correlation(one, -(one**3)) == pytest.approx(-1)
    other = np.array([1.0, 2.0, 3.0, 4.0])  # squared differences of ranks: 4, 1, 1, 0
    assert rank_correlation(one, other) == pytest.approx(1 - 6 * 6 / (4 * 15))
    assert np.isnan(rank_correlation(one, np.array([1.0, np.inf, 0.0, 2.0])))


def test_a_single_member_has_no_spread():
    assert np.isnan(spread_ratio(np.full(3, np.nan), np.ones(3), 1))
